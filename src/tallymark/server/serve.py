"""Runs the server: the address it may listen on, and an end that no open stream holds up."""

import contextlib
import socket
from collections.abc import Callable
from typing import Final

import uvicorn
from fastapi import FastAPI

from tallymark.config import Settings
from tallymark.config import settings as settings_of_process
from tallymark.errors import ConfigError
from tallymark.server.app import create_app
from tallymark.server.auth import LOOPBACK_NAMES, check_bind

GRACE_SECONDS: Final = 1
"""For requests under way when the server is told to end."""


def run(settings: Settings | None = None, *, ready: Callable[[str], None] | None = None) -> None:
    """Serve a store until Ctrl-C or SIGTERM.

    Args:
        settings: how it works, by default as the environment and the file have it. Without keys the address must
            be this machine's own.
        ready: called once, with the URL, when the server answers.

    Raises:
        ConfigError: a setting is not valid, the address needs a key, a key is unfit, or the port cannot be had.
        StoreError: the store cannot be opened.
    """
    settings = settings or settings_of_process()
    check_bind(settings.host, settings.keys)
    if not settings.keys and settings.allowed_hosts is None:
        settings = settings.model_copy(update={"allowed_hosts": (*LOOPBACK_NAMES, settings.host)})
    app = create_app(settings)
    listener = listen(settings.host, settings.port)
    url = url_of(listener)
    # After a clean end uvicorn raises the signal again; Ctrl-C has then done what it should.
    with listener, contextlib.suppress(KeyboardInterrupt):
        Server(app, (lambda: ready(url)) if ready else None).run(sockets=[listener])


class Server(uvicorn.Server):
    """uvicorn, set up for this application.

    Args:
        app: what :func:`tallymark.server.create_app` made.
        ready: called once, when the server answers.
    """

    def __init__(self, app: FastAPI, ready: Callable[[], None] | None = None) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                lifespan="on",
                ws="none",
                access_log=False,  # the server records its requests as metrics
                log_config=None,  # logging belongs to whoever runs it
                server_header=False,
                timeout_graceful_shutdown=GRACE_SECONDS,
            )
        )
        self._app = app
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then say so."""
        await super().startup(sockets=sockets)
        if self.started and self._ready:
            self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the streams first: uvicorn waits for open responses, and these would stay open for ever."""
        self._app.state.shutting_down.set()
        await super().shutdown(sockets=sockets)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        ConfigError: it cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host}:{port} ({error.strerror or error}); "
            "end what listens there, or choose another port"
        ) from error


def url_of(listener: socket.socket) -> str:
    """Where a browser on this machine finds the server."""
    address, port = listener.getsockname()[:2]
    host = f"[{address}]" if ":" in address else address
    return f"http://{host}:{port}/"
