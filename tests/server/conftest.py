"""A real server in a thread, on a free port and a folder of its own, and a real client."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI

from tallymark.server import create_app
from tallymark.server.serve import Server, listen, url_of

DEADLINE_SECONDS = 20.0

Start = Callable[..., httpx.Client]


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait until the condition holds, or fail."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


@contextmanager
def serving(server: uvicorn.Server) -> Iterator[str]:
    """The URL of the server while it runs."""
    with listen("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=server.run, args=([listener],), name="test-server")
        thread.start()
        try:
            wait_until(lambda: server.started or not thread.is_alive())
            assert server.started
            yield url_of(listener)
        finally:
            server.should_exit = True
            thread.join(DEADLINE_SECONDS)
            assert not thread.is_alive(), "the server did not end"


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a server over ``tmp_path / "store"`` with the settings given, and returns a client for it."""
    with ExitStack() as stack:

        def starter(app: FastAPI | None = None, **settings: Any) -> httpx.Client:
            settings.setdefault("collect_system", False)
            url = stack.enter_context(serving(Server(app or create_app(tmp_path / "store", **settings))))
            return stack.enter_context(httpx.Client(base_url=url, timeout=DEADLINE_SECONDS))

        yield starter


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client of a server with the usual settings, which the tests of a module share."""
    app = create_app(tmp_path_factory.mktemp("shared") / "store", collect_system=False)
    with serving(Server(app)) as url, httpx.Client(base_url=url, timeout=DEADLINE_SECONDS) as client:
        yield client
