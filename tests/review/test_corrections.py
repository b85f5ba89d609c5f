"""Corrections: every field, and what is measured of texts that are not stored."""

import json
import random
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recording import live, ship

from tallymark import Metrics
from tallymark.review import CorrectionType, MetricsService
from tallymark.review.corrections import MAX_COMPARED, MAX_LOOKED_AT, difference, levenshtein
from tallymark.testing import ManualClock

USUAL: dict[str, Any] = {
    "session_id": "abc123",
    "admin_user_id": 99999,
    "message_id": "m-1",
    "correction_type": CorrectionType.VOICE_CORRECTION,
    "original_text": "the quick brown fox",
    "corrected_text": "the quick red fox",
    "processing_time_ms": 5000,
}


def test_the_types_are_those_of_the_interface_documents() -> None:
    assert [kind.value for kind in CorrectionType] == [
        "text_correction",
        "voice_correction",
        "content_modification",
        "style_improvement",
        "factual_correction",
        "rejection",
    ]


def test_every_field(service: MetricsService, folder: Path) -> None:
    service.record_correction(
        **USUAL,
        voice_transcription_time_ms=1500,
        ai_correction_time_ms=2999.6,
        admin_satisfaction=4,
        retry_count=2,
        transcription_quality="excellent",
        metadata={"sources": 3, "reason": "tone"},
    )
    (row,) = live(folder)
    assert (row["metric_type"], row["name"], row["value"], row["unit"]) == (
        "correction",
        "voice_correction",
        5000.0,
        "ms",
    )
    assert (row["session_id"], row["success"]) == ("abc123", None)
    assert json.loads(row["metadata"]) == {
        "admin": service.pseudonym("admin", 99999),
        "message": service.pseudonym("message", "m-1"),
        "original_length": 19,
        "corrected_length": 17,
        "edit_distance": 4,
        "similarity": round(1 - 4 / 19, 3),
        "voice_transcription_time_ms": 1500,
        "ai_correction_time_ms": 3000,
        "admin_satisfaction": 4,
        "retry_count": 2,
        "transcription_quality": "excellent",
        "sources": 3,
        "reason": "tone",
    }


def test_what_is_not_known_is_left_out(service: MetricsService, folder: Path) -> None:
    service.record_correction(**USUAL | {"admin_user_id": None, "message_id": None, "corrected_text": ""})
    assert json.loads(live(folder)[0]["metadata"]) == {
        "original_length": 19,
        "corrected_length": 0,
        "edit_distance": 19,
        "similarity": 0.0,
        "retry_count": 0,
    }


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("session_id", ""),
        ("session_id", None),
        ("admin_user_id", 1.5),
        ("message_id", []),
        ("correction_type", ""),
        ("correction_type", 7),
        ("original_text", None),
        ("corrected_text", b"bytes"),
        ("processing_time_ms", -1),
        ("processing_time_ms", float("nan")),
        ("processing_time_ms", "5"),
        ("processing_time_ms", None),
        ("voice_transcription_time_ms", -1),
        ("voice_transcription_time_ms", float("inf")),
        ("ai_correction_time_ms", True),
        ("ai_correction_time_ms", 10**400),
        ("admin_satisfaction", 0),
        ("admin_satisfaction", 6),
        ("admin_satisfaction", 4.5),
        ("admin_satisfaction", True),
        ("retry_count", -1),
        ("retry_count", None),
        ("transcription_quality", ""),
        ("transcription_quality", "x" * 201),
        ("metadata", [1]),
        ("metadata", {"email": "x"}),
        ("metadata", {"x": object()}),
    ],
)
def test_bad_arguments(service: MetricsService, folder: Path, field: str, value: object) -> None:
    named = {"admin_user_id": "the id of the admin", "message_id": "the id of the message"}.get(field, field)
    with pytest.raises(ValueError, match=named) as refused:
        service.record_correction(**USUAL | {field: value})
    assert "quick" not in str(refused.value)
    assert live(folder) == []


def test_system_metrics(service: MetricsService, folder: Path) -> None:
    service.record_system_metric("queue_length", 7, tags={"component": "moderation"})
    service.record_system_metric("load", 0.5)
    assert [(row["metric_type"], row["name"], row["value"], row["metadata"]) for row in live(folder)] == [
        ("system_metric", "queue_length", 7.0, '{"component":"moderation"}'),
        ("system_metric", "load", 0.5, "{}"),
    ]
    for name, value, tags in (
        ("", 1, None),
        ("x", "7", None),
        ("x", True, None),
        ("x", 1, {"password": "x"}),
        ("x", 1, "a"),
    ):
        with pytest.raises(ValueError, match=r"name|value|password|tags"):
            service.record_system_metric(name, value, tags)  # type: ignore[arg-type]


