"""Processes that come out of one that records: each of them records, and nothing is lost or doubled."""

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from recording import DEADLINE_SECONDS, books, eventually, live, output, python, ship, stored

pytestmark = pytest.mark.usefixtures("core")

# Every program records 100 times in each of its processes, under a name of its own, and prints "done".
PROGRAMS = {
    "fork": """
for name in "abc":
    if not os.fork():
        work("child " + name)
        os._exit(0)
    work("parent " + name)
join(3)
""",
    "fork in a child": """
if not os.fork():
    work("child")
    if not os.fork():
        work("grandchild")
        os._exit(0)
    join(1)
    work("child again")
    os._exit(0)
join(1)
work("parent")
""",
    "fork and an ordinary end": """
if not os.fork():
    work("child")  # stopped by atexit, as the parent
    sys.exit()
join(1)
""",
    "fork, and the child stops by itself": """
metrics.record("fork", "parent before", 1.0)
if not os.fork():
    metrics.record("fork", "child before", 1.0)
    assert metrics.get_stats().total_recorded == 1
    metrics.flush(100)
    assert metrics.get_stats().total_persisted == 1
    metrics.stop(100)
    metrics.start()
    work("child")
    metrics.stop(100)
    os._exit(0)
join(1)
assert metrics.get_stats().total_recorded == 1
work("parent")
""",
    "fork before the first record": """
if not os.fork():
    os._exit(0)
if not os.fork():
    metrics.stop()
    os._exit(0)
join(2)
work("parent")
if not os.fork():
    assert metrics.get_stats().total_recorded == 0
    metrics.stop()
    os._exit(0)
join(1)
""",
    "multiprocessing": """
import multiprocessing
for method in ("fork", "spawn", "forkserver"):
    context = multiprocessing.get_context(method)
    children = [context.Process(target=program.in_child, args=(folder, f"{method} {n}")) for n in range(2)]
    for child in children:
        child.start()
    work("parent of " + method)
    for child in children:
        child.join()
        assert child.exitcode == 0
""",
    "a pool that forks": """
import multiprocessing
with multiprocessing.get_context("fork").Pool(4) as pool:
    pool.map(program.work, [f"task {n}" for n in range(16)])
    pool.close()
    pool.join()
""",
    "eight at once": """
read, write = os.pipe()
for n in range(8):
    if not os.fork():
        os.close(write)
        os.read(read, 1)  # all at once
        for turn in range(20):
            work(f"child {n} {turn}")
        os._exit(0)
os.close(write)
join(8)
""",
    "while threads record": """
import threading
names = iter(range(10**6))
done = threading.Event()
def keep_recording():
    while not done.is_set():
        work(f"thread {next(names)}")
threads = [threading.Thread(target=keep_recording) for _ in range(4)]
for thread in threads:
    thread.start()
for n in range(8):
    if not os.fork():
        work(f"child {n}")
        os._exit(0)
    join(1)
done.set()
for thread in threads:
    thread.join()
""",
    "out of a signal handler": """
import signal
forked = 0
def handle(*_):
    global forked
    forked += 1
    if not os.fork():
        work(f"child {forked}")
        os._exit(0)
    join(1)
    if forked < 20:
        signal.setitimer(signal.ITIMER_REAL, 0.001)
signal.signal(signal.SIGALRM, handle)
signal.setitimer(signal.ITIMER_REAL, 0.001)
turn = 0
while forked < 20:
    turn += 1
    work(f"parent {turn}")
""",
    "a child that outlives its parent": """
read, write = os.pipe()
if not os.fork():
    os.close(write)
    work("child before")
    os.read(read, 1)  # until the parent is gone
    work("child after")
    os._exit(0)
work("parent")
print("done", flush=True)
os.kill(os.getpid(), 9)
""",
    "another program": """
import subprocess
work("before")
subprocess.run([sys.executable, "-c", "pass"], check=True)
subprocess.run([sys.executable, "-c", "pass"], check=True, close_fds=False, preexec_fn=lambda: work("between"))
work("after")
""",
}

PRELUDE = """
import os, sys, threading
import forking as program
from forking import folder, join, metrics, work
"""

