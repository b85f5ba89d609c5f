"""Forks children that record as fast as they can, and kills each at a random instant: nursery.py STORE KILLS SEED.

A child counts each call that has returned in memory that it shares with this process. Prints the counts, one a line.
"""

import mmap
import os
import random
import signal
import struct
import sys
import time

from tallymark import Metrics

MOST = 1_000_000
"""Records of all children together: what one query answers. On a busy machine a killer may be late."""


def record_for_ever(store: str, child: int, returned: mmap.mmap, most: int) -> None:
    metrics = Metrics(store, service="nursery", max_queue_size=50_000_000)
    metrics.start()
    counter = memoryview(returned).cast("q")  # one store; struct.pack_into clears the bytes first
    number = 0
    while number < most:
        number += 1
        metrics.record_operation("crash", f"child {child}", float(number), metadata={"child": child, "number": number})
        counter[0] = number
    while True:
        signal.pause()


def main() -> None:
    store, kills, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    chance = random.Random(seed)
    for child in range(kills):
        returned = mmap.mmap(-1, 8)
        pid = os.fork()
        if pid == 0:
            record_for_ever(store, child, returned, MOST // kills)
        # Some die before their first record, most in the middle of things.
        deadline = time.monotonic() + 30
        wanted = chance.choice((0, 1, 1, 10, 100, 1000))
        while struct.unpack_from("q", returned)[0] < wanted and time.monotonic() < deadline:
            pass
        end = time.perf_counter_ns() + chance.randrange(2_000_000)
        while time.perf_counter_ns() < end:
            pass
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        print(struct.unpack_from("q", returned)[0], flush=True)


if __name__ == "__main__":
    main()
