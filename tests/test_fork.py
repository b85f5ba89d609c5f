"""Forking, in every way that Python programs do it: each process keeps its own books, and all of them agree."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import httpx
import pytest
from recording import books, eventually, output, python, ship, stored

from tallymark import Metrics

GUNICORN_APP = """
import os
from fastapi import FastAPI
from tallymark import Metrics
from tallymark.integrations.asgi import MetricsMiddleware

metrics = Metrics(os.environ["STORE"], service="shop")
metrics.start()  # in the master, before the fork: --preload
metrics.record("app", "loaded", 1.0)
app = FastAPI()
app.add_middleware(MetricsMiddleware, metrics=metrics)


@app.get("/items/{number}")
async def item(number: int) -> dict[str, int]:
    metrics.record("app", "item", float(number), metadata={"pid": os.getpid()})
    return {"pid": os.getpid()}
"""


def counts(folder: Path) -> Counter[tuple[str, float]]:
    """How often each name and value is stored."""
    return Counter((record.name, record.value) for record in stored(folder))


def wait_for(pids: list[int]) -> None:
    """All of them ended, and ended well."""
    for pid in pids:
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def record_all(metrics: Metrics, name: str, how_many: int) -> None:
    for number in range(how_many):
        metrics.record("fork", name, float(number))


def test_children_of_a_plain_fork(folder: Path, core: str) -> None:
    metrics = Metrics(folder)
    with metrics:
        metrics.record("fork", "before", 0.0)
        pids = []
        for child in range(8):
            pid = os.fork()
            if pid == 0:
                # Nothing that pytest left to be done at exit is this process's.
                try:
                    record_all(metrics, f"child {child}", 2_000)
                    ok = metrics.get_stats().total_recorded == 2_000
                    os._exit(not ok)
                finally:
                    os._exit(1)
            pids.append(pid)
        record_all(metrics, "parent", 2_000)
        wait_for(pids)
        assert metrics.get_stats().total_recorded == 2_001
    expected = Counter({("before", 0.0): 1})
    for name in ("parent", *(f"child {child}" for child in range(8))):
        expected.update((name, float(number)) for number in range(2_000))
    assert counts(folder) == expected
    ship(folder)  # the journals that the children left behind
    assert counts(folder) == expected
    assert books(folder).stored == 18_001
    assert not list((folder / "journals").glob("*.journal"))


def test_a_grandchild_and_a_child_that_stops(folder: Path, core: str) -> None:
    with Metrics(folder) as metrics:
        pid = os.fork()
        if pid == 0:
            try:
                metrics.record("fork", "child", 1.0)
                inner = os.fork()
                if inner == 0:
                    metrics.record("fork", "grandchild", 1.0)
                    os._exit(0)
                wait_for([inner])
                metrics.stop()
                os._exit(0)
            finally:
                os._exit(1)
        wait_for([pid])
        metrics.record("fork", "parent", 1.0)
    assert counts(folder) == Counter({("child", 1.0): 1, ("grandchild", 1.0): 1, ("parent", 1.0): 1})


def test_forking_while_other_threads_record(folder: Path, core: str) -> None:
    metrics = Metrics(folder)
    stop = threading.Event()
    recorded = Counter[str]()

    def record(name: str) -> None:
        number = 0
        while not stop.is_set():
            metrics.record("fork", name, float(number))
            number += 1
        recorded[name] = number

    with metrics:
        threads = [threading.Thread(target=record, args=(f"thread {n}",)) for n in range(3)]
        for thread in threads:
            thread.start()
        pids = []
        for child in range(20):
            pid = os.fork()
            if pid == 0:
                try:
                    record_all(metrics, f"child {child}", 50)
                    os._exit(0)
                finally:
                    os._exit(1)
            pids.append(pid)
        wait_for(pids)
        stop.set()
        for thread in threads:
            thread.join()
    found = counts(folder)
    expected = Counter({(f"child {child}", float(n)): 1 for child in range(20) for n in range(50)})
    expected.update({(name, float(n)): 1 for name, last in recorded.items() for n in range(last)})
    assert found == expected


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing(folder: Path, core: str, method: str) -> None:
    script = f"""
