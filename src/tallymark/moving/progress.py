"""How moves say how far they are."""

from collections.abc import Callable

Progress = Callable[[str, int, int | None], None]
"""Is told what is done, how many records of it are done, and about how many there are, where that is known. What it
raises ends the move, at a place where it can be gone on with.
"""
