"""What a query means, in the plainest Python: the answers of every store are compared with these."""

import json
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

from tallymark.batch import record_id
from tallymark.query import Filter, Query, metadata_path, percentile

Row = dict[str, Any]
"""A record as a row of tallymark.batch.SCHEMA."""

_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")


def scan(rows: Iterable[Row], query: Query) -> list[Row]:
    """The rows that match, in order."""
    found = sorted((row for row in rows if _matches(row, query)), key=_place, reverse=not query.oldest_first)
    if query.after is not None:
        after = tuple(query.after)
        found = [row for row in found if (_place(row) > after if query.oldest_first else _place(row) < after)]
    return found[: query.limit]


def aggregate(rows: Iterable[Row], query: Query) -> list[dict[str, Any]]:
    """The groups in order; ``samples`` included."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if _matches(row, query):
            window = () if query.window is None else (row["timestamp"] // query.window * query.window,)
            key = (*window, *(text_of(row, field) for field in query.group_by))
            groups.setdefault(key, []).append(row)
    answer = []
    for key, members in groups.items():
        found = dict(zip(query.keys, key, strict=True))
        found |= {name: _aggregate(name, members, query, found) for name in query.aggregates}
        answer.append(found | {"samples": len(members)})
    # Sorts are stable, so the last column first.
    for name, descending in reversed(query.order):
        nulls = [row for row in answer if row[name] is None]
        others = [row for row in answer if row[name] is not None]
        answer = sorted(others, key=lambda row: row[name], reverse=descending) + nulls
    return answer[: query.limit]


def text_of(row: Row, field: str) -> Any:
    """A column as it is, a metadata value as its text."""
    path = metadata_path(field)
    if path is None:
        return str(record_id(row["journal"], row["seq"])) if field == "id" else row[field]
    value = json.loads(row["metadata"])
    for key in path:
        if isinstance(value, list) and re.fullmatch("0|[1-9][0-9]*", key) and int(key) < len(value):
            value = value[int(key)]
        elif isinstance(value, dict) and key in value:
            value = value[key]
        else:
            return None
    if value is None or isinstance(value, str):
        return value
    return same_escapes(json.dumps(value, ensure_ascii=False, separators=(",", ":")))


def same_escapes(text: str) -> str:
    """The text with the digits of escapes in capitals. They stay as they are inside of lists and objects, and engines
    write them either way.
    """
    return re.sub(r"\\(.)([0-9a-fA-F]{4})?", _in_capitals, text)


def _in_capitals(escape: re.Match[str]) -> str:
    return f"\\u{escape[2].upper()}" if escape[1] == "u" and escape[2] else escape[0]


def close(left: Any, right: Any, scale: float) -> bool:
    """Whether two values are equal, but for rounding; ``scale`` is the size of what they came from."""
    if isinstance(left, float) and isinstance(right, float):
        return math.isclose(left, right, rel_tol=1e-9, abs_tol=1e-9 * scale)
    return type(left) is type(right) and left == right


def _place(row: Row) -> tuple[int, str, int]:
    return row["timestamp"], row["journal"], row["seq"]


def _matches(row: Row, query: Query) -> bool:
    inside = (query.start is None or row["timestamp"] >= query.start) and (
        query.end is None or row["timestamp"] < query.end
    )
    wants_own = any(
        item.field == "metric_type" and item.op in ("=", "in") and "tallymark" in item.values for item in query.filters
    )
    return (
        inside
        and (wants_own or row["metric_type"] != "tallymark")
        and all(_meets(row, condition) for condition in query.filters)
    )


def _meets(row: Row, condition: Filter) -> bool:
    if condition.op == "!=":
        return not _meets(row, Filter(condition.field, "=", condition.value))
    if condition.op == "in":
        return any(_meets(row, Filter(condition.field, "=", value)) for value in condition.values)
    found, value = text_of(row, condition.field), condition.values[0]
    if metadata_path(condition.field) is not None:
        if isinstance(value, bool):
            value = "true" if value else "false"
        elif isinstance(value, float) and found is not None:
            found = float(found) if _NUMBER.fullmatch(found) else None
    if found is None or value is None:
        return found is value and condition.op == "="
    compare = {"=": "__eq__", "<": "__lt__", "<=": "__le__", ">": "__gt__", ">=": "__ge__"}[condition.op]
    return getattr(found, compare)(value) is True


def _aggregate(name: str, rows: Sequence[Row], query: Query, keys: dict[str, Any]) -> Any:
    values = sorted(row["value"] for row in rows)
    outcomes = [row["success"] for row in rows if row["success"] is not None]
    newest = max(rows, key=_place)
    share = percentile(name)
    if share is not None:
        return _percentile(values, share)
    match name:
        case "count":
            return len(rows)
        case "sum":
            return math.fsum(values)
        case "avg":
            return math.fsum(values) / len(values)
        case "min":
            return values[0]
        case "max":
            return values[-1]
        case "last":
            return newest["value"]
        case "last_timestamp":
            return newest["timestamp"]
        case "rate":
            return _rate(len(rows), query, keys)
        case "success_rate":
            return 100.0 * outcomes.count(True) / len(outcomes) if outcomes else None
        case "error_rate":
            return 100.0 * outcomes.count(False) / len(outcomes) if outcomes else None
    raise AssertionError(name)


def _percentile(values: Sequence[float], share: float) -> float:
    rank = share * (len(values) - 1)
    low = math.floor(rank)
    high = min(low + 1, len(values) - 1)
    return values[low] * (1 - (rank - low)) + values[high] * (rank - low)


def _rate(count: int, query: Query, keys: dict[str, Any]) -> float:
    start = -math.inf if query.start is None else query.start
    end = math.inf if query.end is None else query.end
    if query.window is not None:
        window_start = keys["window_start"]
        start, end = max(start, window_start), min(end, window_start + query.window)
    return count / ((end - start) / 1e9)
