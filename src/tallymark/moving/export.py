"""Out of a store into a file, which is there as a whole, or not yet.

What is not complete is in a folder beside it, ``FILE.part``, with a note of how far it came: the place of the last
record that is in it for good. Going on begins there.
"""

import io
import os
import shutil
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol, cast

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from tallymark.errors import QueryError, StoreError
from tallymark.files import locked, replace_file
from tallymark.moving.formats import PARQUET_SCHEMA, Format, csv_header, csv_rows, ndjson_rows
from tallymark.moving.pages import by_day, pages, place_of_last, until_newest
from tallymark.moving.progress import Progress
from tallymark.query import Query
from tallymark.store import Store

PART: Final = ".part"
"""What stands behind the name of a file that is not complete."""

EXPORTING: Final = "exporting"
"""What is told to be done."""

STATE: Final = "state.json"
DATA: Final = "data"

GROUP_ROWS: Final = 250_000
"""About how many rows a row group of Parquet has."""


class State(msgspec.Struct):
    """How far an export came.

    Attributes:
        asked: what was asked for, in the words of whoever asked.
        start, end: the range of time (ns) that this meant then.
        cursor: the place of the last record.
        records: how many there are.
        size: bytes of the data; of Parquet, how many pieces.
        complete: whether only the name is missing.
    """

    asked: dict[str, Any]
    start: int | None
    end: int | None
    cursor: str | None = None
    records: int = 0
    size: int = 0
    complete: bool = False


@dataclass(frozen=True)
class Exported:
    """What is in a file.

    Attributes:
        records: how many.
        resumed: how many of them were there before.
    """

    records: int
    resumed: int


def check_file(path: Path) -> Path:
    """Where a file is to be: links are followed.

    Raises:
        StoreError: there cannot be one.
    """
    path = Path(os.path.realpath(path))
    if path.is_dir():
        raise StoreError(f"{path} is a folder; hint: name a file in it")
    if path.exists() and not path.is_file():
        raise StoreError(f"{path} is no regular file; hint: - writes to stdout")
    if not path.parent.is_dir():
        raise StoreError(f"there is no folder {path.parent}")
    return path


def export_file(
    store: Store, query: Query, path: Path, kind: Format, *, asked: dict[str, Any], resume: bool, progress: Progress
) -> Exported:
    """Write every record that matches into a file, the oldest first; one of that name is replaced when all is there.

    Args:
        query: a range of time and conditions. What is newer than the newest record at this moment is not waited for.
        asked: what makes this export the same as another: only the same can be gone on with.
        resume: go on with what was begun; where nothing was, begin.

    Raises:
        QueryError: what was begun is something else.
        StoreError: the store failed, or what was begun is damaged.
        OSError: the file cannot be written. What is there stays, and can be gone on with.
    """
    path = check_file(path)
    with _draft(path) as folder:
        state = _begun(folder, asked) if resume else None
        if state is None:
            _empty(folder)
            bounded = until_newest(store, query)
            state = State(asked, bounded.start, bounded.end)
        query = replace(query, start=state.start, end=state.end)
        resumed = state.records
        if not state.complete:
            data = _data(kind, folder, state)
            total = sum(by_day(store, query).values())
            for page in pages(store, replace(query, cursor=state.cursor)):
                data.append(page)
                state.cursor, state.records = place_of_last(page), state.records + page.num_rows
                _note(folder, state)
                progress(EXPORTING, state.records, max(total, state.records))
            data.finish()
            state.complete = True
            _note(folder, state)
        if (folder / DATA).exists():  # else it has its name already, and only this folder was left
            os.replace(folder / DATA, path)
            _sync(path.parent)
    return Exported(state.records, resumed)


def export_stream(store: Store, query: Query, kind: Format, stream: BinaryIO, progress: Progress) -> int:
    """Write every record that matches, the oldest first; returns how many they were."""
    found = pages(store, until_newest(store, query))
    records = 0
    if kind == "parquet":
        with pq.ParquetWriter(
            pa.PythonFile(cast(io.IOBase, stream), "w"), PARQUET_SCHEMA, compression="zstd"
        ) as writer:
            for page in found:
                writer.write_table(page.cast(PARQUET_SCHEMA))
                records += page.num_rows
                progress(EXPORTING, records, None)
        return records
    encode = csv_rows if kind == "csv" else ndjson_rows
    if kind == "csv":
        stream.write(csv_header())
    for page in found:
        stream.write(encode(page))
        records += page.num_rows
        progress(EXPORTING, records, None)
    stream.flush()
    return records


