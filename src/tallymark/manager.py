"""MetricsManager: the recorder under the names that the interface documents give to its settings.

manager = MetricsManager(storage_path="./metrics", flush_interval_seconds=5.0, max_batch_size=1000)
await manager.start()
await manager.record_operation("api_request", "GET /users", 42.5)
await manager.stop()
"""

from os import PathLike

from tallymark.recorder import Metrics


class MetricsManager(Metrics):
    """As :class:`tallymark.Metrics`, with the documents' arguments and defaults.

    Args:
        storage_path: the folder, or the URL of a store.
        flush_interval_seconds: how often the recorder looks whether a batch is due.
        max_batch_size: how many waiting records make a batch due.
        max_queue_size: how many records may wait (rounded up to whole files of the journal); further ones are dropped
            and counted.

    Raises:
        ConfigError: an argument is not valid.
    """

    def __init__(
        self,
        storage_path: str | PathLike[str],
        flush_interval_seconds: float = 5.0,
        max_batch_size: int = 1000,
        max_queue_size: int = 10_000,
    ) -> None:
        super().__init__(
            storage_path,
            flush_interval_seconds=flush_interval_seconds,
            max_batch_size=max_batch_size,
            max_queue_size=max_queue_size,
        )
