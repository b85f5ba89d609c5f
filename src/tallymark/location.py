"""Where a store is: its URL, understood in one place."""

from typing import TYPE_CHECKING, Final

from tallymark.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

_SCHEME: Final = r"([A-Za-z][A-Za-z0-9+.-]+):"
# What deltalake fails on, or does worse.
_IMPOSSIBLE: Final = frozenset("%[]^|\\") | {chr(code) for code in (*range(32), 127)}


def lake_folder(url: str) -> "Path":
    """The folder of a store: of ``./metrics``, or of ``lake:./metrics``. Absolute, since a program may go elsewhere.

    Raises:
        ConfigError: the URL is of no known kind, or the folder cannot hold a lake.
    """
    # Not with the module: a third of what importing this package would take.
    import re
    from pathlib import Path

    found = re.match(_SCHEME, url)
    scheme, place = (found[1].lower(), url[found.end() :]) if found else ("lake", url)
    if scheme != "lake" or not place:
        # Without what may be a password.
        shown = re.sub(r"//[^/@]*@", "//…@", url)
        raise ConfigError(f"no store for {shown!r}; use a folder, as './metrics' or 'lake:./metrics'")
    return check_folder(Path(place))


def check_folder(folder: "Path") -> "Path":
    """The folder, absolute, or ConfigError where it cannot hold a lake."""
    absolute = folder.absolute()
    for character in str(absolute):
        if character in _IMPOSSIBLE:
            raise ConfigError(f"the path of a lake cannot hold {character!r}: {folder}")
    return absolute
