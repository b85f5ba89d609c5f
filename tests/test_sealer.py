"""Who starts children that ship: those that fail are not started again and again, none is taken for another."""

import threading
import time
from pathlib import Path

import pytest
from recording import recording, stored

from tallymark import Metrics, sealer
from tallymark.child import Child
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


def test_the_end_of_one_child_is_not_that_of_the_next(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread is slow to say that a child has ended, and another one has started the next by then."""
    reading, go_on = threading.Event(), threading.Event()
    complaint = Child.complaint

    def read_slowly(child: Child) -> str:
        reading.set()
        assert go_on.wait(60)
        return complaint(child)

    monkeypatch.setattr(Child, "complaint", read_slowly)
    with recording(folder) as metrics:
        own = metrics._sealer
        monkeypatch.setattr(own, "look", lambda journal: None)
        metrics.record("job", "a", 1.0)
        assert own._start_child()
        first = own._child
        assert first is not None
        first.wait(60)
        slow = threading.Thread(target=own._is_busy)
        slow.start()
        assert reading.wait(60)
        assert own._start_child()
        second = own._child
        assert second is not None
        go_on.set()
        slow.join()
        assert own._ended == 1  # who waits for the second still does
        second.wait(60)
        own._is_busy()
        assert own._ended == 2
