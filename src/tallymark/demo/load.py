"""Visitors for the shop: real HTTP requests, about thirty a second, some more in busy minutes.

    python -m tallymark.demo.load --url http://127.0.0.1:8000

The client is a few lines over asyncio's streams, so that the demo needs no HTTP client to be installed.
"""

import argparse
import asyncio
import contextlib
import json
import math
import random
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic
from urllib.parse import urlsplit

VISITORS = 80
MAX_IN_FLIGHT = 32
BUSY_PERIOD_SECONDS = 90.0
TIMEOUT_SECONDS = 15.0
PRODUCTS = 120
SEARCHES = (
    "oak",
    "lamp",
    "steel kettle",
    "wool blanket",
    "clock",
    "glass bowl",
    "copper",
    "walnut desk",
    "sofa",
)

_CONNECTION_TROUBLE = (OSError, EOFError, asyncio.IncompleteReadError, TimeoutError)


@dataclass(frozen=True)
class Ask:
    """One request. ``abandon``: the visitor closes the page while the answer is still coming in."""

    method: str
    path: str
    body: bytes = b""
    abandon: bool = False


@dataclass
class Visitor:
    """Somebody who looks around, puts things into a cart, and sometimes pays."""

    number: int
    in_cart: int = 0
    orders: list[int] = field(default_factory=list)

    def next_ask(self) -> Ask:
        """What this visitor does next."""
        if self.in_cart and random.random() < 0.35:
            self.in_cart = 0
            return Ask("POST", f"/carts/{self.number}/checkout")
        wishes: list[tuple[float, Callable[[], Ask]]] = [
            (34, self.show_product),
            (16, self.list_products),
            (14, self.add_to_cart),
            (12, self.search),
            (7, self.show_shipping),
            (6, self.show_cart),
            (6, self.show_order),
            (1.5, self.export),
            (1.2, self.report),
            (1, self.get_lost),
        ]
        weights = [weight for weight, _ in wishes]
        return random.choices(wishes, weights)[0][1]()

    def list_products(self) -> Ask:
        return Ask("GET", f"/products?page={random.randint(1, 6)}")

    def show_product(self) -> Ask:
        return Ask("GET", f"/products/{a_product()}")

    def show_shipping(self) -> Ask:
        return Ask("GET", f"/products/{a_product()}/shipping")

    def search(self) -> Ask:
        return Ask("GET", "/search?q=" + random.choice(SEARCHES).replace(" ", "+"))

    def add_to_cart(self) -> Ask:
        self.in_cart += 1
        item = {"product": a_product(), "amount": random.choices((1, 2, 6), weights=(8, 3, 1))[0]}
        return Ask("POST", f"/carts/{self.number}/items", json.dumps(item).encode())

    def show_cart(self) -> Ask:
        return Ask("GET", f"/carts/{self.number}")

    def show_order(self) -> Ask:
        return Ask("GET", f"/orders/{random.choice(self.orders) if self.orders else 999}")

    def report(self) -> Ask:
        return Ask("GET", "/reports/sales")

    def export(self) -> Ask:
        return Ask("GET", "/export/orders.csv", abandon=random.random() < 0.2)

    def get_lost(self) -> Ask:
        return Ask("GET", random.choice(("/wp-login.php", "/.env", f"/offers/{random.randint(1, 10**6)}")))


def a_product() -> int:
    """Few products are popular, most are looked at now and then."""
    return min(PRODUCTS, 1 + int(random.paretovariate(0.6)))


class Connection:
    """One HTTP/1.1 connection that is kept open between requests."""

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def send(self, ask: Ask) -> bytes:
        """The body of the answer, empty when it was abandoned.

        Raises:
            OSError, EOFError, asyncio.IncompleteReadError: the other side is not there, or went away.
        """
        if self._streams is not None and self._streams[0].at_eof():
            self.close()  # a server does not wait for ever for the next request
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._host, self._port)
        reader, writer = self._streams
        try:
            writer.write(self._head(ask) + ask.body)
            await writer.drain()
            headers = await _read_headers(reader)
            if ask.abandon:
                self.close()
                return b""
            body = await _read_body(reader, headers)
        except BaseException:
            self.close()  # what is left unread would be taken for the next answer
            raise
        if headers.get("connection") == "close":
            self.close()
        return body

    def _head(self, ask: Ask) -> bytes:
        lines = [
            f"{ask.method} {ask.path} HTTP/1.1",
            f"host: {self._host}:{self._port}",
            "user-agent: tallymark-demo",
        ]
        if ask.method == "POST":
            lines += ["content-type: application/json", f"content-length: {len(ask.body)}"]
        return ("\r\n".join(lines) + "\r\n\r\n").encode()

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def _read_headers(reader: asyncio.StreamReader) -> dict[str, str]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    pairs = (line.split(":", 1) for line in head.split("\r\n")[1:] if ":" in line)
    return {name.lower(): value.strip().lower() for name, value in pairs}


async def _read_body(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    if headers.get("transfer-encoding") != "chunked":
        return await reader.readexactly(int(headers.get("content-length", "0")))
    body = b""
    while size := int(await reader.readuntil(b"\r\n"), 16):
        body += await reader.readexactly(size)
        await reader.readexactly(2)
    await reader.readuntil(b"\r\n")
    return body


class Crowd:
    """All visitors together: they come when they like, whether or not the shop keeps up, but never too
    many at once.
    """

    def __init__(self, host: str, port: int, requests_per_second: float) -> None:
        self._mean_rate = requests_per_second
        self._visitors = [Visitor(number) for number in range(1, VISITORS + 1)]
        self._idle = [Connection(host, port) for _ in range(MAX_IN_FLIGHT)]
        self._warned = False

    async def visit(self) -> None:
        """Send requests until cancelled."""
        began = monotonic()
        async with asyncio.TaskGroup() as requests:
            while True:
                swing = math.sin(2 * math.pi * (monotonic() - began) / BUSY_PERIOD_SECONDS)
                await asyncio.sleep(random.expovariate(self._mean_rate * (1 + swing / 3)))
                if self._idle:
                    requests.create_task(self._one(random.choice(self._visitors), self._idle.pop()))

    async def _one(self, visitor: Visitor, connection: Connection) -> None:
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                body = await connection.send(visitor.next_ask())
            with contextlib.suppress(ValueError, TypeError, KeyError):
                visitor.orders = [*visitor.orders[-4:], json.loads(body)["order"]]
        except _CONNECTION_TROUBLE as error:
            if not self._warned:
                self._warned = True
                print(f"load: the shop does not answer ({type(error).__name__}), going on", file=sys.stderr)
            await asyncio.sleep(1.0)
        finally:
            self._idle.append(connection)


async def run(url: str, requests_per_second: float) -> None:
    """Visit the shop at ``url`` until SIGINT or SIGTERM."""
    parts = urlsplit(url)
    crowd = asyncio.create_task(Crowd(parts.hostname or "127.0.0.1", parts.port or 80, requests_per_second).visit())
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, crowd.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await crowd


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tallymark.demo.load", description="Visitors for the demo's shop.")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="where the shop is (%(default)s)")
    parser.add_argument("--rate", type=float, default=30.0, help="requests per second, on average (%(default)s)")
    options = parser.parse_args()
    asyncio.run(run(options.url, options.rate))


if __name__ == "__main__":
    main()
