"""Measures every task of a Celery application: in the worker that runs it, and on its way there.

    app = Celery("shop", broker="redis://")
    instrument(app)

Put it where the application is made: whoever publishes tasks needs it as much as whoever runs them.
"""

import atexit
import logging
import math
import mmap
import struct
import sys
from _thread import get_native_id
from collections.abc import Callable
from datetime import datetime
from sys import exception
from time import perf_counter_ns, time
from typing import TYPE_CHECKING, Any, Final

try:
    from billiard import common
    from billiard.exceptions import TimeLimitExceeded
    from billiard.pool import MaybeEncodingError
    from celery import Celery, signals
    from celery.exceptions import Ignore, Reject, Retry
except ModuleNotFoundError as missing:
    hint = 'hint: pip install "tallymark[celery]"'
    raise ModuleNotFoundError(f"this needs {missing.name}; {hint}", name=missing.name) from None

from tallymark.default import default_metrics
from tallymark.integrations.traceparent import trace_id_for
from tallymark.model import MAX_ID_LENGTH, MAX_NAME_LENGTH
from tallymark.timing import describe
from tallymark.trace import current_session_id, current_trace_id

if TYPE_CHECKING:
    from celery.app.task import Context

    from tallymark.recorder import Metrics

PUBLISHED: Final = "tallymark_published"
"""Header: when the message was published, in seconds since 1970."""
ASKED: Final = "tallymark_asked"
"""Header of a retry: when the task was published for the first time."""
TRACE: Final = "tallymark_trace"
"""Header: the trace id of whoever published it."""
SESSION: Final = "tallymark_session"
"""Header: the session of whoever published it."""

_RUN: Final = "tallymark_run"  # in a request of Celery's: the run that it is at
_QUEUES_KNOWN: Final = 1_000
_PLACES: Final = 2**14  # for marks

_billiard: Any = common  # its types say nothing of what is asked of it here

_logger = logging.getLogger(__name__)
_instrumented: "dict[Celery, CeleryMetrics]" = {}


def instrument(app: Celery, metrics: "Metrics | None" = None) -> "CeleryMetrics":
    """Record every task of an application, from now on.

    Args:
        app: the application, in the processes that publish its tasks and in its workers.
        metrics: a recorder; by default :func:`tallymark.default.default_metrics`. Started before the worker forks its
            children, it is used by all of them.

    Raises:
        ValueError: the application is instrumented already.
        ConfigError: there is no default recorder, because a setting is not valid.

    Each run of a task becomes one record of the type ``celery_task``, when it ends, whose name is the task's and whose
    value is the time that it took, in milliseconds. ``success`` is true or false, and None where a run was no outcome:
    a retry, a task that was revoked or that ignored its own result, a message given back to the broker. ``error`` has
    type and words of what was raised. In ``metadata`` are

    - ``task_id``, and ``root_id`` where the task is part of a chain or a group;
    - ``state``: ``success``, ``failure``, ``retry``, ``ignored``, ``rejected``, ``revoked`` (``reason`` is then
      ``revoked``, ``expired`` or ``terminated``) or ``unknown`` (no such task in this worker);
    - ``queue`` and ``retries``; ``redelivered`` and ``eager`` where they are true;
    - ``queue_wait_ms``: how long the message waited until the run began, in the queue and in the worker. Where an eta
      or a countdown was given it counts from then, and ``queue_wait_from`` is ``eta``;
    - ``end_to_end_ms``: from when the task was first published, through its retries, until the run ended.

    The last two compare the clocks of two machines, and are 0 where these say less than that.

    A worker records that it is ready (``celery_worker``/``ready``, the number of its processes) and that it ended
    (``stopped``, how many seconds it worked).

    The trace id of a record is that of the request, or the task, that published it, and it is
    :data:`~tallymark.trace.current_trace_id` while the task runs; so is the session.

    A run whose process is lost, or killed at its time limit, is recorded by the worker's main process. Whatever goes
    wrong with recording never reaches a task: it is logged once, and counted in ``failures`` of what this returns.
    """
    app = _itself(app)
    if app in _instrumented:
        raise ValueError("app: it is instrumented already")
    made = _instrumented[app] = CeleryMetrics(app, metrics or default_metrics())
    return made


def uninstrument(app: Celery) -> None:
    """Record no more tasks of an application; one that is not instrumented stays as it is."""
    made = _instrumented.pop(_itself(app), None)
    if made is not None:
        made.disconnect()


def _itself(app: Celery) -> Celery:
    """The application, where a stand-in for it was given, as ``celery.current_app`` is."""
    stands_for = getattr(app, "_get_current_object", None)
    return app if stands_for is None else stands_for()


