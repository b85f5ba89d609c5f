"""Trace ids, taken from the caller or new.

A trace id is 32 lower-case hexadecimal digits, as W3C Trace Context has it, so that it can be followed into
other systems.
"""

import os
import random
import re
from collections.abc import Iterable

# https://www.w3.org/TR/trace-context/#traceparent-header: version 00 has exactly these four fields, a later
# one may have more; version ff and ids of zeros alone are invalid.
_TRACEPARENT = re.compile(
    rb"(?:00-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
    rb"|(?!00|ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?)"
)

# A generator of its own: an application that seeds the module's gets the same numbers again. Half the time of
# os.urandom; after a fork parent and child must go different ways.
_random = random.Random()
os.register_at_fork(after_in_child=_random.seed)


def trace_id_for(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The trace id of the first ``traceparent`` among ``headers`` (lower-case names) if it is valid, else a new one."""
    for name, value in headers:
        if name == b"traceparent":
            match = _TRACEPARENT.fullmatch(value)
            if match:
                return (match[1] or match[2]).decode()
            break
    return _random.getrandbits(128).to_bytes(16).hex()
