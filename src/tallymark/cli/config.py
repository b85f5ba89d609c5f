"""The command ``config``: what is set, and where."""

import json
from typing import Annotated, Any

import typer


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    group = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
    group.callback()(config)
    group.command(short_help="Every setting, its value and its origin.")(show)
    app.add_typer(group, name="config", short_help="The settings, and where each comes from.")


def config() -> None:
    """\b
    Examples:
      tallymark config show

    The settings. They come from arguments, from the environment (TALLYMARK_STORE and so on), from
    tallymark.toml or pyproject.toml in this folder, or from the file that TALLYMARK_CONFIG names.
    """


def show(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, on stdout.")] = False,
) -> None:
    """\b
    Examples:
      tallymark config show
      tallymark config show --json | jq .store.origin
      TALLYMARK_PORT=8080 tallymark config show

    Every setting as the commands of this folder find it, and where its value comes from. Secrets are
    masked; of a URL only the password is, unless it cannot be told which part that is.
    """
    from tallymark.cli.output import print_json, print_table
    from tallymark.config import Settings, settings

    found = settings()
    values = {name: (found.shown(name), found.origin(name)) for name in Settings.model_fields}
    if as_json:
        print_json({name: {"value": value, "origin": origin} for name, (value, origin) in values.items()})
        return
    print_table(
        ("setting", "value", "origin"),
        [{"setting": name, "value": _text(value), "origin": origin} for name, (value, origin) in values.items()],
    )


def _text(value: Any) -> str | None:
    """The value as it is written in the environment."""
    if isinstance(value, list):
        return ", ".join(map(str, value)) or None
    if isinstance(value, dict):
        return ", ".join(f"{name}={given}" for name, given in value.items()) or None
    return value if value is None or isinstance(value, str) else json.dumps(value)