class _Data(Protocol):
    """What is written so far."""

    def append(self, page: pa.Table) -> None:
        """Write some records; on the disk when this returns, with the new size in the state."""

    def finish(self) -> None:
        """Make the file :data:`DATA` complete."""


class _Text:
    """One file, that grows.

    Raises:
        StoreError: it is shorter than the state says.
    """

    def __init__(self, folder: Path, state: State, header: bytes, encode: Callable[[pa.Table], bytes]) -> None:
        self._path = folder / DATA
        self._state = state
        self._encode = encode
        if not state.records:
            _write(self._path, header)
            state.size = len(header)
        elif not self._path.is_file() or self._path.stat().st_size < state.size:
            raise _damaged(self._path)
        else:
            os.truncate(self._path, state.size)  # what came after the last note

    def append(self, page: pa.Table) -> None:
        data = self._encode(page)
        _write(self._path, data, "ab")
        self._state.size += len(data)

    def finish(self) -> None:
        pass


class _Pieces:
    """Files of Parquet, one for each page, since one that is not finished cannot be read; joined at the end."""

    def __init__(self, folder: Path, state: State) -> None:
        self._folder = folder
        self._state = state

    def append(self, page: pa.Table) -> None:
        path = self._piece(self._state.size)
        pq.write_table(page.cast(PARQUET_SCHEMA), path, compression="zstd")
        _sync(path)
        self._state.size += 1

    def finish(self) -> None:
        joined = self._folder / "joined"
        with pq.ParquetWriter(joined, PARQUET_SCHEMA, compression="zstd") as writer:
            waiting = [PARQUET_SCHEMA.empty_table()]
            for number in range(self._state.size):
                waiting.append(self._read(self._piece(number)))
                if sum(piece.num_rows for piece in waiting) >= GROUP_ROWS:
                    writer.write_table(pa.concat_tables(waiting))
                    waiting = []
            if waiting:
                writer.write_table(pa.concat_tables(waiting))
        _sync(joined)
        os.replace(joined, self._folder / DATA)

    def _piece(self, number: int) -> Path:
        return self._folder / f"{number:06}.parquet"

    def _read(self, path: Path) -> pa.Table:
        try:
            return pq.read_table(path, partitioning=None)
        except (FileNotFoundError, pa.ArrowInvalid):
            raise _damaged(path) from None


def _data(kind: Format, folder: Path, state: State) -> _Data:
    if kind == "parquet":
        return _Pieces(folder, state)
    return _Text(folder, state, csv_header(), csv_rows) if kind == "csv" else _Text(folder, state, b"", ndjson_rows)


@contextmanager
def _draft(path: Path) -> Generator[Path]:
    """The folder for what is not complete, for one export at a time. It stays where there is something to go on with.

    Raises:
        StoreError: another export has it.
    """
    folder = path.with_name(path.name + PART)
    folder.mkdir(exist_ok=True)
    with locked(folder, wait=False, make=False) as alone:
        if not alone:
            raise StoreError(f"another export is writing {path}")
        try:
            yield folder
        except BaseException:
            if not (folder / STATE).exists():
                shutil.rmtree(folder)
            raise
        shutil.rmtree(folder)


def _begun(folder: Path, asked: dict[str, Any]) -> State | None:
    """How far the export in a folder came; None where there is none.

    Raises:
        QueryError: it is another one.
        StoreError: its note cannot be read.
    """
    path = folder / STATE
    try:
        state = msgspec.json.decode(path.read_bytes(), type=State)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        raise _damaged(path) from error
    if state.asked != asked:
        other = ", ".join(name for name in state.asked | asked if state.asked.get(name) != asked.get(name))
        raise QueryError(f"resume: what was begun in {folder} has another {other}; hint: the same, or no --resume")
    if state.complete and not (folder / DATA).exists() and not folder.with_name(folder.stem).exists():
        raise _damaged(folder / DATA)
    return state


def _damaged(path: Path) -> StoreError:
    return StoreError(f"{path} is not as it was left; hint: export again, without --resume")


def _note(folder: Path, state: State) -> None:
    replace_file(folder / STATE, msgspec.json.encode(state).decode())


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def _write(path: Path, data: bytes, mode: str = "wb") -> None:
    with path.open(mode) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
