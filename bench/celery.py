"""What instrumenting a Celery worker costs: tasks that do nothing, in two workers that work in turns.

Both workers live at once, and take a batch of messages each, one after the other, many times: what else goes on at the
machine meets both. Then another two, because no two processes have the same luck with the processor's caches.

Counted is what the processors spend, as user and in the kernel, on a worker's main process, its two children and all
of their threads; not the publisher, nor Redis, nor the start and the end of a worker. The throughput is of the same
turns: from the moment that a batch is in the queue until its last task is acknowledged. It differs by half from turn to
turn, so there are many, and their median is compared.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
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

BROKER = "TALLYMARK_BENCH_BROKER"
FOLDER = "TALLYMARK_BENCH_FOLDER"
"""Where the worker records to; empty for a bare one."""

BATCH = 100
"""Messages that a worker gets at once."""

WARM_UP = 5
"""Batches before those that count."""


def make_app(broker: str, metrics: Metrics | None) -> Celery:
    """An application with a task that does nothing."""
    made = Celery("bench", broker=broker, set_as_current=False)
    made.conf.update(task_ignore_result=True, worker_hijack_root_logger=False)

    @made.task(name="nothing", shared=False)
    def nothing() -> None:
        pass

    if metrics is not None:
        instrument(made, metrics)
    return made


def run(quick: bool = False) -> list[Row]:
    """What a task takes of the processors, without and with the instrumentation."""
    pairs, turns = (1, 20) if quick else (6, 16)
    bare: list[Turn] = []
    ours: list[Turn] = []
    with TemporaryDirectory(prefix="tallymark-bench-") as name, _redis(Path(name)) as socket:
        for pair in range(pairs):
            folder = str(Path(name, f"metrics {pair}"))
            with ExitStack() as stack:
                # Whose turn is first changes. The same seed: two orders of the same set are a difference, too.
                workers = [
                    (took, stack.enter_context(_worker(socket, number, where, WARM_UP + turns, seed=pair)))
                    for number, (took, where) in enumerate([(bare, ""), (ours, folder)][:: 1 if pair % 2 else -1])
                ]
                for turn in range(turns):
                    for took, worker in workers[:: 1 if turn % 2 else -1]:
                        took.append(worker.do_a_batch())
            _check(folder, (WARM_UP + turns) * BATCH)
    peer = "the same worker, not instrumented"
    slow, slower = (median(turn.elapsed for turn in took) / BATCH / 1e3 for took in (bare, ours))
    little, more = (median(turn.cpu for turn in took) / BATCH / 1e3 for took in (bare, ours))
    how = f"two processes, Redis, median of {len(ours)} turns of {BATCH} tasks, by {pairs} pairs of workers"
    throughput = f"{slow / slower:.3f} of the throughput; {how}"
    return [
        Row("Celery worker, time per task that does nothing", slower, "µs", peer, slow, 1 / 0.95, throughput),
        Row("Celery worker, CPU per task that does nothing", more, "µs", peer, little, note="of all its processes"),
    ]


@dataclass(frozen=True)
class Turn:
    """What a batch took, in ns: on the clock, and of the processors."""

    elapsed: int
    cpu: int


class _Worker:
    def __init__(self, process: "subprocess.Popen[bytes]", client: Redis) -> None:
        self._process, self._client = process, client
        self._pids = [process.pid]
        for _ in range(WARM_UP):
            self.do_a_batch()
        self._pids += [child.pid for child in psutil.Process(process.pid).children()]

    def do_a_batch(self) -> Turn:
        """Have the next messages worked on."""
        before = self._cpu()
        with self._client.pipeline() as moved:  # all at once
            for _ in range(BATCH):
                moved.lmove("waiting", "celery", "RIGHT", "LEFT")
            moved.execute()
        started = time.perf_counter_ns()
        while self._client.llen("celery") or self._client.hlen("unacked"):
            if self._process.poll() is not None:
                raise RuntimeError("the worker ended too early")
            time.sleep(0.001)
        return Turn(time.perf_counter_ns() - started, self._cpu() - before)

    def _cpu(self) -> int:
        # Linux's number for the clock of another process, clock_getcpuclockid(3): /proc knows it to 10 ms only.
        return sum(time.clock_gettime_ns(~pid << 3 | 2) for pid in self._pids)


@contextmanager
def _worker(socket: str, database: int, folder: str, batches: int, seed: int) -> Iterator[_Worker]:
    """A warm worker, and its messages in a list that it does not know."""
    broker = f"redis+socket://{socket}?virtual_host={database}"
    publisher = make_app(broker, Metrics(folder) if folder else None)
    with publisher.producer_pool.acquire() as producer:
        for _ in range(batches * BATCH):
            publisher.send_task("nothing", producer=producer)
    uninstrument(publisher)
    publisher.close()
    client = Redis(unix_socket_path=socket, db=database)
    client.rename("celery", "waiting")
    command = [sys.executable, "-m", "celery", "-A", "bench.celery", "worker", "-c", "2", "-l", "ERROR"]
    environment = os.environ | {BROKER: broker, FOLDER: folder, "PYTHONHASHSEED": str(seed)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield _Worker(process, client)
        finally:
            process.terminate()


def _check(folder: str, tasks: int) -> None:
    with tallymark.open(folder) as reader:
        found = reader.query(metric_type="celery_task", agg=("count",)).rows()[0]["count"]
    if found != tasks:
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


if BROKER in os.environ:
    _metrics = Metrics(os.environ[FOLDER], service="bench") if os.environ[FOLDER] else None
    if _metrics is not None:
        _metrics.start()
    app = make_app(os.environ[BROKER], _metrics)
