"""What the process around a recorder says where its arguments do not."""

import os
import sys
from typing import Final

OFF: Final = frozenset(("false", "f", "0", "no", "n", "off"))
"""The words of the environment that switch off."""


def is_off(word: str) -> bool:
    """Whether a word of the environment switches off; the settings read theirs so, too."""
    return word.strip().lower() in OFF


def is_enabled() -> bool:
    """Whether the environment leaves recording switched on."""
    return not is_off(os.environ.get("TALLYMARK_ENABLED") or os.environ.get("ENABLE_METRICS") or "")


def program_name() -> str:
    """The name of the program: of the script, or of the package after ``python -m``."""
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    if spec is not None and spec.name:
        return str(spec.name).removesuffix(".__main__")
    name = os.path.splitext(os.path.basename(sys.argv[0] if sys.argv else ""))[0]
    return "python" if name in ("", "-c") else name
