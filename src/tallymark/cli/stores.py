"""The store that a command works on: the argument, and what is said when there is none."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tallymark.errors import ConfigError

if TYPE_CHECKING:
    from tallymark.reader import Reader

StoreArgument = Annotated[str, typer.Argument(metavar="STORE", help="The folder (or URL) with the records.")]
DEFAULT_STORE = "./metrics"
DEMO_STORE = "./demo-metrics"


def open_existing(store: str) -> "Reader":
    """Open a store for reading.

    Raises:
        ConfigError: there is no such folder. Reading must not make one: a typing error would look like an
        empty store.
    """
    import tallymark
    from tallymark.location import lake_folder

    if not lake_folder(store).is_dir():
        others = f"tallymark … {DEMO_STORE}" if Path(DEMO_STORE).is_dir() else "tallymark demo"
        raise ConfigError(
            f"there is no store at {store!r}; hint: name the folder that the application records to, or try: {others}"
        )
    return tallymark.open(store)
