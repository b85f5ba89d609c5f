"""Ten thousand tasks through a worker whose processes are recycled and killed: nothing is lost, nothing comes twice."""

import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
from recording import eventually

from tallymark import Metrics
from tallymark.integrations.celery import uninstrument

from .jobs import make_app, records, worker

TASKS = 10_000
EARLY = 2_000
"""When the worker's memory is measured for the first time."""
GROWTH_MIB = 16
"""What the main process may grow by over the other 8,000 tasks, some 200 processes and one kill a second."""
JOURNALS = 1_000
"""Each process leaves a journal behind; so many at once would say that nobody takes them away."""
SECONDS = 400


class Evidence:
    """What the worker's processes wrote down, right before and right after each end of a run was recorded."""

    def __init__(self, path: Path) -> None:
        self._before, self._after = path.with_suffix(".before"), path.with_suffix(".after")

    def before(self) -> list[list[str]]:
        return [line.split() for line in self._before.read_text().splitlines()] if self._before.exists() else []

    def after(self) -> list[list[str]]:
        return [line.split() for line in self._after.read_text().splitlines()] if self._after.exists() else []


@pytest.mark.timeout(2 * SECONDS)
def test_every_run_that_ended_is_recorded_once(
    redis_url: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evidence = Evidence(tmp_path / "evidence")
    monkeypatch.setenv("JOBS_EVIDENCE", str(tmp_path / "evidence"))
    app = make_app(redis_url, Metrics(folder))
    try:
        task = app.tasks["work"]
        with app.producer_pool.acquire() as producer:
            ids = [str(task.apply_async((0.01,), producer=producer).id) for _ in range(TASKS)]
    finally:
        uninstrument(app)
        app.close()
    killed: list[int] = []
    sizes: list[int] = []
    journals = 0
    with worker(redis_url, folder, "-c", "8", "--max-tasks-per-child", "50") as process:
        main = psutil.Process(process.pid)
        deadline = time.monotonic() + SECONDS
        chance = random.Random(7)
        while len(done := {task_id for task_id, _ in evidence.after()}) < TASKS:
            assert time.monotonic() < deadline, f"{len(done)} of {TASKS} tasks have ended"
            if not sizes and len(done) >= EARLY:
                sizes.append(main.memory_info().rss)
            journals = max(journals, len(list((folder / "journals").glob("*.journal"))))
            time.sleep(chance.uniform(0.9, 1.1))  # the pace of the killer, not a wait
            # One that is at work, whatever it is at.
            busy = [int(pid) for _, pid in evidence.before()[-20:]]
            alive = [child.pid for child in main.children() if child.pid in busy]
            if alive:
                killed.append(chance.choice(alive))
                os.kill(killed[-1], signal.SIGKILL)
        sizes.append(main.memory_info().rss)
    found = records(folder)
    recorded = Counter(record.metadata["task_id"] for record in found)
    before = Counter(task_id for task_id, _ in evidence.before())
    after = Counter(task_id for task_id, _ in evidence.after())
    assert len(killed) >= 5
    assert len({pid for _, pid in evidence.after()}) >= TASKS / 50
    assert set(recorded) == set(ids)
    assert sum(after.values()) >= TASKS
    # A run whose receivers all returned is recorded, one that did not reach ours is not: between the two only those
    # are that were killed in that very moment.
    assert {task_id for task_id in ids if not after[task_id] <= recorded[task_id] <= before[task_id]} == set()
    assert sum(before.values()) - sum(after.values()) <= len(killed)
    assert sizes[1] - sizes[0] < GROWTH_MIB * 2**20
    assert journals < JOURNALS
    # The worker ended well, and had everything brought into the store.
    eventually(lambda: list((folder / "journals").glob("*.journal")) == [])
    # Some were in the middle of a task, which was then run again.
    assert any(record.metadata.get("redelivered") for record in found)
    print(f"{len(killed)} kills, {sum(after.values())} runs, {journals} journals, {[size >> 10 for size in sizes]} KiB")
