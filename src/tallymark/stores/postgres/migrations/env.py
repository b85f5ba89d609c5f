"""What Alembic runs before the revisions."""

from alembic import context

from tallymark.stores.schema import run

run(context)
