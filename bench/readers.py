"""A hundred readers of a server while records arrive: whether all are answered, how soon, and whether any is lost."""

import contextlib
import http.client
import json
import os
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Iterator
from tempfile import TemporaryDirectory
from typing import Final

import tallymark
from bench import Row, workload

READERS: Final = 100
ROUTES: Final = 10
RATE: Final = 50_000
EVERY_SECONDS: Final = 1.0
"""So long each reader rests between an answer and the next question."""

# Records at a steady rate until its input ends, then says what it recorded, what was dropped, and how fast it was.
WRITER: Final = """
import sys, threading, time
from bench import workload
from tallymark import Metrics
calls = workload.Calls(500)
ended = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
with Metrics(sys.argv[1], service="shop") as metrics:
    started, number = time.perf_counter(), 0
    print("ready", flush=True)
    while not ended.is_set():
        calls.make(metrics.record_operation)
        number += 1
        time.sleep(max(0.0, started + number * 500 / int(sys.argv[2]) - time.perf_counter()))
    seconds = time.perf_counter() - started
    stats = metrics.get_stats()
print(stats.total_recorded, sum(stats.dropped.values()), number * 500 / seconds, flush=True)
"""


def run(quick: bool = False) -> list[Row]:
    """A real server, a process that records, and readers with a connection each, all on one machine.

    A question is a chart of one route over the last hour by minutes. The readers ask about ten routes.
    """
    with TemporaryDirectory(prefix="tallymark-bench-") as folder, _serving(folder) as (host, port):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, folder, str(RATE)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as writer:
            assert writer.stdin
            assert writer.stdout
            writer.stdout.readline()
            _warm_up(host, port)
            readers = [Reader(host, port, number) for number in range(READERS)]
            time.sleep(8 if quick else 40)
            for reader in readers:
                reader.ending.set()
            for reader in readers:
                reader.join()
            writer.stdin.close()
            recorded, dropped, rate = map(float, writer.stdout.readline().split())
        with tallymark.open(folder) as lake:
            (found,) = lake.query(service="shop", agg=["count"]).rows()
    times = sorted(ms for reader in readers for ms in reader.ms)
    failed = [problem for reader in readers for problem in reader.problems]
    note = f"{len(times):,} answers; median {times[len(times) // 2]:.0f} ms; {rate:,.0f} records/s came in meanwhile"
    return [
        Row(
            f"{READERS} readers of the last hour, 99th percentile",
            times[len(times) * 99 // 100],
            "ms",
            limit=1_000,
            note=note,
        ),
        Row(
            "the same, questions that were not answered", len(failed), "", limit=0, note="; ".join(sorted(set(failed)))
        ),
        Row(
            "the same, records dropped or not found afterwards",
            dropped + recorded - dropped - found["count"],
            "",
            limit=0,
            note=f"of {recorded:,.0f}",
        ),
    ]


class Reader(threading.Thread):
    """Asks, rests, and asks again."""

    def __init__(self, host: str, port: int, number: int) -> None:
        super().__init__(daemon=True)
        self.ms: list[float] = []
        self.problems: list[str] = []
        self.ending = threading.Event()
        self._connection = http.client.HTTPConnection(host, port, timeout=60)
        asked = {"since": "now-1h", "window": "1m", "where": f'name="{workload.ROUTES[number % ROUTES]}"'}
        self._path = f"/api/v1/query?{urllib.parse.urlencode(asked)}&agg=count&agg=p50&agg=p95&agg=error_rate"
        self._rest = EVERY_SECONDS * number / READERS  # they do not all begin at once
        self.start()

    def run(self) -> None:
        while not self.ending.wait(self._rest):
            self._rest = EVERY_SECONDS
            started = time.perf_counter()
            try:
                self._connection.request("GET", self._path)
                answer = self._connection.getresponse()
                body = answer.read()
            except OSError as error:
                self.problems.append(type(error).__name__)
            else:
                if answer.status == 200 and "columns" in json.loads(body):
                    self.ms.append((time.perf_counter() - started) * 1e3)
                else:
                    self.problems.append(f"status {answer.status}")
        self._connection.close()


def _warm_up(host: str, port: int) -> None:
    """One question: the server loads DuckDB for it."""
    connection = http.client.HTTPConnection(host, port, timeout=60)
    with contextlib.closing(connection):
        connection.request("GET", "/api/v1/query?agg=p50&window=1m")
        connection.getresponse().read()


@contextlib.contextmanager
def _serving(folder: str) -> Iterator[tuple[str, int]]:
    """A server on a folder, and where it listens."""
    command = [sys.executable, "-m", "tallymark", "serve", folder, "--port", "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ
    ) as server:
        try:
            assert server.stdout
            url = next(word for line in server.stdout for word in line.split() if word.startswith("http://"))
            place = urllib.parse.urlsplit(url)
            assert place.hostname
            assert place.port
            yield place.hostname, place.port
        finally:
            server.terminate()
