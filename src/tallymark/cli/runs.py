"""The commands ``runs``, ``runs show`` and ``runs diff``: the runs of pipelines."""

import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from typer.core import TyperGroup

from tallymark.cli.read import JsonOption
from tallymark.cli.stores import DEFAULT_STORE, StoreArgument, open_existing
from tallymark.errors import TallymarkError

if TYPE_CHECKING:
    from tallymark.pipeline.compare import StageComparison
    from tallymark.pipeline.metrics import StageMetrics
    from tallymark.pipeline.runs import Run
    from tallymark.reader import Reader

PERCENTILES: Final = ("p50", "p95", "p99")
FILE_SUFFIX: Final = ".json"

RunArgument = Annotated[
    str, typer.Argument(metavar="RUN", help="An id, the beginning of one, latest, latest~1, or a file of export_json.")
]


class _Runs(TyperGroup):
    """``tallymark runs STORE`` is short for ``tallymark runs list STORE``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and args[0] not in ctx.help_option_names):
            args = ["list", *args]
        return super().parse_args(ctx, args)


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    runs = typer.Typer(
        cls=_Runs, rich_markup_mode=None, help=_HELP, short_help="The runs of pipelines, and what changed."
    )
    runs.command("list", short_help="The runs that were at work last.")(list_)
    runs.command(short_help="One run: its stages, caches and resources.")(show)
    runs.command(short_help="Which stage got slower; exit code 1 where one did.")(diff)
    app.add_typer(runs, name="runs")


_HELP = """\b
Examples:
  tallymark runs                         the last runs in ./metrics
  tallymark runs ./demo-metrics --json   the same as: tallymark runs list ./demo-metrics --json
  tallymark runs show latest
  tallymark runs diff latest~1 latest    for CI: exit code 1 where a stage got slower

