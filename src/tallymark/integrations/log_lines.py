"""A log record as one line of JSON: ASCII, bounded, masked, whatever the application put into it."""

import itertools
import json
import logging
import math
import re
import time
import traceback
from collections.abc import Container, Iterable
from datetime import UTC, date, datetime
from functools import lru_cache
from typing import Any, Final

from tallymark.model import MASK_MARGIN, MAX_ID_LENGTH, clean_text, masked_start
from tallymark.privacy import forbidden_word, mask_text
from tallymark.trace import current_session_id, current_trace_id

FORBIDDEN: Final = "[forbidden]"
"""Stands for the value of a field whose name says that it is a person's or a secret."""

MAX_TEXT: Final = 8_192
"""Longest text of a field, in characters."""

MAX_STACK: Final = 16_384
"""Of a stack, this many characters of its end are kept."""

MAX_FRAMES: Final = 32
"""Of each traceback, the innermost ones."""

MAX_FIELDS_TEXT: Final = 32_768
"""All texts of the fields of one record together."""

MAX_VALUES: Final = 256
"""Values in the fields of one record, at any depth."""

MAX_DEPTH: Final = 5

# What every record has, and what logging and other formatters add to it.
_OWN: Final = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName", "fields"}

# What tallymark.review makes of an id: nothing that a number or a word could be.
_is_pseudonym = re.compile(r"(?:user|chat|admin|message)_[bcdfghjklmnpqrst]{20}", re.ASCII).fullmatch

_encode = json.JSONEncoder(ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode
_forbidden = lru_cache(maxsize=4096)(forbidden_word)


def line_of(record: logging.LogRecord, service: str, raw_ids: bool = False) -> str:
    """The line, without its end. The id of a user is in it only with ``raw_ids``, or as a pseudonym.

    ``event_type``, ``session_id`` and ``trace_id`` are the record's own where it has such, else the name of the logger
    and the ids of :mod:`tallymark.trace`. A field with the name of one that is here already is renamed to ``extra_…``.
    """
    extras = {name: value for name, value in record.__dict__.items() if name not in _OWN}
    given = record.__dict__.get("fields")
    if isinstance(given, dict):
        extras.update(given)
    elif given is not None:
        extras["fields"] = given
    event_type = extras.pop("event_type", None)
    session_id, trace_id = extras.pop("session_id", None), extras.pop("trace_id", None)
    line: dict[str, Any] = {
        "timestamp": _timestamp(record.created),
        "level": _cut(str(record.levelname), 40).lower(),
        "event_type": _text(record.name if event_type is None else event_type, MAX_ID_LENGTH),
        "message": _text(_message(record), MAX_TEXT),
        "session_id": _id(current_session_id.get() if session_id is None else session_id),
        "trace_id": _id(current_trace_id.get() if trace_id is None else trace_id),
        "service": service,
        "logger": _text(str(record.name), MAX_ID_LENGTH),
        "process_id": record.process,
        **_exception(record),
    }
    fields = _Fields(raw_ids)
    for name, value in extras.items():
        if fields.full():
            line[_free("truncated", line)] = True
            break
        key = fields.key(name)
        line[_free(key, line)] = fields.named(key, value)
    # DEL is the one control character that the encoder leaves as it is; outside of texts it cannot occur.
    return _encode(line).replace("\x7f", "\\u007f")


class _Fields:
    """Makes values into what JSON can hold, as far as there is room for them."""

    def __init__(self, raw_ids: bool) -> None:
        self._raw_ids = raw_ids
        self._values = MAX_VALUES
        self._characters = MAX_FIELDS_TEXT

    def named(self, key: str, value: object, depth: int = 1) -> object:
        """The value of a field, where it may be told."""
        word = _forbidden(key)
        if (
            value is None
            or word is None
            or (word == "user_id" and (self._raw_ids or (isinstance(value, str) and _is_pseudonym(value))))
        ):
            return self.value(value, depth)
        return FORBIDDEN

    def full(self) -> bool:
        """Whether there is no room for more."""
        return self._values <= 0 or self._characters <= 0

    def key(self, key: object) -> str:
        return self.text(key if isinstance(key, str) else _described(key), MAX_ID_LENGTH)

    def text(self, text: str, most: int = MAX_TEXT) -> str:
        found = _text(text, min(most, max(self._characters, 0)))
        self._characters -= len(found)
        return found

    def value(self, value: object, depth: int = 1) -> object:
        # Whatever an application's class does when it is looked at must not cost the line.
        try:
            return self._plain(value, depth)
        except Exception:
            return f"[unreadable {type(value).__name__}]"

    def _plain(self, value: object, depth: int) -> object:
        self._values -= 1
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, int):
            return int(value) if -(2**63) <= value < 2**64 else f"[integer of {value.bit_length()} bits]"
        if isinstance(value, float):
            return float(value) if math.isfinite(value) else str(float(value))
        if isinstance(value, dict | list | tuple | set | frozenset):
            if depth > MAX_DEPTH or self._values <= 0:
                return "…"
            if isinstance(value, dict):
                return self._dict(value, depth)
            return self._list(value, depth)
        return self.text(_described(value))

    def _dict(self, value: dict[Any, Any], depth: int) -> dict[str, object]:
        found: dict[str, object] = {}
        for name, item in itertools.islice(list(dict.items(value)), self._values):
            if self.full():
                break
            key = self.key(name)
            found[_free(key, found)] = self.named(key, item, depth + 1)
        return found

    def _list(self, value: Iterable[object], depth: int) -> list[object]:
        return [self.value(item, depth + 1) for item in itertools.islice(value, self._values)]


