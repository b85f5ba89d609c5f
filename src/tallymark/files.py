"""Files that are there as a whole: as they are to be, or as they were before."""

import contextlib
import os
from pathlib import Path


def replace_file(path: Path, text: str) -> None:
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
