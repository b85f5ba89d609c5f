"""Writes a batch into ClickHouse's engine in a process of its own; it may be killed on the way.

``python -m stores.clickhouse_writer FOLDER ROWS [REQUEST]``: killed after the request, if there is one, else it prints
what is stored.
"""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import clickhouse_connect

from stores.clickhouse_stores import Failing
from tallymark.stores.clickhouse.store import ClickHouse
from tallymark.testing.rows import DAY, JOURNALS, NOON, batch, count, row


def main() -> None:
    """The program."""
    folder, rows, kill = sys.argv[1:]

    def fault(_number: int, about: str, send: Callable[[], Any]) -> Any:
        answer = send()
        if about == kill:
            os.kill(os.getpid(), signal.SIGKILL)
        return answer

    client: Any = Failing(clickhouse_connect.get_client(interface="chdb", path=folder), fault)
    store = ClickHouse("clickhouse://host/default", client=client)
    store.write(batch([row(seq, timestamp=NOON + seq % 3 * DAY) for seq in range(int(rows))]))
    print(count(store), store.info().stored, store.positions(JOURNALS)[JOURNALS[0]])


if __name__ == "__main__":
    main()
