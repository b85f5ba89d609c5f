"""A real pgbouncer in front of a PostgreSQL of the tests."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from . import find_program, free_port, serving
from .postgres import answers, as_server, owner

PLACES = ("/usr/sbin/pgbouncer",)


@contextmanager
def pgbouncer(server: str, pool_size: int = 2) -> Iterator[str]:
    """Pools transactions over ``pool_size`` sessions of a database; yields its URL there.

    It takes no statement that was prepared, and no parameter of a session but those that every pgbouncer follows.
    """
    program = find_program("pgbouncer", *PLACES)
    behind = urlsplit(server)
    port = free_port()
    folder = Path(tempfile.mkdtemp(prefix="tallymark-pgbouncer-"))
    (folder / "users").write_text(f'"{behind.username}" ""\n')
    (folder / "pgbouncer.ini").write_text(
        f"[databases]\n* = host={behind.hostname} port={behind.port}\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
        f"auth_type = trust\nauth_file = {folder / 'users'}\n"
        f"pool_mode = transaction\ndefault_pool_size = {pool_size}\nmax_client_conn = 200\n"
        # A session that was used keeps whatever somebody has left in it, as it does in production.
        "server_reset_query_always = 0\n"
    )
    if os.geteuid() == 0:
        for path in (folder, *folder.iterdir()):
            os.chown(path, owner().pw_uid, owner().pw_gid)
    url = f"postgresql://{behind.username}@127.0.0.1:{port}{behind.path}"
    try:
        with serving([*as_server(), program, str(folder / "pgbouncer.ini")], folder, answers(url)):
            yield url
    finally:
        shutil.rmtree(folder)
