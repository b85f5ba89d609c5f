"""What may be asked, and what each word of it means. The sole owner of the semantics of a query.

A :class:`Query` is a value: stores translate it, everybody else only builds it. :meth:`Query.build` takes the
loose forms that people type (``"now-1h"``, ``"5m"``, ``"metadata.region=eu"``) and raises
:class:`~tallymark.errors.QueryError` naming the part that is wrong. A query that exists is valid.

**Fields.** A field is a column of a record or a path into its metadata: ``metadata.region``,
``metadata.user.plan``, ``metadata."a.b"`` for a key that holds a dot (quoted keys are JSON strings). A number
in a path picks an item of a list.

**Comparisons.** A metadata value has a text: a string is its own text, everything else is its JSON. Compared
with a string, texts are compared by code point; compared with a number, the text is read as a JSON number
(what is none does not match), so ``404`` matches both ``404`` and ``"404"``. ``None`` means null or absent.
``!=`` is exactly the opposite of ``=``: records without the field match it. The others never match null.

**Aggregates**, over the n records of one group:

====================  ==============================================================================
``count``             n
``sum``, ``avg``      of the values; null where the sum leaves the range of a float64
``min``, ``max``      of the values
``last``              the value of the newest record: the largest (timestamp, journal, seq)
``last_timestamp``    the timestamp of that record, ns
``rate``              n / the seconds of the window that lie inside [start, end); null where there are none
``success_rate``      100 * successes / records with an outcome; null where there is none
``error_rate``        100 * failures / records with an outcome; null where there is none
``p50``, ``p99.9`` …  exact, as PERCENTILE_CONT of SQL: rank q * (n - 1), linear between neighbours
====================  ==============================================================================

**Windows** are aligned to 1970-01-01 UTC. **Nulls** sort last in either direction; texts sort by code point.

Records of the store's own (``metric_type`` "tallymark") are seen only by a query that asks for that type with
``=`` or ``in``.
"""

import json
import math
import re
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final, Literal, NamedTuple, cast, get_args

from tallymark.errors import QueryError
from tallymark.model import MAX_METADATA_DEPTH, RESERVED_TYPE, clean_text
from tallymark.times import Length, Time, parse_length, parse_time

MAX_ROWS: Final = 1_000_000
"""Most rows of one answer, and the largest limit."""

MAX_FILTERS: Final = 64
MAX_FILTER_VALUES: Final = 1_000
MAX_FILTER_TEXT: Final = 16_384
MAX_GROUP_BY: Final = 16
MAX_AGGREGATES: Final = 32

MIN_WINDOW: Final = 1_000_000
MAX_WINDOW: Final = 3_660 * 86_400_000_000_000
"""Windows are between a millisecond and ten years long, in nanoseconds."""

TEXT_COLUMNS: Final = frozenset(
    {"service", "metric_type", "name", "unit", "error", "trace_id", "session_id", "description"}
)
GROUP_COLUMNS: Final = TEXT_COLUMNS | {"success"}
FILTER_COLUMNS: Final = GROUP_COLUMNS | {"id", "value", "timestamp"}

AGGREGATES: Final = (
    *("count", "sum", "avg", "min", "max", "last", "last_timestamp"),
    *("rate", "success_rate", "error_rate"),
)
"""Every aggregate but the percentiles."""

Op = Literal["=", "!=", "<", "<=", ">", ">=", "in"]
Scalar = str | int | float | bool | None
Where = Mapping[str, Any] | Iterable["str | Filter"] | str | None

_KINDS: Final = {
    "id": ("text",),
    "value": ("number",),
    "timestamp": ("number",),
    "success": ("bool", "null"),
    **dict.fromkeys(TEXT_COLUMNS, ("text", "null")),
}
_METADATA_KINDS: Final = ("text", "number", "bool", "null")

_PERCENTILE = re.compile(r"p(\d{1,2}(?:\.\d{1,3})?)", re.ASCII)
_PATH_PART = re.compile(r'"(?:[^"\\]|\\.)*"|[^."]+', re.DOTALL)
_CONDITION = re.compile(r'((?:[^"=<>!]|"(?:[^"\\]|\\.)*")+)(!=|<=|>=|==?|<|>)(.*)', re.DOTALL)
_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?", re.ASCII)
_CURSOR = re.compile(r"(\d{1,19})-([0-9a-f]{32})-(\d{1,13})", re.ASCII)


