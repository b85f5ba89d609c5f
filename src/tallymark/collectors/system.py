"""Records CPU, memory, disk and network of the machine, and what this process takes of them."""

import math
import os
import threading
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any

from tallymark.collectors.collector import Collector
from tallymark.errors import ConfigError

if TYPE_CHECKING:
    from tallymark.recorder import Metrics

UNITS = {
    "cpu_percent": "%",
    "cpu_count": "1",
    "memory_used_mb": "MiBy",
    "memory_total_mb": "MiBy",
    "memory_percent": "%",
    "disk_used_gb": "GiBy",
    "disk_total_gb": "GiBy",
    "disk_percent": "%",
    "disk_read_mb": "MiBy",
    "disk_write_mb": "MiBy",
    "network_sent_mb": "MiBy",
    "network_received_mb": "MiBy",
    "memory_mb": "MiBy",
    "threads": "1",
    "open_files": "1",
}
"""The unit of each name, for the metric types ``system`` and ``process`` alike."""

_MIB = 2**20
_GIB = 2**30
# The kernel counts CPU time in ticks of 10 ms: a share over less would be noise.
_SHORTEST_WINDOW_SECONDS = 0.1

Values = dict[str, float]
"""Readings by name, in the units of :data:`UNITS`."""

Counters = dict[tuple[str, str], float]
"""What was counted so far, by what it adds up to, and where it was counted."""


class SystemCollector(Collector):
    """Samples at an interval, from a daemon thread of its own.

    Args:
        metrics: where to record. None: only :meth:`status` works.
        interval_seconds: the time between two samples; the first is taken at once.
        disk_path: the file system whose use is recorded is the one that holds this path.

    Raises:
        ValueError: the interval is not a positive number.
        ConfigError: psutil is not installed.

    Machine and process are the metric types ``system`` and ``process``; names and units are those of
    :data:`UNITS`. ``cpu_percent`` of the machine is a share of all cores, of the process a share of one core,
    so it may exceed 100; both are over the time since the last sample, as are ``disk_read_mb``,
    ``disk_write_mb``, ``network_sent_mb`` and ``network_received_mb``, so the first sample goes without them.
    Loopback is no network. What cannot be read is left out, and logged once; the rest goes on. A forked child
    does not sample unless it calls :meth:`start`.
    """

    def __init__(self, metrics: "Metrics | None", interval_seconds: float = 5.0, *, disk_path: str = "/") -> None:
        super().__init__(metrics, interval_seconds, "system")
        self._disk_path = disk_path
        self._take_baseline()

    def collect_once(self) -> dict[str, Any]:
        """Take a sample now, record each value, and return it.

        Returns:
            the machine's values by name, and under ``process`` those of this process.

        Raises:
            RuntimeError: the recorder is not running.
        """
        metrics = self._recorder()
        self._forget_parent()
        sample = self._recorded.sample()
        process = sample["process"]
        for name, value in sample.items():
            if name != "process":
                metrics.record("system", name, value, UNITS[name])
        for name, value in process.items():
            metrics.record("process", name, value, UNITS[name])
        return sample

    def status(self) -> dict[str, Any]:
        """The same values as :meth:`collect_once`, not recorded.

        What is measured over time is measured since the last call of this method, whatever was recorded
        between.
        """
        self._forget_parent()
        return self._shown.sample()

    def _forget_parent(self) -> None:
        if self._pid != os.getpid():
            # Forked: the counters are another process's, and so may be the owner of their lock.
            self._take_baseline()

    def _take_baseline(self) -> None:
        self._pid = os.getpid()
        # Two, so that somebody who looks does not shorten the window of what is recorded. Who looks twice
        # within a moment sees the same rates again; recorded twice they would be counted twice.
        self._recorded = _Sampler(self._disk_path, self._log_once, repeats_rates=False)
        self._shown = _Sampler(self._disk_path, self._log_once, repeats_rates=True)


