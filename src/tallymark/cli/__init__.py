"""The command line. Importing it is cheap: each command imports what it needs when it runs."""

import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from tallymark.cli import config, doctor, keep, move, read, review, run, runs
from tallymark.errors import QueryError, TallymarkError

EPILOG = """\b
Exit codes:
  0    done; serve and demo: ended with Ctrl-C
  1    it failed; the message says what and what to do
  2    the command or the query makes no sense
  130  ended with Ctrl-C before it was done

Data goes to stdout, messages go to stderr. TALLYMARK_DEBUG=1 shows where an error came from.
"""


class _Commands(TyperGroup):
    """Words the errors of every command the same way."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
        except TallymarkError as error:
            if os.environ.get("TALLYMARK_DEBUG"):
                raise
            from tallymark.cli.output import message

            message(f"error: {error}", style="red")
            raise typer.Exit(2 if isinstance(error, QueryError) else 1) from None
        except OSError as error:  # a file that may not be written, a full disk
            if os.environ.get("TALLYMARK_DEBUG") or isinstance(error, BrokenPipeError):
                raise
            from tallymark.cli.output import message

            message(f"error: {error}", style="red")
            # What stdout did not take, it would not take at the end either; that would be another exit code.
            with open(os.devnull, "wb") as nothing:
                os.dup2(nothing.fileno(), sys.stdout.fileno())
            raise typer.Exit(1) from None


app = typer.Typer(
    cls=_Commands,
    epilog=EPILOG,
    no_args_is_help=True,
    # Plain help: it fits any terminal, can be searched and copied, and needs no second library.
    rich_markup_mode=None,
    # Tracebacks are for bugs; then they should be Python's own.
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from tallymark import __version__

        print(f"tallymark {__version__}")
        raise typer.Exit


@app.callback()
def tallymark(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and end.")
    ] = False,
) -> None:
    """\b
    Examples:
      tallymark demo              a shop under load, and a dashboard that shows it
      tallymark query             what happened in the last hour
      tallymark tail -f           every record as it is made
      tallymark serve             dashboard and API at http://127.0.0.1:7070

    Application metrics that need no infrastructure: what the applications on this machine have recorded
    in a folder, asked and shown.
    """


run.add_to(app)
read.add_to(app)
doctor.add_to(app)
review.add_to(app)
config.add_to(app)
runs.add_to(app)
keep.add_to(app)
move.add_to(app)
