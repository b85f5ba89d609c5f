"""What ``python -m bench.stores`` measured, kept beside this file, and the page that is made of it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

FILE: Final = Path(__file__).with_name("stores.json")
PAGE: Final = Path(__file__).parent.parent / "docs" / "scaling.md"


@dataclass(frozen=True)
class Measured:
    """One store with so many records.

    Attributes:
        store: its name.
        records: how many.
        on: the day of the measurement.
        cores: those of the machine.
        load: processes ready to run on the machine, on the average of the last minute, when it was over.
        rate: records/s that it took, in batches of a shipper.
        write_us: µs of CPU that a record took until it was stored, client and server together.
        upkeep_us: µs of CPU that a record took afterwards, for what keeps the store small and fast.
        bytes: on the disk, of a record, afterwards.
        written: bytes that were written to the disk for a record: logs, indexes and all that was written again.
        few_ms: what a write of :data:`FEW` records takes.
        few_cpu_ms: and its CPU.
        wire: bytes of a record as Arrow hands it to a driver.
        queries: ms of each, by its name; None where it failed.
        part_cpu_ms: of ClickHouse: CPU that a part takes, beside what its records take.
        merge_cpu_ms: and to merge it.
    """

    store: str
    records: int
    on: str
    cores: int
    load: float
    rate: float
    write_us: float
    upkeep_us: float
    bytes: float
    written: float
    few_ms: float
    few_cpu_ms: float
    wire: float
    queries: dict[str, float | None]
    part_cpu_ms: float | None = None
    merge_cpu_ms: float | None = None

    @property
    def cpu_us(self) -> float:
        """µs of CPU for a record, all told."""
        return self.write_us + self.upkeep_us


FEW: Final = 100
"""Records of a small write: what is left of it is what every write costs."""


def kept(file: Path = FILE) -> list[Measured]:
    """Everything that was measured, the newest of each store and number."""
    return msgspec.json.decode(file.read_bytes(), type=list[Measured]) if file.exists() else []


def keep(news: list[Measured], order: tuple[str, ...], file: Path = FILE) -> list[Measured]:
    """Put new figures in place of old ones; everything that is kept then."""
    all_of_them = {(each.store, each.records): each for each in (*kept(file), *news)}
    rows = sorted(all_of_them.values(), key=lambda each: (order.index(each.store), each.records))
    file.write_bytes(msgspec.json.format(msgspec.json.encode(rows), indent=1) + b"\n")
    return rows


def marks(name: str) -> tuple[str, str]:
    """What a part of the page is between."""
    return f"<!-- begin of what `python -m {name} --write` wrote -->", f"<!-- end of {name} -->"


def replaced(text: str, name: str, lines: list[str]) -> str:
    """A page with other lines between the marks.

    Raises:
        ValueError: the marks are not there.
    """
    begin, end = marks(name)
    before, found, rest = text.partition(begin)
    _, ended, after = rest.partition(end)
    if not found or not ended:
        raise ValueError(f"the page has no part of {name}")
    return "\n".join([f"{before}{begin}", *lines, f"{end}{after}"])


def put(name: str, lines: list[str]) -> None:
    """Put lines into the page."""
    PAGE.write_text(replaced(PAGE.read_text("utf-8"), name, lines), "utf-8")


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Lines of Markdown; the first column is text, the others are figures."""
    return [
        f"| {' | '.join(head)} |",
        f"| --- |{' ---: |' * (len(head) - 1)}",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]