class CeleryMetrics:
    """What listens to the signals of one application; made by :func:`instrument`.

    Attributes:
        failures: how many records could not be made in this process.
    """

    def __init__(self, app: Celery, metrics: "Metrics") -> None:
        self.failures = 0
        self._app = app
        self._tasks: set[object] = set()  # those of the application that were seen
        self._record = metrics.record
        self._marks = _Marks()
        self._words = self._marks.words
        self._queues: dict[tuple[str, str], str] = {}
        self._receivers = [
            (signal, self._guarded(receiver))
            for signal, receiver in (
                (signals.before_task_publish, self._before_publish),
                (signals.task_failure, self._on_failure),
                (signals.task_retry, self._on_retry),
                (signals.task_revoked, self._on_revoked),
                (signals.task_rejected, self._on_rejected),
                (signals.task_unknown, self._on_unknown),
                (signals.worker_process_init, _remember_receivers),
                (signals.worker_ready, self._on_ready),
            )
        ]
        self._receivers += [(signals.task_prerun, self._before_run), (signals.task_postrun, self._after_run)]
        for signal, receiver in self._receivers:
            signal.connect(receiver, weak=False)

    def disconnect(self) -> None:
        """Listen no more."""
        for signal, receiver in self._receivers:
            signal.disconnect(receiver)

    def _guarded(self, receiver: Callable[..., None]) -> Callable[..., None]:
        """Celery logs what a receiver raises, every time, with a traceback."""

        def guarded(**arguments: Any) -> None:
            try:
                receiver(**arguments)
            except Exception as failure:
                self._fail(failure)

        return guarded

    def _fail(self, failure: Exception) -> None:
        self.failures += 1
        if self.failures == 1:
            _logger.warning("A task was not recorded, nor may others be: %s", describe(failure))

    def _owns(self, task: Any) -> bool:
        if task.app is self._app:
            self._tasks.add(task)
        return task in self._tasks

    # Who publishes

    def _before_publish(self, headers: dict[str, Any], properties: dict[str, Any], **_: object) -> None:
        now = time()
        # A retry brings the headers of its message along.
        again = headers.get("retries") or headers.get("replaced_task_nesting")
        asked = (headers.get(ASKED) or headers.get(PUBLISHED)) if again else None
        headers[PUBLISHED] = now
        for header, value in (
            (ASKED, asked),
            (TRACE, current_trace_id.get() or (headers.get(TRACE) if again else None) or _new_trace_id(None)),
            (SESSION, current_session_id.get() or (headers.get(SESSION) if again else None)),
        ):
            if value:
                headers[header] = value
            else:
                headers.pop(header, None)
        # For RabbitMQ, which tells the timestamp of the oldest message in a queue.
        properties.setdefault("timestamp", int(now))

    # The process that runs it. By the time a task ends other processes have had the processor's caches: each function
    # that is called, and each object that is looked at, is fetched from memory, which takes longer than to run it. So
    # these two do by themselves what others would do for them.

    def _before_run(self, sender: Any, task_id: str, **_: object) -> None:
        try:
            if sender not in self._tasks and not self._owns(sender):
                return
            request = sender.request_stack.top.__dict__
            trace, session = current_trace_id.get(), current_session_id.get()
            eager = request.get("is_eager")
            if not eager:
                current_trace_id.set(_text(request.get(TRACE)) or _new_trace_id(request.get("traceparent")))
                asked = request.get(SESSION)
                if asked is not session:
                    current_session_id.set(_text(asked))
            elif trace is None:
                current_trace_id.set(_new_trace_id(None))
            # An eager task may be called out of an exception handler.
            place = get_native_id() % _PLACES * 2
            started = perf_counter_ns()
            request[_RUN] = (trace, session, exception(), place, time(), started)
            if not eager:
                self._words[place + 1] = started
                self._words[place] = hash(task_id)
        except Exception as failure:
            self._fail(failure)

    def _after_run(self, sender: Any, task_id: str, state: str | None, retval: object, **_: object) -> None:
        ended = perf_counter_ns()
        try:
            if sender not in self._tasks:
                return
            request = sender.request_stack.top.__dict__
            run = request.pop(_RUN, None)
            if run is None:
                return
            of_caller, session_of_caller, handling, place, began, started = run
            trace, session = current_trace_id.get(), current_session_id.get()
            current_trace_id.set(of_caller)
            if session is not session_of_caller:
                current_session_id.set(session_of_caller)
            raised = exception()
            if raised is handling:
                raised = retval if state != "SUCCESS" and isinstance(retval, BaseException) else None
            elif isinstance(raised, SystemExit) and _is_leaving():
                return  # the pool ends this process in the middle of the task, and the worker says what becomes of that
            done = None if request.get("is_eager") else ~hash(task_id)
            if done is not None and self._words[place] == done:
                return  # the main process has told about it
            name, success, error = ("success", True, None) if raised is None else _outcome(raised)
            value = (ended - started) // 1_000 / 1_000
            metadata = self._describe(task_id, request, name, began, began + value / 1_000)
            try:
                self._record("celery_task", sender.name, value, "ms", success, error, metadata, trace, session)
            finally:
                if done is not None:
                    self._words[place] = done
        except Exception as failure:
            self._fail(failure)

    # The main process of a worker, where a run did not come to its own end

    def _on_failure(self, sender: Any, task_id: str, exception: BaseException, **_: object) -> None:
        # These two are about runs that came to their end in a process that goes on.
        if not isinstance(exception, Reject | MaybeEncodingError):
            error = describe(exception)
            if isinstance(exception, TimeLimitExceeded):  # its words are its name once more
                error = f"TimeLimitExceeded: {exception.args[0] if exception.args else '?'} s"
            self._report(sender, task_id, sender.request_stack.top, "failure", False, error)

    def _on_retry(self, sender: Any, request: "Context", reason: object = None, **_: object) -> None:
        error = _outcome(reason)[2] if isinstance(reason, Retry) else None
        self._report(sender, request.id or "", request, "retry", None, error)

    def _on_revoked(self, sender: Any, request: "Context", terminated: bool, expired: bool, **_: object) -> None:
        reason = "terminated" if terminated else "expired" if expired else "revoked"
        self._report(sender, request.id or "", request, "revoked", None, None, reason)

    def _report(
        self,
        task: Any,
        task_id: str,
        request: "Context | None",
        state: str,
        success: bool | None,
        error: str | None,
        reason: str | None = None,
    ) -> None:
        top = task.request_stack.top
        if task.app is not self._app or (top is not None and _RUN in top.__dict__):
            return  # within a run, which records itself
        value = 0.0
        if reason is None or reason == "terminated":
            started = self._marks.report(task_id)
            if started < 0:
                return  # it was recorded before the process was lost
            if started:
                value = (perf_counter_ns() - started) // 1_000 / 1_000
        headers = request.__dict__ if request is not None else {}
        now = time()
        metadata = self._describe(task_id, headers, state, now - value / 1_000 if value else None, now)
        if reason:
            metadata["reason"] = reason
        trace, session = _text(headers.get(TRACE)), _text(headers.get(SESSION))
        self._record("celery_task", task.name, value, "ms", success, error, metadata, trace, session)

    def _on_unknown(self, sender: Any, message: Any, exc: Exception, name: object, id: object, **_: object) -> None:  # noqa: A002
        self._refused(sender, "unknown", name, id, "NotRegistered: this worker has no such task")

    def _on_rejected(self, sender: Any, message: Any, exc: Exception | None, **_: object) -> None:
        headers = message.headers or {}
        error = "the message is no task" if exc is None else describe(exc)
        self._refused(sender, "rejected", headers.get("task"), headers.get("id"), error)

    def _refused(self, consumer: Any, state: str, name: object, task_id: object, error: str) -> None:
        if consumer.app is self._app:
            named = name if isinstance(name, str) and 0 < len(name) <= MAX_NAME_LENGTH else "unreadable"
            metadata = {"task_id": _text(task_id), "state": state}
            self._record("celery_task", named, 0.0, "ms", False, error, metadata)

    def _on_ready(self, sender: Any, **_: object) -> None:
        # Besides being worth knowing, these make the main process see to the journals of children that are gone: while
        # it works, and when it ends. Celery's own signal for the end comes when the recorder has been stopped.
        if sender.app is self._app:
            processes = getattr(sender.pool, "num_processes", None) or 1
            self._record("celery_worker", "ready", processes, "1", None, None, {"worker": str(sender.hostname)})
            atexit.register(self._guarded(self._on_exit), worker=str(sender.hostname), began=perf_counter_ns())

    def _on_exit(self, worker: str, began: int) -> None:
        self._record("celery_worker", "stopped", (perf_counter_ns() - began) / 1e9, "s", None, None, {"worker": worker})

    # What a record says

    def _describe(
        self, task_id: str, request: dict[str, Any], state: str, began: float | None, ended: float
    ) -> dict[str, Any]:
        metadata: dict[str, Any] = {"task_id": task_id, "state": state}
        if not request:
            return metadata
        get = request.get
        retries = get("retries")
        metadata["retries"] = retries if type(retries) is int else 0
        root = get("root_id")
        if root and root != task_id:
            metadata["root_id"] = root
        if get("is_eager"):
            metadata["eager"] = True
            return metadata
        delivery = get("delivery_info") or {}
        exchange, routing_key = delivery.get("exchange"), delivery.get("routing_key") or ""
        metadata["queue"] = self._queue_of(exchange, routing_key) if exchange else routing_key
        if delivery.get("redelivered"):
            metadata["redelivered"] = True
        published = get(PUBLISHED)
        if type(published) is float and 0.0 < published < math.inf:
            eta = get("eta")
            due = _due(eta, self._app) if eta else None
            if began is not None:
                wait = began - (max(published, due) if due else published)
                metadata["queue_wait_ms"] = int(wait * 1e6) / 1e3 if wait > 0.0 else 0.0
                if due:
                    metadata["queue_wait_from"] = "eta"
            asked = get(ASKED)
            passed = ended - (published if asked is None else _timestamp(asked) or published)
            metadata["end_to_end_ms"] = int(passed * 1e6) / 1e3 if passed > 0.0 else 0.0
        return metadata

    def _queue_of(self, exchange: str, routing_key: str) -> str:
        """The queue that a message came from: with an exchange, the routing key may be another word."""
        key = (exchange, routing_key)
        name = self._queues.get(key)
        if name is None:
            queues = self._app.amqp.queues.items()
            found = (name for name, queue in queues if (queue.exchange.name, queue.routing_key) == key)
            name = next(found, routing_key or exchange)
            if len(self._queues) < _QUEUES_KNOWN:
                self._queues[key] = name
        return name


