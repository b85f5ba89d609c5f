"""The servers of the tests end with them, also where nobody can end them."""

import subprocess
import sys
from pathlib import Path

import redis
from recording import eventually
from services import find_program

HOLDS = """
import sys
from services.redis import redis_server
with redis_server() as url:
    print(url, flush=True)
    sys.stdin.read()
"""


def test_a_server_ends_when_its_tests_are_killed(tmp_path: Path) -> None:
    find_program("redis-server")
    holder = subprocess.Popen(
        [sys.executable, "-c", f"import tempfile; tempfile.tempdir = {str(tmp_path)!r}\n{HOLDS}"],
        cwd=Path(__file__).parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    with holder.stdin, holder.stdout, redis.Redis.from_url(holder.stdout.readline().strip()) as client:
        assert client.ping()
        assert list(tmp_path.iterdir())
        holder.kill()
        holder.wait()
        eventually(lambda: not list(tmp_path.iterdir()))
        try:
            answered = bool(client.ping())
        except redis.ConnectionError:
            answered = False
    assert not answered
