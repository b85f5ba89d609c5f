"""Which keys may not be stored."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallymark.privacy import forbidden_word

LIST = (
    "email",
    "name",
    "username",
    "password",
    "token",
    "key",
    "secret",
    "api_key",
    "user_id",
    "client_id",
    "session_id",
)
"""Document 001's."""


def spellings(word: str) -> set[str]:
    """The ways in which people write the same key."""
    parts = word.split("_")
    camel = parts[0] + "".join(part.title() for part in parts[1:])
    joined = {joint.join(parts) for joint in ("_", "-", "", ".", " ", "__")} | {camel, camel[0].upper() + camel[1:]}
    return joined | {text.upper() for text in joined} | {text.title() for text in joined} | {f"_{word}_"}


@pytest.mark.parametrize("word", LIST)
def test_every_spelling_is_refused(word: str) -> None:
    assert {spelling: forbidden_word(spelling) for spelling in spellings(word)} == dict.fromkeys(spellings(word), word)


@pytest.mark.parametrize(
    ("key", "word"),
    [
        ("access_token", "token"),
        ("accessToken", "token"),
        ("X-API-Key", "api_key"),
        ("x-apikey", "api_key"),
        ("billingEmail", "email"),
        ("HTTPSecret", "secret"),
        ("owner_user_id", "user_id"),
        ("ownerUserID", "user_id"),
        ("e-mail", "email"),
        ("ｅｍａｉｌ", "email"),  # full width
        ("e\u200bmail", "email"),  # zero width space
        ("to\u00adken", "token"),  # soft hyphen
        ("PAẞWORD", "password"),  # folds to "password"
    ],
)
def test_what_reads_the_same_is_refused(key: str, word: str) -> None:
    assert forbidden_word(key) == word


@pytest.mark.parametrize(
    "key",
    [
        "tokens_used",
        "max_tokens",
        "tokenizer",
        "cache_key",
        "file_name",
        "hostname",
        "keyboard",
        "secretary",
        "user_hash",
        "client",
        "client_ip_hash",
        "session",
        "region",
        "status_code",
        "",
        "_",
        "名前",
    ],
)
def test_what_only_looks_alike_passes(key: str) -> None:
    assert forbidden_word(key) is None


@given(st.text())
def test_any_key_gets_an_answer(key: str) -> None:
    assert forbidden_word(key) in (None, *LIST)
