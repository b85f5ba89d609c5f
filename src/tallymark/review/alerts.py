"""What in a dashboard calls for somebody's attention."""

from collections.abc import Mapping
from typing import Any, Final

CRITICAL: Final = 2.0
"""So many times the threshold is critical, and not only a warning."""


def performance_alerts(
    dashboard: Mapping[str, Any], slow_stage_ms: float = 10_000, correction_rate_percent: float = 30
) -> list[dict[str, Any]]:
    """The alerts of a dashboard: ``slow_processing`` for each stage whose mean duration is above the threshold, the
    slowest first, and ``high_correction_rate`` where there are more corrections for a hundred requests.

    Nothing else is looked at: the same dashboard always gives the same alerts.
    """
    means = {
        stage: row["avg_duration_ms"]
        for stage, row in dashboard["processing_by_stage"].items()
        if row["avg_duration_ms"] is not None
    }
    alerts: list[dict[str, Any]] = [
        {
            "type": "slow_processing",
            "severity": _severity(mean, slow_stage_ms),
            "message": f"Slow processing detected in {stage}: {mean:.0f}ms average",
            "stage": stage,
        }
        for stage, mean in sorted(means.items(), key=lambda item: -item[1])
        if mean > slow_stage_ms
    ]
    overview = dashboard["overview"]
    requests = overview["total_requests"]
    rate = 100 * overview["total_corrections"] / requests if requests else 0.0
    if rate > correction_rate_percent:
        alerts.append(
            {
                "type": "high_correction_rate",
                "severity": _severity(rate, correction_rate_percent),
                "message": f"High correction rate detected: {rate:.1f}%",
                "correction_rate": round(rate, 1),
            }
        )
    return alerts


def _severity(value: float, threshold: float) -> str:
    return "critical" if value >= CRITICAL * threshold else "warning"
