"""Rollups: for each large Parquet file of a table a small one beside it, with what is in it by time and series.

A sidecar is an index of a file that never changes, so it is never out of date. What comes late is in another file, what
is deleted or compacted is in new files, which have no sidecar until somebody looks after the table again; and where
there is none, the records themselves are read. Sidecars may be removed at any time.

A row is about the records of one series and outcome in one stretch of time: how many, their sum, extremes, the newest,
and the buckets of their values (:mod:`tallymark.percentile`), packed into two lists. One row for each bucket would be
as many rows as there are records. The stretches have several lengths; and where nobody asks for the names apart, those
of one metric type together are a fraction of the rows.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
from pyarrow import parquet

from tallymark import log
from tallymark.errors import StoreError
from tallymark.percentile import bucket_sql
from tallymark.stores.duck import SETTINGS, DuckStatement
from tallymark.stores.objects import Objects
from tallymark.stores.retention import DAY_NS

if TYPE_CHECKING:
    import duckdb

MIN_RECORDS: Final = 100_000
"""Files with fewer records have no sidecar: reading them takes some milliseconds."""

SERIES: Final = ("service", "metric_type", "name", "unit", "success")
"""What tells rows of one length and time apart."""

_MINUTE: Final = 60_000_000_000


@dataclass(frozen=True)
class Level:
    """One kind of rows.

    Attributes:
        number: of the level, in its rows.
        length: of the stretches of time, ns. Each divides the next larger one, and all divide a day.
        named: whether names are apart; otherwise ``name`` is null.
        source: the level that it is made from.
    """

    number: int
    length: int
    named: bool
    source: int


LEVELS: Final = (
    Level(0, 10 * _MINUTE, True, 0),
    Level(1, 60 * _MINUTE, True, 0),
    Level(2, DAY_NS, True, 1),
    Level(3, 10 * _MINUTE, False, 0),
    Level(4, 60 * _MINUTE, False, 3),
    Level(5, 240 * _MINUTE, False, 4),
    Level(6, DAY_NS, False, 5),
)
"""Shorter ones would hold about as many buckets as there are records, with a hundred records a second."""

_FIELDS: Final[list[Any]] = [
    pa.field("level", pa.int8()),
    pa.field("timestamp", pa.int64()),  # when the stretch of time begins: conditions mean the same as on records
    pa.field("service", pa.string()),
    pa.field("metric_type", pa.string()),
    pa.field("name", pa.string()),
    pa.field("unit", pa.string()),
    pa.field("success", pa.bool_()),
    pa.field("n", pa.int64()),
    pa.field("total", pa.float64()),
    pa.field("smallest", pa.float64()),
    pa.field("largest", pa.float64()),
    pa.field("newest", pa.float64()),
    pa.field("newest_at", pa.int64()),
    pa.field("newest_journal", pa.string()),
    pa.field("newest_seq", pa.int64()),
    pa.field("buckets", pa.list_(pa.int32())),
    pa.field("counts", pa.list_(pa.int32())),
]
ROLLUP: Final = pa.schema(_FIELDS)
"""The columns of a sidecar."""

# Two numbers for each series: its own, and that of all which differ in the name only.
_NUMBERS: Final = (
    "SELECT CAST(row_number() OVER () AS INTEGER) AS sid,"
    " CAST(dense_rank() OVER (ORDER BY service, metric_type, unit, success) AS INTEGER) AS tid, *"
    f" FROM (SELECT DISTINCT {', '.join(SERIES)} FROM {{records}})"
)
_SAME: Final = " AND ".join(f"records.{key} IS NOT DISTINCT FROM series.{key}" for key in SERIES)
_NUMBERED: Final = "timestamp // {length} * {length} AS start, sid AS id, timestamp, journal, seq, value"
_FIGURES: Final = (
    "SELECT start, id, count(*) AS n, sum(value) AS total, min(value) AS smallest, max(value) AS largest,"
    " max({{t: timestamp, j: journal, s: seq, v: value}}) AS latest FROM {rows} GROUP BY start, id"
)
_COUNTED: Final = "SELECT start, id, {bucket} AS b, count(*) AS c FROM {rows} GROUP BY start, id, b"
_PACKED: Final = (
    "SELECT start, id, list(b ORDER BY b) AS buckets, list(CAST(c AS INTEGER) ORDER BY b) AS counts"
    " FROM ({buckets}) GROUP BY start, id"
)
_LEVEL: Final = "SELECT * FROM figures JOIN packed USING (start, id)"
_MERGED: Final = (
    "SELECT {start}, sum(n) AS n, sum(total) AS total, min(smallest) AS smallest, max(largest) AS largest,"
    " max(latest) AS latest FROM {source} GROUP BY ALL"
)
_NAMED: Final = (
    "SELECT {level} AS level, start AS timestamp, service, metric_type, name, unit, success, n, total, smallest,"
    " largest, latest.v AS newest, latest.t AS newest_at, latest.j AS newest_journal, latest.s AS newest_seq, buckets,"
    " counts FROM level{level} JOIN (SELECT DISTINCT {number} AS id, service, metric_type, unit, success,"
    " CASE WHEN '{number}' = 'sid' THEN name END AS name FROM series) USING (id)"
    " ORDER BY metric_type, name, service, unit, success, timestamp"
)

FORMAT: Final = 1
"""Part of the names: another version of this takes none for its own."""

_ROWS: Final = 1_024
"""Of a row group. Rows are sorted by series first, so that one series is in one or two of them."""

_WRITER: Final[dict[str, Any]] = {
    "compression": "zstd",
    "use_dictionary": [*SERIES, "timestamp", "newest_journal"],
    "column_encoding": dict.fromkeys(("buckets.list.element", "counts.list.element"), "DELTA_BINARY_PACKED"),
}

_SETTINGS: Final = SETTINGS | {
    # Nobody waits for it, and whoever runs a server expects it to stay small.
    "threads": 1,
    "memory_limit": "256MB",
}


class Rollups:
    """The sidecars of the files of one table.

    Args:
        folder: where they are. It is made when there is something to put into it.
        objects: reads the files of the table, where they are not on this machine.
    """

    def __init__(self, folder: Path, objects: Objects | None = None) -> None:
        self._folder = folder
        self._objects = objects
        self._making: duckdb.DuckDBPyConnection | None = None

    def paths(self) -> dict[str, str]:
        """The sidecars that there are, by the names of the files that they are of."""
        suffix = f".{FORMAT}.parquet"
        with contextlib.suppress(FileNotFoundError), os.scandir(self._folder) as entries:
            return {entry.name.removesuffix(suffix): entry.path for entry in entries if entry.name.endswith(suffix)}
        return {}

    def keep(self, files: Mapping[str, int]) -> int:
        """Make those that are missing, and remove those of other files; how many were made.

        Args:
            files: the files of the table, each with its number of records.

        Raises:
            StoreError: closed meanwhile.
        """
        self.remove_others(files)
        present = self.paths()
        large = {name_of(file): file for file, records in files.items() if records >= MIN_RECORDS}
        missing = [file for name, file in large.items() if name not in present or not is_whole(present[name])]
        if not missing:
            return 0
        self._folder.mkdir(parents=True, exist_ok=True)
        return sum(self.make(file) is not None for file in missing)

    def remove_others(self, files: Iterable[str]) -> None:
        """Remove every sidecar that is of none of these files, and what was left half made."""
        kept = set(map(sidecar_of, files))
        with contextlib.suppress(FileNotFoundError):
            for name in set(os.listdir(self._folder)) - kept:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self._folder / name)

    def close(self) -> None:
        """End what is being made; :meth:`keep` then raises StoreError."""
        connection = self._making
        if connection is not None:
            connection.interrupt()

    def make(self, file: str) -> Path | None:
        """Make the sidecar of a file, in a folder that is there; None where that fails, which is logged.

        Raises:
            StoreError: closed meanwhile.
        """
        import duckdb

        spill = os.path.join(tempfile.gettempdir(), f"tallymark-rollups-{os.getpid()}")
        try:
            # Each has a connection to itself, so that what one took is given back.
            with duckdb.connect(config=_SETTINGS | {"temp_directory": spill}) as self._making:
                return self._make(self._making, file)
        except duckdb.InterruptException as error:
            raise StoreError(f"no rollups in {self._folder}: closed meanwhile") from error
        except (duckdb.Error, OSError, pa.ArrowException) as error:
            log.warning("no rollups of %s: %s", file, error)
            return None
        finally:
            self._making = None

    def _make(self, connection: "duckdb.DuckDBPyConnection", file: str) -> Path:
        """Make the sidecar of a file, or none if that fails."""
        statement = DuckStatement(self._objects)
        records = statement.records([file], live=False)
        for name, dataset in statement.tables.items():
            connection.register(name, dataset)

        def table(name: str, sql: str) -> None:
            used = statement.parameters if records in sql else None
            connection.execute(f"CREATE OR REPLACE TEMP TABLE {name} AS {sql}", used)

        table("series", _NUMBERS.format(records=records))
        # Of the records as they are, and numbered: texts are compared once, not in every group.
        first = LEVELS[0]
        numbered = f"(SELECT {_NUMBERED.format(length=first.length)} FROM {records} JOIN series ON {_SAME})"
        table("figures", _FIGURES.format(rows=numbered))
        table("packed", _PACKED.format(buckets=_COUNTED.format(rows=numbered, bucket=bucket_sql("value"))))
        table("level0", _LEVEL)
        for level in LEVELS[1:]:
            source = LEVELS[level.source]
            number = "id" if level.named == source.named else "tid"
            join = "" if level.named == source.named else " JOIN series ON id = sid"
            start = f"start // {level.length} * {level.length} AS start, {number} AS id"
            table("figures", _MERGED.format(start=start, source=f"level{source.number}{join}"))
            pieces = f"SELECT {start}, unnest(buckets) AS b, unnest(counts) AS c FROM level{source.number}{join}"
            table("packed", _PACKED.format(buckets=f"SELECT start, id, b, sum(c) AS c FROM ({pieces}) GROUP BY ALL"))
            table(f"level{level.number}", _LEVEL)
        path = self._folder / sidecar_of(file)
        self._write(connection, path)
        return path

    def _write(self, connection: "duckdb.DuckDBPyConnection", path: Path) -> None:
        new = path.with_name(f"{path.name}.new")
        with parquet.ParquetWriter(new, ROLLUP, **_WRITER) as writer:
            for level in LEVELS:
                rows = connection.sql(_NAMED.format(level=level.number, number="sid" if level.named else "tid"))
                # Levels share no row group, so that one is read without the others.
                writer.write_table(rows.to_arrow_table().cast(ROLLUP), _ROWS)
        with new.open("rb") as file:
            os.fsync(file.fileno())  # or a power cut may leave the name with something else in it
        new.replace(path)


def name_of(file: str) -> str:
    """What the sidecar of a file is named after."""
    return PurePath(file).stem


def sidecar_of(file: str) -> str:
    """The name of the sidecar of a file."""
    return f"{name_of(file)}.{FORMAT}.parquet"


def is_whole(path: str) -> bool:
    """Whether a sidecar is there and whole, as far as its end tells."""
    try:
        return parquet.read_schema(path).equals(ROLLUP)
    except (OSError, pa.ArrowException):
        return False
