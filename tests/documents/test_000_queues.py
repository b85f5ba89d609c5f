"""The sample about queues of the metrics implementation summary (document 000); its other samples are beside this."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from celery import Celery
from recording import recording, stored

from tallymark import Metrics


@pytest.fixture
def session(folder: Path) -> Iterator[Metrics]:
    """The document passes a session of its database; what records is handed over in its place."""
    with recording(folder) as metrics:
        yield metrics


@pytest.fixture
def waiting(redis_url: str) -> Iterator[Celery]:
    """A Celery application of this process, with five tasks that nobody has taken yet."""
    app = Celery("backend", broker=redis_url)
    with app.connection_for_write() as connection:
        connection.SimpleQueue("celery").clear()
    for _ in range(5):
        app.send_task("process", queue="celery")
    yield app
    with app.connection_for_write() as connection:
        connection.SimpleQueue("celery").clear()
    app.close()


# Under "Usage Examples", "Track Queue Depth".
async def track_queue_depth(session: Metrics) -> None:
    from tallymark.collectors.queues import track_celery_queue_metrics

    await track_celery_queue_metrics(
        session=session,
        queue_name="celery",
        service_name="backend"
    )  # fmt: skip


@pytest.mark.usefixtures("waiting")
def test_track_queue_depth(session: Metrics, folder: Path) -> None:
    import asyncio

    asyncio.run(track_queue_depth(session))
    (record,) = (record for record in stored(folder) if record.name == "queue_depth")
    assert (record.metric_type, record.value, record.service) == ("queue_metrics", 5.0, "backend")
    assert record.metadata["queue"] == "celery"
