"""One JSON batch file: records as the systems that wrote such files know them, and what else a record has.

``metrics_20251216_080005_123456.json``::

    {"records":[
    {"operation_type":"api_request","operation_name":"GET /users","duration_ms":42.5,
     "timestamp":"2025-12-16T08:00:00.000000+00:00","success":true,"error_message":null,
     "metadata":{"status_code":200},"tallymark":{"id":"…","service":"shop"}}
    ],
    "batch_timestamp":"2025-12-16T08:00:05.123456+00:00","batch_id":"20251216_080005_123456","total_records":1}

``tallymark`` is an additional key: whoever reads these files for their operations passes over it. It holds what the
others have no place for, so that a record is read back as it was, to the last bit of its value. Where a record is no
operation, the others hold the nearest that they can: ``duration_ms`` is the value where that is a time (0.0 where it
is none, or negative), ``success`` is true where the record has no outcome.
"""

import contextlib
import datetime
import hashlib
import json
import math
import uuid
from pathlib import Path
from typing import Any, Final

import msgspec
import pyarrow as pa

from tallymark.batch import SCHEMA, record_id, split_id
from tallymark.errors import StoreError
from tallymark.model import MAX_ERROR_LENGTH, MAX_TIMESTAMP, MIN_TIMESTAMP, check_text, clean_text

NAME: Final = "metrics_*.json"
"""Matches the names of batch files."""

UNKNOWN_SERVICE: Final = "unknown"
"""The service of records in files that do not say it."""

_MS: Final = {"ns": 1e-6, "us": 1e-3, "ms": 1.0, "s": 1e3, "min": 60e3, "h": 3_600e3, "d": 86_400e3}
"""How many milliseconds one of these is."""

_EPOCH: Final = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_MICROSECOND: Final = datetime.timedelta(microseconds=1)
_encode: Final = msgspec.json.Encoder().encode


class _More(msgspec.Struct, omit_defaults=True):
    """What a record has beside; what is left out is as usual."""

    id: str
    service: str
    ns: int = 0  # what the timestamp has below a microsecond
    value: float | None = None  # where it is not duration_ms
    unit: str | None = None  # ms
    is_outcome: bool = True
    trace_id: str | None = None
    session_id: str | None = None
    description: str | None = None


class _Record(msgspec.Struct):
    operation_type: str
    operation_name: str
    duration_ms: float
    timestamp: datetime.datetime
    success: bool = True
    error_message: str | None = None
    metadata: msgspec.Raw = msgspec.Raw(b"{}")
    tallymark: _More | None = None


class _File(msgspec.Struct):
    records: list[_Record]


_decode: Final = msgspec.json.Decoder(_File).decode


def batch_id(moment: int) -> str:
    """The id of the batch of a moment (ns): ``20251216_080005_123456``, UTC."""
    return f"{_moment(moment):%Y%m%d_%H%M%S_%f}"


def batch_moment(name: str) -> int | None:
    """When a batch was written (ns), by the name of its file; None where that does not say."""
    for form in ("metrics_%Y%m%d_%H%M%S_%f.json", "metrics_%Y%m%d_%H%M%S.json"):
        with contextlib.suppress(ValueError):
            moment = datetime.datetime.strptime(name, form).replace(tzinfo=datetime.UTC)
            return (moment - _EPOCH) // _MICROSECOND * 1_000
    return None


def batch_text(rows: pa.Table, moment: int) -> bytes:
    """The content of the file for some records, in :data:`tallymark.batch.SCHEMA`, and a moment (ns)."""
    columns = rows.select(_COLUMNS).to_pydict()
    records = b",\n".join(_encode(_shape(*values)) for values in zip(*columns.values(), strict=True))
    end = {
        "batch_timestamp": _iso(_moment(moment)),
        "batch_id": batch_id(moment),
        "total_records": rows.num_rows,
    }
    return b'{"records":[\n' + records + b"\n],\n" + _encode(end)[1:] + b"\n"


_COLUMNS: Final = [
    *("journal", "seq", "timestamp", "service", "metric_type", "name", "value", "unit"),
    *("success", "error", "trace_id", "session_id", "metadata", "description"),
]


def _shape(
    journal: str,
    seq: int,
    timestamp: int,
    service: str,
    metric_type: str,
    name: str,
    value: float,
    unit: str,
    success: bool | None,
    error: str | None,
    trace_id: str | None,
    session_id: str | None,
    metadata: str,
    description: str | None,
) -> dict[str, Any]:
    duration = value * _MS.get(unit, 0.0) if value > 0 else 0.0
    if unit == "ms" and value == 0:
        duration = value  # -0.0 is one
    if not math.isfinite(duration):
        duration = 0.0
    more = _More(
        id=str(record_id(journal, seq)),
        service=service,
        ns=timestamp % 1_000,
        value=None if unit == "ms" and value >= 0 else value,
        unit=None if unit == "ms" else unit,
        is_outcome=success is not None,
        trace_id=trace_id,
        session_id=session_id,
        description=description,
    )
    return {
        "operation_type": metric_type,
        "operation_name": name,
        "duration_ms": duration,
        "timestamp": _iso(_moment(timestamp)),
        "success": success is not False,
        "error_message": error,
        "metadata": msgspec.Raw(metadata.encode()),
        "tallymark": more,
    }


