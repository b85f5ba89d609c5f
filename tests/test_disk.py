"""Disks that are full, folders that cannot be written, limits: nobody notices, and the books are exact."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from recording import books, eventually, live, python, recording, ship, stored

pytestmark = pytest.mark.usefixtures("core")

PRELUDE = """
import errno, os, resource, sys, subprocess
from pathlib import Path
from recording import books, eventually, live, recording, ship, stored
from tallymark import BufferFull, StoreError
from tallymark.lane import JOURNALS
from tallymark.shipper import shipping_lock

root = Path(sys.argv[1])
folder = root / "metrics"

def mount(options):
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", root], check=True)

def fill(name="ballast"):
    fd = os.open(root / name, os.O_WRONLY | os.O_CREAT)
    try:
        while True:
            os.write(fd, bytes(4096))
    except OSError as error:
        assert error.errno == errno.ENOSPC
    os.close(fd)

def record(times, value=1.0):
    for _ in range(times):
        metrics.record("disk", "b", value)

def recorded_again():
    before = sum(metrics.get_stats().dropped.values())
    record(1)
    return sum(metrics.get_stats().dropped.values()) == before

def balance():
    stats = metrics.get_stats()
    assert stats.total_recorded == stats.total_persisted + stats.queue_size + sum(stats.dropped.values())
    return stats
"""

FULL_FROM_THE_START = """
mount("size=4m")
fill()
with recording(folder, max_queue_size=1000) as metrics:
    record(500)
    stats = balance()
    assert (stats.total_recorded, stats.queue_size, stats.dropped) == (500, 0, {"disk_full": 500}), stats
    (root / "ballast").unlink()
    eventually(recorded_again)
    record(10)
    stats = balance()
    assert stats.queue_size >= 11
ship(folder)
info = books(folder)
assert (info.recorded, info.stored, info.dropped) == (stats.total_recorded, stats.queue_size, stats.dropped), info
"""

FULL_MEANWHILE = """
mount("size=4m")
with shipping_lock(folder / JOURNALS), recording(folder, max_queue_size=1000) as metrics:
    record(1)
    fill()
    # What a file has room for was set aside when it was made: no SIGBUS now.
    record(400)
    stats = balance()
    assert stats.queue_size == len(live(folder)) > 100
    assert stats.dropped == {"disk_full": 401 - stats.queue_size}
    (root / "ballast").unlink()
    eventually(recorded_again)
    fill()
    record(400)
    stats = balance()
print(stats.total_recorded, stats.queue_size, stats.dropped["disk_full"])
try:
    ship(folder)
except StoreError as refused:
    assert "No space left" in str(refused), refused
else:
    raise AssertionError("there was room?")
info = books(folder)
assert (info.recorded, info.pending, info.dropped) == (stats.total_recorded, stats.queue_size, stats.dropped), info
(root / "ballast").unlink()
ship(folder)
info = books(folder)
assert (info.recorded, info.stored, info.dropped) == (stats.total_recorded, stats.queue_size, stats.dropped), info
assert len(stored(folder)) == stats.queue_size
"""

FULL_AND_KILLED = """
mount("size=4m")
pid = os.fork()
if not pid:
    with recording(folder, max_queue_size=1000) as metrics:
        metrics._sealer.look = lambda journal: None
        record(1)
        fill()
        record(400)
        os.kill(os.getpid(), 9)
os.waitpid(pid, 0)
info = books(folder)
assert info.recorded == 401, info
assert info.dropped == {"disk_full": 401 - info.pending}, info
"""

READ_ONLY = """
mount("size=4m,ro")
with recording(folder, max_queue_size=1000) as metrics:
    record(300)
    stats = balance()
    assert (stats.total_recorded, stats.dropped) == (300, {"journal_unwritable": 300}), stats
    subprocess.run(["mount", "-o", "remount,rw", root], check=True)
    eventually(recorded_again)
    record(10)
    stats = balance()
ship(folder)
info = books(folder)
assert (info.recorded, info.stored, info.dropped) == (stats.total_recorded, stats.queue_size, stats.dropped), info
"""

WAITING = """
import threading
mount("size=4m")
fill()
with recording(folder, max_queue_size=1000, on_full="raise") as metrics:
    try:
        record(1)
    except BufferFull as full:
        assert "disk_full" in str(full)
    else:
        raise AssertionError
    assert metrics.get_stats().total_recorded == 0
with recording(folder, max_queue_size=1000, on_full="wait") as metrics:
    metrics._journal._wait_seconds = 60
    thread = threading.Thread(target=record, args=(1,))
    thread.start()
    thread.join(0.2)
    assert thread.is_alive()
    (root / "ballast").unlink()
    thread.join(60)
    assert not thread.is_alive()
    stats = balance()
    assert (stats.total_recorded, stats.queue_size) == (1, 1), stats
