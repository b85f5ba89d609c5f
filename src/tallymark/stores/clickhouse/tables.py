"""The tables of ClickHouse, as statements that may be run again and again.

On a cluster every node has all of the bookkeeping, and a share of the records: those of the series that its shard is
for. There the names without ``_local`` are Distributed tables over all shards.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from tallymark.model import RESERVED_TYPE
from tallymark.percentile import bucket_sql
from tallymark.stores.retention import HOUR_NS
from tallymark.stores.sql import COLUMNS

VERSION: Final = 3
"""Of the schema: how many steps there are in :meth:`Tables.steps`."""

RECORDS: Final = "tallymark_records"
"""What is kept, one row for each record."""
INCOMING: Final = "tallymark_incoming"
"""What rows are inserted into; it keeps nothing itself, but passes them on unless their write is over."""
POSITIONS: Final = "tallymark_positions"
"""For each journal and write how far it came (0 while that is not known), and how far it was to come."""
FENCED: Final = "tallymark_fenced"
"""Writes that were given up: rows of theirs that arrive now are refused."""
DOOMED: Final = "tallymark_doomed"
"""The ids of records that are being deleted."""
BOOKS: Final = "tallymark_books"
"""How many records were deleted, one row for each deletion."""
HOURS: Final = "tallymark_hours"
"""What the records of an hour and a series sum up to; not on clusters."""
SCHEMA_TABLE: Final = "tallymark_schema"
"""Versions of the schema that were reached."""

FENCE_ERROR: Final = "this write was given up"
"""What an insert that comes too late is told."""

_ID: Final = "toUInt256(reinterpretAsUInt128(reverse(unhex(journal)))) + toUInt256(seq)"
FIGURES: Final = {
    "n": ("SimpleAggregateFunction(sum, Int64)", "toInt64(count())"),
    "total": ("SimpleAggregateFunction(sum, Float64)", "sum(value)"),
    "smallest": ("SimpleAggregateFunction(min, Float64)", "min(value)"),
    "largest": ("SimpleAggregateFunction(max, Float64)", "max(value)"),
    "newest_at": ("SimpleAggregateFunction(max, Int64)", "max(timestamp)"),
    # By the time and the id as one number: a tuple with the text of the journal takes ten times as long, more than all
    # the others together.
    "newest": (
        "AggregateFunction(argMax, Float64, UInt256)",
        f"argMaxState(value, bitShiftLeft(toUInt256(timestamp), 128) + {_ID})",
    ),
    "buckets": (
        "SimpleAggregateFunction(sumMap, Map(Int32, UInt64))",
        f"sumMap(map({bucket_sql('value')}, toUInt64(1)))",
    ),
}
"""What an hour says of its records: the name of a column, its type, and what it is from records."""

HOURS_OF_RECORDS: Final = (
    f"SELECT intDiv(timestamp, {HOUR_NS}) * {HOUR_NS} AS start, service, metric_type, name, unit,"
    " toInt8(if(isNull(success), -1, assumeNotNull(success))) AS outcome,"
    f" {', '.join(f'{made} AS {name}' for name, (_, made) in FIGURES.items())}"
    f" FROM {RECORDS} {{where}} GROUP BY start, service, metric_type, name, unit, outcome"
)
"""SQL, but for a WHERE."""

_DAY: Final = "toDate(intDiv(timestamp, 1000000000), 'UTC')"
_TIME: Final = "time DateTime64(9, 'UTC') ALIAS fromUnixTimestamp64Nano(timestamp, 'UTC')"

_TYPES: Final = (
    ("journal", "LowCardinality(String)", "ZSTD(1)"),
    ("seq", "Int64", "Delta, ZSTD(1)"),
    ("timestamp", "Int64", "Delta, ZSTD(1)"),
    ("service", "LowCardinality(String)", "ZSTD(1)"),
    ("metric_type", "LowCardinality(String)", "ZSTD(1)"),
    ("name", "LowCardinality(String)", "ZSTD(1)"),
    ("value", "Float64", "ZSTD(1)"),
    ("unit", "LowCardinality(String)", "ZSTD(1)"),
    ("success", "Nullable(Bool)", "ZSTD(1)"),
    ("error", "Nullable(String)", "ZSTD(1)"),
    ("trace_id", "Nullable(String)", "ZSTD(1)"),
    ("session_id", "Nullable(String)", "ZSTD(1)"),
    ("metadata", "String", "ZSTD(1)"),
    ("description", "LowCardinality(Nullable(String))", "ZSTD(1)"),
)
_INDEXES: Final = tuple(
    f"INDEX {column}_index {column} TYPE bloom_filter(0.01) GRANULARITY 1"
    for column in ("journal", "trace_id", "session_id")
)

# A journal's file is deleted once its rows are here.
_DURABLE: Final = "fsync_after_insert = 1, fsync_part_directory = 1"
_WINDOW: Final = 10_000
_MONTH: Final = "TTL at + INTERVAL 30 DAY"


@dataclass(frozen=True)
class Tables:
    """The statements for one server, or for a cluster.

    Attributes:
        cluster: its name in the servers' configuration; None for one server.
    """

    cluster: str | None = None

    @property
    def records(self) -> str:
        """The table that holds the records of a node itself."""
        return f"{RECORDS}_local" if self.cluster else RECORDS

    @property
    def on_cluster(self) -> str:
        """What a statement needs to be run by every node."""
        return f" ON CLUSTER {quoted_name(self.cluster)}" if self.cluster else ""

    def steps(self) -> list[list[str]]:
        """What makes the tables, one step for each version. Each takes an older schema further and may be repeated; an
        application that knows fewer steps keeps working.
        """
        columns = ", ".join(f"{name} {kind} CODEC({codec})" for name, kind, codec in _TYPES)
        first = [
            self._table(
                self.records,
                f"{columns}, {', '.join(_INDEXES)}",
                "MergeTree",
                f"PARTITION BY {_DAY} ORDER BY (metric_type, name, service, timestamp)",
                sharded=True,
            ),
            self._table(
                POSITIONS,
                "journal String, write String, position Int64, until Int64, at DateTime DEFAULT now()",
                "ReplacingMergeTree",
                "ORDER BY (journal, write)",
                version="position",
            ),
            self._table(FENCED, "write String, at DateTime DEFAULT now()", "MergeTree", f"ORDER BY write {_MONTH}"),
            self._table(
                DOOMED,
                "deletion String, journal String, seq Int64, at DateTime DEFAULT now()",
                "MergeTree",
                f"ORDER BY (deletion, journal, seq) {_MONTH}",
            ),
            self._table(
                BOOKS,
                "deletion String, deleted Int64, at DateTime DEFAULT now()",
                "ReplacingMergeTree",
                "ORDER BY deletion",
            ),
        ]
        if self.cluster:
            sharding = "cityHash64(service, metric_type, name)"
            cluster = quoted(self.cluster)
            first.append(
                f"CREATE TABLE IF NOT EXISTS {RECORDS}{self.on_cluster} AS {self.records}"
                f" ENGINE = Distributed({cluster}, currentDatabase(), {quoted(self.records)}, {sharding})"
            )
        plain = ", ".join(f"{name} {kind}" for name, kind, _ in _TYPES)
        first += [
            f"CREATE TABLE IF NOT EXISTS {INCOMING}{self.on_cluster}"
            f" ({plain}, write LowCardinality(String)) ENGINE = Null",
            f"CREATE MATERIALIZED VIEW IF NOT EXISTS {INCOMING}_fence{self.on_cluster} TO {RECORDS} AS"
            f" SELECT {COLUMNS} FROM {INCOMING}"
            f" WHERE throwIf(write IN (SELECT write FROM {FENCED}), {quoted(FENCE_ERROR)}) = 0",
        ]
        tables = [self.records, RECORDS] if self.cluster else [RECORDS]
        second = [f"ALTER TABLE {table}{self.on_cluster} ADD COLUMN IF NOT EXISTS {_TIME}" for table in tables]
        return [first, second, [] if self.cluster else self._hours()]

    def _hours(self) -> list[str]:
        columns = (
            "start Int64 CODEC(Delta, ZSTD(1)), service LowCardinality(String), metric_type LowCardinality(String),"
            " name LowCardinality(String), unit LowCardinality(String), outcome Int8, "
        ) + ", ".join(f"{name} {kind}" for name, (kind, _) in FIGURES.items())
        order = (
            "PARTITION BY toDate(intDiv(start, 1000000000), 'UTC')"
            " ORDER BY (metric_type, name, service, unit, outcome, start)"
        )
        return [
            # Small granules: one series of a day is some tens of rows, with thousands of bytes each.
            self._table(
                HOURS, columns, "AggregatingMergeTree", order, sharded=True, settings=("index_granularity = 256",)
            ),
            f"CREATE MATERIALIZED VIEW IF NOT EXISTS {HOURS}_view TO {HOURS} AS {HOURS_OF_RECORDS.format(where='')}",
        ]

    def versions(self) -> str:
        """What makes the table of the versions."""
        return self._table(SCHEMA_TABLE, "version Int64, at DateTime DEFAULT now()", "MergeTree", "ORDER BY version")

    def _table(
        self,
        name: str,
        columns: str,
        engine: str,
        order: str,
        *,
        version: str = "",
        sharded: bool = False,
        settings: Sequence[str] = (),
    ) -> str:
        settings = [_DURABLE, *settings]
        arguments = [version] if version else []
        if self.cluster:
            # What is not sharded is the same on every node, so there they are all replicas of one.
            place, replica = ("/{shard}", "{replica}") if sharded else ("", "{shard}-{replica}")
            arguments = [quoted(f"/clickhouse/tallymark/{{database}}/{{table}}{place}"), quoted(replica), *arguments]
            engine = f"Replicated{engine}"
        elif sharded:
            settings.append(f"non_replicated_deduplication_window = {_WINDOW}")
        return (
            f"CREATE TABLE IF NOT EXISTS {name}{self.on_cluster} ({columns})"
            f" ENGINE = {engine}({', '.join(arguments)}) {order} SETTINGS {', '.join(settings)}"
        )

    def ttl(self, days: int) -> str:
        """What makes the server itself forget records after so many days; 0 ends that."""
        time = f"toDateTime(intDiv(timestamp, 1000000000), 'UTC') + INTERVAL {days:d} DAY"
        change = f"MODIFY TTL {time} DELETE WHERE metric_type != '{RESERVED_TYPE}'"
        return f"ALTER TABLE {self.records}{self.on_cluster} {change if days else 'REMOVE TTL'}"


def quoted(text: str | None) -> str:
    """A text as SQL."""
    return "'" + (text or "").replace("\\", "\\\\").replace("'", "\\'") + "'"


def quoted_name(text: str | None) -> str:
    """A name as SQL."""
    return "`" + (text or "").replace("\\", "\\\\").replace("`", "\\`") + "`"


def statements(steps: Sequence[Sequence[str]], version: int) -> list[str]:
    """What is to be run where the schema has reached a version."""
    return [statement for step in steps[version:] for statement in step]
