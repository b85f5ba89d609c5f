"""Files that are there as a whole, as they are to be or as they were before; and files that are locked."""

import contextlib
import fcntl
import os
from collections.abc import Generator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def replace_file(path: "Path", text: str) -> None:
    """Put a text in the place of a file at once and for good, in UTF-8 and with the line ends that it has.

    Raises:
        OSError: it cannot be written; one that was there is as it was.
    """
    draft = path.parent / f".tallymark-{os.urandom(8).hex()}"  # not with_name: "." has none
    try:
        with draft.open("x", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())  # or a power cut may leave the new name with nothing in it
        os.replace(draft, path)
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextlib.contextmanager
def locked(path: "Path", *, wait: bool = True, shared: bool = False, make: bool = True) -> Generator[bool]:
    """Hold the lock of a file; yields whether it is held, which only who does not wait has to ask.

    Args:
        shared: together with others that share it.
        make: the file where there is none; otherwise it may be a folder too.

    Raises:
        OSError: it cannot be opened, or no file can be locked there.
    """
    descriptor = os.open(path, (os.O_RDWR | os.O_CREAT if make else os.O_RDONLY) | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        try:
            yield True
        finally:
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing does not do: a child that was forked meanwhile has a copy
    finally:
        os.close(descriptor)


def is_locked(path: "Path") -> bool:
    """Whether somebody holds the lock of a file, not shared. Where there is none, it is not made."""
    with contextlib.suppress(OSError), locked(path, wait=False, shared=True, make=False) as free:
        return not free
    return False


def size_of(path: "Path") -> int:
    """The bytes of a file; 0 where there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
