"""Jobs that run in stages: what each stage took, what the caches and the machine did, and what changed since last time.

from tallymark import Metrics
from tallymark.pipeline import PipelineRun

with Metrics("./metrics") as metrics, PipelineRun(metrics, "export") as run:
    with run.stage("fetch"):
        ...
    run.export_json("monitoring/metrics.json")
"""

from tallymark.pipeline.metrics import CacheMetrics, ResourceMetrics, StageMetrics
from tallymark.pipeline.resources import ResourceMonitor
from tallymark.pipeline.run import MetricsCollector, PipelineRun, get_metrics_collector

__all__ = [
    "CacheMetrics",
    "MetricsCollector",
    "PipelineRun",
    "ResourceMetrics",
    "ResourceMonitor",
    "StageMetrics",
    "get_metrics_collector",
]
