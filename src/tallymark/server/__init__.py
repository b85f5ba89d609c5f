"""The server: REST, live dashboard, upkeep of the store. Needs the extra ``server``."""

try:
    from tallymark.server.app import create_app, mount
except ModuleNotFoundError as missing:
    if (missing.name or "").partition(".")[0] == "tallymark":
        raise
    hint = 'hint: pip install "tallymark[server]"'
    raise ModuleNotFoundError(f"the server needs {missing.name}; {hint}", name=missing.name) from None

__all__ = ["create_app", "mount"]
