"""One recorder for all of these tests, and what each of them has recorded with it; a logger that writes a file."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from tallymark import Metrics
from tallymark.integrations.logging import JsonLinesHandler

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


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "logs" / "metrics.jsonl"


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """A logger of its own, which writes everything and tells nobody else."""
    made = logging.getLogger("shop.checkout")
    made.setLevel(1)
    made.propagate = False
    yield made
    for handler in list(made.handlers):
        made.removeHandler(handler)
        handler.close()
    made.setLevel(logging.NOTSET)
    made.propagate = True


@pytest.fixture
def handler(path: Path, logger: logging.Logger) -> JsonLinesHandler:
    made = JsonLinesHandler(path, service="shop")
    logger.addHandler(made)
    return made
