"""One run: collects what its stages, caches and the machine do.

It keeps a few numbers for each stage, so it takes the same memory however long it runs. With a recorder each call is a
record too, of ``metric_type`` ``stage``, ``cache`` or ``resource_usage``, whose ``session_id`` is the id of the run;
``tallymark runs`` lists, shows and compares them.
"""

import os
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from tallymark import log
from tallymark.model import MAX_DURATION_MS, MAX_ID_LENGTH, check_count, check_duration, check_number, check_text
from tallymark.pipeline.metrics import (
    Bottleneck,
    CacheMetrics,
    ResourceMetrics,
    Sample,
    StageMetrics,
    as_document,
    find_bottleneck,
    write_json,
)
from tallymark.privacy import MASK
from tallymark.timing import RecordedBlock, describe

if TYPE_CHECKING:
    import logging

    from tallymark.recorder import Metrics

__all__ = [
    "MAX_STAGES",
    "OTHERS",
    "Bottleneck",
    "CacheMetrics",
    "MetricsCollector",
    "PipelineRun",
    "ResourceMetrics",
    "StageMetrics",
    "StageTimer",
    "get_metrics_collector",
]

MAX_STAGES: Final = 1_000
"""Most stages, and most caches, of a run; what comes beyond is counted as one, under :data:`OTHERS`."""
OTHERS: Final = "(others)"

_LONGEST_SECONDS = MAX_DURATION_MS / 1_000
_LARGEST = 1e15
_FOLD_AT = 512

# A fold is short, and a fork waits for it, so that the child has whole numbers and a free lock. A signal handler or a
# finaliser may come in on the same thread, hence the R.
_folding = threading.RLock()
os.register_at_fork(before=_folding.acquire, after_in_parent=_folding.release, after_in_child=_folding.release)


