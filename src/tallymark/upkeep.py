"""What keeps a store in order for as long as a process runs: shipping, compaction, retention."""

import logging
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

from tallymark.errors import TallymarkError
from tallymark.lane import JOURNALS
from tallymark.location import local_folder, split
from tallymark.maintenance import maintain
from tallymark.shipper import Shipper
from tallymark.store import Store, open_store
from tallymark.stores.retention import Retention

SHIP_SECONDS: Final = {"lake": 30.0, "clickhouse": 15.0}
"""The longest that a record waits for its way into a store; a second where none is named.

Of a lake the journals are read too. Many machines that each insert every second are more than ClickHouse merges
(docs/scaling.md).
"""

FIRST_SECONDS: Final = 10.0
"""After the start, when the first requests of a server have been answered."""

EVERY_SECONDS: Final = 60.0
"""Between two rounds of compaction and retention."""

STOP_SECONDS: Final = 1.0
"""For a round that is under way when the process ends. One that is not finished leaves the store as it was."""

logger = logging.getLogger("tallymark")


@contextmanager
def upkeep(url: str, retention: Retention | None, *, seconds: float | None = None) -> Iterator[None]:
    """Works beside the block, in two threads.

    Args:
        url: of the store.
        retention: how long records are kept; with None nothing is deleted.
        seconds: the longest that a record waits for its way into the store; :data:`SHIP_SECONDS` by default.

    Raises:
        ConfigError: the URL is not usable.
    """
    folder = local_folder(url)
    with closing(open_store(url)) as store:
        usual = SHIP_SECONDS.get(split(url)[0], 1.0)
        shipper = Shipper(store, folder / JOURNALS, interval_seconds=usual if seconds is None else seconds)
        stopping = threading.Event()
        maintainer = threading.Thread(
            target=_maintain, args=(store, folder, retention, stopping), name="tallymark-upkeep", daemon=True
        )
        shipper.start()
        maintainer.start()
        try:
            yield
        finally:
            stopping.set()
            shipper.stop(STOP_SECONDS)
            maintainer.join(STOP_SECONDS)


def _maintain(store: Store, folder: Path, retention: Retention | None, stopping: threading.Event) -> None:
    pause = FIRST_SECONDS
    while not stopping.wait(pause):
        pause = EVERY_SECONDS
        try:
            done = maintain(store, folder, retention=retention)
        except TallymarkError as error:
            if stopping.is_set():
                return  # it was interrupted
            logger.warning("the upkeep of the store failed, and is tried again: %s", error)
        else:
            logger.debug("upkeep: %s", done)
