"""Which keys may not be stored, and which texts; that nothing else is touched, whichever way it is recorded."""

import itertools
import json
import logging
import random
import re
import string
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from recording import live, recording

from tallymark import ConfigError, Metrics
from tallymark.core import core as compiled
from tallymark.model import MAX_ERROR_LENGTH, MAX_ID_LENGTH
from tallymark.privacy import _TABLE, ALLOW, IBANS, MASK, RULES, PiiPolicy, forbidden_word, looks_private, mask_text

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


SECRETS = {
    "private_key": "-----BEGIN " + "RSA PRIVATE KEY-----\nMIIEowIBAAKCAQEA7c0ffee\n-----END RSA PRIVATE KEY-----",
    "jwt": "ey" + "JhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3OCJ9.c2lnbmF0dXJl",
    "cloud_key": "AK" + "IAIOSFODNN7C0FFEE9",
    "bearer_token": "c0ffee" * 4,
    "password": "c0ffee!secret",
    "email": "anna.c0ffee@example.com",
    "iban": "DE89370400440532013000",
    "card": "4111111111111111",
}
"""One for each rule."""

TEXTS = SECRETS | {
    "bearer_token": f"Bearer {SECRETS['bearer_token']}",
    "password": f"postgres://app:{SECRETS['password']}@db/shop",
}
"""The same where they are found."""

MASKED = {rule: text.replace(SECRETS[rule], f"[{rule}]") for rule, text in TEXTS.items()}


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


# What becomes of a record


def value(metrics: Metrics, text: str) -> None:
    metrics.record("a", "b", 1.0, metadata={"note": text})


