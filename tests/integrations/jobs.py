"""A Celery application with a task for every way to end, for the tests and for the workers that they start."""

import contextlib
import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from celery import Celery, signals
from celery.exceptions import Ignore, Reject
from kombu import Exchange, Queue
from recording import DEADLINE_SECONDS, eventually, stored

from tallymark import Metrics
from tallymark.integrations.celery import instrument
from tallymark.record import Record
from tallymark.trace import current_session_id, current_trace_id

TESTS = Path(__file__).parent.parent


def make_app(broker: str, metrics: Metrics, **settings: Any) -> Celery:
    """The application, instrumented."""
    app = Celery("jobs", broker=broker, set_as_current=False)
    app.conf.update(
        task_queues=[Queue("celery"), Queue("by topic", Exchange("topics", "topic"), "a.topic")],
        worker_prefetch_multiplier=1,
        broker_connection_retry_on_startup=True,
        worker_hijack_root_logger=False,
        **settings,
    )
    instrument(app, metrics)
    task = functools.partial(app.task, shared=False)  # with every other application in the process, that is

    @task(name="add")
    def add(a: int, b: int) -> int:
        return a + b

    @task(name="fail")
    def fail(words: str) -> None:
        raise ValueError(words)

    @task(name="again", bind=True, max_retries=2)
    def again(self: Any) -> None:
        raise self.retry(countdown=0.1, exc=KeyError("missing"))

    @task(name="ignore")
    def ignore() -> None:
        raise Ignore()

    @task(name="reject", bind=True, acks_late=True)
    def reject(self: Any, requeue: bool) -> None:
        if not self.request.delivery_info["redelivered"]:
            raise Reject("not now", requeue=requeue)

    @task(name="leave")
    def leave() -> None:
        raise SystemExit(3)

    @task(name="be killed")
    def be_killed(seconds: float) -> None:
        time.sleep(seconds)
        os.kill(os.getpid(), signal.SIGKILL)

    @task(name="be killed at the end")
    def be_killed_at_the_end() -> None:
        # Connected after the recorder's receiver, and called after it.
        signals.task_postrun.connect(lambda **_: os.kill(os.getpid(), signal.SIGKILL), weak=False)

    @task(name="limited", time_limit=1)
    def limited() -> None:
        time.sleep(DEADLINE_SECONDS)

    @task(name="limited softly", soft_time_limit=1)
    def limited_softly() -> None:
        time.sleep(DEADLINE_SECONDS)

    @task(name="work")
    def work(seconds: float) -> None:
        time.sleep(seconds)

    @task(name="sleep")
    def sleep(seconds: float, started: str) -> None:
        Path(started).touch()
        time.sleep(seconds)

    @task(name="see")
    def see() -> None:
        metrics.record("seen", current_session_id.get() or "no session", 1.0)

    @task(name="pass on")
    def pass_on() -> str | None:
        app.tasks["see"].delay()
        return current_trace_id.get()

    return app


def _witness(path: str) -> None:
    """Have the end of every run written down, by a receiver that is called in the order of such calls."""

    def write(task_id: str, **_: object) -> None:
        os.write(fd, f"{task_id} {os.getpid()}\n".encode())

    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    signals.task_postrun.connect(write, weak=False)


if "JOBS_FOLDER" in os.environ:
    _metrics = Metrics(os.environ["JOBS_FOLDER"], service="jobs", flush_interval_seconds=1)
    _metrics.start()
    _evidence = os.environ.get("JOBS_EVIDENCE")
    if _evidence:
        _witness(f"{_evidence}.before")
        app = make_app(os.environ["JOBS_BROKER"], _metrics, task_acks_late=True, task_reject_on_worker_lost=True)
        _witness(f"{_evidence}.after")
    else:
        app = make_app(os.environ["JOBS_BROKER"], _metrics)


@contextlib.contextmanager
def worker(broker: str, folder: Path, *options: str) -> Iterator["subprocess.Popen[bytes]"]:
    """The first worker on a folder, in a process of its own, that is ready; ended warmly."""
    environment = os.environ | {"JOBS_BROKER": broker, "JOBS_FOLDER": str(folder)}
    command = [sys.executable, "-m", "celery", "-A", "integrations.jobs", "worker", "-l", "WARNING", *options]
    with folder.with_name("worker.log").open("ab") as log:
        process = subprocess.Popen(command, cwd=TESTS, env=environment, stdout=log, stderr=log)
    try:
        eventually(lambda: process.poll() is not None or records(folder, "celery_worker") != [])
        assert process.poll() is None, folder.with_name("worker.log").read_text()
        yield process
        process.terminate()
        assert process.wait(DEADLINE_SECONDS) == 0
    finally:
        process.kill()
        process.wait()


def records(folder: Path, metric_type: str = "celery_task") -> list[Record]:
    """Those of a type, the oldest first."""
    return [record for record in stored(folder) if record.metric_type == metric_type] if folder.exists() else []