@dataclass(frozen=True)
class Filter:
    """One condition that a record has to meet.

    Attributes:
        field: a column, or a path into metadata.
        op: a comparison; ``in`` is true where ``=`` is true for any of the values.
        value: what is compared with; for ``in`` a tuple of them. A timestamp is an int in ns, an id its text.

    Raises:
        QueryError: there is no such field, or the value does not go with it.
    """

    field: str
    op: Op
    value: Scalar | tuple[Scalar, ...]

    def __post_init__(self) -> None:
        check_field(self.field, FILTER_COLUMNS, "where")
        if self.op not in get_args(Op):
            raise QueryError(f"where {self.field}: there is no {self.op!r}; use {' '.join(get_args(Op))}")
        value: Any = self.value
        if self.op == "in":
            if not isinstance(value, tuple) or not 1 <= len(value) <= MAX_FILTER_VALUES:
                raise QueryError(f"where {self.field}: 'in' takes 1 to {MAX_FILTER_VALUES} values")
            value = tuple(self._checked(item) for item in value)
        else:
            value = self._checked(value)
        object.__setattr__(self, "value", value)

    @property
    def values(self) -> tuple[Scalar, ...]:
        """The values as a tuple, whatever the comparison."""
        return self.value if isinstance(self.value, tuple) else (self.value,)

    def _checked(self, value: object) -> Scalar:
        part = f"where {self.field}"
        kind, allowed = _kind(value), _KINDS.get(self.field, _METADATA_KINDS)
        if kind not in allowed:
            raise QueryError(f"{part}: the value must be {' or '.join(allowed)}, not {type(value).__name__}")
        if self.op not in ("=", "!=", "in") and (kind in ("bool", "null") or self.field == "id"):
            raise QueryError(f"{part}: {self.op} makes no sense with it; use = or !=")
        if self.field == "id":
            return _identifier(cast(str, value))
        if isinstance(value, str):
            return _clean(value, part)
        if self.field == "timestamp":
            if not isinstance(value, int) or abs(value) >= 2**63:
                raise QueryError(f"{part}: the value must be an int of 64 bits, in nanoseconds")
            return value
        return _finite(value, part) if kind == "number" else cast(bool | None, value)


class Cursor(NamedTuple):
    """A place in a scan: that of the record with these three."""

    timestamp: int
    journal: str
    seq: int

    def __str__(self) -> str:
        return f"{self.timestamp}-{self.journal}-{self.seq}"

    @classmethod
    def parse(cls, text: str) -> "Cursor":
        """The place that a cursor's text means, or QueryError."""
        found = _CURSOR.fullmatch(text) if isinstance(text, str) else None
        if found is None or int(found[1]) >= 2**63:
            raise QueryError("cursor: not one that a page of records gave")
        return cls(int(found[1]), found[2], int(found[3]))


