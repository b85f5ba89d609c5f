"""Where a store is: its URL, understood in one place."""

import os
from typing import TYPE_CHECKING, Final

from tallymark.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

SCHEMES: Final = {
    "lake": "./metrics",
    "sqlite": "sqlite:///metrics.db",
    "postgresql": "postgresql://user@host/database",
    "clickhouse": "clickhouse://user@host/database",
    "json": "json:./metrics",
}
"""The kinds of store, with an example of each."""

STATE_VARIABLE: Final = "TALLYMARK_STATE"
"""Names the folder for what belongs to stores elsewhere and has to be on this machine."""

MASK: Final = "***"
"""Stands for what is not shown."""

_ALIASES: Final = {"postgres": "postgresql"}
_SCHEME: Final = r"([A-Za-z][A-Za-z0-9+.-]+):"
# What deltalake fails on, or does worse.
_IMPOSSIBLE: Final = frozenset("%[]^|\\") | {chr(code) for code in (*range(32), 127)}


def split(url: str) -> tuple[str, str]:
    """The kind of a store, one of :data:`SCHEMES`, and its place: a path, or the whole URL where it is a server's.

    Raises:
        ConfigError: the URL is of no known kind, or names no place.
    """
    # Not with the module: a third of what importing this package would take.
    import re

    found = re.match(_SCHEME, url)
    scheme, place = (found[1].lower(), url[found.end() :]) if found else ("lake", url)
    scheme = _ALIASES.get(scheme, scheme)
    if scheme == "sqlite" and place.startswith("//"):
        # As elsewhere: three slashes and a relative path, or four and an absolute one.
        host, slash, place = place[2:].partition("/")
        place = place if slash and not host else ""
    elif scheme in ("postgresql", "clickhouse"):
        place = f"{scheme}:{place}" if place.startswith("//") else ""
    if scheme not in SCHEMES or not place:
        known = ", ".join([*SCHEMES.values(), "lake:s3://bucket/path"])
        raise ConfigError(f"no store for {shown(url)!r}; use one of {known}")
    if scheme == "lake" and "://" in place:
        place = check_bucket(place)
    return scheme, place


def absolute(url: str) -> str:
    """The URL as it means the same wherever a program goes.

    Raises:
        ConfigError: as :func:`split`.
    """
    scheme, place = split(url)
    if place.startswith(f"{scheme}://"):
        return place
    return f"{scheme}:{place if '://' in place else os.path.abspath(place)}"


def local_folder(url: str) -> "Path":
    """The folder on this machine that belongs to a store: its journals, its log, its locks. Absolute, since a program
    may go elsewhere. A lake's is the lake itself.

    Raises:
        ConfigError: the URL is of no known kind, or the folder cannot be used.
    """
    import hashlib
    from pathlib import Path

    scheme, place = split(url)
    if scheme == "sqlite":
        path = Path(place).absolute()
        return path.with_name(path.name + ".tallymark")
    if scheme == "json":
        return Path(place).absolute() / ".tallymark"
    if "://" not in place:
        return check_folder(Path(place))
    state = os.environ.get(STATE_VARIABLE)
    if not state:
        home = os.environ.get("XDG_STATE_HOME")
        try:
            state = str((Path(home) if home else Path.home() / ".local" / "state") / "tallymark")
        except RuntimeError:
            raise ConfigError(f"there is no home folder for the journals; name one in {STATE_VARIABLE}") from None
    digest = hashlib.sha256(_without_password(place).encode()).hexdigest()
    return Path(state).absolute() / f"{scheme}-{digest[:16]}"


def shown(url: str) -> str:
    """The URL of a store as it may be seen. A path is seen as it is."""
    import re

    found = re.match(_SCHEME, url)
    if found and found[1].lower() == "lake" and "://" in url:
        return f"lake:{mask_url(url[found.end() :])}"
    if not found or found[1].lower() in ("lake", "json") or re.match(r"sqlite:(///|[^/])", url):
        return url
    return mask_url(url)


def mask_url(text: str) -> str:
    """The URL with its password masked; all of it where it is not certain which part that is."""
    from urllib.parse import urlsplit

    try:
        url = urlsplit(text)
        _ = url.port  # ValueError: what stands there is no port, perhaps part of a password
    except ValueError:
        return MASK
    no_url = "://" not in text or not url.scheme or (url.netloc and not url.hostname)
    # A password that was not escaped ends the host early.
    if no_url or "@" in url.path + url.query or url.fragment:
        return MASK
    user, at, place = url.netloc.rpartition("@")
    name, colon, _ = user.partition(":")
    # Alone it may be a token.
    user = f"{name}:{MASK}" if colon else MASK if at else ""
    return f"{url.scheme}://{user}{at}{place}{url.path}{'?' + MASK if url.query else ''}"


def _without_password(url: str) -> str:
    """What stays the same when the password of a URL is changed."""
    import re

    return re.sub(r"(://[^/?#@:]*):[^/?#]*@", r"\1@", url, count=1)


def check_bucket(url: str) -> str:
    """The URL of a folder in an object store, or ConfigError, which does not show it: there may be a password in it."""
    import re

    if re.fullmatch(r"s3://[a-z0-9][a-z0-9.-]+[a-z0-9](/(?!\.\.?(/|$))[A-Za-z0-9_.=+-]+)*/?", url):
        return url.rstrip("/")
    raise ConfigError(
        "a lake in an object store is lake:s3://bucket/path, of letters, digits and _.=+-; credentials and endpoint are"
        " taken from AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL …"
    )


def check_folder(folder: "Path") -> "Path":
    """The folder, absolute, or ConfigError where it cannot hold a lake."""
    absolute = folder.absolute()
    for character in str(absolute):
        if character in _IMPOSSIBLE:
            raise ConfigError(f"the path of a lake cannot hold {character!r}: {folder}")
    return absolute