The runs of pipelines (tallymark.pipeline.PipelineRun).
"""


def list_(
    store: StoreArgument = DEFAULT_STORE,
    since: Annotated[
        str | None, typer.Option(metavar="TIME", help="Only runs that were at work since: now-7d, 2026-11-22T08:00, …")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1_000, metavar="N", help="At most this many runs.")] = 20,
    as_json: JsonOption = False,
) -> None:
    """\b
    Examples:
      tallymark runs
      tallymark runs list ./metrics --since now-7d --json

    The runs that were at work last, the last one first. A run without a duration is at work, or was killed.
    """
    from tallymark.cli.output import message, print_json, print_table
    from tallymark.pipeline.runs import list_runs

    with open_existing(store) as reader:
        runs = list_runs(reader, since=since, limit=limit)
    if as_json:
        for run in runs:
            print_json(_summary(run))
    elif runs:
        rows = [_line(run) for run in runs]
        print_table(list(rows[0]), rows)
    else:
        message("there is no run; hint: tallymark.pipeline.PipelineRun makes one", "dim")


def show(run: RunArgument, store: StoreArgument = DEFAULT_STORE, as_json: JsonOption = False) -> None:
    """\b
    Examples:
      tallymark runs show latest
      tallymark runs show 3fa9 ./metrics --json
      tallymark runs show monitoring/metrics_123.json

    One run: how long each stage took, exact percentiles, what failed, caches and resources. A file of
    export_json has no percentiles, and only its stages are shown.
    """
    from dataclasses import asdict

    from tallymark.cli.output import message, print_json
    from tallymark.pipeline.metrics import ResourceMetrics, resource_figures, stage_figures
    from tallymark.pipeline.runs import run_caches, run_resources, stage_percentiles
    from tallymark.pipeline.table import print_run

    with ExitStack() as stack:
        found, reader = _find(run, store, stack)
        if reader is None:
            percentiles, caches, resources = {}, {}, ResourceMetrics()
        else:
            percentiles = stage_percentiles(reader, found, PERCENTILES)
            caches, resources = run_caches(reader, found), run_resources(reader, found)
    if as_json:
        print_json(
            {
                **_summary(found),
                "stages": {
                    name: stage_figures(stage) | {f"{share}_s": s for share, s in percentiles.get(name, {}).items()}
                    for name, stage in found.stages.items()
                },
                "caches": {
                    name: {**asdict(cache), "hit_rate_pct": cache.hit_rate_pct} for name, cache in caches.items()
                },
                "resources": resource_figures(resources),
            }
        )
        return
    message(_headline(found), "bold")
    print_run(found.stages, caches, resources, found.duration_s, percentiles)


def diff(
    before: RunArgument,
    after: RunArgument,
    store: StoreArgument = DEFAULT_STORE,
    threshold: Annotated[
        float, typer.Option(min=0, max=1e6, metavar="PERCENT", help="By how much a stage may become slower.")
    ] = 10.0,
    as_json: JsonOption = False,
) -> None:
    """\b
    Examples:
      tallymark runs diff latest~1 latest
      tallymark runs diff 3fa9 latest ./metrics --threshold 25
      tallymark runs diff baseline.json monitoring/metrics_123.json

    Every stage of either run: mean and 95th percentile in both, and the ratio of the means with a 95 %
    confidence interval (delta method and Welch's t; how: tallymark.pipeline.compare). A stage got slower
    where its mean grew by more than the threshold and the interval lies above 1. A stage that ran once
    has no interval, nor has a file of export_json, which keeps means only: then nothing is decided.

    \b
    Exit codes:
      0   no stage got slower, as far as that can be decided
      1   a stage got slower
      2   there is no such run, or no such store
    """
    from tallymark.cli.output import message, print_json
    from tallymark.pipeline.compare import compare_runs

    try:
        with ExitStack() as stack:
            one, reader = _find(before, store, stack)
            if reader is None:
                two, reader = _find(after, store, stack)
            else:
                two, _ = _find(after, store, stack, reader)
            stages = compare_runs(one, two, reader, threshold=threshold / 100)
    except TallymarkError as error:
        if os.environ.get("TALLYMARK_DEBUG"):
            raise
        message(f"error: {error}", style="red")
        raise typer.Exit(2) from None
    slower = [stage for stage in stages if stage.is_regression]
    if as_json:
        print_json(
            {
                "before": _summary(one),
                "after": _summary(two),
                "threshold_pct": threshold,
                "regression": bool(slower),
                "stages": [_compared(stage) for stage in stages],
            }
        )
    else:
        _print_comparison(one, two, stages, threshold)
    if slower:
        raise typer.Exit(1)


def _find(text: str, store: str, stack: ExitStack, reader: "Reader | None" = None) -> "tuple[Run, Reader | None]":
    """A run, and the store that it is in; None where it is a file."""
    from tallymark.pipeline.runs import find_run, read_file

    if text.endswith(FILE_SUFFIX) and ("/" in text or Path(text).exists()):
        return read_file(Path(text)), None
    if reader is None:
        reader = stack.enter_context(open_existing(store))
    return find_run(reader, text), reader


def _line(run: "Run") -> dict[str, Any]:
    """A run as a row for people."""
    slowest = run.bottleneck
    return {
        "run": run.run_id,
        "name": run.name,
        "service": ", ".join(run.services),
        "start": run.started,
        "duration s": run.duration_s,
        "outcome": _outcome(run),
        "stages": len(run.stages),
        "errors": run.errors,
        "bottleneck": slowest and f"{slowest.stage} {slowest.share:.0%}",
    }


def _outcome(run: "Run") -> str | None:
    if run.duration_s is None:
        return "unfinished"
    return {True: "ok", False: "failed", None: None}[run.success]


def _summary(run: "Run") -> dict[str, Any]:
    """A run as JSON."""
    slowest = run.bottleneck
    return {
        "run_id": run.run_id,
        "name": run.name,
        "services": list(run.services),
        "start_time": run.started,
        "duration_s": run.duration_s,
        "finished": run.duration_s is not None,
        "success": run.success,
        "error": run.error,
        "stage_count": len(run.stages),
        "errors": run.errors,
        "bottleneck": slowest and slowest.stage,
        "bottleneck_share": slowest and slowest.share,
    }


def _compared(stage: "StageComparison") -> dict[str, Any]:
    """A comparison as JSON."""
    from tallymark.pipeline.metrics import stage_figures

    figures: dict[str, Any] = {}
    for which, metrics, p95 in (
        ("before", stage.before, stage.p95_before),
        ("after", stage.after, stage.p95_after),
    ):
        figures[which] = None if metrics is None else {**stage_figures(metrics), "p95_s": p95}
    return {
        "stage": stage.stage,
        **figures,
        "ratio": stage.ratio,
        "ratio_low": stage.interval and stage.interval.low,
        "ratio_high": stage.interval and stage.interval.high,
        "verdict": stage.verdict,
        "regression": stage.is_regression,
    }


def _print_comparison(one: "Run", two: "Run", stages: "list[StageComparison]", threshold: float) -> None:
    from tallymark.cli.output import message, number, print_table

    message(f"before  {_headline(one)}", "dim")
    message(f"after   {_headline(two)}", "dim")
    rows = [
        {
            "stage": stage.stage,
            "count": f"{_text(stage.before, 'count')} → {_text(stage.after, 'count')}",
            "errors": f"{_text(stage.before, 'errors')} → {_text(stage.after, 'errors')}",
            "mean ms": f"{_mean(stage.before)} → {_mean(stage.after)}",
            "p95 ms": f"{_ms(stage.p95_before)} → {_ms(stage.p95_after)}",
            "ratio": stage.ratio,
            "95 % interval": stage.interval and f"{number(stage.interval.low)} – {number(stage.interval.high)}",
            "verdict": stage.verdict,
        }
        for stage in stages
    ]
    if not rows:
        message("neither run has a stage")
        return
    print_table(list(rows[0]), rows)
    if not (one.is_stored and two.is_stored):
        message("a file of export_json keeps means only: no interval is possible, and nothing is decided")
    elif any(stage.ratio is not None and stage.interval is None for stage in stages):
        message("a stage that ran once in a run has no interval, and nothing is decided about it")
    slower = [stage.stage for stage in stages if stage.is_regression]
    if slower:
        message(f"slower by more than {threshold:g} %: {', '.join(slower)}", "red")
    if one.name is not None and two.name is not None and one.name != two.name:
        message(f"these are runs of two jobs: {one.name} and {two.name}", "yellow")


def _headline(run: "Run") -> str:
    """A run in a line."""
    from tallymark.cli.output import local_time, number

    parts = [run.run_id, run.name, ", ".join(run.services), run.started and local_time(run.started)]
    parts.append("unfinished" if run.duration_s is None else f"{number(run.duration_s)} s")
    if run.success is False:
        parts.append(f"failed: {run.error}" if run.error else "failed")
    return "  ".join(part for part in parts if part)


def _text(stage: "StageMetrics | None", name: str) -> str:
    return "–" if stage is None else f"{getattr(stage, name):,}"


def _mean(stage: "StageMetrics | None") -> str:
    return _ms(None if stage is None else stage.avg_duration_s)


def _ms(seconds: float | None) -> str:
    from tallymark.cli.output import number

    return "–" if seconds is None else number(seconds * 1000)