class PipelineRun(RecordedBlock):
    """One run of a job: collects what its stages, caches and the machine do.

    Every method may be called from threads, coroutines, signal handlers and finalisers. As a context manager, sync or
    async, it calls :meth:`finish` at the end.

    Args:
        metrics: records each call as well. None: only the figures of this object. One that is switched off: no figures.
        name: of the job; the runs of one job share it.
        run_id: of this run; by default a new one. Processes that work on one run give the same.

    What looks like a secret or a person in these and in the names of stages and caches is treated as the recorder
    treats it, and masked where there is none.

    Raises:
        ValueError: an argument is not valid.
        TypeError: ``metrics`` is no recorder.
    """

    def __init__(self, metrics: "Metrics | None" = None, name: str = "pipeline", run_id: str | None = None) -> None:
        if isinstance(metrics, str | os.PathLike):
            raise TypeError("metrics must be a recorder, tallymark.Metrics(…), not the place of a store")
        self._pii = MASK if metrics is None else metrics.pii
        self.name = check_text("name", name, pii=self._pii)
        self.run_id = uuid.uuid4().hex if run_id is None else check_text("run_id", run_id, MAX_ID_LENGTH, self._pii)
        self.start_time = datetime.now(UTC)
        self._metrics = metrics
        self._now = time.perf_counter_ns if metrics is None else metrics.monotonic_ns
        self._started = self._now()
        self._ended: int | None = None
        self._is_folding = False
        self._known: set[str] = set()
        self._new_stages: list[tuple[str, float, bool]] = []
        self._new_samples: list[Sample] = []
        self._stages: dict[str, StageMetrics] = {}
        self._resources = ResourceMetrics()
        self._caches: dict[str, CacheMetrics] = {}
        self._complained = False
        if metrics is not None and not metrics.enabled:
            vars(self).update(dict.fromkeys(("record_stage", "record_resources", "record_cache", "finish"), _nothing))

    # Recording

    def record_stage(self, name: str, duration_s: float, error: bool = False) -> None:
        """Count one pass of a stage that took so many seconds.

        Raises:
            ValueError: an argument is not valid; nothing was counted.
        """
        label = None
        if not (
            (error is False or error is True)
            and type(duration_s) is float
            and 0.0 <= duration_s <= _LONGEST_SECONDS
            and type(name) is str
            and name in self._known
        ):
            name, duration_s, label = self._admit(name, duration_s, error)
        self._new_stages.append((name, duration_s, error))
        if len(self._new_stages) >= _FOLD_AT:
            self._fold(wait=False)
        if self._metrics is not None:
            try:
                self._metrics.record("stage", name, duration_s * 1000, "ms", not error, None, label, None, self.run_id)
            except RuntimeError as refused:
                self._complain(refused)

    def stage(self, name: str) -> "StageTimer":
        """Time a block, in ``with`` or ``async with``; one that raises is counted as an error, and goes on raising.

        Raises:
            ValueError: the name is not valid.
        """
        if type(name) is not str or name not in self._known:
            check_text("name", name)
        return StageTimer(self, name)

    def record_resources(
        self,
        cpu: float | None = None,
        mem: float | None = None,
        disk: float | None = None,
        net: float | None = None,
    ) -> None:
        """Count one sample of what the process takes of the machine; what could not be seen is None.

        Args:
            cpu: percent of one core.
            mem: resident memory, MB.
            disk, net: MB that passed since the sample before.

        Raises:
            ValueError: an argument is not valid; nothing was counted.
        """
        sample = Sample(*map(_amount, Sample._fields, (cpu, mem, disk, net)))
        self._new_samples.append(sample)
        if len(self._new_samples) >= _FOLD_AT:
            self._fold(wait=False)
        for value, name, unit in zip(sample, _RESOURCES, _RESOURCE_UNITS, strict=True):
            if value is not None:
                self._record("resource_usage", name, value, unit)

    def record_cache(self, name: str, hits: int, misses: int, evictions: int = 0, size_bytes: int = 0) -> None:
        """Keep what a cache says about itself: totals since it was made, so the newest call is the one that counts.

        Raises:
            ValueError: an argument is not valid; nothing was kept.
        """
        name = check_text("name", name, pii=self._pii)
        cache = CacheMetrics(
            *map(check_count, ("hits", "misses", "evictions", "size_bytes"), (hits, misses, evictions, size_bytes))
        )
        if name not in self._caches and len(self._caches) >= MAX_STAGES:
            name = OTHERS
        self._caches[name] = cache
        self._record("cache", name, cache.hit_rate_pct, "%", metadata=asdict(cache))

    def finish(self, success: bool = True, error: str | None = None) -> None:
        """End the run: its duration stands still, and it is recorded. Only the first call does anything.

        Args:
            success: whether the job did what it is for.
            error: why not.
        """
        with _folding:
            if self._ended is not None:
                return
            self._ended = self._now()
        stages = self.stages
        slowest = find_bottleneck(stages)
        metadata = {
            "stages": len(stages),
            "items": sum(stage.count for stage in stages.values()),
            "errors": sum(stage.errors for stage in stages.values()),
            "bottleneck": slowest and slowest.stage,
            "bottleneck_share": slowest and slowest.share,
        }
        try:
            self._record("run", self.name, self.duration_s * 1000, "ms", success, error, metadata)
        except ValueError as refused:  # by what the recorder does with private texts, in the error
            self._refuse(self.name, refused)

    def _end(self, failure: BaseException | None) -> None:
        self.finish(failure is None, None if failure is None else describe(failure))

    # What it came to

    @property
    def duration_s(self) -> float:
        """Seconds since the run began, until it finished."""
        return ((self._now() if self._ended is None else self._ended) - self._started) / 1e9

    @property
    def stages(self) -> dict[str, StageMetrics]:
        """Each stage by its name, in the order of their first passes: the figures of this moment."""
        self._fold(wait=True)
        return dict(self._stages)

    @property
    def resources(self) -> ResourceMetrics:
        """What was taken of the machine: the figures of this moment."""
        self._fold(wait=True)
        return self._resources

    @property
    def caches(self) -> dict[str, CacheMetrics]:
        """Each cache by its name."""
        return dict(self._caches)

    @property
    def bottleneck(self) -> Bottleneck | None:
        """The stage that took the most time; None where none took any."""
        return find_bottleneck(self.stages)

    def export_json(self, path: str | os.PathLike[str]) -> None:
        """Write the figures of this moment to a file, whose folder is made. ``start_time`` is in UTC.

        Who reads the file meanwhile sees the one before or this one, never a part.

        Raises:
            OSError: the file cannot be written; one that was there is as it was.
        """
        write_json(Path(path), as_document(self.start_time, self.duration_s, self.stages, self.resources, self.caches))

    def log_summary(self, logger: "logging.Logger | None" = None) -> None:
        """Log the figures of this moment, by default with the logger ``tallymark.pipeline``, as information."""
        import logging

        say = (logger or logging.getLogger(__name__)).info
        say("📊 === Performance Metrics ===")
        stages, resources = self.stages, self.resources
        for name, stage in stages.items():
            say("  %s: %.1f ops/s (avg: %.1fms)", _shown(name), stage.throughput_per_s, stage.avg_duration_s * 1000)
        say("  CPU: %.1f%%", resources.avg_cpu_percent)
        say("  Memory: %.1f MB", resources.avg_memory_mb)
        for name, cache in self.caches.items():
            rate = cache.hit_rate_pct
            say("  %s: %.1f%% hit rate (%d hits, %d misses)", _shown(name), rate, cache.hits, cache.misses)
        slowest = find_bottleneck(stages)
        if slowest is not None:
            say("  Bottleneck: %s (%.1f%% of the time of all stages)", _shown(slowest.stage), 100 * slowest.share)

    def print_summary(self) -> None:
        """Print a table of the stages to standard output, and what else there is to say below it.

        Raises:
            ConfigError: what prints tables is not installed.
        """
        from tallymark.pipeline.table import print_run

        print_run(self.stages, self.caches, self.resources, self.duration_s)

    # Within

    def _admit(self, name: str, duration_s: float, error: bool) -> tuple[str, float, dict[str, str] | None]:
        """The careful way: the arguments as they can be counted, and what is said once about each stage."""
        name = check_text("name", name, pii=self._pii)
        duration_s = check_duration("duration_s", duration_s)
        if duration_s > _LONGEST_SECONDS:
            raise ValueError("duration_s must be at most ten years; was it computed from two wall-clock readings?")
        if error is not True and error is not False:
            raise ValueError(f"error must be True or False, not {type(error).__name__}")
        if name in self._known:
            return name, duration_s, None
        if len(self._known) >= MAX_STAGES:
            return OTHERS, duration_s, None
        self._known.add(name)
        # Should this process be killed, these say which job it was.
        return name, duration_s, {"run": self.name}

    def _fold(self, *, wait: bool) -> None:
        """Add what is new to the sums. Appending to a list is atomic, this is not: one thread at a time."""
        if not _folding.acquire(blocking=wait):
            return
        try:
            if self._is_folding:  # it was interrupted by a signal handler or a finaliser, which came here
                return
            self._is_folding = True
            try:
                self._fold_stages()
                self._fold_samples()
            finally:
                self._is_folding = False
        finally:
            _folding.release()

    def _fold_stages(self) -> None:
        batch = self._new_stages[:]
        if not batch:
            return
        durations: dict[str, list[float]] = {}
        errors: dict[str, int] = {}
        for name, duration_s, error in batch:
            durations.setdefault(name, []).append(duration_s)
            if error:
                errors[name] = errors.get(name, 0) + 1
        stages = dict(self._stages)
        for name, numbers in durations.items():
            stages[name] = stages.get(name, StageMetrics()).plus(numbers, errors.get(name, 0))
        self._stages = stages
        del self._new_stages[: len(batch)]

    def _fold_samples(self) -> None:
        batch = self._new_samples[:]
        resources = self._resources
        for sample in batch:
            resources = resources.plus(sample)
        self._resources = resources
        del self._new_samples[: len(batch)]

    def _record(
        self,
        metric_type: str,
        name: str,
        value: float,
        unit: str,
        success: bool | None = None,
        error: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        if self._metrics is not None:
            try:
                self._metrics.record(metric_type, name, value, unit, success, error, metadata, None, self.run_id)
            except RuntimeError as refused:
                self._complain(refused)

    def _refuse(self, name: str, refused: ValueError) -> None:
        """Count what is not recorded where an exception would hurt the job."""
        if self._metrics is not None:
            self._metrics.drop_invalid(name, refused)

    def _complain(self, refused: RuntimeError) -> None:
        """The job goes on, and so does this object; only the store has no more of it."""
        if not self._complained:
            self._complained = True
            log.warning("the run %r is no longer recorded: %s", self.name, refused)


class StageTimer(RecordedBlock):
    """One pass of a stage; made by :meth:`PipelineRun.stage`."""

    __slots__ = ("_name", "_run", "_started")

    def __init__(self, run: PipelineRun, name: str) -> None:
        self._run = run
        self._name = name
        self._started = 0

    def __enter__(self) -> Self:
        self._started = self._run._now()
        return self

    def _end(self, failure: BaseException | None) -> None:
        run = self._run
        duration_s = (run._now() - self._started) / 1e9
        if not 0.0 <= duration_s <= _LONGEST_SECONDS:  # a clock that is not the machine's own may give anything
            duration_s = 0.0 if duration_s < 0.0 else _LONGEST_SECONDS
        try:
            run.record_stage(self._name, duration_s, failure is not None)
        except ValueError as refused:  # the block has done its work: what its name holds must not make it fail now
            run._refuse(self._name, refused)


def _nothing(*arguments: object, **keywords: object) -> None:
    """What recording is where the recorder is switched off."""


MetricsCollector = PipelineRun

_collectors: dict[str, PipelineRun] = {}


def get_metrics_collector() -> PipelineRun:
    """The run of this process, the same at every call; made by the first, and finished when the process ends.

    It records with :func:`tallymark.default.default_metrics`. A process that does one job after the other gives each
    a :class:`PipelineRun` of its own instead, or their figures add up.

    Raises:
        ConfigError: the settings of the recorder are not valid, or the package that reads them is missing.
    """
    collector = _collectors.get("")
    if collector is None:
        from tallymark.default import default_metrics

        made = PipelineRun(default_metrics())
        collector = _collectors.setdefault("", made)  # atomic: of two threads one has its way
        if collector is made:
            import atexit

            atexit.register(_finish_at_exit, made, os.getpid())
    return collector


def _finish_at_exit(run: PipelineRun, pid: int) -> None:
    """A forked child that ends has not ended the run."""
    if os.getpid() == pid and (run.stages or run.caches or run.resources != ResourceMetrics()):
        run.finish()


_RESOURCES = ("cpu_percent", "memory_mb", "disk_io_mb", "network_io_mb")
_RESOURCE_UNITS = ("%", "MiBy", "MiBy", "MiBy")


def _amount(field: str, value: object) -> float | None:
    if value is None:
        return None
    number = check_number(field, value)
    if not 0 <= number <= _LARGEST:
        raise ValueError(f"{field} must be between 0 and {_LARGEST:g}")
    return number


def _shown(name: str) -> str:
    """A name on one line of a log, whatever is in it."""
    return name if name.isprintable() else name.encode("unicode_escape").decode("ascii")
