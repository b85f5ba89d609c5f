"""The revisions of the schema in PostgreSQL."""
