"""The program ``tallymark``; also ``python -m tallymark``."""

import sys


def main() -> None:
    """Run the command line. Without its libraries: say what to install, exit code 2."""
    try:
        from tallymark.cli import app
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in {"typer", "rich"}:
            raise
        print(
            f"error: the command line needs {error.name}, which is not installed; "
            "hint: pip install 'tallymark[server]'",
            file=sys.stderr,
        )
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    app(prog_name="tallymark")


if __name__ == "__main__":
    main()
