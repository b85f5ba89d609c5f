"""The JSON of the API: what comes in is validated here first, what goes out is described here for OpenAPI."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec
from fastapi import Response
from pydantic import BaseModel, ConfigDict, Field

from tallymark.model import MAX_DESCRIPTION_LENGTH, MAX_ID_LENGTH, MAX_NAME_LENGTH
from tallymark.record import Record
from tallymark.server.limits import MAX_BATCH_RECORDS

Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME_LENGTH)]
Identifier = Annotated[str, Field(min_length=1, max_length=MAX_ID_LENGTH)]

_EXAMPLE_IN: dict[str, Any] = {
    "metric_type": "processing_time",
    "name": "download_time",
    "value": 1240.5,
    "unit": "ms",
    "service": "backend",
    "success": True,
    "metadata": {"job_id": 123},
}
_EXAMPLE_OUT: dict[str, Any] = {
    "id": "0193f8a2-6f1c-8d3e-9a41-7b0000000001",
    "timestamp": "2025-10-24T07:39:12.123456789Z",
    "metric_type": "processing_time",
    "name": "download_time",
    "value": 1240.5,
    "unit": "ms",
    "metadata": {"job_id": 123},
    "service": "backend",
    "description": None,
    "success": True,
    "error": None,
    "trace_id": None,
    "session_id": None,
}


class MetricIn(BaseModel):
    """One measurement to store."""

    # Strict: "12" is no number here, and true is not 1. Unknown fields are refused: they are typing errors.
    model_config = ConfigDict(strict=True, extra="forbid", json_schema_extra={"examples": [_EXAMPLE_IN]})

    metric_type: Name
    name: Name
    value: Annotated[float, Field(allow_inf_nan=False)]
    unit: Name = Field(default="1", description="UCUM spelling: `ms`, `s`, `By`, `%`, `1`")
    metadata: dict[str, Any] = Field(default={}, description="JSON; keys that name a person or a secret are refused")
    service: Name | None = Field(default=None, description="who measured; by default this server")
    description: Annotated[str, Field(max_length=MAX_DESCRIPTION_LENGTH)] | None = None
    timestamp: str | None = Field(
        default=None,
        description="ISO 8601 with an offset, up to nanoseconds; by default now",
        examples=["2025-10-24T07:39:12.5Z"],
    )
    success: bool | None = Field(default=None, description="the outcome; null where there is none")
    error: str | None = Field(default=None, description="why it failed; long texts are cut")
    trace_id: Identifier | None = None
    session_id: Identifier | None = None


class BatchIn(BaseModel):
    """Measurements that are stored together, or not at all."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"metrics": [_EXAMPLE_IN]}]})

    metrics: Annotated[list[MetricIn], Field(min_length=1, max_length=MAX_BATCH_RECORDS)]


class Metric(BaseModel):
    """One stored measurement."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE_OUT]})

    id: str = Field(description="a UUID")
    timestamp: str = Field(description="ISO 8601, UTC, in nanoseconds")
    metric_type: str
    name: str
    value: float
    unit: str
    metadata: dict[str, Any]
    service: str
    description: str | None
    success: bool | None
    error: str | None
    trace_id: str | None
    session_id: str | None


class BatchStored(BaseModel):
    """The ids of what was stored, in the order of the request."""

    count: int = Field(examples=[2])
    ids: list[str] = Field(examples=[[_EXAMPLE_OUT["id"], "0193f8a2-6f1c-8d3e-9a41-7b0000000002"]])


class Collected(BaseModel):
    """What was measured and stored."""

    count: int
    metrics: list[Metric]


class SystemStatus(BaseModel):
    """This machine now. What cannot be read on it is left out."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "examples": [
                {
                    "timestamp": "2025-10-24T07:39:12.123456789Z",
                    "cpu_percent": 15.0,
                    "cpu_count": 16,
                    "memory_used_mb": 38654.87,
                    "memory_total_mb": 57974.88,
                    "memory_percent": 73.4,
                    "disk_used_gb": 727.96,
                    "disk_total_gb": 937.33,
                    "disk_percent": 81.8,
                    "process": {"cpu_percent": 1.5, "memory_mb": 84.2, "threads": 9, "open_files": 12},
                }
            ]
        },
    )

    timestamp: str
    process: dict[str, float] = Field(description="this server")