def read_batch_file(path: Path, *, service: str = UNKNOWN_SERVICE) -> pa.Table:
    """The records of a batch file, in :data:`tallymark.batch.SCHEMA` and in their order.

    Records that tallymark wrote are as they were. Others get ids that are the same whenever this file is read; their
    timestamps, where they say no zone, are UTC.

    Args:
        path: the file.
        service: of records that do not say it.

    Raises:
        StoreError: it cannot be read, or holds something else; the message names the file and the field.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror or error}") from error
    return parse_batch(content, str(path), service)


def parse_batch(content: bytes, name: str, service: str = UNKNOWN_SERVICE) -> pa.Table:
    """As :func:`read_batch_file`, of a file's content. ``name`` is what an error calls the file.

    Raises:
        StoreError: as there.
    """
    try:
        records = _records(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise StoreError(f"{name} is no batch file: {error}") from error
    strangers = _Strangers(content, service)
    rows = []
    for number, record in enumerate(records):
        try:
            rows.append(strangers.row(record, number) if record.tallymark is None else _row(record, record.tallymark))
        except ValueError as error:
            raise StoreError(f"{name}: records[{number}]: {error}") from error
    columns: list[Any] = list(zip(*rows, strict=True)) or [()] * len(SCHEMA)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)]
    return pa.Table.from_arrays(arrays, schema=SCHEMA)


def _records(content: bytes) -> list[_Record]:
    try:
        return _decode(content).records
    except msgspec.DecodeError:
        if b"\\u" not in content:
            raise
        try:  # half a surrogate pair, which Python writes
            clean = json.dumps(_cleaned(json.loads(content)), ensure_ascii=False).encode()
        except ValueError:
            clean = content
        return _decode(clean).records


def _row(record: _Record, more: _More) -> tuple[Any, ...]:
    """A record that tallymark wrote, in the order of the columns."""
    try:
        journal, seq = split_id(uuid.UUID(more.id))
    except ValueError:
        raise ValueError("tallymark.id is no UUID") from None
    return (
        journal,
        seq,
        _nanoseconds(record.timestamp) + more.ns,
        more.service,
        record.operation_type,
        record.operation_name,
        record.duration_ms if more.value is None else more.value,
        "ms" if more.unit is None else more.unit,
        record.success if more.is_outcome else None,
        record.error_message,
        more.trace_id,
        more.session_id,
        _metadata(record),
        more.description,
    )


class _Strangers:
    """Makes rows of the records that others wrote: with ids, and within the limits of a record."""

    def __init__(self, content: bytes, service: str) -> None:
        self._content = content
        self._service = check_text("service", service)
        self._journal: str | None = None
        self._texts: dict[tuple[str, str], str] = {}

    def row(self, record: _Record, number: int) -> tuple[Any, ...]:
        """A record, in the order of the columns."""
        if self._journal is None:
            # By what is in it: under another name it is the same file, and another file may have the same name.
            digest = int.from_bytes(hashlib.sha256(self._content).digest()[:16])
            digest = digest & ~(0xF << 76 | 0b11 << 62) | 8 << 76 | 0b10 << 62  # a UUID of version 8
            self._journal, _ = split_id(uuid.UUID(int=digest))
        if not math.isfinite(record.duration_ms) or record.duration_ms < 0:
            raise ValueError("duration_ms must be a number that is not negative")
        metadata = _metadata(record)
        error = record.error_message
        return (
            self._journal,
            number,
            _nanoseconds(record.timestamp),
            self._service,
            self._text("operation_type", record.operation_type),
            self._text("operation_name", record.operation_name),
            record.duration_ms,
            "ms",
            record.success,
            None if error is None else clean_text(error)[:MAX_ERROR_LENGTH],
            None,
            None,
            _compact(metadata),
            None,
        )

    def _text(self, field: str, text: str) -> str:
        clean = self._texts.get((field, text))
        if clean is None:
            clean = self._texts[field, text] = check_text(field, text)
        return clean


def _metadata(record: _Record) -> str:
    text = bytes(record.metadata)
    if text == b"null":
        return "{}"
    if not text.startswith(b"{"):
        raise ValueError("metadata must be an object")
    return text.decode()


def _compact(metadata: str) -> str:
    """Metadata as it would have been recorded: nothing between its parts, and no text that a store cannot hold."""
    if "\\u" in metadata:
        return json.dumps(_cleaned(json.loads(metadata)), ensure_ascii=False, separators=(",", ":"))
    return msgspec.json.format(metadata, indent=-1)


def _cleaned(value: Any) -> Any:
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, dict):
        return {clean_text(key): _cleaned(item) for key, item in value.items()}
    return [_cleaned(item) for item in value] if isinstance(value, list) else value


def _nanoseconds(moment: datetime.datetime) -> int:
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    found = (moment - _EPOCH) // _MICROSECOND * 1_000
    if not MIN_TIMESTAMP <= found < MAX_TIMESTAMP:
        raise ValueError("timestamp must lie between 1970 and 2100")
    return found


def _moment(nanoseconds: int) -> datetime.datetime:
    return _EPOCH + datetime.timedelta(microseconds=nanoseconds // 1_000)


def _iso(moment: datetime.datetime) -> str:
    return moment.isoformat(timespec="microseconds")
