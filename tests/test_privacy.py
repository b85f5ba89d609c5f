"""Which keys may not be stored, and which texts; that nothing else is touched, whichever way it is recorded."""

import itertools
import random
import re
import string
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from private_texts import MASKED, SECRETS, TEXTS
from recording import live, recording

from tallymark.core import core as compiled
from tallymark.model import MAX_ID_LENGTH
from tallymark.privacy import _TABLE, IBANS, RULES, forbidden_word, looks_private, mask_text

ROOT = Path(__file__).parent.parent

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


# Texts


def corpus() -> Any:
    """bench.privacy, which is not installed."""
    import sys

    sys.path.insert(0, str(ROOT))
    try:
        import bench.privacy
    finally:
        sys.path.remove(str(ROOT))
    return bench.privacy


def is_found(text: str) -> bool:
    """Whether any rule finds something, by the rules alone."""
    return any(True for rule in _TABLE for _ in rule.find(text))


def test_every_rule_is_tested() -> None:
    assert tuple(SECRETS) == RULES


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("frame", ["{}", "x {} y", "({})", '"{}"', "a={}&b=1", "[{}]", "é{}", "\n{}\n", "-{}", "_{}_"])
def test_a_secret_is_masked_wherever_it_stands(rule: str, frame: str) -> None:
    if (rule == "email" and frame in ("-{}", "é{}")) or (rule in ("jwt", "bearer_token", "email") and frame == "_{}_"):
        # There it is another secret, a longer one.
        assert SECRETS[rule] not in mask_text(frame.format(TEXTS[rule]))
        return
    assert mask_text(frame.format(TEXTS[rule])) == frame.format(MASKED[rule])


def test_several_secrets_in_one_text() -> None:
    assert mask_text("; ".join(TEXTS.values())) == "; ".join(MASKED.values())
    assert mask_text(" ".join([TEXTS["card"]] * 3)) == "[card] [card] [card]"
    assert mask_text("to anna@example.com,bob@example.com") == "to [email],[email]"


@pytest.mark.parametrize("country", sorted(IBANS))
def test_the_ibans_of_every_country(country: str) -> None:
    body = "".join(random.Random(country).choices(string.digits, k=IBANS[country] - 4))
    number = int("".join(str(int(character, 36)) for character in f"{body}{country}00"))
    iban = f"{country}{98 - number % 97:02}{body}"
    spaced = " ".join(itertools.starmap(str.__add__, zip(iban, [""] * len(iban), strict=True)))
    grouped = re.sub("(.{4})(?!$)", r"\1 ", iban)
    assert mask_text(f"to {iban}.") == "to [iban]."
    assert mask_text(f"to {grouped}, thanks") == "to [iban], thanks"
    assert mask_text(spaced) == spaced
    assert mask_text(iban + "0") == iban + "0"
    wrong = f"{country}{(98 - number % 97) % 97 + 2:02}{body}"
    assert mask_text(wrong) == wrong
    if compiled is not None:
        assert compiled.looks_private(iban)
        assert compiled.looks_private(grouped)


@pytest.mark.parametrize(
    "digits",
    ["4222222222222", "5555555555554444", "378282246310005", "30569309025904", "6011111111111117", "3530111333300000"],
)
def test_cards_of_every_issuer(digits: str) -> None:
    assert mask_text(digits) == "[card]"
    assert mask_text(f"1234 {digits} 12/27") == "1234 [card] 12/27"
    wrong = digits[:-1] + str((int(digits[-1]) + 1) % 10)
    assert mask_text(wrong) == wrong


def test_the_corpus_gives_the_published_figures() -> None:
    page = (ROOT / "docs" / "privacy.md").read_text("utf-8")
    bench = corpus()
    assert bench.table() in page, "python -m bench.privacy --write"
    for score in bench.scores().values():
        assert score.found >= 25
        assert score.recall >= 0.80
        assert score.false_positives <= 0.01


def test_the_corpus_is_large_and_known() -> None:
    texts = list(corpus().corpus())
    assert len(texts) >= 400
    assert sum(rule is None for rule, _, _ in texts) >= 300
    assert {rule for rule, _, _ in texts} == {None, *RULES}


# What may look private, made of what rules look for and of what stands around it.
CORPUS = [text for _, text, _ in corpus().corpus()]
PIECES = [
    *(
        "ey",
        "eyJ",
        ".",
        "-",
        "_",
        "@",
        "%40",
        "://",
        ":",
        "/",
        " ",
        "\n",
        "\\n",
        "\t",
        '"',
        "é",
        "ﬀ",
        "\x00",
        "[email]",
        "e",
        "J",
    ),
    *(
        "-----BEGIN ",
        "-----END ",
        "PRIVATE KEY-----",
        "RSA ",
        "Bearer ",
        "BEARER\t",
        "bearer%20",
        "sk-",
        "ghp_",
        "SG.",
        "4",
        "55",
    ),
    *(
        "AKIA",
        "AIza",
        "ya29.",
        "xoxb-",
        "hf_",
        "npm_",
        "glpat-",
        "hvs.",
        "sk_live_",
        "DE89",
        "de89",
        "GB29",
        "1234",
        "0000",
    ),
]
letters = st.text(st.sampled_from(string.ascii_letters + string.digits + "-_"), max_size=40)
suspect = st.lists(
    st.sampled_from(PIECES)
    | letters
    | st.sampled_from(list(TEXTS.values()))
    | st.sampled_from(CORPUS)
    | st.text(max_size=3),
    min_size=1,
    max_size=8,
).map("".join)