class _Sampler:
    """Reads what the kernel counts, each kind by itself, so that one that fails takes no other with it."""

    def __init__(self, disk_path: str, log_once: Callable[[str, Exception], None], *, repeats_rates: bool) -> None:
        self._psutil = _load_psutil()
        self._process = self._psutil.Process()
        self._disk_path = disk_path
        self._log_once = log_once
        self._repeats_rates = repeats_rates
        self._lock = threading.Lock()
        self._machine_time = _Growth(self._machine_seconds)
        self._process_time = _Growth(self._process_seconds)
        self._disk_bytes = _Growth(self._disk_counters)
        self._network_bytes = _Growth(self._network_counters)
        self._system_rates: Values = {}
        self._process_rates: Values = {}
        self._measure_rates()  # nothing to compare with yet: this is the baseline

    def sample(self) -> dict[str, Any]:
        with self._lock:
            if monotonic() - self._rates_taken >= _SHORTEST_WINDOW_SECONDS:
                self._measure_rates()
            elif not self._repeats_rates:
                self._system_rates, self._process_rates = {}, {}
            system = (
                self._system_rates
                | self._read("the number of CPUs", lambda: {"cpu_count": self._psutil.cpu_count()})
                | self._read("memory", self._memory)
                | self._read("disk use", self._disk_use)
            )
            process = self._process_rates | self._read("the process", self._process_state)
        return {**_presented(system), "process": _presented(process)}

    def _measure_rates(self) -> None:
        self._rates_taken = monotonic()
        self._system_rates = (
            self._read("CPU time", lambda: _busy_percent(self._machine_time.since_last(), at_most=100.0))
            | self._read("disk traffic", lambda: _mebibytes(self._disk_bytes.since_last()))
            | self._read("network traffic", lambda: _mebibytes(self._network_bytes.since_last()))
        )
        self._process_rates = self._read(
            "CPU time of the process",
            lambda: _busy_percent(self._process_time.since_last(), at_most=math.inf),
        )

    def _read(self, kind: str, reading: Callable[[], Values]) -> Values:
        try:
            return reading()
        except Exception as error:
            self._log_once(kind, error)
            return {}

    def _machine_seconds(self) -> Counters:
        times = self._psutil.cpu_times()
        # Linux counts the time of guests within that of the user, too.
        total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
        return {("busy", ""): total - times.idle - getattr(times, "iowait", 0.0), ("total", ""): total}

    def _process_seconds(self) -> Counters:
        times = self._process.cpu_times()
        return {("busy", ""): times.user + times.system, ("total", ""): monotonic()}

    def _disk_counters(self) -> Counters:
        disks = self._psutil.disk_io_counters(nowrap=False)
        if disks is None:  # a container may see none
            return {}
        return {("disk_read_mb", ""): disks.read_bytes, ("disk_write_mb", ""): disks.write_bytes}

    def _network_counters(self) -> Counters:
        counters: Counters = {}
        for card, counted in self._psutil.net_io_counters(pernic=True, nowrap=False).items():
            if card not in ("lo", "lo0"):
                counters["network_sent_mb", card] = counted.bytes_sent
                counters["network_received_mb", card] = counted.bytes_recv
        return counters

    def _memory(self) -> Values:
        memory = self._psutil.virtual_memory()
        return {
            "memory_used_mb": memory.used / _MIB,
            "memory_total_mb": memory.total / _MIB,
            "memory_percent": memory.percent,
        }

    def _disk_use(self) -> Values:
        disk = self._psutil.disk_usage(self._disk_path)
        return {
            "disk_used_gb": disk.used / _GIB,
            "disk_total_gb": disk.total / _GIB,
            "disk_percent": disk.percent,
        }

    def _process_state(self) -> Values:
        process = self._process
        with process.oneshot():
            return {
                "memory_mb": process.memory_info().rss / _MIB,
                "threads": process.num_threads(),
                # The number of descriptors where there is one: a list of the files costs fifty times as much.
                "open_files": process.num_fds() if hasattr(process, "num_fds") else len(process.open_files()),
            }


class _Growth:
    """What counters have gained since they were last read.

    A counter that went backwards has wrapped around or belongs to another device of the same name, one that
    is new has no past, one that is gone has no present: none of them says anything about the time between.
    """

    def __init__(self, read: Callable[[], Counters]) -> None:
        self._read = read
        self._last: Counters = {}

    def since_last(self) -> Values:
        now, before = self._read(), self._last
        self._last = now
        grown: Values = {}
        for key, value in now.items():
            if key in before and value >= before[key]:
                grown[key[0]] = grown.get(key[0], 0.0) + value - before[key]
        return grown


def _busy_percent(seconds: Values, at_most: float) -> Values:
    if not seconds.get("total") or "busy" not in seconds:
        return {}
    return {"cpu_percent": min(100.0 * seconds["busy"] / seconds["total"], at_most)}


def _mebibytes(grown: Values) -> Values:
    return {name: value / _MIB for name, value in grown.items()}


def _presented(values: Values) -> Values:
    return {name: round(values[name], 3) for name in UNITS if values.get(name) is not None}


def _load_psutil() -> Any:
    try:
        import psutil
    except ImportError as error:
        raise ConfigError('The system collector needs psutil: pip install "tallymark[system]"') from error
    return psutil
