"""One recorder for all of these tests, and what each of them has recorded with it."""

from collections.abc import Iterator

import pytest

from tallymark import Metrics

from .traffic import Recorded


@pytest.fixture(scope="session")
def recorder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Metrics]:
    """One for all tests: its stop brings everything into the lake, which takes a second."""
    with Metrics(str(tmp_path_factory.mktemp("metrics")), service="test", flush_interval_seconds=600) as metrics:
        yield metrics


@pytest.fixture
def metrics(recorder: Metrics) -> Metrics:
    return recorder


@pytest.fixture
def recorded(recorder: Metrics) -> Recorded:
    return Recorded(recorder.store)
