"""Records, positions, books and views."""

from pathlib import Path

from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make them."""
    driver = op.get_bind().connection.driver_connection
    assert driver is not None
    for name in ("0001_records.sql", "0001_views.sql"):
        # By the driver itself: SQLAlchemy would take what follows a colon for a parameter.
        driver.execute((Path(__file__).parent.parent / name).read_text("utf-8"))
