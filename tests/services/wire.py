"""A wire between a client and a server, that a test may cut or clog."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Wire:
    """What connects to its port is connected to the server's.

    Attributes:
        clogs_after: from so many bytes of one client on, nothing more of it arrives until :meth:`unclog`.
        cut_after: when a client sends these bytes they arrive, but the answer is lost, and the connection with it.
        clogged, was_cut: set when it has happened.
    """

    def __init__(self, port: int) -> None:
        self._server = ("127.0.0.1", port)
        self.clogs_after: int | None = None
        self.cut_after: bytes | None = None
        self.clogged = threading.Event()
        self.was_cut = threading.Event()
        self._open = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._sockets: list[socket.socket] = [self._listener]
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    def unclog(self) -> None:
        """Let everything pass again."""
        self.clogs_after = None
        self._open.set()

    def close(self) -> None:
        """Cut everything."""
        self.unclog()
        for one in list(self._sockets):
            _hang_up(one)
        for thread in list(self._threads):
            thread.join(10)

    def _start(self, work: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._server)
                self._sockets += [client, server]
                losing = threading.Event()
                self._start(self._forth, client, server, losing)
                self._start(self._back, client, server, losing)

    def _forth(self, client: socket.socket, server: socket.socket, losing: threading.Event) -> None:
        sent = 0
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                if self.cut_after is not None and self.cut_after in data:
                    losing.set()
                if self.clogs_after is not None and sent + len(data) > self.clogs_after:
                    self.clogged.set()
                    self._open.wait()
                server.sendall(data)
                sent += len(data)
        _hang_up(server)

    def _back(self, client: socket.socket, server: socket.socket, losing: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(65536):
                if losing.is_set():
                    self.was_cut.set()
                    break
                client.sendall(data)
        _hang_up(client)
        _hang_up(server)


def _hang_up(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()


@contextmanager
def wire(port: int) -> Iterator[Wire]:
    """One to a port of this machine; cut at the end of the block."""
    made = Wire(port)
    try:
        yield made
    finally:
        made.close()
