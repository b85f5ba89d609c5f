"""The store that a command works on: the argument, and what is said when there is none."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from tallymark.errors import ConfigError

if TYPE_CHECKING:
    from tallymark.reader import Reader
    from tallymark.store import Store


def settled(given: str | None) -> str:
    """The store that was named, or that of the settings."""
    if given is not None:
        return given
    from tallymark.config import settings

    return settings().store


StoreArgument = Annotated[
    str,
    typer.Argument(
        metavar="STORE",
        help="The folder (or URL) with the records.",
        callback=settled,
        show_default="the setting store, ./metrics",
    ),
]
DEFAULT_STORE: Final[Any] = None
"""Has the settings asked, when the command runs."""

DEMO_STORE = "./demo-metrics"


def open_existing(store: str) -> "Reader":
    """Open a store for reading.

    Raises:
        ConfigError: as :func:`existing`.
    """
    from tallymark.reader import Reader

    return Reader(existing(store))


def existing(store: str) -> "Store":
    """A store that is there.

    Raises:
        ConfigError: there is no such folder. Reading must not make one: a typing error would look like an
        empty store.
    """
    from tallymark.location import shown, split
    from tallymark.store import open_store

    scheme, place = split(store)
    folder = Path(place)
    here = {
        "lake": any((folder / part).is_dir() for part in ("journals", "table")),
        "json": folder.is_dir(),
        "sqlite": folder.is_file() or folder.with_name(folder.name + ".tallymark").is_dir(),
    }
    if "://" not in place and not here[scheme]:
        others = f"tallymark … {DEMO_STORE}" if Path(DEMO_STORE).is_dir() else "tallymark demo"
        hint = f"hint: name the folder that the application records to, or try: {others}"
        if scheme == "lake" and folder.is_file():
            hint = f"hint: a file may be sqlite:///{place}"
        elif scheme == "lake" and (folder / ".tallymark").is_dir():
            hint = f"hint: these are JSON files, so json:{place}"
        raise ConfigError(f"there is no store at {shown(store)!r}; {hint}")
    return open_store(store)
