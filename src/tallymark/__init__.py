"""Application metrics that need no infrastructure.

    from tallymark import Metrics

    with Metrics("./metrics", service="shop") as metrics:
        metrics.record_operation("api_request", "GET /users", 42.5)

Importing this loads nothing heavy; what reads a store (:func:`open`) comes with ``pip install "tallymark[lake]"``.
"""

from os import PathLike, fspath
from typing import TYPE_CHECKING

from tallymark.errors import BufferFull, ConfigError, QueryError, StoreError, TallymarkError
from tallymark.recorder import Metrics, MetricsStats

if TYPE_CHECKING:
    from tallymark.reader import Reader

__all__ = [
    "BufferFull",
    "ConfigError",
    "Metrics",
    "MetricsStats",
    "QueryError",
    "StoreError",
    "TallymarkError",
    "open",
]

__version__ = "0.1.0"


def open(url: str | PathLike[str] = "./metrics") -> "Reader":  # noqa: A001 - tallymark.open, as in gzip.open
    """Open a store for reading, beside whoever is writing to it; no server and no lock is needed.

    Raises:
        ConfigError: the URL is not usable, or a package for it is missing.
    """
    from tallymark.reader import open_reader

    return open_reader(fspath(url))
