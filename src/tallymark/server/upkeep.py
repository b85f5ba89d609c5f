"""What keeps a store in order while a server runs on it: shipping, compaction, retention."""

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

FIRST_SECONDS: Final = 10.0
"""After the start, when the first requests have been answered."""

EVERY_SECONDS: Final = 300.0
"""Between two rounds of compaction and retention."""

STOP_SECONDS: Final = 1.0
"""For a round that is under way when the server ends. One that is not finished leaves the store as it was."""

logger = logging.getLogger("tallymark.server")


@contextmanager
def upkeep(url: str, retention: Retention) -> Iterator[None]:
    """Works beside the block, in two threads.

    Args:
        url: of the store.
        retention: how long records are kept.

    Raises:
        ConfigError: the URL is not usable.
    """
    folder = local_folder(url)
    with closing(open_store(url)) as store:
        # A lake's journals are read too: short of a full lane there is no hurry.
        shipper = Shipper(store, folder / JOURNALS, interval_seconds=30.0 if split(url)[0] == "lake" else 1.0)
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


def _maintain(store: Store, folder: Path, retention: Retention, stopping: threading.Event) -> None:
    pause = FIRST_SECONDS
    while not stopping.wait(pause):
        pause = EVERY_SECONDS
        try:
            done = maintain(store, folder, retention=retention)
        except TallymarkError as error:
            logger.warning("the upkeep of the store failed, and is tried again: %s", error)
        else:
            logger.debug("upkeep: %s", done)
