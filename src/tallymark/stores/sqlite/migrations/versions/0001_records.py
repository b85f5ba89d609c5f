"""Records, positions, books and views."""

from tallymark.stores.sqlite.migrations import run_file

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make them."""
    run_file("0001_records.sql")
    run_file("0001_views.sql")