def test_labels(service: MetricsService, clock: ManualClock) -> None:
    service.record_correction(**USUAL)
    service.label_admin(99999, "night shift")
    clock.advance(0.001)
    service.label_admin(99999, "=1+1 the day shift 🎉")
    by_admin = service.get_dashboard_data()["corrections"]["by_admin"]
    assert by_admin[service.pseudonym("admin", 99999)]["label"] == "=1+1 the day shift 🎉"
    with pytest.raises(ValueError, match="label"):
        service.label_admin(99999, "")


CANARY = "zq-canary-7f3a"


def test_neither_texts_nor_ids_are_in_any_byte_of_the_store(metrics: Metrics, folder: Path) -> None:
    service = MetricsService(metrics)
    ids = {kind: 918_273_645_000_000 + number for number, kind in enumerate(("user", "chat", "admin", "message"))}
    session_id = service.create_session(ids["user"], ids["chat"])
    with service.timer(session_id, ids["user"], ids["chat"], "work") as timing:
        timing.metadata["tokens"] = 1
    texts = (f"{CANARY} original", f"another {CANARY} corrected")
    service.record_correction(session_id, ids["admin"], str(ids["message"]), "text_correction", *texts, 5)
    service.label_admin(ids["admin"], "night shift")

    def everything() -> bytes:
        return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())

    in_journals = everything()
    ship(folder)
    for kept in (in_journals, everything()):
        assert session_id.encode() in kept  # or this test proves nothing
        assert CANARY.encode() not in kept
        assert b"918273645" not in kept
        for identifier in ids.values():
            assert identifier.to_bytes(8, "little") not in kept


class TestDifference:
    @given(st.text("abcé🎉", max_size=40), st.text("abcé🎉", max_size=40))
    def test_the_distance_is_that_of_the_usual_table(self, one: str, other: str) -> None:
        expected = table(one, other)
        assert levenshtein(one, other) == expected
        longest = max(len(one), len(other))
        assert difference(one, other) == (expected, round(1 - expected / longest, 3) if longest else 1.0, True)

    @given(st.text(max_size=30), st.text(max_size=30), st.text(max_size=30), st.text(max_size=30))
    def test_what_texts_have_in_common_at_both_ends_changes_nothing(
        self, start: str, one: str, other: str, end: str
    ) -> None:
        assert difference(start + one + end, start + other + end).distance == table(
            start + one + end, start + other + end
        )

    def test_a_whole_chat_message_is_compared_exactly(self) -> None:
        chance = random.Random(1)
        one = "".join(chance.choices("abcdef ", k=MAX_COMPARED))
        other = "".join(chance.choices("abcdef ", k=MAX_COMPARED))
        assert difference(one, other).exact
        assert not difference(one + "x", other + "y").exact

    def test_two_small_changes_in_a_long_text(self) -> None:
        text = "".join(random.Random(2).choices("abcdef ", k=100_000))
        assert difference(text, "x" + text[1:]) == (1, 1.0, True)
        assert difference(text, text[:50_000] + text[50_001:]).distance == 1
        apart = difference(text, "X" + text[1:-1] + "Y")
        assert not apart.exact
        assert 2 <= apart.distance <= 100_000

    @pytest.mark.parametrize("seed", range(10))
    def test_what_is_cut_is_an_upper_bound(self, seed: int) -> None:
        chance = random.Random(seed)
        one, other = ("".join(chance.choices("ab", k=MAX_COMPARED + chance.randrange(1, 400))) for _ in range(2))
        found = difference(one, other)
        assert found.distance >= levenshtein(one, other)
        assert found.distance <= max(len(one), len(other))
        assert 0 <= found.similarity <= 1
        assert not found.exact

    def test_work_is_bounded(self) -> None:
        """Counted in seconds only to tell milliseconds from minutes."""
        chance = random.Random(3)
        one = "".join(chance.choices("abcdefgh", k=MAX_LOOKED_AT + 10))
        other = "".join(chance.choices("abcdefgh", k=MAX_LOOKED_AT + 7))
        started = time.thread_time()
        found = difference(one, other)
        assert time.thread_time() - started < 5
        assert found.distance <= len(one)
        assert not found.exact

    def test_the_record_says_what_was_bounded(self, service: MetricsService, folder: Path) -> None:
        service.record_correction(**USUAL | {"original_text": "a" * 5000, "corrected_text": "b" * 5000})
        metadata = json.loads(live(folder)[0]["metadata"])
        assert metadata["edit_distance"] == 5000
        assert metadata["edit_distance_at_most"] is True


def table(one: str, other: str) -> int:
    """The textbook's edit distance."""
    row = list(range(len(other) + 1))
    for place, character in enumerate(one, 1):
        before, row[0] = row[0], place
        for column, another in enumerate(other, 1):
            before, row[column] = (
                row[column],
                min(row[column] + 1, row[column - 1] + 1, before + (character != another)),
            )
    return row[-1]