@dataclass(frozen=True, kw_only=True)
class Query:
    """A question. With aggregates it is for ``Store.aggregate``, without any it is for ``Store.scan``.

    Attributes:
        start, end: timestamps (ns) in [start, end); None is unbounded.
        filters: all of them have to be met.
        window: length of the windows in ns; None for none.
        group_by: columns and metadata paths; a metadata value groups by its text.
        aggregates: see the module.
        order_by: of an aggregation: any of :attr:`output`; ``window_start`` and the group-by fields that it
            does not name follow, so the order is total. Of a scan: ``timestamp`` for oldest first, otherwise
            newest first, by (timestamp, journal, seq). ``-`` in front: descending.
        limit: most rows. None means :data:`MAX_ROWS`; an aggregation that has more is an error.
        cursor: of a scan: go on behind this record.

    Raises:
        QueryError: naming the part and the rule.
    """

    start: int | None = None
    end: int | None = None
    filters: tuple[Filter, ...] = ()
    window: int | None = None
    group_by: tuple[str, ...] = ()
    aggregates: tuple[str, ...] = ()
    order_by: tuple[str, ...] = ()
    limit: int | None = None
    cursor: str | None = None

    def __post_init__(self) -> None:
        if self.start is not None and self.end is not None and self.start > self.end:
            raise QueryError("since: lies after until")
        if len(self.filters) > MAX_FILTERS:
            raise QueryError(f"where: at most {MAX_FILTERS} conditions, not {len(self.filters)}")
        if self.window is not None and not MIN_WINDOW <= self.window <= MAX_WINDOW:
            raise QueryError("window: must be between 1ms and 3660d")
        if self.limit is not None and not (type(self.limit) is int and 1 <= self.limit <= MAX_ROWS):
            raise QueryError(f"limit: must be an int between 1 and {MAX_ROWS}")
        _distinct("group_by", self.group_by, MAX_GROUP_BY)
        _distinct("agg", self.aggregates, MAX_AGGREGATES)
        _distinct("order_by", [field.removeprefix("-") for field in self.order_by], len(self.output))
        for field in self.group_by:
            check_field(field, GROUP_COLUMNS, "group_by")
        for aggregate in self.aggregates:
            if aggregate not in AGGREGATES and percentile(aggregate) is None:
                known = ", ".join(AGGREGATES)
                raise QueryError(f"agg: there is no {shortened(aggregate)}; use {known}, p50, p99.9")
        if self.aggregates:
            self._check_aggregation()
        else:
            self._check_scan()

    def _check_aggregation(self) -> None:
        if self.cursor is not None:
            raise QueryError("cursor: only records have one, aggregates do not")
        if "rate" in self.aggregates and self.window is None and (self.start is None or self.end is None):
            raise QueryError("agg: rate needs since or window, to know the seconds to divide by")
        for field in self.order_by:
            if field.removeprefix("-") not in self.output:
                raise QueryError(f"order_by: {shortened(field)} is not in the answer: {', '.join(self.output)}")

    def _check_scan(self) -> None:
        if self.window is not None or self.group_by:
            raise QueryError("agg: window and group_by need at least one aggregate")
        if self.order_by not in ((), ("timestamp",), ("-timestamp",)):
            raise QueryError("order_by: records are ordered by timestamp or -timestamp")
        if self.cursor is not None:
            Cursor.parse(self.cursor)

    @property
    def keys(self) -> tuple[str, ...]:
        """The columns of an aggregation that say what a row is about."""
        return (() if self.window is None else ("window_start",)) + self.group_by

    @property
    def output(self) -> tuple[str, ...]:
        """Every column of an aggregation, in order."""
        return (*self.keys, *self.aggregates, "samples")

    @property
    def order(self) -> tuple[tuple[str, bool], ...]:
        """The whole order of an aggregation: (column, descending)."""
        given = {field.removeprefix("-"): field.startswith("-") for field in self.order_by}
        return tuple((given | {key: False for key in self.keys if key not in given}).items())

    @property
    def oldest_first(self) -> bool:
        """The direction of a scan."""
        return self.order_by == ("timestamp",)

    @property
    def after(self) -> Cursor | None:
        """Where a scan goes on."""
        return None if self.cursor is None else Cursor.parse(self.cursor)

    @property
    def conditions(self) -> tuple[Filter, ...]:
        """The filters, and the one that hides the store's own records unless they are asked for."""
        for found in self.filters:
            if found.field == "metric_type" and found.op in ("=", "in") and RESERVED_TYPE in found.values:
                return self.filters
        return (*self.filters, Filter("metric_type", "!=", RESERVED_TYPE))

    @classmethod
    def build(
        cls,
        *,
        since: Time | None = None,
        until: Time | None = None,
        where: Where = None,
        window: Length | None = None,
        group_by: Iterable[str] = (),
        agg: Iterable[str] = ("count",),
        order_by: Iterable[str] = (),
        limit: int | None = None,
        cursor: str | None = None,
        now: int | None = None,
        **columns: Any,
    ) -> "Query":
        """A query from the forms that people type.

        Args:
            since, until: ``"now-1h"``, ISO 8601, an aware datetime, ns: :func:`tallymark.times.parse_time`.
                None is unbounded, but for a rate the end is now.
            where: conditions as text (``"value>=100"``, ``"metadata.region=eu"``, ``"error!=null"``; a value
                in quotes is a JSON string) or as :class:`Filter`; or a mapping of fields to the values that
                they must have, a list of values meaning any of them.
            window: ``"5m"``, a timedelta, or ns: :func:`tallymark.times.parse_length`.
            group_by, agg, order_by: names; one alone may be a plain string.
            now: what "now" means, ns; the time of the call when left out.
            columns: as a mapping in ``where``, for columns, but None means any.

        Raises:
            QueryError: naming the part and the rule.
        """
        now = time.time_ns() if now is None else now
        aggregates = _names(agg, "agg")
        if until is None and "rate" in aggregates:
            until = now
        given = {name: value for name, value in columns.items() if value is not None}
        return cls(
            start=None if since is None else parse_time(since, "since", now),
            end=None if until is None else parse_time(until, "until", now),
            filters=(*_conditions(where, now), *_equalities(given, now)),
            window=None if window is None else parse_length(window, "window"),
            group_by=_names(group_by, "group_by"),
            aggregates=aggregates,
            order_by=_names(order_by, "order_by"),
            limit=limit,
            cursor=cursor,
        )


def metadata_path(field: str) -> tuple[str, ...] | None:
    """The keys of a metadata field, outermost first; None for a column.

    Raises:
        QueryError: a key is empty without quotes, a quote is not closed, or the path is too deep.
    """
    if not field.startswith("metadata."):
        return None
    keys: list[str] = []
    place = len("metadata")
    while place < len(field):
        part = _PATH_PART.match(field, place + 1) if field[place] == "." else None
        if part is None:
            raise QueryError(f'{shortened(field)}: write metadata.a.b, or metadata."a.b" where a key has a dot')
        keys.append(_json_string(part[0], "field") if part[0].startswith('"') else part[0])
        place = part.end()
    if len(keys) > MAX_METADATA_DEPTH:
        raise QueryError(f"{shortened(field)}: at most {MAX_METADATA_DEPTH} keys deep")
    return tuple(keys)


