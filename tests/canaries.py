"""One secret of each kind, and how every byte is searched for them."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import httpx
import pyarrow.parquet
import pytest
from recording import live, stored

CANARIES = {
    "private_key": (
        "-----BEGIN " + "PRIVATE KEY-----\nMIICanaryCanaryCanary\n-----END PRIVATE KEY-----",
        "CanaryCanary",
    ),
    "jwt": ("ey" + "JhbGciOiJIUzI1NiJ9.eyJjYW5hcnkiOiJjYW5hcnkifQ.Y2FuYXJ5Y2FuYXJ5", "eyJjYW5hcnki"),
    "cloud_key": ("AK" + "IACANARYCANARY0000", "CANARYCANARY0000"),
    "bearer_token": ("Bearer canary0canary0canary0", "canary0canary0"),
    "password": ("amqp://app:canary!pw@broker/", "canary!pw"),
    "email": ("canary.bird@example.com", "canary.bird"),
    "iban": ("GB82 WEST 1234 5698 7654 32", "1234 5698 7654"),
    "card": ("5105 1051 0510 5100", "1051 0510"),
}
"""Of each rule: a text, and what of it must not be found."""

TEXTS = [text for text, _ in CANARIES.values()]

# What the application says to its own log; and what uvicorn writes only where somebody listens, as pytest does here.
_NOT_OURS = ("tallymark.events", "uvicorn.access")


def one_line(text: str) -> str:
    return text.replace("\n", " ")


def in_path(text: str) -> str:
    return one_line(text).replace("/", "")


def spellings(needle: str) -> set[str]:
    """As it may stand in JSON, in a URL, or without its spaces."""
    return {needle, json.dumps(needle)[1:-1], str(httpx.QueryParams({"q": needle}))[2:], needle.replace(" ", "")}


NEEDLES = {spelling for _, needle in CANARIES.values() for spelling in spellings(needle)}


def assert_no_canary(text: str | bytes, where: str) -> None:
    found = [n for n in NEEDLES if (n in text if isinstance(text, str) else n.encode() in text)]
    assert found == [], f"{found} in {where}"


def assert_nothing_is_kept(folder: Path) -> None:
    """Neither in a file, byte by byte, nor in what the files say, nor in what is read through tallymark."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    for path in files:
        assert_no_canary(str(path.name).encode() + path.read_bytes(), str(path))
        if path.suffix == ".parquet":
            assert_no_canary(str(pyarrow.parquet.read_table(path).to_pylist()), str(path))
    for row in live(folder):
        assert_no_canary(str(row), f"the journals: {row}")
    for record in stored(folder):
        assert_no_canary(str(record), f"the records: {record}")


def assert_nothing_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Neither by tallymark nor by what serves it."""
    for record in caplog.records:
        if record.name.split(".")[0] in ("tallymark", "uvicorn") and record.name not in _NOT_OURS:
            assert_no_canary(f"{logging.Formatter().format(record)} {record.args}", f"the log: {record}")


def refused(call: Callable[[], object]) -> None:
    """The call has to fail, and to say no more than it may."""
    with pytest.raises(ValueError, match=r"\S") as caught:
        call()
    assert_no_canary(str(caught.value), "the error")
