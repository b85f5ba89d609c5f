"""Metrics: the object that an application records with."""

import _queue
import _thread
import atexit
import os
import time
from collections.abc import Generator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Self

from tallymark import log
from tallymark.clock import Clock, SystemClock
from tallymark.core import core, fast
from tallymark.environment import is_enabled, program_name
from tallymark.errors import ConfigError
from tallymark.journal import Journal, OnFull
from tallymark.lane import ENTRIES_AT, ENTRY_SIZE, OUTCOMES, Lane
from tallymark.model import (
    MAX_ID_LENGTH,
    MAX_TIMESTAMP,
    MIN_TIMESTAMP,
    check_duration,
    check_error,
    check_number,
    check_series,
    check_text,
)
from tallymark.sealer import Sealer, Waiting
from tallymark.timing import Timing
from tallymark.trace import current_trace_id

if TYPE_CHECKING:
    import uuid
    from datetime import datetime

    from tallymark.privacy import PiiPolicy

SYNC_SECONDS: Final = 1.0
"""How often the journal is brought to the disk: what a power cut can cost."""

NOT_RUNNING: Final = "the recorder is not running: call start(), or use it in a with block"


class Done:
    """What a finished call returns: it may be awaited, and need not be."""

    __slots__ = ()

    def __await__(self) -> Generator[None, None, None]:
        return
        yield


DONE: Final = Done()
if core is not None:
    core.set_up(current_trace_id, DONE)


class MetricsStats(NamedTuple):
    """What became of everything that this process recorded. ``await`` gives the same object.

    total_recorded = total_persisted + queue_size + the sum of dropped.

    Attributes:
        total_recorded: calls that were accepted since the start.
        total_persisted: records that are in the store.
        queue_size: records that wait in the journal; a query sees them already.
        batches_written: how often records of this process were written to the store.
        last_flush_timestamp: when that was last, as far as this process knows.
        avg_batch_size: records of this process per batch.
        is_running: between start and stop.
        dropped: records that could not be kept, by reason.
    """

    total_recorded: int
    total_persisted: int
    queue_size: int
    batches_written: int
    last_flush_timestamp: "datetime | None"
    avg_batch_size: float
    is_running: bool
    dropped: dict[str, int]

    def __await__(self) -> Generator[None, None, "MetricsStats"]:
        return self
        yield


