"""The program ``tallymark``; also ``python -m tallymark``."""

import sys

from tallymark.without_pandas import keep_pandas_out


def main() -> None:
    """Run the command line. Where a library is missing: say what to install, exit code 2."""
    keep_pandas_out()
    try:
        from tallymark.cli import app

        app(prog_name="tallymark")
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if library in {"", "tallymark"}:
            raise
        print(
            f"error: this needs {library}, which is not installed; hint: pip install 'tallymark[server]'",
            file=sys.stderr,
        )
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
