"""The figures of a pipeline as plain values, and the JSON document that they make."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

from tallymark.files import replace_file

MEBIBYTE: Final = 2**20
"""What "MB" means here, as in the other names that end in ``_mb``."""


@dataclass(frozen=True, slots=True)
class StageMetrics:
    """What a stage did so far; a stage that never ran is all zeros.

    Attributes:
        count: how often it ran.
        total_duration_s, min_duration_s, max_duration_s: seconds.
        errors: how many of these failed.
    """

    count: int = 0
    total_duration_s: float = 0.0
    min_duration_s: float = 0.0
    max_duration_s: float = 0.0
    errors: int = 0

    @property
    def avg_duration_s(self) -> float:
        """The mean duration, in seconds."""
        return self.total_duration_s / self.count if self.count else 0.0

    @property
    def throughput_per_s(self) -> float:
        """How often it ran per second that it took: count / total duration."""
        return self.count / self.total_duration_s if self.total_duration_s else 0.0

    def plus(self, durations: list[float], errors: int) -> "StageMetrics":
        """The same, and these durations (at least one)."""
        return StageMetrics(
            self.count + len(durations),
            math.fsum((self.total_duration_s, *durations)),
            min(durations) if not self.count else min(self.min_duration_s, *durations),
            max(self.max_duration_s, *durations),
            self.errors + errors,
        )


@dataclass(frozen=True, slots=True)
class ResourceMetrics:
    """What was taken of the machine: sums over samples. MB are 2**20 bytes."""

    cpu_percent: float = 0.0
    memory_mb: float = 0.0
    disk_io_mb: float = 0.0
    network_io_mb: float = 0.0
    cpu_samples: int = 0
    memory_samples: int = 0
    disk_samples: int = 0
    network_samples: int = 0

    @property
    def avg_cpu_percent(self) -> float:
        """CPU, in percent of one core."""
        return self.cpu_percent / self.cpu_samples if self.cpu_samples else 0.0

    @property
    def avg_memory_mb(self) -> float:
        """Resident memory, in MB."""
        return self.memory_mb / self.memory_samples if self.memory_samples else 0.0

    @property
    def avg_disk_io_mb(self) -> float:
        """Read and written, in MB for each sample."""
        return self.disk_io_mb / self.disk_samples if self.disk_samples else 0.0

    @property
    def avg_network_io_mb(self) -> float:
        """Sent and received, in MB for each sample."""
        return self.network_io_mb / self.network_samples if self.network_samples else 0.0

    def plus(self, sample: "Sample") -> "ResourceMetrics":
        """The same, and this sample; what it does not have is not counted."""
        cpu, memory, disk, network = sample
        return ResourceMetrics(
            self.cpu_percent + (cpu or 0.0),
            self.memory_mb + (memory or 0.0),
            self.disk_io_mb + (disk or 0.0),
            self.network_io_mb + (network or 0.0),
            self.cpu_samples + (cpu is not None),
            self.memory_samples + (memory is not None),
            self.disk_samples + (disk is not None),
            self.network_samples + (network is not None),
        )


@dataclass(frozen=True, slots=True)
class CacheMetrics:
    """What a cache says about itself, since it was made."""

    hits: int = 0
    misses: int = 0
    evictions: int = 0
    size_bytes: int = 0

    @property
    def hit_rate_pct(self) -> float:
        """Hits in percent of lookups; 0 where there was none."""
        lookups = self.hits + self.misses
        return 100.0 * self.hits / lookups if lookups else 0.0

    @property
    def size_mb(self) -> float:
        """The size, in MB."""
        return self.size_bytes / MEBIBYTE


class Sample(NamedTuple):
    """One look at what the process takes of the machine; None is what could not be seen."""

    cpu: float | None
    mem: float | None
    disk: float | None
    net: float | None


class Bottleneck(NamedTuple):
    """The stage that took the most time, and its share of the time of all stages, between 0 and 1."""

    stage: str
    share: float


def find_bottleneck(stages: Mapping[str, StageMetrics]) -> Bottleneck | None:
    """The stage that took the most time; None where none took any."""
    total = math.fsum(stage.total_duration_s for stage in stages.values())
    if not total:
        return None
    name = max(stages, key=lambda stage: stages[stage].total_duration_s)
    return Bottleneck(name, stages[name].total_duration_s / total)


def stage_figures(stage: StageMetrics) -> dict[str, Any]:
    """A stage as JSON."""
    return {
        "count": stage.count,
        "total_duration_s": stage.total_duration_s,
        "avg_duration_s": stage.avg_duration_s,
        "min_duration_s": stage.min_duration_s,
        "max_duration_s": stage.max_duration_s,
        "throughput_per_s": stage.throughput_per_s,
        "errors": stage.errors,
    }


def resource_figures(resources: ResourceMetrics) -> dict[str, Any]:
    """What was taken of the machine, as JSON."""
    return {
        "avg_cpu_percent": resources.avg_cpu_percent,
        "avg_memory_mb": resources.avg_memory_mb,
        "avg_disk_io_mb": resources.avg_disk_io_mb,
        "avg_network_io_mb": resources.avg_network_io_mb,
        "cpu_samples": resources.cpu_samples,
        "memory_samples": resources.memory_samples,
    }


def as_document(
    start_time: datetime,
    duration_s: float,
    stages: Mapping[str, StageMetrics],
    resources: ResourceMetrics,
    caches: Mapping[str, CacheMetrics],
) -> dict[str, Any]:
    """The document that :meth:`tallymark.pipeline.PipelineRun.export_json` writes; ``start_time`` goes in as UTC."""
    return {
        "start_time": start_time.replace(tzinfo=None).isoformat(timespec="microseconds"),
        "duration_s": duration_s,
        "stages": {name: stage_figures(stage) for name, stage in stages.items()},
        "resources": resource_figures(resources),
        "caches": {
            name: {
                "hits": cache.hits,
                "misses": cache.misses,
                "hit_rate_pct": cache.hit_rate_pct,
                "evictions": cache.evictions,
                "size_mb": cache.size_mb,
            }
            for name, cache in caches.items()
        },
    }


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Replace a file at once and for good; its folder is made.

    Raises:
        OSError: it cannot be written; one that was there is as it was.
    """
    # ASCII: names come from anywhere, and people look at files in terminals.
    text = json.dumps(document, indent=2, allow_nan=False).replace("\x7f", "\\u007f") + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, text)