MODULE = '''
"""The recorder of the program under test, in a module so that every kind of child finds it."""
import os, sys
from tallymark import Metrics

folder = sys.argv[1] if len(sys.argv) > 1 else os.environ["FOLDER"]
Metrics.stop.__defaults__ = (100.0,)  # on a busy machine ten seconds may be little, and who is late says so
metrics = Metrics(folder)
metrics.start()

def work(name):
    for number in range(100):
        metrics.record("fork", name, float(number), metadata={"pid": os.getpid()})
    with open(folder + ".done", "a") as file:
        file.write(name + "\\n")

def join(children):
    for _ in range(children):
        assert os.waitstatus_to_exitcode(os.wait()[1]) == 0

def in_child(folder, name):
    work(name)
'''


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("name", PROGRAMS)
def test_every_process_records(folder: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "forking.py").write_text(MODULE)
    main = tmp_path / "main.py"
    program = "\n".join("    " + line for line in PROGRAMS[name].splitlines())
    # It stays for others to ship: what the programs are about is what they leave behind.
    main.write_text(f"{PRELUDE}\nif __name__ == '__main__':\n{program}\n    print('done')\n")
    monkeypatch.setenv("FOLDER", str(folder))
    process = python(str(main), str(folder))
    if name == "a child that outlives its parent":
        out, err = process.communicate(timeout=120)
        assert (process.returncode, out, err) == (-signal.SIGKILL, "done\n", "")
        eventually(lambda: "child after" in (tmp_path / "metrics.done").read_text())
    else:
        assert output(process, 120) == "done\n"
    worked = (tmp_path / "metrics.done").read_text().split("\n")[:-1]
    ship(folder)
    eventually(lambda: not list((folder / "journals").glob("*.journal")) or not ship(folder))
    assert live(folder) == []
    found: dict[str, list[float]] = {}
    for record in stored(folder):
        found.setdefault(record.name, []).append(record.value)
    for extra in ("parent before", "child before"):
        if found.get(extra) == [1.0]:
            del found[extra]
    assert sorted(found) == sorted(set(worked))
    once = list(range(100))
    assert {name: sorted(values) for name, values in found.items()} == {
        name: sorted(once * times) for name, times in Counter(worked).items()
    }
    info = books(folder)
    assert (info.pending, info.dropped) == (0, {})


@pytest.fixture
def address(tmp_path: Path, folder: Path) -> Iterator[str]:
    """A real application under gunicorn, loaded before the workers are forked."""
    (tmp_path / "application.py").write_text(
        """
import os
from fastapi import FastAPI
from tallymark import Metrics

metrics = Metrics(os.environ["FOLDER"], service="web", flush_interval_seconds=0.2)
metrics.start()
metrics.record("start", "preload", 1.0)
app = FastAPI()

@app.get("/{number}")
async def answer(number: int) -> int:
    metrics.record("request", "GET /{number}", float(number))
    return os.getpid()
"""
    )
    socket = tmp_path / "socket"
    server = subprocess.Popen(
        [
            *(sys.executable, "-m", "gunicorn", "application:app", "--preload", "--workers", "3"),
            *("--worker-class", "uvicorn_worker.UvicornWorker", "--bind", f"unix:{socket}", "--log-level", "warning"),
        ],
        cwd=tmp_path,
        env=os.environ | {"FOLDER": str(folder)},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        eventually(socket.exists)
        yield str(socket)
        server.terminate()
        _, complaints = server.communicate(timeout=DEADLINE_SECONDS)
        assert "Traceback" not in complaints, complaints
        assert server.returncode == 0
    finally:
        server.kill()
        server.wait()


def test_gunicorn_with_workers_that_are_killed(address: str, folder: Path) -> None:
    answered: list[int] = []
    failed: list[int] = []
    killed: set[int] = set()
    with httpx.Client(
        transport=httpx.HTTPTransport(uds=address), base_url="http://app", timeout=DEADLINE_SECONDS
    ) as client:
        for number in range(300):
            try:
                worker = int(client.get(f"/{number}", headers={"connection": "close"}).raise_for_status().text)
            except httpx.TransportError:
                failed.append(number)  # the worker that took it was being killed
                continue
            answered.append(number)
            if number % 60 == 59:
                os.kill(worker, signal.SIGKILL)
                killed.add(worker)
    assert len(killed) == 5
    assert len(failed) <= 5
    found = Counter(int(record.value) for record in stored(folder) if record.metric_type == "request")
    assert set(found.values()) == {1}
    assert set(answered) <= set(found) <= set(answered) | set(failed)
    assert [record.name for record in stored(folder) if record.metric_type == "start"] == ["preload"]
