"""What may not be stored: keys of metadata that name a person or a secret.

The list is that of the interface documents. A key is compared without regard to case, ``-``, ``_`` and camelCase, so
``userId``, ``user-id`` and ``USER_ID`` are one. Words that say nothing by themselves (``name``, ``key``) are refused
only alone, since ``cache_key`` and ``file_name`` are harmless; the others also as the end of a longer key
(``access_token``, ``billing_email``). ``tokens_used`` is a count, not a token, and passes.
"""

import re
import unicodedata

FORBIDDEN_ALONE = ("name", "key")
FORBIDDEN_AT_END = (
    "email",
    "username",
    "password",
    "token",
    "secret",
    "api_key",
    "user_id",
    "client_id",
    "session_id",
)

_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_SEPARATORS = re.compile(r"[\W_]+")


def forbidden_word(key: str) -> str | None:
    """The word of the list that forbids this key, or ``None`` where the key may be stored."""
    # NFKC first: "ｅmail" in full-width letters is the same word to everybody who reads it.
    words = _SEPARATORS.split(_HUMP.sub("_", unicodedata.normalize("NFKC", key)))
    lowered = [word.casefold() for word in words if word]
    joined = "".join(lowered)
    for word in FORBIDDEN_ALONE:
        if joined == word:
            return word
    for word in FORBIDDEN_AT_END:
        parts = word.split("_")
        if joined == "".join(parts) or lowered[-len(parts) :] == parts or lowered[-1:] == ["".join(parts)]:
            return word
    return None
