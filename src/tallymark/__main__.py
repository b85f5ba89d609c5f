"""The program ``tallymark``; also ``python -m tallymark``."""

import io
import os
import signal
import sys
from types import FrameType

INTERRUPTED = 130


def main() -> None:
    """Run the command line. Where a library is missing: say what to install, exit code 2."""
    _settle_streams()
    # An exception in the middle of an import comes out as anything, with a traceback: until there is something that
    # could be left half done, Ctrl-C ends the program at once. Where it is ignored (nohup) it stays so.
    is_ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if is_ours:
        signal.signal(signal.SIGINT, _end)
    try:
        from tallymark.without_pandas import keep_pandas_out

        keep_pandas_out()
        from tallymark.cli import app

        if is_ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
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
        sys.exit(INTERRUPTED)
    except RuntimeError as error:
        # What Python makes of Ctrl-C while a command's imports define a class.
        if isinstance(error.__cause__, KeyboardInterrupt):
            sys.exit(INTERRUPTED)
        raise


def _settle_streams() -> None:
    """Both streams are there, and take all that they are given."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by who started this
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream.buffer, io.RawIOBase):
            # PYTHONUNBUFFERED is set: a write may then be short, and what is left of it is lost.
            kept = {"encoding": stream.encoding, "errors": stream.errors}
            setattr(sys, name, open(stream.fileno(), "w", buffering=1, closefd=False, **kept))  # noqa: SIM115


def _end(number: int, frame: FrameType | None) -> None:
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    main()
