"""Metadata as JSON bytes: checked for shape, size and privacy on the way.

The common case, a flat dictionary with keys that were seen before, is decided by two set operations in C; everything
else takes the careful way, which also words the error.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

from tallymark.model import MAX_METADATA_BYTES, MAX_METADATA_DEPTH, MAX_METADATA_KEYS, clean_text
from tallymark.privacy import MASK, MASKS, SHORT, PiiPolicy, forbidden_word, looks_private, mask_text

_encode_text = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
_FEW_DIGITS = 10**SHORT
_SCALARS = frozenset({str, int, float, bool, type(None)})

#: Keys that passed, whatever the policy. Bounded, because an application may put anything into a key.
accepted_keys: set[str] = set()
_MAX_ACCEPTED = 10_000


def encode_metadata(metadata: Mapping[str, Any], pii: PiiPolicy = MASK) -> bytes:
    """The JSON text of metadata, in UTF-8, with keys and values as the policy has them.

    Raises:
        ValueError: it is not a JSON object, too deep, too large, or has a key or a value that may not be stored. The
            message names the key and the rule, never the value.
    """
    if (
        type(metadata) is dict
        and accepted_keys.issuperset(metadata)
        and _SCALARS.issuperset(map(type, metadata.values()))
        and len(metadata) <= MAX_METADATA_KEYS
        and not _needs_care(metadata)
    ):
        try:
            text = _encode(metadata)
        except ValueError:  # NaN, lone surrogates
            pass
        else:
            if len(text) <= MAX_METADATA_BYTES:
                return text
    return _encode_carefully(metadata, pii)


def _needs_care(metadata: dict[str, Any]) -> bool:
    """Whether a value holds NUL, may be private, or is an integer beyond 64 bits."""
    for value in metadata.values():
        if type(value) is str:
            # The usual value without a call.
            if "\0" in value or ((len(value) > SHORT or "@" in value or "%40" in value) and looks_private(value)):
                return True
        elif (
            type(value) is int
            and not -_FEW_DIGITS < value < _FEW_DIGITS
            and (not -(2**63) <= value < 2**64 or looks_private(str(value)))
        ):
            return True
    return False


def _encode(metadata: object) -> bytes:
    return _encode_text(metadata).encode()


def _encode_carefully(metadata: object, pii: PiiPolicy) -> bytes:
    if not isinstance(metadata, dict):
        raise ValueError(f"metadata must be a dict, not {type(metadata).__name__}")
    text = _encode(_Walk(pii).visit(metadata, "metadata", 1))
    if len(text) > MAX_METADATA_BYTES:
        raise ValueError(f"metadata is {len(text)} bytes of JSON; at most {MAX_METADATA_BYTES} are allowed")
    return text


class _Walk:
    """One visit of a whole metadata object: a copy that JSON can hold, or ValueError."""

    def __init__(self, pii: PiiPolicy) -> None:
        self.pii = pii
        self.keys = 0
        self.values = 0

    def visit(self, value: object, path: str, depth: int) -> object:
        self.values += 1
        if self.values > MAX_METADATA_BYTES // 2:  # each takes a byte and what stands between them
            raise ValueError(f"metadata has too many values; at most {MAX_METADATA_BYTES} bytes of JSON are allowed")
        # Subclasses (enumerations, numpy.float64) are stored as what they extend.
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            if len(value) > MAX_METADATA_BYTES:
                raise ValueError(f"{path} is too long; at most {MAX_METADATA_BYTES} bytes of JSON are allowed")
            return self.pii.clean(path, clean_text(str.__str__(value)))
        if isinstance(value, float):
            if not math.isfinite(value):
                raise ValueError(f"{path} must be a finite number: JSON has no NaN and no infinity")
            return float(value)
        if isinstance(value, int):
            if not -(2**63) <= value < 2**64:
                raise ValueError(f"{path} must fit in 64 bits")
            digits = int.__repr__(value)
            kept = self.pii.clean(path, digits)
            return int(value) if kept == digits else kept
        if depth > MAX_METADATA_DEPTH:
            raise ValueError(f"{path} is nested too deep; at most {MAX_METADATA_DEPTH} levels are allowed")
        if isinstance(value, dict):
            copy: dict[str, object] = {}
            for key, item in value.items():
                clean = self.key(key, path)
                # Two addresses are one mask, and still two values.
                while clean in copy and MASKS.search(clean):
                    clean += "+"
                copy[clean] = self.visit(item, f"{path}.{mask_text(clean)[:80]}", depth + 1)
            return copy
        if isinstance(value, list | tuple):
            return [self.visit(item, f"{path}[{i}]", depth + 1) for i, item in enumerate(value)]
        raise ValueError(
            f"{path} must be JSON (text, number, true, false, null, list, dict), not {type(value).__name__}"
        )

    def key(self, key: object, path: str) -> str:
        if not isinstance(key, str):
            raise ValueError(f"{path} has a key of type {type(key).__name__}; keys must be text")
        self.keys += 1
        if self.keys > MAX_METADATA_KEYS:
            raise ValueError(f"metadata has too many keys; at most {MAX_METADATA_KEYS} are allowed")
        if len(key) > MAX_METADATA_BYTES:
            raise ValueError(f"{path} has a key that is too long; {MAX_METADATA_BYTES} bytes of JSON are allowed")
        key = clean_text(str.__str__(key))
        if key in accepted_keys:
            return key
        word = forbidden_word(MASKS.sub("", key))  # [email] alone names nobody any more
        if word is not None:
            raise ValueError(
                f"{path} has the forbidden key {mask_text(key)[:80]!r}: "
                f"{word!r} may name a person or a secret and is never stored"
            )
        if looks_private(key):
            return self.pii.clean(f"{path} has a key that", key)
        if len(accepted_keys) < _MAX_ACCEPTED and len(key) <= 200:
            accepted_keys.add(key)
        return key
