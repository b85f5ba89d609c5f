"""Keeps pandas out of a process that has no use for it.

pyarrow imports pandas, where it is installed, as soon as it makes an array of anything: half of the time that a short
command takes. For processes of tallymark's own only; an application's imports are its own business.
"""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


class _NoPandas(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname == "pandas":
            raise ModuleNotFoundError("tallymark keeps pandas out of this process", name="pandas")
        return None


def keep_pandas_out() -> None:
    """From now on pandas counts as not installed, in this process."""
    sys.meta_path.insert(0, _NoPandas())
