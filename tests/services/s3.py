"""A real server that speaks S3, and a proxy before it that makes the faults of a network."""

import http.client
import shutil
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.error import URLError

from . import free_port, serving

HOP = {"connection", "transfer-encoding", "content-length", "host"}
"""Headers that mean one connection, not what is sent over it."""


@contextmanager
def s3_server() -> Iterator[str]:
    """A server of its own, without a bucket; yields its URL."""
    folder = Path(tempfile.mkdtemp(prefix="tallymark-s3-"))
    port = free_port()
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return True
        except URLError:
            return False

    try:
        with serving([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], folder, answers):
            yield url
    finally:
        shutil.rmtree(folder)


class Proxy:
    """Passes on what it is asked, as long as it is told to.

    Args:
        server: the URL of the server.

    Attributes:
        url: where it listens, always at the same port.
        drop: says of a request (method, path) that it is passed on, but never answered.
        without: a header that is left out.
    """

    def __init__(self, server: str) -> None:
        self._server = server.removeprefix("http://")
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self.drop: Callable[[str, str], bool] = lambda method, path: False
        self.without: str | None = None
        self._listening: ThreadingHTTPServer | None = None

    def start(self) -> None:
        """Listen, from when this returns."""
        self._listening = ThreadingHTTPServer(("127.0.0.1", self._port), self._handler())
        threading.Thread(target=self._listening.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Refuse connections."""
        if self._listening is not None:
            self._listening.shutdown()
            self._listening.server_close()
            self._listening = None

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            def pass_on(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                left_out = HOP | {(proxy.without or "").lower()}
                headers = {name: value for name, value in self.headers.items() if name.lower() not in left_out}
                connection = http.client.HTTPConnection(proxy._server, timeout=30)
                connection.request(self.command, self.path, body, headers)
                answer = connection.getresponse()
                content = answer.read()
                connection.close()
                if proxy.drop(self.command, self.path):
                    self.close_connection = True
                    return
                self.send_response(answer.status)
                for name, value in answer.getheaders():
                    if name.lower() not in HOP:
                        self.send_header(name, value)
                length = answer.getheader("Content-Length") if self.command == "HEAD" else None
                self.send_header("Content-Length", length or str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = pass_on

            def log_message(self, *_: Any) -> None:
                pass

        return Handler
