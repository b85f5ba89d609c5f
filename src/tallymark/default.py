"""The recorder of this process, for functions that are not given one."""

import os
import threading
from typing import TYPE_CHECKING

from tallymark.errors import ConfigError

if TYPE_CHECKING:
    from tallymark.config import Settings
    from tallymark.recorder import Metrics

_default: "Metrics | None" = None

# A thread that is forked while another one imports or makes something would find both half done for ever: a fork waits.
# A signal handler may come in on the same thread, hence the R.
_making = threading.RLock()
os.register_at_fork(before=_making.acquire, after_in_parent=_making.release, after_in_child=_making.release)


def default_metrics() -> "Metrics":
    """The recorder of this process: made from the settings and started at the first call, stopped at exit.

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
            made = _from(_settings())
            made.start()
            if _default is None:  # a signal handler that came in meanwhile may have made one, and used it
                _default = made
            else:
                made.stop()
        return _default


def _from(settings: "Settings") -> "Metrics":
    from tallymark.recorder import Metrics

    return Metrics(settings.store, service=settings.service)


def _settings() -> "Settings":
    try:
        from tallymark.config import settings
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("pydantic", "pydantic_settings"):
            raise
        raise ConfigError(
            f'settings need {error.name}, which is not installed; hint: pip install "tallymark[config]"'
        ) from None
    return settings()
