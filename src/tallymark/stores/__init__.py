"""The stores that tallymark ships. :func:`tallymark.store.open_store` finds them by URL."""
