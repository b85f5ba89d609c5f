"""The recorder of this process, for functions that are not given one."""

import logging  # noqa: F401 - what it does around a fork, it must do around all of a fork that waits here
import os
import threading
from typing import TYPE_CHECKING

from tallymark.errors import ConfigError

if TYPE_CHECKING:
    from tallymark.config import Settings
    from tallymark.recorder import Metrics

_default: "Metrics | None" = None

# A child that is forked while another thread imports something would find it half done for ever: a fork waits. The R is
# for signal handlers, which come in on the same thread: an error is better than waiting for ever.
_making = threading.RLock()
os.register_at_fork(before=_making.acquire, after_in_parent=_making.release, after_in_child=_making.release)


def default_metrics() -> "Metrics":
    """The recorder of this process: made from the settings and started at the first call, stopped at exit.

    Any thread may call it, and a forked child has its own. Where signal handlers or finalisers do, call it when the
    program starts too: the first call imports modules, and they may come in on one that is half imported.

    Raises:
        ConfigError: a setting is not valid, or the package that reads them is missing.
    """
    return _default or _make()


def set_default(metrics: "Metrics | None") -> None:
    """Have :func:`default_metrics` return this recorder; with None the next call makes one from the settings.

    Neither this recorder nor the one before it is started or stopped.
    """
    global _default
    with _making:
        _default = metrics


def _make() -> "Metrics":
    global _default
    with _making:
        if _default is None:
            made = _from(load_settings())
            made.start()
            _default = made
        return _default


def _from(settings: "Settings") -> "Metrics":
    from tallymark.recorder import Metrics

    return Metrics(settings.store, service=settings.service, enabled=settings.enabled, pii=settings.pii)


def load_settings() -> "Settings":
    """The settings of this process.

    Raises:
        ConfigError: a setting is not valid, or the package that reads them is missing.
    """
    try:
        from tallymark.config import settings
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "pydantic":
            raise
        raise ConfigError(
            f'settings need {error.name}, which is not installed; hint: pip install "tallymark[config]"'
        ) from None
    return settings()
