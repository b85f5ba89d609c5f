"""Files of records as rows: CSV, NDJSON, Parquet, and the JSON batch files of other systems.

Whatever is wrong with a file is said with the line and the field, and never with what stands there.
"""

import csv
import hashlib
import json
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from tallymark import ndjson
from tallymark.batch import SCHEMA, split_id
from tallymark.errors import StoreError
from tallymark.moving.checks import RowError, Strangers, check_recorded
from tallymark.moving.formats import ENDINGS
from tallymark.privacy import PiiPolicy
from tallymark.record import COLUMNS
from tallymark.stores.json_files.batch_file import UNKNOWN_SERVICE, parse_batch

CHUNK_ROWS: Final = 50_000
CHUNK_BYTES: Final = 64 << 20
"""Most records that are held at once, and about how many bytes of a file."""

MAX_LINE: Final = 1 << 20
"""Longest line, in bytes or characters: several times what the largest record takes."""

MAX_BATCH_BYTES: Final = 1 << 29
"""Largest batch file: it is read as a whole."""

BATCH_ENDING: Final = ".json"


class SourceFile:
    """A file of records.

    Args:
        path: its ending says what it is.
        service: of records that do not say it.
        pii: what becomes of texts that look like a secret or a person, in records that tallymark did not record.

    Raises:
        StoreError: it is not there, or no such file.
    """

    def __init__(self, path: Path, service: str | None, pii: PiiPolicy) -> None:
        self.path = path
        if path.is_dir():
            raise StoreError(f"{path} is a folder; hint: name the files in it, or migrate from a store")
        if not path.is_file():
            raise StoreError(f"{path}: there is no such file" if not path.exists() else f"{path} is no regular file")
        ending = path.suffix.lower()
        if ending != BATCH_ENDING and ending not in ENDINGS:
            raise StoreError(f"{path}: what is in it? Its name has to end in {' '.join((*ENDINGS, BATCH_ENDING))}")
        self._kind = ENDINGS.get(ending)
        self._service = service
        self._strangers = Strangers(service, pii)
        self._journal: str | None = None
        self._state = self._stat()

    def tables(self) -> Iterator[pa.Table]:
        """Its records, as rows of :data:`tallymark.batch.SCHEMA`, in their order.

        Records without an id get one that is the same whenever this file is read: made of all that is in the file, and
        the number of the record.

        Raises:
            StoreError: it holds something else, or has changed since it was first looked at.
        """
        for rows in self._tables():
            if self._stat() != self._state:
                raise StoreError(f"{self.path} has changed meanwhile; hint: import it again")
            yield rows

    def _stat(self) -> tuple[int, int, int]:
        stat = self.path.stat()
        return stat.st_ino, stat.st_size, stat.st_mtime_ns

    def _tables(self) -> Iterator[pa.Table]:
        if self._kind == "parquet":
            return self._parquet()
        if self._kind is None:
            return self._batch()
        return self._gathered(self._csv() if self._kind == "csv" else self._ndjson())

    def _gathered(self, records: Iterator[tuple[int, int, dict[str, Any]]]) -> Iterator[pa.Table]:
        """The records as tables. Each comes with the number of its line, and about how many bytes it has."""
        rows: list[dict[str, Any]] = []
        lines: list[int] = []
        held = seq = 0
        for line, size, found in records:
            if found.get("journal") is None:
                found = self._stranger(found, seq, f"line {line}")
            rows.append(found)
            lines.append(line)
            seq, held = seq + 1, held + size
            if len(rows) == CHUNK_ROWS or held >= CHUNK_BYTES:
                yield self._checked(pa.Table.from_pylist(rows, schema=SCHEMA), "line {}", lines)
                rows, lines, held = [], [], 0
        yield self._checked(pa.Table.from_pylist(rows, schema=SCHEMA), "line {}", lines)

    def _checked(self, rows: pa.Table, place: str, numbers: Sequence[int]) -> pa.Table:
        """Rows as they may come in. For errors: what a place is called, and the number of the place of each row."""
        try:
            return check_recorded(rows).cast(SCHEMA)
        except RowError as error:
            raise self._wrong(place.format(numbers[error.row]), error) from None

    def _stranger(self, found: dict[str, Any], seq: int, place: str) -> dict[str, Any]:
        """A record without an id, as it may be kept, with one."""
        try:
            record = self._strangers.record(found)
        except ValueError as error:
            raise self._wrong(place, error) from None
        return record | {"journal": self._own_journal(), "seq": seq}

    def _wrong(self, place: str, error: object) -> StoreError:
        return StoreError(f"{self.path}: {place}: {error}")

    def _own_journal(self) -> str:
        """The journal of records that have no id: by what is in the file, whatever its name."""
        if self._journal is None:
            with self.path.open("rb") as file:
                digest = int.from_bytes(hashlib.file_digest(file, "sha256").digest()[:16])
            self._journal, _ = split_id(uuid.UUID(int=digest & ~(0xF << 76 | 0b11 << 62) | 8 << 76 | 0b10 << 62))
        return self._journal

    # -- NDJSON ----------------------------------------------------------------------------------------------

    def _ndjson(self) -> Iterator[tuple[int, int, dict[str, Any]]]:
        with self.path.open("rb") as file:
            for number, line in enumerate(self._lines(file), 1):
                if not line.strip():
                    continue
                try:
                    yield number, len(line), _from_line(line)
                except (ValueError, RecursionError) as error:  # those of msgspec too
                    raise self._wrong(f"line {number}", _spoken(error)) from None

    def _lines(self, file: IO[Any]) -> Iterator[Any]:
        """The lines of a file, none of which may fill the memory."""
        number = 0
        while line := file.readline(MAX_LINE):
            number += 1
            if len(line) == MAX_LINE and line[-1:] not in ("\n", b"\n"):
                raise self._wrong(f"line {number}", f"it is longer than {MAX_LINE:,} characters")
            yield line

    # -- CSV -------------------------------------------------------------------------------------------------

    def _csv(self) -> Iterator[tuple[int, int, dict[str, Any]]]:
        with self.path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(self._lines(file), strict=True)
            with self._csv_errors(reader):
                header = next(reader, None)
            if header is None:
                return
            names = self._names(header)
            while True:
                first = reader.line_num + 1
                with self._csv_errors(reader):
                    cells = next(reader, None)
                if cells is None:
                    return
                if not cells:
                    continue
                if len(cells) != len(names):
                    raise self._wrong(f"line {first}", f"it has {len(cells)} cells, and the header has {len(names)}")
                try:
                    yield first, sum(map(len, cells)), _from_cells(dict(zip(names, cells, strict=True)))
                except (ValueError, RecursionError) as error:
                    raise self._wrong(f"line {first}", _spoken(error)) from None

    @contextmanager
    def _csv_errors(self, reader: Any) -> Iterator[None]:
        try:
            yield
        except csv.Error as error:
            raise self._wrong(f"line {reader.line_num}", error) from None
        except UnicodeDecodeError:
            raise self._wrong(f"after line {reader.line_num}", "it is not in UTF-8") from None

    def _names(self, header: list[str]) -> list[str]:
        """The columns."""
        names = [cell.strip().lower() for cell in header]
        known = f"the columns are {','.join(COLUMNS)}, with commas between them"
        for name in names:
            if name not in COLUMNS:
                raise self._wrong("line 1", f"there is no column {name[:80]!r}; {known}")
            if names.count(name) > 1:
                raise self._wrong("line 1", f"the column {name!r} is there twice")
        for name in ("timestamp", "metric_type", "name", "value"):
            if name not in names:
                raise self._wrong("line 1", f"the column {name!r} is missing; {known}")
        return names

    # -- Parquet ---------------------------------------------------------------------------------------------

    def _parquet(self) -> Iterator[pa.Table]:
        try:
            with pq.ParquetFile(self.path) as file:
                missing = [name for name in SCHEMA.names if name not in file.schema_arrow.names]
                if missing:
                    raise self._wrong("columns", f"{', '.join(missing)} missing; it has to be one that was exported")
                seen = 0
                for batch in file.iter_batches(CHUNK_ROWS, columns=SCHEMA.names):
                    rows = _as_recorded(pa.Table.from_batches([batch]))
                    yield self._checked(rows, "row {}", range(seen + 1, seen + 1 + batch.num_rows))
                    seen += batch.num_rows
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno:
                raise
            raise StoreError(f"{self.path} is no such file of Parquet: {str(error)[:200]}") from error

    # -- batch files -----------------------------------------------------------------------------------------

    def _batch(self) -> Iterator[pa.Table]:
        if self.path.stat().st_size > MAX_BATCH_BYTES:
            raise StoreError(f"{self.path} is too large for a batch file; at most {MAX_BATCH_BYTES:,} bytes")
        content = self.path.read_bytes()
        rows = parse_batch(content, str(self.path), self._service or UNKNOWN_SERVICE)
        found = rows.to_pylist()
        for number, record in enumerate(json.loads(content)["records"]):
            if record.get("tallymark") is None:
                row = found[number]
                metadata = json.loads(row["metadata"])
                kept = self._stranger(row | {"metadata": metadata}, row["seq"], f"records[{number}]")
                found[number] = kept | {"journal": row["journal"]}
        table = pa.Table.from_pylist(found, schema=SCHEMA)
        for first in range(0, max(len(found), 1), CHUNK_ROWS):
            part = table.slice(first, CHUNK_ROWS)
            yield self._checked(part, "records[{}]", range(first, first + CHUNK_ROWS))


