"""Runs as a store has them, or a file that ``export_json`` wrote."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from tallymark.errors import QueryError
from tallymark.model import MAX_TIMESTAMP
from tallymark.pipeline.metrics import Bottleneck, CacheMetrics, ResourceMetrics, StageMetrics, find_bottleneck
from tallymark.query import MAX_FILTER_VALUES, Filter, shortened
from tallymark.reader import Reader
from tallymark.record import Record
from tallymark.times import Time

MOST_RUNS: Final = MAX_FILTER_VALUES
"""Most runs of one list."""

_LARGEST_FILE = 64 * 2**20
_LATEST = re.compile(r"latest(?:~(\d{1,4}))?", re.ASCII)
_OF_RUNS = Filter("session_id", "!=", None)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run, as far as it has come.

    Attributes:
        run_id: its id; of a file, the path.
        name: of the job; None where nothing says so.
        services: whose processes worked on it.
        started: when it began; None where nothing says so.
        duration_s: how long it took; None while it has not finished, or never will.
        success: how it ended; None while it has not, and in files.
        error: why it failed.
        stages: each by its name, the one that took the most time first.
        is_stored: whether the durations themselves are to be had, from a store.
    """

    run_id: str
    name: str | None = None
    services: tuple[str, ...] = ()
    started: datetime | None = None
    duration_s: float | None = None
    success: bool | None = None
    error: str | None = None
    stages: dict[str, StageMetrics] = field(default_factory=dict)
    is_stored: bool = True

    @property
    def errors(self) -> int:
        """How many passes of stages failed."""
        return sum(stage.errors for stage in self.stages.values())

    @property
    def bottleneck(self) -> Bottleneck | None:
        """The stage that took the most time."""
        return find_bottleneck(self.stages)


def list_runs(reader: Reader, *, since: Time | None = None, limit: int = 20) -> list[Run]:
    """The runs that were at work last, the last one first; of each all its records, however old."""
    if not 1 <= limit <= MOST_RUNS:
        raise QueryError(f"limit: must be between 1 and {MOST_RUNS}")
    return _load(reader, _latest(reader, limit, since))


def find_run(reader: Reader, text: str) -> Run:
    """One run: by its id, by the beginning of it where no other begins so, or by ``latest``, ``latest~1``, …

    Raises:
        QueryError: there is none, or more than one.
    """
    latest = _LATEST.fullmatch(text)
    if latest is not None:
        back = int(latest[1] or 0)
        found = _latest(reader, back + 1)[back:]
    else:
        found = _beginning_with(reader, text)
    if not found:
        raise QueryError(f"run: there is no run {shortened(text)}; hint: tallymark runs lists them")
    if len(found) > 1:
        raise QueryError(f"run: several runs begin with {shortened(text)}: {', '.join(map(shortened, found[:3]))} …")
    return _load(reader, found)[0]