class MetricPage(BaseModel):
    """Stored measurements, newest first."""

    metrics: list[Metric]
    cursor: str | None = Field(description="ask again with it for older ones; null at the end")


class Window(BaseModel):
    """One series over one window of time."""

    window_start: str = Field(examples=["2025-10-24T07:35:00Z"])
    service: str
    metric_type: str
    name: str
    unit: str
    count: int
    avg: float | None
    min: float | None
    max: float | None
    p50: float | None
    p95: float | None
    p99: float | None


class WindowPage(BaseModel):
    """Aggregates by window and series, newest window first."""

    windows: list[Window]
    samples: int = Field(description="how many records they were computed from")
    exact: bool = Field(description="whether the percentiles are exact")
    relative_error: float | None = Field(
        description="how far percentiles may be off, as a share of them; null: they are exact"
    )
    source: str = Field(
        description="what was read: `raw` records, or also rollups", examples=["raw", "1h, 1d rollups and raw"]
    )
    scanned: int | None = Field(description="how many records were looked at one by one, at most")
    truncated: bool = Field(description="whether there are more than `limit`")


class Columns(BaseModel):
    """The answer to a query, by columns: row i is the i-th value of each."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "columns": {
                        "window_start": ["2025-10-24T07:35:00Z"],
                        "name": ["download_time"],
                        "p95": [108.96],
                    },
                    "rows": 1,
                    "samples": 158,
                    "exact": True,
                    "relative_error": None,
                    "source": "raw",
                    "scanned": 20158,
                    "truncated": False,
                }
            ]
        }
    )

    columns: dict[str, list[Any]]
    rows: int = Field(description="the length of each column")
    samples: int = Field(description="how many records they were computed from")
    exact: bool = Field(description="whether the percentiles are exact")
    relative_error: float | None = Field(
        description="how far percentiles may be off, as a share of them; null: they are exact"
    )
    source: str = Field(
        description="what was read: `raw` records, or also rollups", examples=["raw", "1h, 1d rollups and raw"]
    )
    scanned: int | None = Field(description="how many records were looked at one by one, at most")
    truncated: bool = Field(description="whether there are more than `limit`")


class Info(BaseModel):
    """The books of the store: recorded = stored + pending + dropped + deleted."""

    url: str = Field(examples=["./metrics"])
    recorded: int
    stored: int
    pending: int = Field(description="in journals, not in the store yet; queries see them")
    dropped: dict[str, int] = Field(description="by reason", examples=[{"journal_full": 0}])
    deleted: int = Field(description="stored once and forgotten since: too old, or erased", examples=[0])
    bytes: int = Field(description="on disk")


class Health(BaseModel):
    """The server is alive, or ready."""

    status: str = Field(examples=["ok"])


def json_response(content: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """JSON without NaN and infinity (they become null), encoded at once: in the thread of the query."""
    return Response(msgspec.json.encode(content), status, headers, "application/json")


def metric_json(record: Record) -> dict[str, Any]:
    """A record as :class:`Metric` describes it."""
    return {
        "id": str(record.id),
        "timestamp": format_timestamp(record.timestamp),
        "metric_type": record.metric_type,
        "name": record.name,
        "value": record.value,
        "unit": record.unit,
        "metadata": record.metadata,
        "service": record.service,
        "description": record.description,
        "success": record.success,
        "error": record.error,
        "trace_id": record.trace_id,
        "session_id": record.session_id,
    }


def format_timestamp(nanoseconds: int) -> str:
    """ISO 8601 in UTC, with all nine digits: ``2025-10-24T07:39:12.123456789Z``."""
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:09d}Z"


def parse_timestamp(text: str) -> int:
    """Nanoseconds since the epoch from ISO 8601 with an offset.

    Raises:
        ValueError: it is not a date and time, or it has no offset.
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError("timestamp must be a date and time in ISO 8601") from None
    if moment.tzinfo is None:
        raise ValueError("timestamp must have an offset, such as Z or +02:00")
    whole = moment.replace(microsecond=0) - datetime(1970, 1, 1, tzinfo=UTC)
    # datetime stops at microseconds; the digits after the point are taken from the text.
    fraction = text.replace(",", ".").partition(".")[2]
    digits = fraction[: len(fraction) - len(fraction.lstrip("0123456789"))]
    return (whole.days * 86_400 + whole.seconds) * 1_000_000_000 + int(digits[:9].ljust(9, "0"))
