"""A real Redis."""

import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis

from . import find_program, free_port, serving


@contextmanager
def redis_server(*options: str) -> Iterator[str]:
    """A server of its own, empty; yields its URL. ``options`` are those of redis-server (``--requirepass secret``)."""
    program = find_program("redis-server")
    folder = Path(tempfile.mkdtemp(prefix="tallymark-redis-"))
    port = free_port()
    url = f"redis://127.0.0.1:{port}/0"

    def answers() -> bool:
        with redis.Redis.from_url(url) as client:
            try:
                client.ping()
            except redis.AuthenticationError:
                return True
            except redis.ConnectionError:
                return False
        return True

    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)]
    try:
        with serving([*command, "--save", "", "--appendonly", "no", *options], folder, answers) as process:
            try:
                yield url
            finally:
                process.send_signal(signal.SIGCONT)  # one that a test has stopped could not end
    finally:
        shutil.rmtree(folder)
