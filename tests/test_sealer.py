"""Children that fail are not started again and again."""

import time
from pathlib import Path

import pytest
from recording import recording, stored

from tallymark import Metrics, sealer
from tallymark.sealer import LONGEST_PAUSE, Sealer


def look(metrics: Metrics) -> bool:
    """One look of the sealer; whether it started a child, which then has ended."""
    own = metrics._sealer
    before = own._started
    Sealer.look(own, metrics._journal)
    if own._started == before:
        return False
    assert own._child is not None
    own._child.end_within(60)
    own._is_busy()
    return True


def test_after_each_failure_the_next_child_waits_twice_as_long(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder.mkdir()
    (folder / "table").write_text("in the way")
    monkeypatch.setattr(sealer, "SEAL_SECONDS", 0.0)
    with recording(folder, max_batch_size=1, flush_interval_seconds=0.01) as metrics:
        own = metrics._sealer
        monkeypatch.setattr(own, "look", lambda journal: None)  # the recorder's own thread looks too
        metrics.record("job", "a", 1.0)
        passed, real = 0.0, time.monotonic
        monkeypatch.setattr(time, "monotonic", lambda: real() + passed)
        for number in (1, 2, 3, 11, 12):
            own._failures = number - 1
            passed += 2 * LONGEST_PAUSE
            assert look(metrics)
            pause = own._rests_until - time.monotonic()
            longest = min(LONGEST_PAUSE, 0.5 * 2**number)
            assert pause <= longest
            assert pause > longest / 2 - 1.0  # this test was held up since
            if number > 3:
                assert not look(metrics)
                passed += 10.0
                assert not look(metrics)
        assert sum("shipping failed" in message for message in caplog.messages) == 5
        # The store is in order again.
        (folder / "table").unlink()
        passed += 2 * LONGEST_PAUSE
        assert look(metrics)
        assert (own._failures, len(stored(folder)), metrics.get_stats().queue_size) == (0, 1, 0)
