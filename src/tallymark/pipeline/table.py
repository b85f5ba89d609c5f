"""A run as tables in the terminal."""

from collections.abc import Mapping

from tallymark.errors import ConfigError
from tallymark.pipeline.metrics import CacheMetrics, ResourceMetrics, StageMetrics, find_bottleneck


def print_run(
    stages: Mapping[str, StageMetrics],
    caches: Mapping[str, CacheMetrics],
    resources: ResourceMetrics,
    duration_s: float | None = None,
    percentiles: Mapping[str, Mapping[str, float]] | None = None,
) -> None:
    """Print stages and caches to standard output, and what else there is to say.

    Args:
        stages, caches, resources: what to print.
        duration_s: how long the run took.
        percentiles: of the stages, in seconds, each by its name, the same for all.

    Raises:
        ConfigError: what prints tables is not installed.
    """
    try:
        from tallymark.cli.output import print_table
    except ModuleNotFoundError as missing:
        if (missing.name or "").partition(".")[0] == "tallymark":
            raise
        raise ConfigError(f'tables need the package {missing.name}; hint: pip install "tallymark[cli]"') from missing
    names = list(next(iter((percentiles or {}).values()), {}))
    total = sum(stage.total_duration_s for stage in stages.values())
    rows = [
        {
            "stage": name,
            "count": stage.count,
            "errors": stage.errors,
            "total s": stage.total_duration_s,
            "% of all": 100 * stage.total_duration_s / total if total else 0.0,
            "per s": stage.throughput_per_s,
            "avg ms": stage.avg_duration_s * 1000,
            "min ms": stage.min_duration_s * 1000,
            "max ms": stage.max_duration_s * 1000,
            **{f"{share} ms": _milliseconds(percentiles, name, share) for share in names},
        }
        for name, stage in stages.items()
    ]
    if rows:
        print_table(list(rows[0]), rows)
    else:
        print("no stage ran")
    if caches:
        print()
        print_table(
            ["cache", "hits", "misses", "hit rate %", "evictions", "size MB"],
            [
                {
                    "cache": name,
                    "hits": cache.hits,
                    "misses": cache.misses,
                    "hit rate %": cache.hit_rate_pct,
                    "evictions": cache.evictions,
                    "size MB": cache.size_mb,
                }
                for name, cache in caches.items()
            ],
        )
    print()
    for line in _remarks(stages, resources, duration_s):
        print(line)


def _milliseconds(percentiles: Mapping[str, Mapping[str, float]] | None, stage: str, share: str) -> float | None:
    seconds = (percentiles or {}).get(stage, {}).get(share)
    return None if seconds is None else seconds * 1000


def _remarks(stages: Mapping[str, StageMetrics], resources: ResourceMetrics, duration_s: float | None) -> list[str]:
    from tallymark.cli.output import number, visible

    remarks = []
    if duration_s is not None:
        remarks.append(f"duration    {number(duration_s)} s")
    slowest = find_bottleneck(stages)
    if slowest is not None:
        remarks.append(f"bottleneck  {visible(slowest.stage)}, {slowest.share:.0%} of the time of all stages")
    if resources.cpu_samples or resources.memory_samples:
        remarks.append(
            f"resources   CPU {number(resources.avg_cpu_percent)} %, memory {number(resources.avg_memory_mb)} MB, "
            f"disk {number(resources.avg_disk_io_mb)} MB and network {number(resources.avg_network_io_mb)} MB a sample"
        )
    return remarks
