"""The server: REST, live dashboard, upkeep of the store. Needs the extra ``server``."""

from tallymark.server.app import create_app, mount

__all__ = ["create_app", "mount"]