class Metrics:
    """Records what an application does, in about a microsecond, and never gets in its way.

    Use it as a context manager, or call :meth:`start` and :meth:`stop`. Every method may be called from threads,
    coroutines, signal handlers, finalisers and forked children. What the methods return can be awaited and need not be.

    Recording raises ``ValueError`` for arguments that are not valid and ``RuntimeError`` before ``start`` and after
    ``stop``, and nothing else; what could not be kept is counted in :meth:`get_stats`.

    Args:
        store: a folder, or a store URL.
        service: which application this is; by default the name of the program.
        flush_interval_seconds: how often the recorder looks whether a batch is due.
        max_batch_size: how many waiting records make a batch due.
        max_queue_size: how many records may wait in the journal (rounded up to whole files of it).
        on_full: what happens beyond that: ``"drop"`` and count, ``"raise"`` BufferFull, or ``"wait"`` up to a second
            and then drop.
        durability: ``"process"``: a record that the call returned from survives the process; ``"power"``: also a power
            cut, at the price of a disk write for each record.
        pii: what becomes of texts that look like a secret or a person (docs/privacy.md), wherever a record holds them:
            ``"mask"`` them, ``"reject"`` the record, or ``"allow"`` them; or one of these for each rule.
        enabled: whether anything is done at all. Switched off, every method returns what it otherwise would, checks
            nothing and makes no file, folder or thread. By default the environment says: ``TALLYMARK_ENABLED``, else
            ``ENABLE_METRICS``, is a word of :data:`tallymark.environment.OFF`, such as ``false``.
        clock: where time comes from.

    Attributes:
        pii: the policy.
        enabled: whether it was switched on.

    Raises:
        ConfigError: a setting is not usable.
    """

    def __init__(
        self,
        store: str | os.PathLike[str] = "./metrics",
        *,
        service: str | None = None,
        flush_interval_seconds: float = 5.0,
        max_batch_size: int = 1000,
        max_queue_size: int = 1_000_000,
        on_full: OnFull = "drop",
        durability: Literal["process", "power"] = "process",
        pii: "PiiPolicy | str | Mapping[str, str]" = "mask",
        enabled: bool | None = None,
        clock: Clock | None = None,
    ) -> None:
        for field, value, least in (
            ("flush_interval_seconds", flush_interval_seconds, 0.01),
            ("max_batch_size", max_batch_size, 1),
            ("max_queue_size", max_queue_size, 1),
        ):
            if isinstance(value, bool) or not isinstance(value, int | float) or not value >= least:
                raise ConfigError(f"{field} must be at least {least}")
        if on_full not in ("drop", "raise", "wait"):
            raise ConfigError("on_full must be 'drop', 'raise' or 'wait'")
        if durability not in ("process", "power"):
            raise ConfigError("durability must be 'process' or 'power'")
        if enabled is not None and not isinstance(enabled, bool):
            raise ConfigError("enabled must be True, False or None")
        self.enabled = is_enabled() if enabled is None else enabled
        # Not with the module: an application that imports it may never record. Not later: a child that is forked while
        # another thread is in the middle of an import cannot import the same.
        import datetime  # noqa: F401
        import logging  # noqa: F401
        import uuid  # noqa: F401

        import tallymark.child  # noqa: F401
        from tallymark.metadata import encode_metadata
        from tallymark.privacy import ALLOW, PiiPolicy

        self._encode_metadata = encode_metadata
        self._allow = ALLOW
        self.pii = PiiPolicy.of(pii)
        self.store = os.fspath(store)
        self.service = check_text("service", service if service is not None else program_name(), pii=self.pii)
        self._clock: Clock = clock or SystemClock()
        if not self.enabled:
            from tallymark.disabled import METHODS

            vars(self).update(METHODS)
            return
        self._sealer = Sealer(self.store, flush_interval_seconds, int(max_batch_size))
        self._max_queue_size = int(max_queue_size)
        self._on_full: OnFull = on_full
        self._sync_each = durability == "power"
        self._running = False
        self._worker_pid = 0
        self._wakeups: _queue.SimpleQueue[str] = _queue.SimpleQueue()  # put() may be called from a signal handler
        self._worker_done = _thread.allocate_lock()
        self._renew_journal()

    def _renew_journal(self) -> None:
        self._journal = Journal(
            self._sealer.journals,
            self._clock,
            max_records=self._max_queue_size,
            on_full=self._on_full,
            sync_each=self._sync_each,
            wake=self._wake,
            pii=self.pii,
        )
        self._pool = self._journal.pool
        # The compiled core reads the machine's own clock, and does not wait for the disk.
        if isinstance(self._clock, SystemClock) and not self._sync_each:
            self._pool.service = self.service

    # Lifecycle

    def start(self) -> Done:
        """Begin to record.

        Raises:
            RuntimeError: it is running already.
        """
        if self._running:
            raise RuntimeError("the recorder is running already")
        self._renew_journal()
        self._worker_pid = 0
        self._running = True
        atexit.register(self._stop_at_exit)
        return DONE

    def stop(self, timeout: float = 10.0) -> "Waiting":
        """End recording and have everything brought into the store. Stopping twice is allowed.

        Outside an event loop this waits; inside one, awaiting what it returns does. Nothing is lost where nobody
        waits: the records are safe in the journal, and queries see them there.

        Raises:
            TimeoutError: the store did not have everything after ``timeout`` seconds.
        """
        if not self._running:
            return Waiting(None)
        self._running = False
        atexit.unregister(self._stop_at_exit)
        deadline = time.monotonic() + timeout
        if self._worker_pid == os.getpid():
            self._worker_pid = 0
            self._wakeups.put("stop")
            self._worker_done.acquire(timeout=max(0.0, timeout))
        self._journal.close()
        return self._sealer.seal(self._journal, deadline, final=True)

    def flush(self, timeout: float = 10.0) -> "Waiting":
        """Have everything that was recorded so far brought into the store. Waits like :meth:`stop`.

        Queries see records without it.

        Raises:
            RuntimeError: the recorder is not running.
            TimeoutError: the store did not have everything after ``timeout`` seconds.
        """
        if not self._running:
            raise RuntimeError(NOT_RUNNING)
        return self._sealer.seal(self._journal, time.monotonic() + timeout)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop_at_exit()

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self.stop()
        except TimeoutError as late:
            log.warning("%s", late)

    def _stop_at_exit(self) -> None:
        """Stop where an exception would hide the application's own."""
        try:
            self.stop().wait()
        except TimeoutError as late:
            log.warning("%s", late)

    # Recording

    @fast(is_operation=True)
    def record_operation(
        self,
        operation_type: str,
        operation_name: str,
        duration_ms: float,
        success: bool = True,
        error_message: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Done:
        """Record how long one operation took, in milliseconds, and how it ended.

        Raises:
            ValueError: an argument is not valid; the message names it and the rule. Nothing was stored.
            RuntimeError: before ``start`` or after ``stop``.
        """
        duration_ms = check_duration("duration_ms", duration_ms)
        self._append(operation_type, operation_name, duration_ms, "ms", success, error_message, metadata)
        return DONE

    @fast(is_operation=False)
    def record(
        self,
        metric_type: str,
        name: str,
        value: float,
        unit: str = "1",
        success: bool | None = None,
        error: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        trace_id: str | None = None,
        session_id: str | None = None,
    ) -> Done:
        """Record one value of anything. Units are spelled as UCUM has them: ``ms``, ``s``, ``By``, ``%``, ``1``.

        Raises:
            ValueError: an argument is not valid; the message names it and the rule. Nothing was stored.
            RuntimeError: before ``start`` or after ``stop``.
        """
        self._append(metric_type, name, value, unit, success, error, metadata, trace_id, session_id)
        return DONE

    def ingest(
        self,
        metric_type: str,
        name: str,
        value: float,
        unit: str = "1",
        *,
        service: str | None = None,
        timestamp: int | None = None,
        description: str | None = None,
        success: bool | None = None,
        error: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        trace_id: str | None = None,
        session_id: str | None = None,
    ) -> "uuid.UUID | None":
        """Record on behalf of another service, perhaps at another time (``timestamp``, ns since 1970 UTC).

        Returns the id of the record; None when there was no room and it was dropped, and counted.

        Raises:
            ValueError: an argument is not valid; the message names it and the rule. Nothing was stored.
            RuntimeError: before ``start`` or after ``stop``.
        """
        if timestamp is not None and (type(timestamp) is not int or not MIN_TIMESTAMP <= timestamp < MAX_TIMESTAMP):
            raise ValueError("timestamp must lie between the years 1970 and 2100")
        written = self._append(
            metric_type,
            name,
            value,
            unit,
            success,
            error,
            metadata,
            trace_id,
            session_id,
            service=service,
            description=description,
            timestamp=timestamp,
        )
        if written is None:
            return None
        import uuid

        lane, at = written
        return uuid.UUID(int=int.from_bytes(lane.id) | (at - ENTRIES_AT) // ENTRY_SIZE)

    def track_operation(
        self, name: str, metadata: Mapping[str, Any] | None = None, operation_type: str = "operation"
    ) -> Timing:
        """Time a block or a function, and record it when it ends; a failure is recorded as one and goes on.

        Use it in ``with`` or ``async with`` (what it yields has a ``metadata`` dictionary to add to), or as a decorator
        of a function, a coroutine function, or a generator of either kind.

        Raises:
            ValueError: an argument is not valid. (What a rule of ``pii`` rejects is dropped, and counted, at the end: a
                text must not keep the block from running.)
        """
        check_text("name", name)
        check_text("operation_type", operation_type)
        if metadata is not None:
            self._encode_metadata(metadata, self._allow)
        return Timing(self, operation_type, name, metadata)

    def get_stats(self) -> MetricsStats:
        """What became of the records of this process so far. Reads a few small pieces of files."""
        from datetime import UTC, datetime

        stats = self._journal.stats()
        return MetricsStats(
            total_recorded=stats.recorded,
            total_persisted=stats.stored,
            queue_size=stats.pending,
            batches_written=stats.batches,
            last_flush_timestamp=datetime.fromtimestamp(stats.last_batch_ns / 1e9, UTC)
            if stats.last_batch_ns
            else None,
            avg_batch_size=stats.stored / stats.batches if stats.batches else 0.0,
            is_running=self._running,
            dropped=stats.dropped,
        )

    def _append(
        self,
        metric_type: str,
        name: str,
        value: float,
        unit: str,
        success: bool | None,
        error: str | None,
        metadata: Mapping[str, Any] | None,
        trace_id: str | None = None,
        session_id: str | None = None,
        *,
        service: str | None = None,
        description: str | None = None,
        timestamp: int | None = None,
    ) -> tuple[Lane, int] | None:
        """The careful way: everything is checked, and the errors are worded here."""
        if not self._running:
            raise RuntimeError(NOT_RUNNING)
        value = check_number("value", value)
        if success is not None and success is not True and success is not False:
            raise ValueError(f"success must be True, False or None, not {type(success).__name__}")
        texts = [
            b"{}" if metadata is None else self._encode_metadata(metadata, self.pii),
            b"" if error is None else check_error(error, self.pii).encode(),
            self._id_text("trace_id", current_trace_id.get() if trace_id is None else trace_id),
            self._id_text("session_id", session_id),
        ]
        lengths = (len(texts[0]), len(texts[1]), len(texts[2]), len(texts[3]))
        key = (self.service if service is None else service, metric_type, name, unit, description)
        try:
            return self._journal.append(key, value, OUTCOMES.index(success), b"".join(texts), *lengths, timestamp)
        except TypeError:
            check_series(key, self.pii)  # an unhashable name is worded here
            raise

    def _id_text(self, field: str, value: object) -> bytes:
        return b"" if value is None else check_text(field, value, MAX_ID_LENGTH, self.pii).encode()

    def monotonic_ns(self) -> int:
        """The clock that durations are measured with."""
        return self._clock.monotonic_ns()

    def drop_invalid(self, name: str, reason: Exception) -> None:
        """Count a record that turned out to be invalid where an exception would hurt the application."""
        self._journal.drop("invalid")
        from tallymark.privacy import mask_text

        log.warning("%r was not recorded: %s", mask_text(name), reason)

    # The thread that brings the journal to the disk and looks for work for the sealer

    def _wake(self) -> None:
        if not self._running:
            return
        pid = os.getpid()
        if self._worker_pid != pid:
            # The first lane of this process, which may be a forked child. Not a threading.Thread: starting one takes
            # locks that the interrupted code may hold.
            wakeups, done = _queue.SimpleQueue[str](), _thread.allocate_lock()
            done.acquire()
            try:
                # No call between the look, the claim and the start: no other thread, and no exception out of a signal
                # handler, comes in there. So one thread runs, or none is said to, and the next lane starts it.
                if self._worker_pid != pid:
                    self._wakeups, self._worker_done, self._worker_pid = wakeups, done, pid
                    _thread.start_new_thread(self._work, (self._journal, wakeups, done))
            except RuntimeError:  # the interpreter is shutting down, or there may be no more threads now
                self._worker_pid = 0
        self._wakeups.put("look")

    def _work(self, journal: Journal, wakeups: "_queue.SimpleQueue[str]", done: _thread.LockType) -> None:
        complained = None
        message = ""
        while message != "stop" and not journal.closed:
            try:
                message = wakeups.get(timeout=SYNC_SECONDS)
            except _queue.Empty:
                message = ""
            try:
                journal.sync()
                if message != "stop":
                    self._sealer.look(journal)
                complaint = journal.complaint
            except Exception as error:
                complaint = f"{type(error).__name__}: {error}"
            if complaint != complained:
                complained = complaint
                if complaint:
                    log.warning("records are being dropped, and counted: %s", complaint)
                else:
                    log.info("records are kept again")
        done.release()