@given(suspect)
@example("é4111111111111111")
@example("\u0664111111111111111")
@settings(max_examples=1_000, deadline=None)
def test_where_a_rule_finds_something_the_first_look_does_too(text: str) -> None:
    if is_found(text):
        assert looks_private(text)
        if compiled is not None:
            assert compiled.looks_private(text.encode("utf-8", "replace").decode())


@given(st.data())
@settings(max_examples=500, deadline=None)
def test_so_it_does_in_pieces_of_the_corpus(data: st.DataObject) -> None:
    text = data.draw(st.sampled_from(CORPUS))
    first, last = sorted(data.draw(st.tuples(*[st.integers(0, len(text))] * 2)))
    part = text[first:last]
    if is_found(part):
        assert looks_private(part)
        if compiled is not None:
            assert compiled.looks_private(part)


@given(suspect)
@settings(max_examples=500, deadline=None)
def test_masking_twice_changes_nothing_more(text: str) -> None:
    # The server masks before it answers, and the recorder masks what it is given.
    assert mask_text(mask_text(text)) == mask_text(text)


record = st.fixed_dictionaries(
    {
        "metadata": st.dictionaries(
            st.sampled_from(["note", "url", "n"]),
            suspect | st.integers(-(2**63), 2**63 - 1) | st.sampled_from([4111111111111111]),
        ),
        "error": st.none() | suspect,
        "trace_id": st.none() | suspect.map(lambda text: ("t" + text)[:MAX_ID_LENGTH]),
        "session_id": st.none() | suspect.map(lambda text: ("s" + text)[:MAX_ID_LENGTH]),
    }
)


@pytest.mark.skipif(compiled is None, reason="the core is not compiled")
@given(record)
@settings(max_examples=150, deadline=None)
def test_both_ways_to_record_store_the_same_bytes(given_: dict[str, Any]) -> None:
    rows = []
    for pure in (False, True):
        with tempfile.TemporaryDirectory() as folder, recording(Path(folder), max_queue_size=4096) as metrics:
            metrics.record("a", "b", 1.0, metadata={"note": 1, "url": 1, "n": 1})
            if pure:
                metrics._pool.service = None
            metrics.record("a", "b", 1.0, **given_)
            row = live(Path(folder))[1]
        rows.append([row[field] for field in ("metadata", "error", "trace_id", "session_id")])
    assert rows[0] == rows[1]
    assert mask_text(rows[0][0]) == rows[0][0] or "\\" in rows[0][0]


HARMLESS = [text for rule, text, wanted in corpus().corpus() if rule is None and mask_text(text) == text]


def test_most_harmless_texts_take_the_fast_way() -> None:
    for look in [looks_private] if compiled is None else [looks_private, compiled.looks_private]:
        assert sum(map(look, HARMLESS)) < len(HARMLESS) / 3


@pytest.mark.parametrize("unit", [
    "a", "a.", "a@", "@", "@a.", "a@b.", "a@a.a@", "%40", "1", "1 ", "1-", "4111 ", "1234-", "e", "eyJ", "eyJaaaaaaaa.",
    "eyJaaaaaaaa-", "DE89", "DE89 ", "://", "://a:", "a://b:c", "Bearer ", "bearer a", "-----BEGIN PRIVATE KEY-----",
    "-----BEGIN ", "PRIVATE KEY-----", "-----BEGIN PRIVATE KEY-----\n----", "sk-", "sk-a-", "SG.", "SG.aaaaaaaaaaa-",
    "-", "xoxb-", "A", "AKIA", "\n", "\\n", " ", "é", "a-", "ghp_", "\ud800", "_", "sk-1-", "a:b@",
    "-----BEGIN PRIVATE KEY-----aaaaaaaaaaaaaaaa-----BEGIN ", "://a:a@", "hooks.slack.com/services/",
])  # fmt: skip
@pytest.mark.timeout(60)
def test_a_hostile_megabyte_takes_no_time_to_speak_of(unit: str) -> None:
    mask_text(unit * (1_000_000 // len(unit)))
    mask_text("x" + unit * (1_000_000 // len(unit)) + "!")


@given(st.text())
def test_any_text_can_be_masked(text: str) -> None:
    assert mask_text(text) == text or is_found(text)