"""


@pytest.mark.parametrize(
    "program",
    [FULL_FROM_THE_START, FULL_MEANWHILE, FULL_AND_KILLED, READ_ONLY, WAITING],
    ids=["full from the start", "full meanwhile", "full and killed", "read-only", "waiting and raising"],
)
def test_a_disk(tmp_path: Path, program: str) -> None:
    namespace = ["unshare", "--mount", *(() if os.geteuid() == 0 else ("--user", "--map-root-user"))]
    disk = tmp_path / "disk"
    disk.mkdir()
    trial = subprocess.run([*namespace, "mount", "-t", "tmpfs", "tmpfs", disk], capture_output=True, text=True)
    if trial.returncode:
        assert not os.environ.get("CI"), f"a disk of its own cannot be mounted: {trial.stderr}"
        pytest.skip(f"a disk of its own cannot be mounted: {trial.stderr}")
    script = subprocess.run(
        [*namespace, sys.executable, "-W", "error", "-c", PRELUDE + program, disk],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert script.returncode == 0, script.stderr
    assert all(line.startswith("records are being dropped, and counted: ") for line in script.stderr.splitlines())


FILE_SIZE = """
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, hard))
with recording(folder, max_queue_size=1000) as metrics:
    record(300)
    stats = balance()
    assert (stats.total_recorded, stats.dropped) == (300, {"disk_full": 300}), stats
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    eventually(recorded_again)
    record(10)
    stats = balance()
ship(folder)
info = books(folder)
assert (info.recorded, info.stored, info.dropped) == (stats.total_recorded, stats.queue_size, stats.dropped), info
"""

OPEN_FILES = """
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
with recording(folder, max_queue_size=1000) as metrics:
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) - 1, hard))
    record(300)
    assert metrics._journal.complaint == f"Too many open files: {folder / 'journals'}"
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    stats = balance()
    assert (stats.total_recorded, stats.dropped) == (300, {"journal_unwritable": 300}), stats
    eventually(recorded_again)
"""


@pytest.mark.parametrize("program", [FILE_SIZE, OPEN_FILES], ids=["size of a file", "open files"])
def test_a_limit(tmp_path: Path, program: str) -> None:
    script = python("-c", PRELUDE + program, str(tmp_path))
    _, complaints = script.communicate(timeout=120)
    assert script.returncode == 0, complaints
    assert all(line.startswith("records are being dropped, and counted: ") for line in complaints.splitlines())


def test_something_in_the_way(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder.write_text("a file")
    with recording(folder / "below", flush_interval_seconds=0.1) as metrics:
        for _ in range(100):
            metrics.record("a", "b", 1.0)
        stats = metrics.get_stats()
        assert (stats.total_recorded, stats.dropped) == (100, {"journal_unwritable": 100})
        folder.unlink()

        def again() -> bool:
            metrics.record("a", "b", 1.0)
            return metrics.get_stats().queue_size > 0

        eventually(again)
        stats = metrics.get_stats()
        # Once it can the recorder writes down what it dropped.
        eventually(lambda: books(folder / "below").dropped == {"journal_unwritable": stats.total_recorded - 1})
        assert books(folder / "below").pending == 1


def test_the_log_says_so_once(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "tallymark")
    with recording(folder, max_queue_size=512) as metrics:
        metrics._sealer.look = lambda journal: None  # type: ignore[method-assign]
        for _ in range(3):
            for _ in range(600):
                metrics.record("a", "b", 1.0)
            eventually(lambda: "records are being dropped, and counted: 512 records wait" in caplog.text)
        assert caplog.text.count("being dropped") == 1
        ship(folder)

        def again() -> bool:
            metrics.record("a", "b", 1.0)
            return "records are kept again" in caplog.text

        eventually(again)


def test_a_folder_that_somebody_deletes(folder: Path) -> None:
    with recording(folder, max_queue_size=4000) as metrics:
        metrics._sealer.look = lambda journal: None  # type: ignore[method-assign]  # or a child may write there meanwhile
        for _ in range(3):
            for _ in range(600):
                metrics.record("a", "b", 1.0)
            shutil.rmtree(folder)
        for _ in range(600):
            metrics.record("a", "b", 2.0)
        assert metrics.get_stats().dropped == {}
    assert len(stored(folder)) > 50


STOPPED = """
import os, sys, time
from tallymark import Metrics
metrics = Metrics(sys.argv[1], max_queue_size=512)
metrics._sealer.look = lambda journal: None
metrics.start()
for number in range(1000):
    metrics.record("a", "b", float(number))
metrics._journal.drop("invalid")
metrics._journal.sync()
print(flush=True)
time.sleep(600)
"""


def test_dropped_counts_survive_a_kill(folder: Path) -> None:
    with python("-c", STOPPED, str(folder)) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        ready = process.stdout.readline()
        before = books(folder)
        process.kill()
        assert ready == "\n", process.stderr.read()
    assert (before.recorded, before.pending) == (1001, len(live(folder)))
    assert before.dropped == {"journal_full": 1000 - before.pending, "invalid": 1}
    ship(folder)
    after = books(folder)
    assert (after.recorded, after.stored, after.dropped) == (before.recorded, before.pending, before.dropped)


def test_a_program_that_cannot_record_ends_as_ever(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    program = "import sys; from tallymark import Metrics; m = Metrics(sys.argv[1]); m.start(); m.record('a', 'b', 1.0)"
    process = python("-c", program, str(tmp_path / "file" / "below"))
    printed, said = process.communicate(timeout=120)
    assert (process.returncode, printed) == (0, "")
    # and it says what is wrong, though not one record could be kept
    assert said.count("records are being dropped, and counted: ") == 1
    assert "Not a directory" in said
