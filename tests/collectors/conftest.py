"""Real servers that the tests of collectors share, a recorder, and what was recorded."""

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from recording import recording
from services import free_port
from services.postgres import postgres_server
from services.redis import redis_server

import tallymark
from tallymark import Metrics
from tallymark.record import Record

PATIENT = 30.0
"""A time-out (s) for servers that do answer, on a machine that is busy with other things."""

Recorded = Callable[[str], list[Record]]


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    with redis_server() as url:
        yield url


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A superuser's; statements are counted, a standby may stream from it."""
    with postgres_server("shared_preload_libraries=pg_stat_statements", "max_connections=40") as url:
        yield url


@pytest.fixture(scope="session")
def silent_port() -> Iterator[int]:
    """A port on which connections are accepted, and nothing is ever said."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.fixture
def unreachable_port() -> int:
    """A port that nobody listens on, and nobody else will get."""
    return free_port()


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Metrics]:
    with recording(tmp_path / "store", service="shop") as metrics:
        yield metrics


@pytest.fixture
def recorded(shop: Metrics) -> Recorded:
    """The records of a type so far, oldest first."""

    def read(metric_type: str) -> list[Record]:
        with tallymark.open(shop.store) as reader:
            return reader.records(metric_type=metric_type, limit=1000).records[::-1]

    return read
