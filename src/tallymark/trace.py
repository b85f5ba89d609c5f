"""Which request, job or session the running code belongs to."""

from contextvars import ContextVar

current_trace_id: ContextVar[str | None] = ContextVar("tallymark_trace_id", default=None)
"""The trace id of the request that is being served, ``None`` outside of one."""

current_session_id: ContextVar[str | None] = ContextVar("tallymark_session_id", default=None)
"""The session of the work that is being done, ``None`` outside of one."""
