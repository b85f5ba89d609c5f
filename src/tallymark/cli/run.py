"""The commands that run until they are ended: ``serve`` and ``demo``."""

import os
import shutil
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from tallymark.cli.stores import DEFAULT_STORE, DEMO_STORE, StoreArgument

PORT_HELP = "Where dashboard and API answer."


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command(short_help="Dashboard and API over a store.")(serve)
    app.command(short_help="See it work: a shop under load and its dashboard.")(demo)


def serve(
    store: StoreArgument = DEFAULT_STORE,
    host: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Any address that is not this machine's own needs keys.",
            show_default="the setting host, 127.0.0.1",
        ),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=65_535,
            metavar="PORT",
            help=f"{PORT_HELP} 0 takes a free one.",
            show_default="the setting port, 7070",
        ),
    ] = None,
    retention_days: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="DAYS",
            help="Older records are forgotten; 0 keeps them all.",
            show_default="the setting retention_days, 30",
        ),
    ] = None,
    key: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY",
            help="A key that a client must send; may be repeated. Better in TALLYMARK_KEYS, with commas: "
            "arguments can be seen by every user of the machine.",
        ),
    ] = None,
) -> None:
    """\b
    Examples:
      tallymark serve                    ./metrics at http://127.0.0.1:7070
      tallymark serve /var/lib/metrics --port 8080
      TALLYMARK_KEYS=… tallymark serve --host 0.0.0.0

    Dashboard and API over the records of a store, and its upkeep: journals are moved into Parquet, old
    records are forgotten. Applications record with or without it. Ctrl-C ends it.

    What is no option here is a setting: tallymark config show.
    """
    from tallymark.cli.output import message
    from tallymark.config import Settings
    from tallymark.server.serve import run
    from tallymark.store import open_store

    options: dict[str, Any] = {"host": host, "port": port, "retention_days": retention_days, "keys": key}
    settings = Settings(store=store, **{name: value for name, value in options.items() if value is not None})
    open_store(settings.store).close()  # what is wrong with the URL is said here, and not by the server's machinery
    run(settings, ready=lambda url: message(f"serving {settings.shown('store')} at {url}"))


def demo(
    store: Annotated[Path, typer.Option(metavar="DIR", help="Where the demo records to.")] = Path(DEMO_STORE),
    port: Annotated[int, typer.Option(min=1, max=65_535, metavar="PORT", help=PORT_HELP)] = 7070,
) -> None:
    """\b
    Examples:
      tallymark demo
      tallymark demo --port 8080 --store /tmp/demo

    The real thing, small: a server with the dashboard, a shop made with FastAPI in a process of its own,
    load on it from a third, and this machine's own CPU, memory, disk and network. Ctrl-C ends all of it;
    started again it goes on with the same folder.
    """
    from tallymark.cli.output import message
    from tallymark.demo.runner import HOST
    from tallymark.demo.runner import demo as running

    message("starting the server, the shop and its load …", "dim")
    try:
        with running(store, port) as supervisor:
            message(f"dashboard   http://{HOST}:{port}/", "bold")
            message(f"API         http://{HOST}:{port}/openapi.json")
            message(f"records     {store.resolve()}")
            message("")
            message("Try in another terminal:")
            program = _how_to_call_it()
            message(f"  {program} query {store}")
            message(f"  {program} query {store} --type api_request --window 1m --agg count,p95,error_rate")
            message(f"  {program} tail {store} -f --where success=false")
            message("")
            message("Ctrl-C ends it.", "dim")
            supervisor.wait()
    except KeyboardInterrupt:
        pass  # asked to end before everything was up
    message("ended", "dim")


def _how_to_call_it() -> str:
    """What to type in another terminal: the program's path where it is in an environment that is not active."""
    program = Path(sys.executable).with_name("tallymark")
    found = shutil.which("tallymark")
    if not program.exists() or (found is not None and Path(found) == program):
        return "tallymark"
    return os.path.relpath(program)
