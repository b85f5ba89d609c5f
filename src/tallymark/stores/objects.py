"""The table of a lake in an object store: how deltalake is to use it, and its Parquet files as DuckDB reads them.

Credentials and endpoint come from the usual environment variables (``AWS_…``); they are in no URL and no message.
"""

import os
import re
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Final

import pyarrow as pa

from tallymark.batch import SCHEMA

if TYPE_CHECKING:
    from pyarrow.dataset import Dataset, Fragment
    from pyarrow.fs import S3FileSystem

_CONNECT_SECONDS: Final = 5
_REQUEST_SECONDS: Final = 30

OPTIONS: Final = {
    # A commit is a file that must not exist yet: what keeps several writers apart.
    "aws_conditional_put": "etag",
    "connect_timeout": f"{_CONNECT_SECONDS}s",
    "timeout": f"{_REQUEST_SECONDS}s",
    "retry_timeout": f"{_REQUEST_SECONDS}s",  # who ships tries again anyhow, who asks wants to know
}
"""deltalake's storage options. What is not said here it takes from the environment."""

_KNOWN_FILES: Final = 10_000
"""Of how many files the footers are kept: some kilobytes each."""

_LONGEST: Final = 1_000
_COLOURS: Final = re.compile(r"\x1b\[[0-9;]*m")
_USER: Final = re.compile(r"//[^/\s]*@")


def said(error: Exception) -> str:
    """The message of a driver as one line of bounded length, without colours and passwords."""
    text = " ".join(_COLOURS.sub("", str(error)).replace("↳", ":").split())
    return _USER.sub("//***@", text)[:_LONGEST]


SCANNED: Final = ", ".join(
    f"concat({field.name}, '') AS {field.name}" if field.type == pa.string() and not field.nullable else field.name
    for field in SCHEMA
)
"""Every column of a record, as SQL over :meth:`Objects.dataset`. This keeps conditions on texts from Arrow (those on
columns that may be null are kept from it anyhow): it fails on the files that deltalake writes anew for a deletion,
whose texts are of its type ``string_view``, unlike those of others.
"""


class Objects:
    """The Parquet files of one table, by their URLs. Any method may be called from any thread.

    DuckDB's own reader of object stores is no part of its package. Arrow's scanner is told the columns and the time
    range of a query by DuckDB, and reads no more than the row groups that may match. The file system is Arrow's too:
    that of deltalake holds Python's lock while it waits for the network.

    Attributes:
        sizes: of the files, in bytes, where they are known; it saves a request for each.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self.sizes: Mapping[str, int] = {}
        self._fragment = lru_cache(_KNOWN_FILES)(self._make_fragment)

    @cached_property
    def _files(self) -> "S3FileSystem":
        from pyarrow.fs import AwsStandardS3RetryStrategy, S3FileSystem

        # As deltalake understands them; for credentials both have the same rules.
        names = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT"), ("AWS_REGION", "AWS_DEFAULT_REGION")
        endpoint, region = (next(filter(None, map(os.environ.get, some)), None) for some in names)
        return S3FileSystem(
            endpoint_override=endpoint,
            region=region,
            connect_timeout=_CONNECT_SECONDS,
            request_timeout=_REQUEST_SECONDS,
            retry_strategy=AwsStandardS3RetryStrategy(max_attempts=3),
        )

    def _make_fragment(self, file: str) -> "Fragment":
        from pyarrow.dataset import ParquetFileFormat

        # It keeps the footer once it has been read: files of a table never change.
        path = file.removeprefix("s3://")
        return ParquetFileFormat().make_fragment(path, filesystem=self._files, file_size=self.sizes.get(file))

    def dataset(self, files: Sequence[str]) -> "Dataset":
        """Some files of the table as one relation. It reads nothing yet."""
        from pyarrow.dataset import FileSystemDataset, ParquetFileFormat

        return FileSystemDataset(list(map(self._fragment, files)), SCHEMA, ParquetFileFormat(), self._files)

    def listing(self) -> list[str]:
        """All Parquet files below the table, those of its log aside."""
        from pyarrow.fs import FileSelector

        # A folder without an object is not there.
        folder = FileSelector(self._url.removeprefix("s3://"), allow_not_found=True, recursive=True)
        found = self._files.get_file_info(folder)
        urls = [f"s3://{file.path}" for file in found if file.path.endswith(".parquet")]
        return [url for url in urls if not url.startswith(f"{self._url}/_delta_log/")]
