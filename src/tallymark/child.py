"""The child process that ships. Apart from who starts it, because ``subprocess`` is loaded only where one is."""

import contextlib
import os
import subprocess


class Child(subprocess.Popen[bytes]):
    """It may outlive the application, or whoever waited for it: no warnings about that.

    Args:
        number: which of those it is that its owner has started.
    """

    def __init__(self, command: list[str], environment: dict[str, str], number: int) -> None:
        self.number = number
        super().__init__(
            command,
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C in the application's terminal is not meant for it
        )

    def end_within(self, seconds: float) -> None:
        """Wait for its end, but not longer than that."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(seconds)

    def complaint(self) -> str:
        """What it had to say when it ended."""
        if self.stderr is None or self.stderr.closed:
            return ""
        with self.stderr:
            return self.stderr.read().decode(errors="replace").strip()[-2000:]

    def __del__(self) -> None:
        if self.stderr:
            self.stderr.close()
        super().__del__(_warn=lambda *_, **__: None)  # type: ignore[call-arg]
