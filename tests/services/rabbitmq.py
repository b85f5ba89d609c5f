"""A real RabbitMQ."""

import base64
import os
import shutil
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from . import find_program, free_port, serving

# Debian's rabbitmq-server in the PATH becomes another user; the script that it runs does not.
PLACES = ("/usr/lib/rabbitmq/bin/rabbitmq-server",)

MANAGEMENT = 10_000
"""What the port of the management API is above that of AMQP, here as in RabbitMQ's own defaults."""
DISTRIBUTION = 20_000
"""The same of the port that nodes talk to each other on."""


@contextmanager
def rabbitmq_server() -> Iterator[str]:
    """A node of its own with the management plugin; yields its AMQP URL.

    It has a port mapper (epmd) of its own as well, which ends with it.
    """
    program = find_program("rabbitmq-server", *PLACES)
    folder = Path(tempfile.mkdtemp(prefix="tallymark-rabbitmq-"))
    port, mapper = free_port(MANAGEMENT, DISTRIBUTION), free_port()
    (folder / "rabbitmq.conf").write_text(
        f"listeners.tcp.1 = 127.0.0.1:{port}\n"
        f"management.tcp.ip = 127.0.0.1\nmanagement.tcp.port = {port + MANAGEMENT}\n"
        "collect_statistics_interval = 1000\n"  # milliseconds; how old the management API's answers may be
        "disk_free_limit.absolute = 1MB\n"
    )
    (folder / "plugins").write_text("[rabbitmq_management].\n")
    environment = os.environ | {
        "HOME": str(folder),  # of the cookie
        "ERL_EPMD_PORT": str(mapper),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODENAME": f"tallymark-{port}@localhost",
        "RABBITMQ_DIST_PORT": str(port + DISTRIBUTION),
        "RABBITMQ_CONF_ENV_FILE": str(folder / "none"),
        "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
        "RABBITMQ_ADVANCED_CONFIG_FILE": str(folder / "none"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
        "RABBITMQ_MNESIA_BASE": str(folder / "data"),
        "RABBITMQ_LOG_BASE": str(folder / "log"),
        "RABBITMQ_GENERATED_CONFIG_DIR": str(folder / "config"),
    }
    overview = urllib.request.Request(
        f"http://127.0.0.1:{port + MANAGEMENT}/api/overview",
        headers={"Authorization": "Basic " + base64.b64encode(b"guest:guest").decode()},
    )

    def answers() -> bool:
        # The plugin starts last.
        try:
            with urllib.request.urlopen(overview, timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    try:
        # The node starts its port mapper in the background, where it would stay.
        end_mapper = ["epmd", "-port", str(mapper), "-kill"]
        with serving([program], folder, answers, environment, afterwards=end_mapper):
            yield f"amqp://guest:guest@127.0.0.1:{port}//"
    finally:
        shutil.rmtree(folder)
