"""A real PostgreSQL."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from . import find_program, free_port, serving

PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
"""Where Debian puts them, the newest first: not in the PATH."""

# For tests nothing has to reach the disk.
FAST = ("fsync=off", "synchronous_commit=off", "full_page_writes=off", "shared_buffers=16MB", "max_wal_size=128MB")

DATABASE = "postgres"


@contextmanager
def postgres_server(*settings: str) -> Iterator[str]:
    """A server of its own; yields the URL of a database, as a superuser without a password.

    ``settings`` are those of postgresql.conf (``max_connections=20``). Passwords are asked of every other role.
    """
    folder = _folder()
    try:
        run_as_server(["initdb", "--no-sync", "-A", "trust", "-U", "tallymark", str(folder / "data")])
        (folder / "data" / "pg_hba.conf").write_text(
            "host all tallymark 127.0.0.1/32 trust\nhost replication tallymark 127.0.0.1/32 trust\n"
            "local all tallymark trust\nhost all all 127.0.0.1/32 scram-sha-256\n"
        )
        with _running(folder, settings) as url:
            yield url
    finally:
        shutil.rmtree(folder)


@contextmanager
def postgres_replica(primary: str, *settings: str) -> Iterator[str]:
    """A standby that streams from another server of the tests; yields its URL."""
    folder = _folder()
    try:
        copy = ["pg_basebackup", "-d", primary, "-D", str(folder / "data"), "-R", "-X", "stream", "-c", "fast"]
        run_as_server([*copy, "--no-sync"])
        with _running(folder, settings) as url:
            yield url
    finally:
        shutil.rmtree(folder)


def run_as_server(command: list[str]) -> None:
    """Run one of PostgreSQL's programs to its end, as the user that the servers run as."""
    program = find_program(command[0], *(str(folder / command[0]) for folder in PROGRAMS))
    done = subprocess.run([*as_server(), program, *command[1:]], cwd="/", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@contextmanager
def _running(folder: Path, settings: tuple[str, ...]) -> Iterator[str]:
    program = find_program("postgres", *(str(place / "postgres") for place in PROGRAMS))
    port = free_port()
    url = f"postgresql://tallymark@127.0.0.1:{port}/{DATABASE}"
    own = ("listen_addresses=127.0.0.1", f"port={port}", f"unix_socket_directories={folder}", *FAST, *settings)
    options = [word for setting in own for word in ("-c", setting)]
    with serving(
        [*as_server(), program, "-D", str(folder / "data"), *options], folder, answers(url), stop=signal.SIGQUIT
    ):
        yield url


def answers(url: str) -> Callable[[], bool]:
    """Whether one can connect."""

    def answers() -> bool:
        try:
            psycopg.connect(url, connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    return answers


def as_server() -> list[str]:
    """What to put in front of a command: PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return []
    return ["setpriv", f"--reuid={owner().pw_uid}", f"--regid={owner().pw_gid}", "--clear-groups"]


def owner() -> pwd.struct_passwd:
    """The user that the servers run as where root starts them."""
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    pytest.skip("there is no user that PostgreSQL could run as")


def _folder() -> Path:
    """A new folder that belongs to the server's user."""
    folder = Path(tempfile.mkdtemp(prefix="tallymark-postgres-"))
    if os.geteuid() == 0:
        os.chown(folder, owner().pw_uid, owner().pw_gid)
    return folder