class _Marks:
    """Which task each process of a pool is at, in memory that all of them share.

    A process that is killed cannot say whether it had recorded the task that it was at; the main process finds it here.
    A mark is the hash of the task's id, which forked processes agree on, inverted once the run is recorded; and when it
    began. Each thread has the place of its number; the first thread's number is that of its process.
    """

    _MARK: Final = struct.Struct("qq")

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _PLACES * self._MARK.size)
        self.words = memoryview(self._memory).cast("q")

    def report(self, task_id: str) -> int:
        """When a run began that is not recorded yet, which it now counts as; -1 if it is, 0 where there is none."""
        key = hash(task_id)
        at = self._find(key)
        if at < 0:
            return 0 if self._find(~key) < 0 else -1
        self.words[at] = ~key
        return self.words[at + 1]

    def _find(self, key: int) -> int:
        wanted = key.to_bytes(8, sys.byteorder, signed=True)
        at = self._memory.find(wanted)
        while at >= 0 and at % self._MARK.size:
            at = self._memory.find(wanted, at + 1)
        return at // 8 if at >= 0 else -1


def _remember_receivers(**_: object) -> None:
    """In a process that runs tasks, and the same few all its life: Celery need not make the list of who listens anew
    for each. It does when somebody comes or goes.
    """
    kept: tuple[Any, ...] = (signals.task_prerun, signals.task_postrun)  # its types do not tell of it
    for signal in kept:
        signal.use_caching = True


