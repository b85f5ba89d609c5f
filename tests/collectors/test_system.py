"""The system collector: the values of this machine, and what becomes of counters that misbehave."""

import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from recording import DEADLINE_SECONDS

import tallymark
from tallymark import Metrics
from tallymark.collectors import system
from tallymark.collectors.system import UNITS, SystemCollector
from tallymark.errors import ConfigError
from tallymark.record import Record

SYSTEM = {
    "cpu_percent",
    "cpu_count",
    "memory_used_mb",
    "memory_total_mb",
    "memory_percent",
    "disk_used_gb",
    "disk_total_gb",
    "disk_percent",
    "disk_read_mb",
    "disk_write_mb",
    "network_sent_mb",
    "network_received_mb",
}
PROCESS = {"cpu_percent", "memory_mb", "threads", "open_files"}


@pytest.fixture(scope="module")
def recorder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Metrics]:
    """One for all tests: its stop brings everything into the lake, which takes a second."""
    with Metrics(tmp_path_factory.mktemp("metrics"), service="test", flush_interval_seconds=600) as metrics:
        yield metrics


@pytest.fixture
def metrics(recorder: Metrics) -> Metrics:
    return recorder


class Recorded:
    """What a test has recorded."""

    def __init__(self, store: str) -> None:
        self._store = store
        self._since = time.time_ns()

    def __call__(self, metric_type: str) -> list[Record]:
        """The records of a type so far, oldest first."""
        with tallymark.open(self._store) as reader:
            return reader.records(metric_type=metric_type, since=self._since, limit=1000).records[::-1]

    def grows(self, beyond: int | None = None) -> bool:
        """Whether another sample comes in: after this call, or beyond so many values."""
        count = len(self("system")) if beyond is None else beyond
        deadline = time.monotonic() + DEADLINE_SECONDS
        while len(self("system")) <= count and time.monotonic() < deadline:
            time.sleep(0.01)
        return len(self("system")) > count


@pytest.fixture
def recorded(recorder: Metrics) -> Recorded:
    return Recorded(recorder.store)


@pytest.fixture
def no_shortest_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that two samples in a row are told apart."""
    monkeypatch.setattr(system, "_SHORTEST_WINDOW_SECONDS", 0.0)


def burn_cpu(seconds: float) -> None:
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


def test_a_sample_is_returned_and_recorded(metrics: Metrics, recorded: Recorded) -> None:
    collector = SystemCollector(metrics)
    burn_cpu(0.15)
    sample = collector.collect_once()
    process = sample.pop("process")
    assert process.keys() == PROCESS
    assert sample.keys() <= SYSTEM
    assert sample.keys() >= SYSTEM - {"disk_read_mb", "disk_write_mb"}  # a container may see no disk
    for metric_type, values in (("system", sample), ("process", process)):
        records = recorded(metric_type)
        assert {record.name: record.value for record in records} == values
        assert {record.name: record.unit for record in records} == {name: UNITS[name] for name in values}
        assert {record.success for record in records} == {None}


def test_the_values_are_those_of_this_machine(metrics: Metrics) -> None:
    collector = SystemCollector(metrics)
    burn_cpu(0.15)
    sample = collector.status()
    assert sample["cpu_count"] == os.cpu_count()
    assert 0 < sample["cpu_percent"] <= 100
    assert sample["process"]["cpu_percent"] > 1  # a busy machine may give it little of a core
    assert sample["memory_total_mb"] == pytest.approx(psutil.virtual_memory().total / 2**20, rel=1e-3)
    assert sample["disk_total_gb"] == pytest.approx(psutil.disk_usage("/").total / 2**30, rel=1e-3)
    assert 0 < sample["memory_used_mb"] < sample["memory_total_mb"]
    assert sample["process"]["memory_mb"] == pytest.approx(psutil.Process().memory_info().rss / 2**20, rel=0.2)
    assert sample["process"]["threads"] >= threading.active_count()
    assert sample["process"]["open_files"] >= 3


def test_status_records_nothing(metrics: Metrics, recorded: Recorded) -> None:
    collector = SystemCollector(metrics)
    collector.status()
    assert recorded("system") == recorded("process") == []


def test_status_without_a_recorder_that_runs(folder: Path) -> None:
    collector = SystemCollector(Metrics(folder))
    assert collector.status()["cpu_count"] == os.cpu_count()
    with pytest.raises(RuntimeError):
        collector.collect_once()


def test_a_moment_is_no_window(metrics: Metrics, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "_SHORTEST_WINDOW_SECONDS", 60.0)
    collector = SystemCollector(metrics)
    assert "cpu_percent" not in collector.collect_once()
    assert "cpu_percent" not in collector.collect_once()["process"]


def test_rates_are_shown_again_and_recorded_once(metrics: Metrics, monkeypatch: pytest.MonkeyPatch) -> None:
    collector = SystemCollector(metrics)
    burn_cpu(0.15)
    assert "cpu_percent" in collector.collect_once()
    shown = collector.status()["cpu_percent"]
    monkeypatch.setattr(system, "_SHORTEST_WINDOW_SECONDS", 60.0)
    assert "cpu_percent" not in collector.collect_once()
    assert collector.status()["cpu_percent"] == shown


class Cards:
    """Stands in for the network cards that psutil sees: bytes sent and received by name."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now: dict[str, tuple[int, int]] = {}
        monkeypatch.setattr(psutil, "net_io_counters", self._read)

    def _read(self, *, pernic: bool, nowrap: bool) -> dict[str, Any]:
        return {
            card: SimpleNamespace(bytes_sent=sent, bytes_recv=received) for card, (sent, received) in self.now.items()
        }


