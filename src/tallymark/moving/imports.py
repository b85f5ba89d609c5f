"""Out of files into a store: all of them are checked first, and then what the store does not have is written."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from tallymark.moving.arrivals import Brought, bring, missing_of
from tallymark.moving.progress import Progress
from tallymark.moving.reading import SourceFile
from tallymark.privacy import PiiPolicy
from tallymark.store import Store


def check_files(
    paths: Iterable[Path], service: str | None, pii: PiiPolicy, progress: Progress
) -> list[tuple[SourceFile, int]]:
    """Read files to their ends; returns each with the number of its records.

    Args:
        service: of records that do not say it.
        pii: what becomes of texts that look like a secret or a person, in records that tallymark did not record.

    Raises:
        StoreError: one cannot be imported; the message names the file, the line and the field.
    """
    files = [SourceFile(path, service, pii) for path in paths]
    checked: list[tuple[SourceFile, int]] = []
    for file in files:
        records = 0
        for rows in file.tables():
            records += rows.num_rows
            progress(f"checking {file.path.name}", records, None)
        checked.append((file, records))
    return checked


def import_files(
    store: Store, files: Sequence[tuple[SourceFile, int]], progress: Progress, *, dry_run: bool = False
) -> list[Brought]:
    """Write what a store does not have of some files that were checked; for each file, what became of it.

    Raises:
        StoreError: the store failed, or a file has changed. What was written stays; doing it again goes on.
    """
    found = []
    for file, records in files:
        done = Brought()
        for rows in file.tables():
            if dry_run:
                missing = missing_of(store, rows)
                done.add(Brought(missing, rows.num_rows - missing))
            else:
                done.add(bring(store, rows))
            progress(f"importing {file.path.name}", done.written + done.present + len(done.refused), records)
        found.append(done)
    return found