def _as_recorded(rows: pa.Table) -> pa.Table:
    """Columns of the same meaning, as other programs write them, with the types that they have here."""
    columns = [rows[field.name].cast(field.type) for field in SCHEMA]
    return pa.Table.from_arrays(columns, schema=pa.schema([field.with_nullable(True) for field in SCHEMA]))


def _from_line(line: bytes) -> dict[str, Any]:
    """A line as a row, or without a journal where it has no id."""
    row = ndjson.decode(line)
    return row if "journal" in row else row | {"metadata": _object(row["metadata"])}


def _from_cells(cells: dict[str, str]) -> dict[str, Any]:
    """A line of CSV as a row, or without a journal where it has no id."""
    row: dict[str, Any] = {name: _text(cells.get(name, "")) for name in COLUMNS}
    for name, meaning in (("timestamp", ndjson.parse_moment), ("value", _number), ("success", _boolean)):
        if row[name] is not None:
            row[name] = meaning(row[name])
    identifier = row.pop("id")
    if identifier is None:
        return row | {"metadata": _object(row["metadata"] or "{}")}
    try:
        journal, seq = split_id(uuid.UUID(identifier))
    except ValueError:
        raise ValueError("id must be a UUID") from None
    return row | {"journal": journal, "seq": seq}


def _text(cell: str) -> str | None:
    """What a cell means: :func:`tallymark.moving.formats.csv_rows` the other way round."""
    return cell.removeprefix("'") if cell else None


def _number(text: str) -> float:
    try:
        return float(text.replace("_", "x"))  # Python takes 1_000
    except ValueError:
        raise ValueError("value must be a number, as 1234.5") from None


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError("success must be true, false or empty")
    return text.lower() == "true"


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ValueError(f"metadata must be a JSON object: {error}") from None
    if not isinstance(found, dict):
        raise ValueError("metadata must be a JSON object")
    return found


def _spoken(error: Exception) -> str:
    return "it is nested too deep" if isinstance(error, RecursionError) else str(error)[:300]