def read_file(path: Path) -> Run:
    """The run in a file that :meth:`tallymark.pipeline.PipelineRun.export_json` wrote.

    Raises:
        QueryError: it cannot be read, or is no such file.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST_FILE + 1)
        if len(content) > _LARGEST_FILE:
            raise ValueError("it is too large")
        document = json.loads(content)
        stages = {
            name: StageMetrics(
                int(stage["count"]),
                _seconds(stage["total_duration_s"]),
                _seconds(stage["min_duration_s"]),
                _seconds(stage["max_duration_s"]),
                int(stage["errors"]),
            )
            for name, stage in document["stages"].items()
        }
        return Run(
            run_id=str(path),
            started=datetime.fromisoformat(document["start_time"]).replace(tzinfo=UTC),
            duration_s=_seconds(document["duration_s"]),
            stages=_by_time(stages),
            is_stored=False,
        )
    except OSError as error:
        raise QueryError(f"run: {shortened(str(path))} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise QueryError(f"run: {shortened(str(path))} is no file that export_json wrote") from error


def stage_percentiles(reader: Reader, run: Run, names: Iterable[str]) -> dict[str, dict[str, float]]:
    """Percentiles (``p50``, ``p95``, …) of each stage in seconds; none of a file."""
    wanted = tuple(names)
    if not run.is_stored:
        return {}
    answer = reader.query(**of_stages(run), group_by="name", agg=wanted)
    return {row["name"]: {name: row[name] / 1000 for name in wanted} for row in answer.rows()}


def run_caches(reader: Reader, run: Run) -> dict[str, CacheMetrics]:
    """What each cache said last."""
    caches: dict[str, CacheMetrics] = {}
    for record in reader.records(metric_type="cache", session_id=run.run_id, limit=10_000).records:
        if record.name not in caches:
            hits, misses, evictions, size = (
                count if type(count := record.metadata.get(name)) is int else 0
                for name in ("hits", "misses", "evictions", "size_bytes")
            )
            caches[record.name] = CacheMetrics(hits, misses, evictions, size)
    return caches


def run_resources(reader: Reader, run: Run) -> ResourceMetrics:
    """What the run took of the machine."""
    answer = reader.query(metric_type="resource_usage", session_id=run.run_id, group_by="name", agg=("sum", "count"))
    found = {row["name"]: (row["sum"] or 0.0, row["count"]) for row in answer.rows()}
    cpu, memory, disk, network = (
        found.get(name, (0.0, 0)) for name in ("cpu_percent", "memory_mb", "disk_io_mb", "network_io_mb")
    )
    return ResourceMetrics(cpu[0], memory[0], disk[0], network[0], cpu[1], memory[1], disk[1], network[1])


def of_stages(run: Run) -> dict[str, Any]:
    """The conditions that the records of the stages of a run meet."""
    return {"metric_type": "stage", "unit": "ms", "session_id": run.run_id}


def _latest(reader: Reader, limit: int, since: Time | None = None) -> list[str]:
    answer = reader.query(
        metric_type=("stage", "run"),
        unit="ms",
        where=[_OF_RUNS],
        since=since,
        group_by="session_id",
        agg="last_timestamp",
        order_by="-last_timestamp",
        limit=limit,
    )
    return [row["session_id"] for row in answer.rows()]


def _beginning_with(reader: Reader, text: str) -> list[str]:
    """The id itself, or a few that begin so."""
    if not text:
        return []
    begins = [Filter("session_id", ">=", text), Filter("session_id", "<=", text + "\U0010ffff")]
    answer = reader.query(
        metric_type=("stage", "run"), unit="ms", where=begins, group_by="session_id", order_by="session_id", limit=4
    )
    found = [row["session_id"] for row in answer.rows()]
    return [text] if text in found else found


def _load(reader: Reader, ids: list[str]) -> list[Run]:
    """What is known of these runs, in their order."""
    if not ids:
        return []
    stages: dict[str, dict[str, StageMetrics]] = {run_id: {} for run_id in ids}
    services: dict[str, set[str]] = {run_id: set() for run_id in ids}
    answer = reader.query(
        metric_type="stage",
        unit="ms",
        session_id=ids,
        group_by=("session_id", "service", "name", "success"),
        agg=("count", "sum", "min", "max"),
    )
    for row in answer.rows():
        services[row["session_id"]].add(row["service"])
        of_run = stages[row["session_id"]]
        part = StageMetrics(
            row["count"],
            (row["sum"] or 0.0) / 1000,
            row["min"] / 1000,
            row["max"] / 1000,
            row["count"] if row["success"] is False else 0,
        )
        of_run[row["name"]] = part if row["name"] not in of_run else _joined(of_run[row["name"]], part)
    ends: dict[str, Record] = {}
    for page in reader.pages(metric_type="run", unit="ms", session_id=ids):
        for record in page.records:
            ends.setdefault(str(record.session_id), record)
            services[str(record.session_id)].add(record.service)
    runs = []
    for run_id in ids:
        run = Run(run_id=run_id, stages=_by_time(stages[run_id]), services=tuple(sorted(services[run_id])))
        end = ends.get(run_id)
        runs.append(_unfinished(reader, run) if end is None else _finished(run, end))
    return runs


def _finished(run: Run, end: Record) -> Run:
    return replace(
        run,
        name=end.name,
        started=_moment(end.timestamp / 1e9 - end.value / 1000),
        duration_s=end.value / 1000,
        success=end.success,
        error=end.error,
    )


def _unfinished(reader: Reader, run: Run) -> Run:
    """With what its first record says."""
    first = reader.records(**of_stages(run), order_by="timestamp", limit=1).records
    if not first:  # it was deleted a moment ago
        return run
    name = first[0].metadata.get("run")
    started = _moment(first[0].timestamp / 1e9 - first[0].value / 1000)
    return replace(run, name=name if isinstance(name, str) else None, started=started)


def _moment(seconds: float) -> datetime:
    """A time that can be shown, whatever was recorded."""
    return datetime.fromtimestamp(min(max(0.0, seconds), MAX_TIMESTAMP / 1e9), UTC)


def _joined(one: StageMetrics, other: StageMetrics) -> StageMetrics:
    return StageMetrics(
        one.count + other.count,
        one.total_duration_s + other.total_duration_s,
        min(one.min_duration_s, other.min_duration_s),
        max(one.max_duration_s, other.max_duration_s),
        one.errors + other.errors,
    )


def _by_time(stages: dict[str, StageMetrics]) -> dict[str, StageMetrics]:
    return dict(sorted(stages.items(), key=lambda item: (-item[1].total_duration_s, item[0])))


def _seconds(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1e300:
        raise ValueError("no duration")
    return float(value)
