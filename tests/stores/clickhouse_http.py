"""ClickHouse's engine in this process behind HTTP, as far as a store speaks it: for the real client, over connections
that may break. It is no server of ClickHouse's own.
"""

import email
import json
import re
import tempfile
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

import chdb

PASSWORD: Final = "verysecret"

_NO_SETTINGS: Final = {
    *("query", "database", "default_format", "wait_end_of_query", "query_id", "client_protocol_version"),
    *("compress", "enable_http_compression", "session_id", "http_headers_progress_interval_ms"),
    *("send_progress_in_http_headers",),
}


class Server:
    """Listens on a free port until it is closed.

    Args:
        path: where the engine keeps everything.
        lose: given a statement, whether its answer does not reach the client.
    """

    def __init__(self, path: str, lose: Callable[[str], bool] = lambda _statement: False) -> None:
        self.statements: list[str] = []
        outer = self

        class Handler(_Handler):
            engine = path
            statements = outer.statements

            def lost(self, statement: str) -> bool:
                return lose(statement)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        self.url = f"clickhouse://me:{PASSWORD}@127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        """End it."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    engine: str
    statements: list[str]

    def lost(self, statement: str) -> bool:
        raise NotImplementedError

    def do_GET(self) -> None:
        self._answer(b"")

    def do_POST(self) -> None:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(body)

    def log_message(self, *arguments: Any) -> None:
        """Nothing."""

    def _answer(self, body: bytes) -> None:
        given = dict(parse_qsl(urlsplit(self.path).query, keep_blank_values=True))
        kind = self.headers.get("Content-Type", "")
        if kind.startswith("multipart/form-data"):
            form = email.message_from_bytes(f"Content-Type: {kind}\r\n\r\n".encode() + body)
            for part in form.get_payload():
                assert isinstance(part, email.message.Message)
                name = str(part.get_param("name", header="content-disposition"))
                text = part.get_payload(decode=True)
                assert isinstance(text, bytes)
                given[name] = text.decode()
            body = b""
        statement = given.get("query", "") or body.decode()
        if not given.get("query"):
            body = b""
        self.statements.append(statement)
        try:
            answer = self._run(statement, body, given)
        except RuntimeError as error:
            found = re.search(r"Code: (\d+)", str(error))
            self._send(500, str(error).encode(), {"X-ClickHouse-Exception-Code": found[1] if found else "0"})
            return
        if self.lost(statement):
            self.close_connection = True
            self.connection.close()
            return
        found = re.search(r"\bFORMAT\s+(\w+)\s*$", statement)
        kind = found[1] if found else given.get("default_format", "TabSeparated")
        self._send(200, answer, {"X-ClickHouse-Format": kind})

    def _run(self, statement: str, body: bytes, given: dict[str, str]) -> bytes:
        connect: Callable[[str], Any] = chdb.connect  # without annotations of its own
        connection = connect(self.engine)
        try:
            connection.query(f"USE `{given.get('database', 'default')}`")
            for name, value in given.items():
                if name not in _NO_SETTINGS and not name.startswith("param_"):
                    connection.query(f"SET {name} = {json.dumps(value)[1:-1].join(chr(39) * 2)}")
            parameters = {name[6:]: value for name, value in given.items() if name.startswith("param_")}
            kept = given.get("default_format", "TabSeparated")
            if not body:
                return bytes(connection.query(statement, kept, params=parameters).bytes() or b"")
            with tempfile.NamedTemporaryFile() as file:
                file.write(body)
                file.flush()
                into, _, kind = statement.strip().rpartition(" FORMAT ")
                connection.query(f"{into} FROM INFILE '{file.name}' FORMAT {kind}")
            return b""
        finally:
            connection.close()

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), "X-ClickHouse-Summary": "{}", **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
