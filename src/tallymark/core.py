"""The compiled core where there is one; ``core`` is None where there is not, or ``TALLYMARK_PURE_PYTHON`` is set."""

import os
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tallymark import _core as core
    from tallymark._core import LaneState
else:
    core: ModuleType | None = None
    if not os.environ.get("TALLYMARK_PURE_PYTHON"):
        try:
            from tallymark import _core as core
        except ImportError:
            core = None
    if core is not None:
        LaneState = core.LaneState
    else:

        class LaneState:
            """What the writer of a lane has to know."""

            __slots__ = ("at", "buffer", "end", "heap", "series", "size")
