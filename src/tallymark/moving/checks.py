"""What may come into a store from a file.

Records with an id were recorded by tallymark: they stay as they are, to the byte, as long as they are within the limits
of a record. Records of other programs are checked, cut and masked as if they were recorded now.
"""

import json
import re
from functools import lru_cache
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tallymark.batch import SCHEMA
from tallymark.metadata import encode_metadata
from tallymark.model import (
    MAX_DESCRIPTION_LENGTH,
    MAX_ERROR_LENGTH,
    MAX_ID_LENGTH,
    MAX_METADATA_BYTES,
    MAX_METADATA_DEPTH,
    MAX_NAME_LENGTH,
    MAX_TIMESTAMP,
    MIN_TIMESTAMP,
    RESERVED_TYPE,
    check_error,
    check_number,
    check_series,
    check_text,
    clean_text,
)
from tallymark.privacy import PiiPolicy

_LENGTHS: Final = {
    "service": MAX_NAME_LENGTH,
    "metric_type": MAX_NAME_LENGTH,
    "name": MAX_NAME_LENGTH,
    "unit": MAX_NAME_LENGTH,
    "error": MAX_ERROR_LENGTH,
    "trace_id": MAX_ID_LENGTH,
    "session_id": MAX_ID_LENGTH,
    "description": MAX_DESCRIPTION_LENGTH,
}
_JOURNAL: Final = re.compile("[0-9a-f]{22}0{10}")
_SEQS: Final = 1 << 40
_UNCLEAN: Final = re.compile(r"\\u(0000|[dD][89a-fA-F])")
"""Escapes of what no store can hold: NUL and, perhaps, half of a surrogate pair."""


class RowError(ValueError):
    """A record may not come in. The message names the field and the rule.

    Attributes:
        row: the number of the record in what was checked, from 0.
    """

    def __init__(self, row: int, message: str) -> None:
        super().__init__(message)
        self.row = row


def check_recorded(rows: pa.Table) -> pa.Table:
    """Records that have an id, as they may come in: as they are.

    Raises:
        RowError: one is outside the limits of a record.
    """
    for field in SCHEMA:
        if not field.nullable and rows[field.name].null_count:
            raise RowError(int(pc.index(pc.is_null(rows[field.name]), True).as_py()), f"{field.name} must not be empty")
    for name, longest in _LENGTHS.items():
        _each_text(rows, name, lambda text, name=name, longest=longest: _check_text(name, text, longest))
    _each_text(rows, "journal", _check_journal)
    _in_range(rows, "seq", 0, _SEQS, "id must be one that tallymark gave")
    _in_range(rows, "timestamp", MIN_TIMESTAMP, MAX_TIMESTAMP, "timestamp must lie between the years 1970 and 2100")
    finite = np.isfinite(rows["value"].to_numpy())
    if not finite.all():
        raise RowError(int(np.argmin(finite)), "value must be finite")
    _each_text(rows, "metadata", check_metadata)
    return rows


def _check_text(field: str, text: str, longest: int) -> None:
    if field != "error":
        check_text(field, text, longest)
    elif len(text) > longest:
        raise ValueError(f"error has {len(text)} characters; at most {longest} are allowed")
    if "\0" in text:
        raise ValueError(f"{field} must not hold NUL")
    if field == "metric_type" and text == RESERVED_TYPE:
        raise ValueError(f"metric_type {RESERVED_TYPE!r} is reserved for the store's own records")


def _check_journal(text: str) -> None:
    if not _JOURNAL.fullmatch(text):
        raise ValueError("id must be one that tallymark gave")


def check_metadata(text: str) -> None:
    """Raise ValueError where a text is no metadata that a store can hold."""
    size = len(text.encode())
    if size > MAX_METADATA_BYTES:
        raise ValueError(f"metadata is {size} bytes of JSON; at most {MAX_METADATA_BYTES} are allowed")
    if not text.startswith("{"):
        raise ValueError("metadata must be a JSON object")
    try:
        found = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"metadata must be a JSON object: {error}"[:200]) from None
    if text.count("{") + text.count("[") > MAX_METADATA_DEPTH and _depth(found) > MAX_METADATA_DEPTH:
        raise ValueError(f"metadata is nested too deep; at most {MAX_METADATA_DEPTH} levels are allowed")
    if "\0" in text or (_UNCLEAN.search(text) and _holds_unclean(found)):
        raise ValueError("metadata must not hold NUL or half of a surrogate pair")


def _no_constant(name: str) -> None:
    raise ValueError(f"JSON has no {name}")


def _depth(value: Any) -> int:
    if isinstance(value, dict):
        value = list(value.values())
    return 1 + max(map(_depth, value), default=0) if isinstance(value, list) else 0


def _holds_unclean(value: Any) -> bool:
    if isinstance(value, str):
        return clean_text(value) != value
    if isinstance(value, dict):
        return any(_holds_unclean(key) or _holds_unclean(item) for key, item in value.items())
    return isinstance(value, list) and any(map(_holds_unclean, value))


def _each_text(rows: pa.Table, name: str, check: Any) -> None:
    """Check every different text of a column."""
    encoded: Any = rows[name].combine_chunks().dictionary_encode()
    for number, text in enumerate(encoded.dictionary.to_pylist()):
        try:
            check(text)
        except ValueError as error:
            raise RowError(int(pc.index(encoded.indices, number).as_py()), str(error)) from None


def _in_range(rows: pa.Table, name: str, least: int, end: int, rule: str) -> None:
    values = rows[name].to_numpy()
    inside = (values >= least) & (values < end)
    if not inside.all():
        raise RowError(int(np.argmin(inside)), rule)


class Strangers:
    """Makes records of other programs such as may be kept.

    Args:
        service: of records that do not say it.
        pii: what becomes of texts that look like a secret or a person.
    """

    def __init__(self, service: str | None, pii: PiiPolicy) -> None:
        self._service = service
        self._pii = pii
        self._series = lru_cache(10_000)(lambda *key: check_series(key, pii))

    def record(self, found: dict[str, Any]) -> dict[str, Any]:
        """A record, without its id, as it may be kept.

        Args:
            found: the columns; ``timestamp`` in ns, ``metadata`` a dictionary.

        Raises:
            ValueError: it may not; the message names the field and the rule.
        """
        for name in ("timestamp", "metric_type", "name", "value"):
            if found.get(name) is None:
                raise ValueError(f"{name} is missing")
        service = found.get("service") or self._service
        if service is None:
            raise ValueError("service is missing; hint: --service NAME says it for all that do not")
        unit, description = found.get("unit") or "1", found.get("description") or None
        series = self._series(service, found["metric_type"], found["name"], unit, description)
        timestamp = found["timestamp"]
        if not MIN_TIMESTAMP <= timestamp < MAX_TIMESTAMP:
            raise ValueError("timestamp must lie between the years 1970 and 2100")
        error = found.get("error")
        return {
            "timestamp": timestamp,
            **dict(zip(("service", "metric_type", "name", "unit", "description"), series, strict=True)),
            "value": check_number("value", found["value"]),
            "success": found.get("success"),
            "error": check_error(error, self._pii) if error else None,
            **{name: self._identifier(name, found.get(name)) for name in ("trace_id", "session_id")},
            "metadata": encode_metadata(found.get("metadata") or {}, self._pii).decode(),
        }

    def _identifier(self, field: str, value: object) -> str | None:
        return check_text(field, value, MAX_ID_LENGTH, self._pii) if value else None
