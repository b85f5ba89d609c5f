"""The schema of a SQLite store: revisions that only add; see :mod:`tallymark.stores.schema`."""

import sqlite3
from pathlib import Path
from typing import Any

from alembic import op


def run_file(name: str) -> None:
    """Run the statements of an SQL file beside this module, in the transaction that is open."""
    connection: Any = op.get_bind().connection.driver_connection
    statement = ""
    for line in (Path(__file__).parent / name).read_text("utf-8").splitlines(keepends=True):
        statement += line
        # Not executescript, which would commit.
        if sqlite3.complete_statement(statement):
            connection.execute(statement)
            statement = ""
    assert not statement.strip()