def check_field(field: object, columns: frozenset[str], part: str) -> str:
    """The field, where it is one of the columns or a path into metadata; else QueryError naming the part."""
    if not isinstance(field, str):
        raise QueryError(f"{part}: a field is a string, not {type(field).__name__}")
    if _clean(field, part) != field:
        raise QueryError(f"{part}: {shortened(field)} holds half a surrogate pair or NUL")
    if field not in columns and metadata_path(field) is None:
        known = ", ".join(sorted(columns))
        raise QueryError(f"{part}: there is no field {shortened(field)}; use {known}, or metadata.KEY")
    return field


def percentile(aggregate: str) -> float | None:
    """The share of a percentile (0.95 for ``p95``); None for any other aggregate."""
    found = _PERCENTILE.fullmatch(aggregate)
    # Decimal: 99.9 / 100 is not 0.999 in floating point.
    return None if found is None else float(Decimal(found[1]) / 100)


def shortened(value: object) -> str:
    """A value as an error shows it: on one line, and not all of a long one."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"


def _conditions(where: Where, now: int) -> list[Filter]:
    if where is None:
        return []
    if isinstance(where, Mapping):
        return _equalities(where, now)
    conditions = [where] if isinstance(where, str) else where
    if not isinstance(conditions, Iterable):
        raise QueryError(f"where: conditions or a mapping, not {type(where).__name__}")
    return [item if isinstance(item, Filter) else _condition(item, now) for item in conditions]


def _equalities(values: Mapping[str, Any], now: int) -> list[Filter]:
    def typed(field: str, value: Any) -> Any:
        if field == "timestamp":
            return parse_time(value, "where timestamp", now)
        return str(value) if isinstance(value, uuid.UUID) else value

    filters = []
    for field, value in values.items():
        if isinstance(value, list | tuple | set | frozenset):
            filters.append(Filter(field, "in", tuple(typed(field, item) for item in value)))
        else:
            filters.append(Filter(field, "=", typed(field, value)))
    return filters


def _condition(text: object, now: int) -> Filter:
    """One condition as people type it."""
    found = _CONDITION.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        raise QueryError(f"where: {shortened(text)} is no condition; use FIELD=VALUE with one of = != < <= > >=")
    field = check_field(found[1].strip(), FILTER_COLUMNS, "where")
    operator = "=" if found[2] == "==" else found[2]
    return Filter(field, cast(Op, operator), _literal(field, found[3].strip(), now))


def _literal(field: str, text: str, now: int) -> Scalar:
    kinds = _KINDS.get(field, _METADATA_KINDS)
    if text.startswith('"'):
        return _json_string(text, f"where {field}")
    if field == "timestamp":
        return parse_time(text, "where timestamp", now)
    if "null" in kinds and text == "null":
        return None
    if "bool" in kinds and text in ("true", "false"):
        return text == "true"
    if "number" in kinds and _NUMBER.fullmatch(text):
        return float(text)
    return text


def _kind(value: object) -> str | None:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int | float):
        return "number"
    return "text" if isinstance(value, str) else None


def _finite(value: Any, part: str) -> float:
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise QueryError(f"{part}: the number must be finite")
    return number


def _clean(text: str, part: str) -> str:
    if len(text) > MAX_FILTER_TEXT:
        raise QueryError(f"{part}: a text has at most {MAX_FILTER_TEXT} characters")
    return clean_text(text)


def _json_string(text: str, part: str) -> str:
    try:
        value = json.loads(text, strict=False)
    except ValueError:
        value = None
    if not isinstance(value, str):
        raise QueryError(f"{part}: what begins with a quote must be a JSON string")
    return clean_text(value)


def _identifier(text: str) -> str:
    try:
        return str(uuid.UUID(text))
    except ValueError:
        raise QueryError(f"where id: {shortened(text)} is no UUID") from None


def _names(value: Iterable[str], part: str) -> tuple[str, ...]:
    if not isinstance(value, Iterable):
        raise QueryError(f"{part}: names, not {type(value).__name__}")
    names = (value,) if isinstance(value, str) else tuple(value)
    for name in names:
        if not isinstance(name, str):
            raise QueryError(f"{part}: a name is a string, not {type(name).__name__}")
    return names


def _distinct(part: str, values: Iterable[str], most: int) -> None:
    values = list(values)
    if len(set(values)) != len(values):
        raise QueryError(f"{part}: names one thing twice")
    if len(values) > most:
        raise QueryError(f"{part}: at most {most}, not {len(values)}")
