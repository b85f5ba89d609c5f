"""The schema of an SQL store: numbered revisions, brought up to date with Alembic.

Who writes to a store looks at its revision first, with a plain SELECT and without Alembic: a shipping child starts
every few seconds, and Alembic with SQLAlchemy takes as long to load as all the rest of it. Only a store that is behind
comes here.

A folder of revisions has ``env.py``, which calls :func:`run`, and ``versions/``. Revisions are named 0001, 0002, … and
only add: columns that may be null or have a default, tables, indexes, views. So older applications keep writing while a
newer one upgrades the store, and afterwards.
"""

from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Final

from tallymark.errors import StoreError

if TYPE_CHECKING:
    from sqlalchemy import Connection

VERSION_TABLE: Final = "alembic_version"
"""Has one row and one column, ``version_num``."""

_upgrading: Final = Lock()


def upgrade(connection: "Connection", revisions: Path, schema: str | None = None, to: str = "head") -> None:
    """Bring a store to the newest revision, or to another, in the transaction of the connection.

    The caller keeps others from doing so at the same time, and commits.

    Args:
        revisions: their folder.
        schema: where the version table is, for databases that have schemas.

    Raises:
        StoreError: Alembic is not installed.
    """
    try:
        from alembic import command
        from alembic.config import Config
    except ModuleNotFoundError as missing:
        hint = 'hint: pip install "tallymark[sqlite]", or "tallymark[postgres]"'
        raise StoreError(f"to make this store, or to upgrade it, takes the package {missing.name}; {hint}") from missing

    config = Config(attributes={"connection": connection, "schema": schema})
    config.set_main_option("script_location", str(revisions).replace("%", "%%"))
    with _upgrading:  # Alembic keeps what it is at in variables of its modules
        command.upgrade(config, to)


def run(context: Any) -> None:
    """Run the revisions that are missing; for ``env.py``, which gives it ``alembic.context``."""
    attributes = context.config.attributes
    context.configure(
        connection=attributes["connection"],
        version_table=VERSION_TABLE,
        version_table_schema=attributes["schema"],
    )
    with context.begin_transaction():
        context.run_migrations()
