"""A real server in a thread, on a free port and a folder of its own, and a real client."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from recording import DEADLINE_SECONDS
from serving import serving

from tallymark import Metrics
from tallymark.config import Settings
from tallymark.server import create_app
from tallymark.server.serve import Server

Start = Callable[..., httpx.Client]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a server over ``tmp_path / "store"`` with the settings given, and returns a client for it."""
    with ExitStack() as stack:

        def starter(app: FastAPI | None = None, recorder: Metrics | None = None, **settings: Any) -> httpx.Client:
            given = Settings(**{"store": tmp_path / "store", "collect_system": False, **settings})
            url = stack.enter_context(serving(Server(app or create_app(given, recorder=recorder))))
            return stack.enter_context(httpx.Client(base_url=url, timeout=DEADLINE_SECONDS))

        yield starter


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client of a server with the usual settings, which the tests of a module share."""
    app = create_app(Settings(store=tmp_path_factory.mktemp("shared") / "store", collect_system=False))
    with serving(Server(app)) as url, httpx.Client(base_url=url, timeout=DEADLINE_SECONDS) as client:
        yield client