ENTRIES: dict[str, Callable[[Metrics, str], object]] = {
    "metadata": value,
    "metadata in depth": lambda metrics, text: metrics.record("a", "b", 1.0, metadata={"a": [{"b": [1, text]}]}),
    "key": lambda metrics, text: metrics.record("a", "b", 1.0, metadata={text: 1}),
    "key in depth": lambda metrics, text: metrics.record("a", "b", 1.0, metadata={"a": [{text: 1}]}),
    "error": lambda metrics, text: metrics.record("a", "b", 1.0, error=text),
    "error_message": lambda metrics, text: metrics.record_operation("a", "b", 1.0, False, text),
    "metric_type": lambda metrics, text: metrics.record(text, "b", 1.0),
    "name": lambda metrics, text: metrics.record("a", text, 1.0),
    "operation_type": lambda metrics, text: metrics.record_operation(text, "b", 1.0),
    "operation_name": lambda metrics, text: metrics.record_operation("a", text, 1.0),
    "unit": lambda metrics, text: metrics.record("a", "b", 1.0, text),
    "trace_id": lambda metrics, text: metrics.record("a", "b", 1.0, trace_id=text),
    "session_id": lambda metrics, text: metrics.record("a", "b", 1.0, session_id=text),
    "service": lambda metrics, text: metrics.ingest("a", "b", 1.0, service=text),
    "description": lambda metrics, text: metrics.ingest("a", "b", 1.0, description=text),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("entry", ENTRIES)
def test_it_is_masked(metrics: Metrics, core: str, folder: Path, entry: str, rule: str) -> None:
    for _ in range(3):
        value(metrics, "known")
        ENTRIES[entry](metrics, TEXTS[rule])
    rows = [row for row in live(folder) if "known" not in row["metadata"]]
    assert len(rows) == 3
    for row in rows:
        kept = json.dumps({field: text for field, text in row.items() if isinstance(text, str)})
        assert json.dumps(f"[{rule}]")[1:-1] in kept
    assert all(
        secret.encode() not in path.read_bytes() for path in folder.rglob("*.journal") for secret in SECRETS.values()
    )


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("entry", ENTRIES)
def test_it_is_rejected(folder: Path, core: str, entry: str, rule: str) -> None:
    with recording(folder, pii={rule: "reject"}) as metrics:
        value(metrics, "known")
        before = metrics.get_stats()
        for _ in range(2):
            with pytest.raises(ValueError, match=rf"^\w.* is refused by the privacy rule '{rule}'$") as caught:
                ENTRIES[entry](metrics, TEXTS[rule])
            assert SECRETS[rule] not in str(caught.value)
            assert str(caught.value).startswith(
                entry.split()[0].replace("key", "metadata").replace("operation_", "")
            ) or (entry in str(caught.value))
        assert metrics.get_stats() == before
    assert len(live(folder)) == 1


@pytest.mark.parametrize("entry", ENTRIES)
def test_it_is_allowed(folder: Path, core: str, entry: str) -> None:
    with recording(folder, pii="allow") as metrics:
        for _ in range(2):
            ENTRIES[entry](metrics, TEXTS["email"])
    assert len(live(folder)) == 2
    for row in live(folder):
        assert TEXTS["email"] in json.dumps({field: text for field, text in row.items() if isinstance(text, str)})


def test_one_rule_may_be_allowed_and_another_reject(folder: Path, core: str) -> None:
    with recording(folder, pii={"email": "allow", "card": "reject"}) as metrics:
        value(metrics, f"{TEXTS['email']} {TEXTS['iban']}")
        with pytest.raises(ValueError, match="'card'"):
            value(metrics, f"{TEXTS['email']} {TEXTS['card']}")
    assert [json.loads(row["metadata"]) for row in live(folder)] == [{"note": f"{TEXTS['email']} [iban]"}]


def test_a_key_that_one_recorder_allows_is_masked_by_another(tmp_path: Path, core: str) -> None:
    for number, pii in enumerate(("allow", "mask", "allow", "mask")):
        with recording(tmp_path / str(number), pii=pii) as metrics:
            for _ in range(2):
                metrics.record("a", "b", 1.0, metadata={"anna@example.com": 1})
        key = "[email]" if pii == "mask" else "anna@example.com"
        assert {row["metadata"] for row in live(tmp_path / str(number))} == {
            json.dumps({key: 1}, separators=(",", ":"))
        }


def test_two_addresses_as_keys_are_two_values(metrics: Metrics, core: str, folder: Path) -> None:
    metrics.record("a", "b", 1.0, metadata={"anna@example.com": 1, "bob@example.com": 2, "c@example.com": 3})
    assert json.loads(live(folder)[0]["metadata"]) == {"[email]": 1, "[email]+": 2, "[email]++": 3}


@pytest.mark.parametrize("number", [4111111111111111, -4111111111111111, 378282246310005])
def test_a_card_as_a_number(metrics: Metrics, core: str, folder: Path, number: int) -> None:
    for _ in range(2):
        metrics.record("a", "b", 1.0, metadata={"n": number, "nested": [number]})
    for _ in range(2):
        metrics.record("a", "b", 1.0, metadata={"n": number})
    assert all(str(abs(number)) not in row["metadata"] and "[card]" in row["metadata"] for row in live(folder))


@pytest.mark.parametrize(
    "number", [0, -1, 999_999_999_999, 1_760_000_000_000, 1_760_000_000_000_000_000, 2**63 - 1, -(2**63)]
)
def test_other_numbers_stay_numbers(metrics: Metrics, core: str, folder: Path, number: int) -> None:
    for _ in range(2):
        metrics.record("a", "b", 1.0, metadata={"n": number})
    assert [json.loads(row["metadata"]) for row in live(folder)] == [{"n": number}] * 2


def test_names_that_differ_only_behind_the_mask_are_one_series(metrics: Metrics, core: str, folder: Path) -> None:
    for number in range(50):
        metrics.record("a", f"mail to user{number}@example.com", 1.0)
        metrics.record("a", f"other {number}", 1.0)
    assert {row["name"] for row in live(folder) if "mail" in row["name"]} == {"mail to [email]"}
    assert len(live(folder)) == metrics.get_stats().total_recorded == 100


@pytest.mark.parametrize("rule", RULES)
def test_no_half_of_a_secret_stays_where_an_error_is_cut(metrics: Metrics, core: str, folder: Path, rule: str) -> None:
    secret = SECRETS[rule]
    for before in range(MAX_ERROR_LENGTH - len(TEXTS[rule]) - 2, MAX_ERROR_LENGTH + 1, 7):
        metrics.record("a", "b", 1.0, error="x" * (before - 1) + " " + TEXTS[rule] + " and so on" * 100)
    for row in live(folder):
        assert len(row["error"]) == MAX_ERROR_LENGTH
        assert all(secret[at : at + 9] not in row["error"] for at in range(max(1, len(secret) - 9)))


def test_masks_do_not_bring_the_end_of_a_long_error_into_sight(metrics: Metrics, core: str, folder: Path) -> None:
    # What stands in front takes most of the window and its mask 13 characters; the window cuts through an address.
    key = SECRETS["private_key"].replace("c0ffee", "c0ffee" * 1300)
    for padding in range(8000 - len(key) - 30, 8000 - len(key) + 10):
        text = key + " " * padding + "anna.c0ffee@example.com" + "z" * 9000
        metrics.record("a", "b", 1.0, error=text)
    assert all("c0ffee" not in row["error"] and row["error"].startswith("[private_key]") for row in live(folder))


def test_the_end_of_a_long_error_is_cut_as_before(metrics: Metrics, core: str, folder: Path) -> None:
    metrics.record("a", "b", 1.0, error="word " * 300_000)
    assert live(folder)[0]["error"] == ("word " * 300)[:MAX_ERROR_LENGTH]


def test_the_program_of_the_recorder(folder: Path) -> None:
    assert Metrics(folder, service="job of anna@example.com").service == "job of [email]"
    with pytest.raises(ValueError, match="service is refused by the privacy rule 'email'"):
        Metrics(folder, service="anna@example.com", pii="reject")


def test_what_a_block_adds_never_breaks_it(folder: Path, core: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with recording(folder, pii="reject") as metrics:
        for text in TEXTS.values():
            with metrics.track_operation(text, {"note": text}) as timing:
                timing.metadata["more"] = text
            with pytest.raises(LookupError), metrics.track_operation("b"):
                raise LookupError(text)

            @metrics.track_operation("c", {"note": text})
            def add(a: int, b: int) -> int:
                return a + b

            assert add(1, 2) == 3
        stats = metrics.get_stats()
    assert stats.dropped == {"invalid": 3 * len(TEXTS)}
    assert live(folder) == []
    assert all(secret not in caplog.text for secret in SECRETS.values())
    assert "is refused by the privacy rule" in caplog.text


# The policy


@pytest.mark.parametrize(
    "pii", ["hide", "", 3, None, {"emails": "mask"}, {"email": "hide"}, {"email": None}, {SECRETS["card"]: "mask"}]
)
def test_a_policy_that_makes_no_sense(pii: Any, folder: Path) -> None:
    with pytest.raises(ConfigError, match="pii") as caught:
        Metrics(folder, pii=pii)
    assert SECRETS["card"] not in str(caught.value)


def test_a_policy_is_a_value() -> None:
    assert PiiPolicy.of("mask") == PiiPolicy.of({}) == PiiPolicy.of(MASK) == MASK
    assert PiiPolicy.of({"card": "allow"}) != MASK
    assert PiiPolicy.of("allow") == ALLOW
    assert set(MASK.actions) == set(RULES)
    with pytest.raises(TypeError):
        MASK.actions["email"] = "allow"  # type: ignore[index]
    with pytest.raises(AttributeError):
        MASK.actions = {}  # type: ignore[misc]


@given(st.text())
def test_any_text_can_be_masked(text: str) -> None:
    assert mask_text(text) == text or is_found(text)
