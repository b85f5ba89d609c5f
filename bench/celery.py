"""What instrumenting a Celery worker costs: tasks that do nothing, without and with it, in turns."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import psutil
from celery import Celery
from redis import Redis
from redis.exceptions import ConnectionError as NoConnection

import tallymark
from bench import Row
from tallymark import Metrics
from tallymark.integrations.celery import instrument, uninstrument

SOCKET = "TALLYMARK_BENCH_SOCKET"
FOLDER = "TALLYMARK_BENCH_FOLDER"
"""Where the worker records to; empty for a bare one."""

WARM_UP = 500
"""Tasks before the clock starts."""

FETCHED = 8
"""Messages that a worker with two processes holds at once."""


def make_app(socket: str, metrics: Metrics | None) -> Celery:
    """An application with a task that does nothing."""
    made = Celery("bench", broker=f"redis+socket://{socket}", set_as_current=False)
    made.conf.update(task_ignore_result=True, worker_hijack_root_logger=False)

    @made.task(name="nothing", shared=False)
    def nothing() -> None:
        pass

    if metrics is not None:
        instrument(made, metrics)
    return made


def run(quick: bool = False) -> list[Row]:
    """What a task takes of the processors, in a worker with two processes whose messages are there already.

    Not the time on the clock: other load on the machine makes that differ by half from turn to turn.
    """
    tasks, turns = (1_000, 2) if quick else (2_000, 6)
    took: dict[bool, list[float]] = {False: [], True: []}
    with TemporaryDirectory(prefix="tallymark-bench-") as name, _redis(Path(name)) as socket:
        for turn in range(turns):
            for measured in (False, True) if turn % 2 else (True, False):
                folder = str(Path(name, f"metrics {turn}")) if measured else ""
                took[measured].append(_turn(socket, folder, tasks))
                if folder:
                    _check(folder, WARM_UP + tasks)
    bare, ours = median(took[False]) / tasks, median(took[True]) / tasks
    return [
        Row(
            "Celery worker, CPU per task that does nothing",
            1e6 * ours,
            "µs",
            "the same worker, not instrumented",
            1e6 * bare,
            1 / 0.95,
            f"{bare / ours:.2f} of the tasks a CPU; two processes, Redis, median of {turns} turns of {tasks:,} tasks",
        )
    ]


def _turn(socket: str, folder: str, tasks: int) -> float:
    """The seconds of CPU that a new worker and its processes take for so many tasks, once they are warm."""
    client = Redis(unix_socket_path=socket)
    client.flushall()
    publisher = make_app(socket, Metrics(folder) if folder else None)
    with publisher.producer_pool.acquire() as producer:
        for _ in range(WARM_UP + tasks):
            publisher.send_task("nothing", producer=producer)
    uninstrument(publisher)
    publisher.close()
    command = [sys.executable, "-m", "celery", "-A", "bench.celery", "worker", "-c", "2", "-l", "ERROR"]
    environment = os.environ | {SOCKET: socket, FOLDER: folder}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as worker:
        try:
            _wait(worker, client, tasks)
            started = _cpu_seconds(worker)
            _wait(worker, client, 0)
            return _cpu_seconds(worker) - started
        finally:
            worker.terminate()


def _wait(worker: "subprocess.Popen[bytes]", client: Redis, left: int) -> None:
    """Until no more messages than this wait for the worker."""
    while int(client.llen("celery")) > left:
        if worker.poll() is not None:
            raise RuntimeError("the worker ended too early")
        time.sleep(0.002)


def _cpu_seconds(worker: "subprocess.Popen[bytes]") -> float:
    main = psutil.Process(worker.pid)
    times = [process.cpu_times() for process in (main, *main.children())]
    return sum(time.user + time.system for time in times)


def _check(folder: str, tasks: int) -> None:
    with tallymark.open(folder) as reader:
        found = reader.query(metric_type="celery_task", agg=("count",)).rows()[0]["count"]
    # What it had fetched and not begun when it was ended went back into the queue.
    if not tasks - FETCHED <= found <= tasks:
        raise RuntimeError(f"{found} of {tasks} tasks were recorded: the figure is not that of the recorder")


@contextmanager
def _redis(folder: Path) -> Iterator[str]:
    socket = str(folder / "redis.sock")
    command = ["redis-server", "--port", "0", "--unixsocket", socket, "--save", "", "--dir", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
        try:
            while not _answers(socket):
                if server.poll() is not None:
                    raise RuntimeError("redis-server ended")
                time.sleep(0.02)
            yield socket
        finally:
            server.terminate()


def _answers(socket: str) -> bool:
    try:
        return bool(Redis(unix_socket_path=socket).ping())
    except NoConnection:
        return False


if SOCKET in os.environ:
    _metrics = Metrics(os.environ[FOLDER], service="bench") if os.environ[FOLDER] else None
    if _metrics is not None:
        _metrics.start()
    app = make_app(os.environ[SOCKET], _metrics)
