"""Workflow sessions and human corrections: how long each stage of a request took, and what people made of the answer.

    from tallymark.review import CorrectionType, ProcessingStage, create_session, record_correction, timer

    session_id = create_session(user_id, chat_id)
    with timer(session_id, user_id, chat_id, ProcessingStage.AI_PROCESSING) as timing:
        timing.metadata["tokens_used"] = answer(message)

Texts are measured and never stored; persons are stored as pseudonyms. Importing this loads nothing that reads a store;
the reports (:meth:`MetricsService.get_dashboard_data` and its neighbours) load it when they are asked for.
"""

from tallymark.review.corrections import CorrectionType
from tallymark.review.pseudonyms import Kind, Pseudonyms
from tallymark.review.service import (
    MetricsService,
    create_session,
    export_csv,
    export_json,
    get_admin_performance,
    get_dashboard_data,
    get_metrics_service,
    label_admin,
    record_correction,
    record_system_metric,
    timer,
)
from tallymark.review.sessions import ProcessingStage, ProcessingTimer

__all__ = [
    "CorrectionType",
    "Kind",
    "MetricsService",
    "ProcessingStage",
    "ProcessingTimer",
    "Pseudonyms",
    "create_session",
    "export_csv",
    "export_json",
    "get_admin_performance",
    "get_dashboard_data",
    "get_metrics_service",
    "label_admin",
    "record_correction",
    "record_system_metric",
    "timer",
]
