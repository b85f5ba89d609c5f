"""The reports as files. A file is there as a whole or as it was before."""

import csv
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tallymark.files import replace_file

Report = Mapping[str, Any]
"""What :func:`tallymark.review.report.review` returns."""

# A spreadsheet takes what begins so for a formula.
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\n")

_STAGES: Final = ("avg_duration_ms", "success_rate", "total_count", "p95_duration_ms", "max_duration_ms")
_OVERVIEW: Final = (
    *("total_requests", "avg_total_processing_time_ms", "overall_success_rate", "total_corrections"),
    "total_sessions",
)
_TYPES: Final = (
    *("total_count", "avg_processing_time_ms", "avg_satisfaction", "avg_voice_transcription_time_ms"),
    *("avg_ai_correction_time_ms", "avg_similarity", "avg_retry_count"),
)
_ADMINS: Final = ("label", "total_corrections", "avg_satisfaction", "avg_processing_time_ms")
_PERFORMANCE: Final = (
    *("label", "total_corrections", "corrections_per_day", "avg_processing_time_ms", "avg_satisfaction"),
    "rated_corrections",
)
_TREND: Final = ("direction", "slope_per_day", "p_value", "points")
_ALERTS: Final = ("type", "severity", "message", "stage", "correction_rate")
_SYSTEM: Final = ("last", "avg", "max", "count")

Table = tuple[Sequence[str], Iterable[Sequence[object]]]


def write_json(report: Report, path: str | os.PathLike[str]) -> Path:
    """Write a report as JSON, in ASCII.

    Raises:
        OSError: the file cannot be written.
    """
    path = Path(path)
    replace_file(path, json.dumps(report, indent=2, allow_nan=False) + "\n")
    return path


def write_csv(report: Report, folder: str | os.PathLike[str]) -> list[Path]:
    """Write a report as CSV files, in UTF-8, each with a header: ``overview``, ``stages``, ``corrections``, ``admins``,
    ``admin_performance``, ``alerts`` and ``system_metrics``.

    A text that a spreadsheet would take for a formula gets an apostrophe in front, with which spreadsheets mark texts.

    Raises:
        OSError: a file cannot be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    texts = {folder / f"{name}.csv": _csv_text(*table) for name, table in _tables(report).items()}
    for path, text in texts.items():
        replace_file(path, text)
    return list(texts)


def _tables(report: Report) -> dict[str, Table]:
    corrections, performance = report["corrections"], report["admin_performance"]
    people = {"": performance["team"], **performance["admins"]}
    trends = ("speed", "satisfaction")
    return {
        "overview": (_OVERVIEW, [[report["overview"][column] for column in _OVERVIEW]]),
        "stages": _keyed("stage", _STAGES, report["processing_by_stage"]),
        "corrections": _keyed("correction_type", _TYPES, corrections["by_type"]),
        "admins": _keyed("admin", _ADMINS, corrections["by_admin"]),
        "admin_performance": (
            ("admin", *_PERFORMANCE, *(f"{name}_{part}" for name in trends for part in _TREND)),
            [
                [admin, *(row.get(column) for column in _PERFORMANCE)]
                + [row[name][part] for name in trends for part in _TREND]
                for admin, row in people.items()
            ],
        ),
        "alerts": (_ALERTS, [[alert.get(column) for column in _ALERTS] for alert in report["alerts"]]),
        "system_metrics": _keyed("name", _SYSTEM, report["system_metrics"]),
    }


def _keyed(key: str, columns: Sequence[str], rows: Mapping[str, Mapping[str, object]]) -> Table:
    return (key, *columns), [[name, *(row[column] for column in columns)] for name, row in rows.items()]


def _csv_text(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(header)
    writer.writerows([_cell(value) for value in row] for row in rows)
    return text.getvalue()


def _cell(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
