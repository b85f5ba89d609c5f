"""A real server in a thread, at an address of its own."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from recording import DEADLINE_SECONDS, eventually

from tallymark.server.serve import listen, url_of


@contextmanager
def serving(server: uvicorn.Server, port: int = 0) -> Iterator[str]:
    """The URL of the server while it runs; port 0 is a free one."""
    with listen("127.0.0.1", port) as listener:
        thread = threading.Thread(target=server.run, args=([listener],), name="test-server")
        thread.start()
        try:
            eventually(lambda: server.started or not thread.is_alive())
            assert server.started
            yield url_of(listener)
        finally:
            server.should_exit = True
            thread.join(DEADLINE_SECONDS)
            assert not thread.is_alive(), "the server did not end"
