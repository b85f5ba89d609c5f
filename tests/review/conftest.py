"""A service on a recorder whose time the test moves."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from recording import recording

from tallymark import Metrics
from tallymark.review import MetricsService
from tallymark.testing import ManualClock


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def metrics(folder: Path, clock: ManualClock) -> Iterator[Metrics]:
    with recording(folder, service="bot", clock=clock) as metrics:
        yield metrics


@pytest.fixture
def service(metrics: Metrics) -> MetricsService:
    return MetricsService(metrics)
