"""What becomes of a record that holds a secret or a person, by the policy of its recorder."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from private_texts import SECRETS, TEXTS
from recording import live, recording

from tallymark import ConfigError, Metrics
from tallymark.model import MAX_ERROR_LENGTH
from tallymark.privacy import ALLOW, MASK, RULES, PiiPolicy


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