import multiprocessing
from tallymark import Metrics
from workers import record_here

if __name__ == "__main__":
    context = multiprocessing.get_context({method!r})
    with Metrics({str(folder)!r}) as metrics:
        metrics.record("fork", "parent", 0.0)
        with context.Pool(8) as pool:
            pool.starmap(record_here, [({str(folder)!r}, n) for n in range(8)])
            pool.close()
            pool.join()
"""
    (folder.parent / "main.py").write_text(script)
    (folder.parent / "workers.py").write_text(
        "from tallymark import Metrics\n"
        "def record_here(folder, number):\n"
        "    metrics = Metrics(folder)\n"
        "    metrics.start()\n"
        "    for n in range(500):\n"
        "        metrics.record('fork', f'worker {number}', float(n))\n"
        "    metrics.stop(60)\n"
    )
    output(python(str(folder.parent / "main.py")), 120)
    expected = Counter({(f"worker {w}", float(n)): 1 for w in range(8) for n in range(500)})
    expected[("parent", 0.0)] = 1
    assert counts(folder) == expected


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def answers(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False


def test_gunicorn_preload_with_uvicorn_workers(folder: Path, core: str) -> None:
    (folder.parent / "shop.py").write_text(GUNICORN_APP)
    port = free_port()
    master = subprocess.Popen(
        [
            *(sys.executable, "-m", "gunicorn", "shop:app", "--preload", "--workers", "4"),
            *("--worker-class", "uvicorn_worker.UvicornWorker", "--bind", f"127.0.0.1:{port}"),
            *("--log-level", "warning"),
        ],
        cwd=folder.parent,
        env={**os.environ, "STORE": str(folder)},
    )
    try:
        url = f"http://127.0.0.1:{port}/items"
        eventually(lambda: answers(f"{url}/0"), 60)
        warm = sum(record.name == "item" for record in stored(folder))
        pids: Counter[int] = Counter()

        def ask(number: int) -> None:
            while True:
                try:
                    # A connection each, so that every worker gets some.
                    pids[httpx.get(f"{url}/{number}").json()["pid"]] += 1
                    return
                except httpx.TransportError:  # asked the worker that was killed
                    killed.append(number)

        killed: list[int] = []
        for number in range(1, 101):
            ask(number)
        os.kill(max(pids), signal.SIGKILL)  # a worker, in the middle of its life
        for number in range(101, 151):
            ask(number)
        assert len(pids) >= 2
    finally:
        master.send_signal(signal.SIGTERM)
        assert master.wait(60) == 0
    found = [record for record in stored(folder) if record.name == "item" and record.value > 0]
    assert warm >= 1
    once = Counter(record.value for record in found if int(record.value) not in killed)
    assert once == Counter(float(n) for n in range(1, 151) if n not in killed)
    assert {record.metadata["pid"] for record in found} == set(pids)
    requests = [record for record in stored(folder) if record.name == "GET /items/{number}"]
    assert len(requests) >= 151 - len(killed)
    # The trace of a request is that of what was recorded while it was served.
    traces = {record.trace_id for record in requests}
    assert all(record.trace_id in traces for record in found if int(record.value) not in killed)
    assert sum(record.name == "loaded" for record in stored(folder)) == 1
    before = books(folder)
    ship(folder)
    after = books(folder)
    assert (after.stored, after.pending, after.dropped) == (before.recorded, 0, {})


def test_a_dead_parent_s_journal_is_adopted_while_its_child_lives(folder: Path, core: str) -> None:
    script = f"""
import os, signal, sys, time
from tallymark import Metrics
metrics = Metrics({str(folder)!r})
metrics.start()
metrics.record("fork", "parent", 1.0)
reader, writer = os.pipe()
if os.fork() == 0:
    os.close(writer)
    print(os.getpid(), flush=True)
    signal.pause()
os.kill(os.getpid(), signal.SIGKILL)
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    try:
        parent.wait(30)
        ship(folder)
        assert books(folder).stored == 1
        assert not list((folder / "journals").glob("*.journal"))
    finally:
        os.kill(child, signal.SIGKILL)
        parent.stdout.close()