def _free(key: str, taken: Container[str]) -> str:
    if key not in taken:
        return key
    renamed = f"extra_{key}"
    number = 1
    while renamed in taken:
        number += 1
        renamed = f"extra_{key}_{number}"
    return renamed


def _described(value: object) -> str:
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value[: 2 * MAX_TEXT]).decode("utf-8", "backslashreplace")
    return str(value)


def _text(value: object, most: int) -> str:
    """Masked, and what UTF-8 can hold."""
    text = str.__str__(value) if isinstance(value, str) else _safe_text(value)
    length = 2 * most + MASK_MARGIN
    masked = masked_start(text, length, mask_text)
    return _cut(masked if len(text) <= length else masked + "…", most)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: max(most - 1, 0)] + "…"


def _safe_text(value: object) -> str:
    try:
        return _described(value)
    except Exception:
        return f"[unreadable {type(value).__name__}]"


def _id(value: object) -> str | None:
    if value is None:
        return None
    return _text(value, MAX_ID_LENGTH)


def _timestamp(created: float) -> str:
    try:
        moment = datetime.fromtimestamp(created, UTC)
    except (TypeError, ValueError, OverflowError, OSError):
        moment = datetime.fromtimestamp(time.time(), UTC)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:
        # The arguments do not fit. Without them it says more than nothing.
        return _safe_text(record.msg)


def _exception(record: logging.LogRecord) -> dict[str, str]:
    fields = {}
    kind, error, trace = record.exc_info if isinstance(record.exc_info, tuple) else (None, None, None)
    stack = record.exc_text or ""
    if kind is not None and error is not None:
        fields["exception_type"] = _text(kind.__name__, MAX_ID_LENGTH)
        fields["exception_message"] = _text(error, MAX_TEXT)
        try:
            stack = "".join(traceback.TracebackException(kind, error, trace, limit=-MAX_FRAMES, compact=True).format())
        except Exception:  # a class of the application's own may do anything
            stack = ""
    if record.stack_info:
        stack = f"{stack}\n{record.stack_info}" if stack else record.stack_info
    if stack:
        # The end of it says most.
        length = 2 * MAX_STACK + MASK_MARGIN
        masked = mask_text(clean_text(stack[-length:]))
        fields["exception_stack"] = masked[MASK_MARGIN if len(stack) > length else 0 :][-MAX_STACK:]
    return fields
