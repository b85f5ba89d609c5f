"""Names for persons that say nothing about them: the same for the same person, and made with a key.

A pseudonym is the keyed BLAKE2b of an id, cut to 80 bits and spelled with letters only, so that no rule which looks for
card numbers or telephone numbers in stored values finds one. The kind of the id is part of the hash: user 7 and admin 7
have nothing in common. Two of n persons of a kind share a pseudonym with a probability of about n² / 2**81: one in two
million million for a million persons.

Whoever has the key can try every possible id. So the key is a secret of its own: it comes from a setting, or from a
file in the folder of the store that only its owner can read, and that is no part of what is handed on.
"""

import contextlib
import hashlib
import os
import threading
from pathlib import Path
from typing import Final, Literal, get_args

from tallymark import log
from tallymark.errors import ConfigError
from tallymark.location import local_folder
from tallymark.model import MAX_ID_LENGTH, check_text

Kind = Literal["user", "chat", "admin", "message"]
"""Whom or what an id names."""

KINDS: Final[tuple[Kind, ...]] = get_args(Kind)

KEY_FILE: Final = "pseudonym.key"
"""In the folder of the store, mode 0600: 64 hex digits."""

_KEY_BYTES: Final = 32
_DIGEST_BYTES: Final = 10
_LETTERS: Final = str.maketrans("0123456789abcdef", "bcdfghjklmnpqrst")  # without vowels there are no words


class Pseudonyms:
    """Gives ids their pseudonyms, in about three microseconds each.

    Args:
        store: where the records go; its folder has the key file where no key is given. Made with the first pseudonym,
            once, also where several processes begin at the same instant.
        key: the secret; of any length.
        raw_ids: store ids as they are, after their kind: ``admin_123``.

    Raises:
        ConfigError: the store's folder is needed, and cannot be used.
    """

    def __init__(self, store: str | os.PathLike[str], *, key: str | bytes | None = None, raw_ids: bool = False) -> None:
        if key is not None and not key:
            raise ConfigError("pseudonym_key must not be empty")
        self.raw_ids = raw_ids
        self._key = None if key is None else _derived(key.encode() if isinstance(key, str) else key)
        # Now: the program may change its folder later.
        self._file = local_folder(os.fspath(store)) / KEY_FILE if key is None else None

    def of(self, kind: Kind, identifier: int | str) -> str:
        """What is stored for this id: ``admin_`` and twenty letters; the same for ``7`` and ``"7"``.

        Where the key file cannot be read or made, a key that lasts as long as this process takes its place, and a
        warning is logged: metrics do not break the application.

        Raises:
            ValueError: it is not an id; the message names the kind and never the value.
        """
        text = _id_text(kind, identifier)
        return f"{kind}_{text}" if self.raw_ids else _pseudonym(kind, text, self._key or self._load_key())

    def known(self, kind: Kind, identifier: int | str) -> str:
        """As :meth:`of`, for whoever looks for records: makes no key, and takes no other in its place.

        Raises:
            ConfigError: there is no key that the records could have been made with, or it cannot be read.
        """
        text = _id_text(kind, identifier)
        if self.raw_ids:
            return f"{kind}_{text}"
        if self._key is None:
            assert self._file is not None
            try:
                self._key = _derived(_read_key(self._file))
            except FileNotFoundError:
                hint = "name the store that the application records to, or set TALLYMARK_PSEUDONYM_KEY"
                raise ConfigError(f"there is no key at {self._file}; hint: {hint}") from None
        return _pseudonym(kind, text, self._key)

    def _load_key(self) -> bytes:
        assert self._file is not None
        try:
            key = _read_or_make_key(self._file)
        except (OSError, ConfigError) as error:
            key = os.urandom(_KEY_BYTES)
            log.warning("persons get other pseudonyms than usual until this process ends: %s", error)
        # The first of several threads decides; only one that had no file could differ.
        decided: bytes = self.__dict__.setdefault("_loaded", _derived(key))
        self._key = decided
        return decided


def _id_text(kind: Kind, identifier: int | str) -> str:
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}")
    if isinstance(identifier, int) and not isinstance(identifier, bool):
        # Not str(): a subclass may say something else. 400 bits are more than the digits that are allowed.
        identifier = int.__repr__(identifier) if identifier.bit_length() <= 400 else "9" * (MAX_ID_LENGTH + 1)
    elif not isinstance(identifier, str):
        raise ValueError(f"the id of the {kind} must be a whole number or text, not {type(identifier).__name__}")
    return check_text(f"the id of the {kind}", identifier, MAX_ID_LENGTH)


def _derived(secret: bytes) -> bytes:
    """A secret of any length as a key of BLAKE2b."""
    return hashlib.blake2b(secret, person=b"tallymark key").digest()


def _pseudonym(kind: Kind, text: str, key: bytes) -> str:
    digest = hashlib.blake2b(text.encode(), key=key, digest_size=_DIGEST_BYTES, person=kind.encode())
    return f"{kind}_{digest.hexdigest().translate(_LETTERS)}"


def _read_key(file: Path) -> bytes:
    text = file.read_bytes()
    try:
        key = bytes.fromhex(text.decode("ascii"))
    except ValueError:
        key = b""
    if len(key) != _KEY_BYTES:
        hint = "bring it back from a backup; without it, what was recorded of a person cannot be found"
        raise ConfigError(f"{file} is damaged; hint: {hint}")
    return key


def _read_or_make_key(file: Path) -> bytes:
    """The key in the file, made where there is none; of several that make one at once, one wins."""
    with contextlib.suppress(FileNotFoundError):
        return _read_key(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    # Complete before it has its name: nobody ever reads a part of it.
    draft = file.with_name(f".{KEY_FILE}.{os.getpid()}.{threading.get_ident()}")
    with contextlib.suppress(FileNotFoundError):
        draft.unlink()  # of a process that died, long ago
    try:
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as opened:
            opened.write(os.urandom(_KEY_BYTES).hex().encode() + b"\n")
            opened.flush()
            os.fsync(opened.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(draft, file)
    finally:
        with contextlib.suppress(OSError):
            draft.unlink()
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return _read_key(file)