MIB = 2**20


@pytest.mark.usefixtures("no_shortest_window")
def test_network_is_the_difference_and_survives_cards_that_come_and_go(
    metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    cards = Cards(monkeypatch)
    cards.now = {"eth0": (10 * MIB, 100 * MIB), "lo": (0, 0)}
    collector = SystemCollector(metrics)

    def traffic() -> tuple[Any, Any]:
        sample = collector.collect_once()
        return sample.get("network_sent_mb"), sample.get("network_received_mb")

    cards.now = {"eth0": (12 * MIB, 105 * MIB), "lo": (900 * MIB, 900 * MIB)}
    assert traffic() == (2, 5)
    cards.now = {"eth0": (13 * MIB, 105 * MIB), "wlan0": (500 * MIB, 500 * MIB)}
    assert traffic() == (1, 0)
    cards.now = {"eth0": (14 * MIB, 106 * MIB), "wlan0": (503 * MIB, 507 * MIB)}
    assert traffic() == (4, 8)
    cards.now = {"wlan0": (504 * MIB, 507 * MIB)}
    assert traffic() == (1, 0)
    cards.now = {"wlan0": (0, 508 * MIB)}  # wrapped around, in one direction
    assert traffic() == (None, 1)
    cards.now = {}
    assert traffic() == (None, None)
    cards.now = {"wlan0": (1 * MIB, 509 * MIB)}
    assert traffic() == (None, None)
    cards.now = {"wlan0": (2 * MIB, 509 * MIB)}
    assert traffic() == (1, 0)


@pytest.mark.usefixtures("no_shortest_window")
def test_a_machine_without_disks(metrics: Metrics, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "disk_io_counters", lambda **options: None)
    sample = SystemCollector(metrics).collect_once()
    assert "disk_read_mb" not in sample
    assert "disk_used_gb" in sample


@pytest.mark.usefixtures("no_shortest_window")
def test_what_cannot_be_read_is_left_out_and_logged_once(
    metrics: Metrics, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise PermissionError("not yours")

    monkeypatch.setattr(psutil, "virtual_memory", refuse)
    monkeypatch.setattr(psutil, "net_io_counters", refuse)
    with caplog.at_level(logging.WARNING, logger="tallymark"):
        collector = SystemCollector(metrics)
        samples = [collector.collect_once() for _ in range(3)]
    missing = {
        "memory_used_mb",
        "memory_total_mb",
        "memory_percent",
        "network_sent_mb",
        "network_received_mb",
    }
    assert all(not missing & sample.keys() for sample in samples)
    assert all({"cpu_count", "disk_used_gb"} <= sample.keys() for sample in samples)
    assert sorted(record.getMessage() for record in caplog.records) == [
        "The system collector goes on without memory: PermissionError: not yours",
        "The system collector goes on without network traffic: PermissionError: not yours",
    ]


def test_a_disk_path_that_is_not_there(metrics: Metrics, caplog: pytest.LogCaptureFixture) -> None:
    sample = SystemCollector(metrics, disk_path="/nowhere/at/all").collect_once()
    assert "disk_used_gb" not in sample
    assert "memory_used_mb" in sample
    assert len(caplog.records) == 1


def test_samples_at_an_interval_until_it_is_stopped(metrics: Metrics, recorded: Recorded) -> None:
    with SystemCollector(metrics, interval_seconds=0.02) as collector:
        assert recorded.grows()
        assert recorded.grows()
        thread = collector._thread
    assert thread is not None
    assert not thread.is_alive()
    collector.start()
    assert recorded.grows()
    collector.stop()
    collector.stop()


def test_the_first_sample_is_taken_at_once_and_stop_does_not_wait_for_the_next(
    metrics: Metrics, recorded: Recorded
) -> None:
    with SystemCollector(metrics, interval_seconds=3600):
        assert recorded.grows(beyond=0)


def test_a_second_start_is_only_logged(metrics: Metrics, caplog: pytest.LogCaptureFixture) -> None:
    def sampling() -> int:
        return sum(thread.name == "tallymark-system" for thread in threading.enumerate())

    with SystemCollector(metrics, interval_seconds=3600) as collector:
        collector.start()
        assert sampling() == 1
    assert [record.getMessage() for record in caplog.records] == ["The system collector is running already"]
    assert sampling() == 0


def test_stop_without_start(metrics: Metrics) -> None:
    SystemCollector(metrics).stop()


@pytest.mark.parametrize("interval", [0, -1, float("nan"), float("inf")])
def test_an_interval_that_is_none(metrics: Metrics, interval: float) -> None:
    with pytest.raises(ValueError, match="interval_seconds"):
        SystemCollector(metrics, interval)


def test_it_outlives_a_recorder_that_stops(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    metrics = Metrics(folder, service="test", flush_interval_seconds=600)
    metrics.start()
    recorded = Recorded(metrics.store)
    with SystemCollector(metrics, interval_seconds=0.01) as collector:
        assert recorded.grows()
        metrics.stop()
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not caplog.records and time.monotonic() < deadline:
            time.sleep(0.01)
        metrics.start()
        assert recorded.grows()
        assert collector._thread is not None
        assert collector._thread.is_alive()
    assert len([record for record in caplog.records if "goes on without recording" in record.getMessage()]) == 1


def test_without_psutil(metrics: Metrics, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psutil", None)
    with pytest.raises(ConfigError, match=r'pip install "tallymark\[system\]"'):
        SystemCollector(metrics)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_does_not_sample_unless_it_starts(metrics: Metrics, recorded: Recorded) -> None:
    with SystemCollector(metrics, interval_seconds=0.02) as collector:
        assert recorded.grows()
        # As if the fork had come while the thread was sampling.
        with collector._recorded._lock:
            child = os.fork()
            if child == 0:
                alone = threading.active_count() == 1
                own = collector.collect_once()["process"]["threads"] <= 2
                collector.stop()
                collector.start()
                started = collector._thread is not None and collector._thread.is_alive()
                os._exit(0 if alone and own and started else 1)
        _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def test_it_costs_less_than_a_hundredth_of_a_core(metrics: Metrics) -> None:
    collector = SystemCollector(metrics)
    collector.collect_once()
    began = time.process_time()
    for _ in range(20):
        collector.collect_once()
    each = (time.process_time() - began) / 20
    assert each < 0.01 * 5.0
