"""The structured log of the second interface document ("Structured Logging System")."""

import json
import logging
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from tallymark.config import settings
from tallymark.integrations.logging import EVENTS, KEPT_FILES, MAX_BYTES, METRIC, JsonLinesHandler, install, log_event

# From "JSON Log Format".
DOCUMENT = json.loads(
    """
{
  "timestamp": "2025-09-26T21:00:00.000000",
  "level": "metric",
  "event_type": "correction_recorded",
  "message": "Correction recorded: voice_correction",
  "session_id": "abc123",
  "admin_user_id": 99999,
  "correction_type": "voice_correction",
  "processing_time_ms": 5000,
  "original_length": 65,
  "corrected_length": 89
}
"""
)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[pytest.MonkeyPatch]:
    # From "Environment Variables".
    monkeypatch.setenv("METRICS_DATABASE", str(tmp_path / "metrics.db"))
    monkeypatch.setenv("METRICS_LOG_FILE", str(tmp_path / "metrics.jsonl"))
    monkeypatch.setenv("ENABLE_METRICS", "true")
    settings.cache_clear()
    yield monkeypatch
    settings.cache_clear()


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    made = logging.getLogger(EVENTS)
    yield made
    for handler in [found for found in made.handlers if isinstance(found, JsonLinesHandler)]:
        made.removeHandler(handler)
        handler.close()
    made.setLevel(logging.NOTSET)


def test_the_line(environment: pytest.MonkeyPatch, logger: logging.Logger, tmp_path: Path) -> None:
    environment.setenv("TALLYMARK_RAW_IDS", "true")
    install(logger=logger)
    fields = {name: value for name, value in DOCUMENT.items() if name not in ("timestamp", "level")}
    log_event(fields.pop("event_type"), fields.pop("message"), **fields)
    (text,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    line = json.loads(text)
    assert {name: line[name] for name in DOCUMENT if name != "timestamp"} == {
        name: value for name, value in DOCUMENT.items() if name != "timestamp"
    }
    # The same form, and the zone is said.
    moment = line["timestamp"]
    assert len(moment) == len(DOCUMENT["timestamp"] + "Z")
    assert datetime.fromisoformat(moment.removesuffix("Z")).isoformat(timespec="microseconds") + "Z" == moment


@pytest.mark.usefixtures("environment")
def test_persons_are_no_part_of_it_unless_that_is_asked_for(logger: logging.Logger, tmp_path: Path) -> None:
    install(logger=logger)
    log_event("correction_recorded", "Correction recorded: voice_correction", admin_user_id=99999)
    assert "99999" not in (tmp_path / "metrics.jsonl").read_text()


@pytest.mark.usefixtures("environment")
def test_the_features(logger: logging.Logger, tmp_path: Path) -> None:
    # From "Log Features": "Files rotate when they exceed 100MB", "Keeps last 10 rotated files", and the levels.
    assert (MAX_BYTES, KEPT_FILES) == (100_000_000, 10)
    install(logger=logger, level=logging.DEBUG)
    levels = (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL, METRIC)
    for level in levels:
        logger.log(level, "hello")
    lines = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert [line["level"] for line in lines] == ["debug", "info", "warning", "error", "critical", "metric"]


def test_disabled(environment: pytest.MonkeyPatch, logger: logging.Logger, tmp_path: Path) -> None:
    environment.setenv("ENABLE_METRICS", "false")
    install(logger=logger)
    log_event("correction_recorded", "Correction recorded: voice_correction")
    assert list(tmp_path.iterdir()) == []