def _is_leaving() -> bool:
    """Whether a signal is ending this process."""
    # A function since billiard 4.3.
    fired = getattr(_billiard, "terminate_handler_fired", None)
    return bool(fired() if fired else _billiard._should_have_exited[0])


def _outcome(raised: object) -> tuple[str, bool | None, str | None]:
    """State, success and error of a run that ended with this exception, or without one."""
    if not isinstance(raised, BaseException):
        return "success", True, None
    if isinstance(raised, Retry):
        reason = raised.exc
        return "retry", None, describe(reason) if isinstance(reason, BaseException) else str(raised)
    if isinstance(raised, Ignore):
        return "ignored", None, None
    if isinstance(raised, Reject):
        # Given back it is run again; refused for good it never will be.
        refusal: Any = raised
        return "rejected", None if refusal.requeue else False, str(refusal.reason or "") or None
    return "failure", False, describe(raised)


def _text(header: object) -> str | None:
    return header if isinstance(header, str) and 0 < len(header) <= MAX_ID_LENGTH else None


def _new_trace_id(traceparent: object) -> str:
    """That of a W3C traceparent, which others put into messages; else a new one."""
    if isinstance(traceparent, str):
        return trace_id_for(((b"traceparent", traceparent.encode("ascii", "replace")),))
    return trace_id_for(())


def _timestamp(header: object) -> float | None:
    return header if isinstance(header, float) and math.isfinite(header) and header > 0 else None


def _due(eta: object, app: Any) -> float | None:
    try:
        at = datetime.fromisoformat(str(eta))
        return (at if at.tzinfo else at.replace(tzinfo=app.timezone)).timestamp()
    except (ValueError, OverflowError):
        return None
