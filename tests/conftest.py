"""Everything that records is tested twice: with the compiled core, and without it."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from recording import recording

import tallymark.core
from tallymark import Metrics, lane_reader

# Where the tests run in the background of a script SIGINT is ignored, and would be by every program that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(params=["compiled", "pure"])
def core(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which way is taken to record and to read, in this process and in those that it starts."""
    if request.param == "pure":
        monkeypatch.setenv("TALLYMARK_PURE_PYTHON", "1")  # for other processes
        monkeypatch.setattr(lane_reader, "core", None)
        renew = Metrics._renew_journal

        def renew_without_core(metrics: Metrics) -> None:
            renew(metrics)
            metrics._pool.service = None

        monkeypatch.setattr(Metrics, "_renew_journal", renew_without_core)
    elif tallymark.core.core is None:
        assert not os.environ.get("CI"), "the core is not compiled"
        pytest.skip("the core is not compiled")
    return str(request.param)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a test records to."""
    return tmp_path / "metrics"


@pytest.fixture
def metrics(folder: Path) -> Iterator[Metrics]:
    """A recorder that runs."""
    with recording(folder, service="shop") as metrics:
        yield metrics


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """A real Redis for all tests; each empties what it uses."""
    from services.redis import redis_server

    with redis_server() as url:
        yield url


@pytest.fixture(scope="session")
def rabbitmq_url() -> Iterator[str]:
    """A real RabbitMQ for all tests: it takes ten seconds to start."""
    from services.rabbitmq import rabbitmq_server

    with rabbitmq_server() as url:
        yield url
