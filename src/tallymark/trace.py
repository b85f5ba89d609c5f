"""Which request or job the running code belongs to.

A trace id is 32 lower-case hexadecimal digits, as W3C Trace Context has it, so that it can be followed into
other systems.
"""

import os
import re
from collections.abc import Iterable
from contextvars import ContextVar

current_trace_id: ContextVar[str | None] = ContextVar("tallymark_trace_id", default=None)
"""The trace id of the request that is being served, ``None`` outside of one."""

# https://www.w3.org/TR/trace-context/#traceparent-header: version 00 has exactly these four fields, a later
# one may have more; version ff and ids of zeros alone are invalid.
_TRACEPARENT = re.compile(
    rb"(?:00-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
    rb"|(?!00|ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?)"
)


def new_trace_id() -> str:
    """A trace id that nobody has used."""
    # Not the random module: an application that seeds it would get the same ids again. Not uuid4: four times
    # the time.
    return os.urandom(16).hex()


def incoming_trace_id(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """The trace id of the first ``traceparent`` among ``headers`` (lower-case names), ``None`` without a
    valid one.
    """
    for name, value in headers:
        if name == b"traceparent":
            match = _TRACEPARENT.fullmatch(value)
            return (match[1] or match[2]).decode() if match else None
    return None
