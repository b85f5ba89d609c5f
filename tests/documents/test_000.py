"""The samples of the interface document 000, "Metrics Implementation Summary".

Changed are the imports; ``session`` is a recorder, and ``download_images`` is a function of the test. The sample "Track
Queue Depth" needs a broker and is tested with the Celery integration; the endpoints are tested in ``tests/server``. The
integration point "Crawl Job Processing" is ``examples/crawl_job.py``, which is run here.
"""

import asyncio
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from recording import live, stored

import tallymark
from tallymark import Metrics

ROOT = Path(__file__).parents[2]


async def download_images(*arguments: Any) -> None:
    await asyncio.sleep(0)


def rows(folder: Path) -> list[tuple[str, str, str, str]]:
    return [(row["service"], row["metric_type"], row["name"], row["unit"]) for row in live(folder)]


def test_track_processing_time(metrics: Metrics, folder: Path) -> None:
    session = metrics

    # Usage Examples, Track Processing Time
    from tallymark.processing import track_processing_time

    async def main() -> None:
        async with track_processing_time(session, "download", metadata={"job_id": 123}):
            # Perform download operation
            await download_images(...)

    asyncio.run(main())
    assert rows(folder) == [("shop", "processing_time", "download_time", "ms")]
    assert live(folder)[0]["metadata"] == '{"job_id":123}'


def test_track_success_rate(metrics: Metrics, folder: Path) -> None:
    session = metrics

    # Usage Examples, Track Success Rate
    from tallymark.processing import track_success_rate

    async def main() -> None:
        await track_success_rate(
            session=session,
            operation="download",
            success_count=80,
            total_count=100,
            metadata={"job_id": 123},
        )

    asyncio.run(main())
    assert rows(folder) == [("shop", "success_rate", "download_success_rate", "%")]
    assert live(folder)[0]["value"] == 80.0


def test_using_metrics_collector(metrics: Metrics, folder: Path) -> None:
    session = metrics

    # Usage Examples, Using MetricsCollector
    from tallymark.processing import MetricsCollector

    collector = MetricsCollector(session, service_name="my-service")

    async def main() -> None:
        # Track operation time
        async with collector.track_operation("download", metadata={"job_id": 123}):
            await download_images(...)

        # Record success rate
        await collector.record_success_rate("download", 80, 100)

        # Record queue depth
        await collector.record_queue_depth("celery", depth=5, wait_time_seconds=2.5)

        # Flush all metrics to database
        await collector.flush()

    asyncio.run(main())
    assert metrics.get_stats().queue_size == 0
    assert [(record.service, record.name, record.unit) for record in stored(folder)] == [
        ("my-service", "download_time", "ms"),
        ("my-service", "download_success_rate", "%"),
        ("my-service", "queue_depth", "1"),
        ("my-service", "queue_wait_time", "s"),
    ]


@pytest.fixture(scope="module")
def crawl_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("crawl")


@pytest.fixture(scope="module")
def crawled(crawl_folder: Path) -> str:
    """What the crawl job printed."""
    done = subprocess.run(
        [sys.executable, "-W", "error", str(ROOT / "examples" / "crawl_job.py"), "--pages", "30"],
        cwd=crawl_folder,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_the_crawl_job(crawled: str, crawl_folder: Path) -> None:
    """Integration Points, Crawl Job Processing: each phase has its time and success rate, and so has the whole."""
    assert crawled.startswith("24 of 30 pages are in crawled\n")
    assert len(list((crawl_folder / "crawled").glob("*.html"))) == 24
    with tallymark.open(crawl_folder / "metrics") as store:
        rates = store.query(metric_type="success_rate", group_by="name", agg=("last", "count")).rows()
        assert {row["name"]: round(row["last"], 1) for row in rates} == {
            "download_success_rate": 90.0,
            "validation_success_rate": 88.9,
            "upload_success_rate": 100.0,
            "job_success_rate": 80.0,
        }
        times = store.query(metric_type="processing_time", group_by="name", agg=("sum", "count")).rows()
        total = {row["name"]: row["sum"] for row in times}
        assert total.keys() == {"download_time", "validation_time", "upload_time", "total_time"}
        assert 2 * total.pop("total_time") > sum(total.values()) > 0
        stages = store.query(metric_type="stage", group_by="name", agg=("count", "error_rate")).rows()
        assert {row["name"]: row["count"] for row in stages} == {"download": 30, "validation": 27, "upload": 24}


def test_the_commands_that_the_crawl_job_prints_work(crawled: str, crawl_folder: Path) -> None:
    commands = re.findall(r"tallymark ((?:runs show|query) .*)", crawled)
    assert len(commands) == 2
    for command in commands:
        done = subprocess.run(
            [sys.executable, "-m", "tallymark", *command.split()],
            cwd=crawl_folder,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        assert "download" in done.stdout
