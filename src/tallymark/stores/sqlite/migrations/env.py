"""What Alembic runs before the revisions."""

from alembic import context

from tallymark.stores.sqlite.link import VERSION_TABLE

# A version table of its own: the file may belong to an application that has one too.
context.configure(connection=context.config.attributes["connection"], version_table=VERSION_TABLE)
with context.begin_transaction():
    context.run_migrations()
