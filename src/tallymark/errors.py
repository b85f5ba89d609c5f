"""Every error that tallymark raises of its own, in one tree.

Bad arguments raise the built-in ``ValueError`` and ``TypeError``; use before ``start`` or after ``stop`` raises
``RuntimeError``. What is below is for everything else.
"""


class TallymarkError(Exception):
    """The root: ``except TallymarkError`` catches whatever tallymark itself raises."""


class ConfigError(TallymarkError):
    """A setting, a URL or an installation is not usable; the message says which and what to do."""


class StoreError(TallymarkError):
    """A store could not do what was asked; the driver's own error is its ``__cause__``."""


class RefusedError(StoreError):
    """A store works, but refuses what it was given: at least one of the rows. Nothing of them was stored."""


class QueryError(TallymarkError, ValueError):
    """A query makes no sense; the message names the part and the rule."""


class BufferFull(TallymarkError):
    """The journal has reached its bound and the recorder was told to raise (``on_full="raise"``)."""
