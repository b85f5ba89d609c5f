"""Stores in PostgreSQL, each in a database of its own."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from services.postgres import postgres_server

from tallymark.stores.postgres.store import Postgres

KEPT = 3
"""So many stores may be in use at once. A new database takes eight megabytes in many files."""

_EMPTIED = """
DO $$
DECLARE part text;
BEGIN
    FOR part IN SELECT inhrelid::regclass FROM pg_inherits WHERE inhparent = 'tallymark.records'::regclass LOOP
        EXECUTE 'DROP TABLE ' || part;
    END LOOP;
END
$$;
TRUNCATE tallymark.positions, tallymark.parts, tallymark.rollups;
UPDATE tallymark.books SET count = 0
"""


class Databases:
    """Those of a server."""

    def __init__(self, server: str) -> None:
        self.server = server
        self._prepared: list[str] = []

    def empty(self) -> str:
        """The URL of a new database, without anything."""
        name = f"t{uuid.uuid4().hex}"
        with psycopg.connect(self.server, autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE {name} TEMPLATE template0 LC_COLLATE "C.UTF-8" LC_CTYPE "C.UTF-8"')
        return self.server.rpartition("/")[0] + "/" + name

    def prepared(self) -> str:
        """The URL of a database with the schema of a store, but nothing in it: by turns one of a few."""
        if len(self._prepared) < KEPT:
            url = self.empty()
            with Postgres(url) as store:
                store._see_to_schema()
        else:
            url = self._prepared.pop(0)
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute(_EMPTIED)
        self._prepared.append(url)
        return url


@contextmanager
def databases(*settings: str) -> Iterator[Databases]:
    """A server for them."""
    with postgres_server(*settings) as url:
        yield Databases(url)
