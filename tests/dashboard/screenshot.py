"""Takes the picture in the README: ``cd tests && python -m dashboard.screenshot ../docs/dashboard.png``.

A shop that has been recorded for an hour, through the real recorder, server and browser.
"""

import math
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from playwright.sync_api import sync_playwright

from tallymark import Metrics

from .conftest import BROWSERS, FLAGS, Site

SECOND = 1_000_000_000
SIZE = (1440, 1290)

# metric type, name, usual milliseconds, share of failures, per second
OPERATIONS = (
    ("api_request", "GET /products", 18.0, 0.002, 6.0),
    ("api_request", "GET /products/{id}", 9.0, 0.001, 9.0),
    ("api_request", "GET /search", 95.0, 0.006, 2.4),
    ("api_request", "POST /cart", 34.0, 0.004, 2.2),
    ("api_request", "POST /checkout", 240.0, 0.02, 0.7),
    ("api_request", "GET /orders/{id}", 22.0, 0.003, 1.1),
    ("stage", "render_invoice", 420.0, 0.004, 0.3),
    ("stage", "resize_image", 780.0, 0.01, 0.25),
    ("postgres", "select products", 3.1, 0.0005, 9.0),
    ("postgres", "insert order", 7.2, 0.002, 0.7),
    ("cache", "get", 0.25, 0.0, 6.0),
)


def shop_second(metrics: Metrics, second: int, chance: random.Random) -> None:
    """What a shop and its machine record in one second."""
    load = 1 + 0.35 * math.sin(second / 700) + 0.12 * math.sin(second / 97)
    busy = 1 + 1.6 * math.exp(-(((second % 3_600) - 2_300) ** 2) / 20_000)
    for kind, name, usual, failing, rate in OPERATIONS:
        for moment in arrivals(rate * load, chance):
            metrics.ingest(
                kind,
                name,
                usual * busy * chance.lognormvariate(0, 0.5),
                "ms",
                timestamp=int((second + moment) * SECOND),
                success=chance.random() >= failing * busy**2,
            )
    if second % 5:
        return
    used = 31 + 3 * math.sin(second / 1_400)
    for name, value, unit in (
        ("cpu_percent", min(24 * load * busy + chance.gauss(0, 3), 100), "%"),
        ("cpu_count", 8, "1"),
        ("memory_percent", used, "%"),
        ("memory_used_mb", used * 163.84, "MiBy"),
        ("memory_total_mb", 16_384, "MiBy"),
        ("disk_used_gb", 212.4, "GiBy"),
        ("disk_total_gb", 480, "GiBy"),
        ("disk_read_mb", chance.lognormvariate(0, 0.6), "MiBy"),
        ("disk_write_mb", load * chance.lognormvariate(1, 0.4), "MiBy"),
        ("network_sent_mb", load * chance.lognormvariate(2, 0.15), "MiBy"),
        ("network_received_mb", load * chance.lognormvariate(1, 0.15), "MiBy"),
    ):
        metrics.ingest("system", name, float(value), unit, timestamp=second * SECOND, service="tallymark")
    waiting = float(round(max(0.0, 6 * busy * load + chance.gauss(0, 2))))
    metrics.ingest("queue", "orders waiting", waiting, timestamp=second * SECOND)
    metrics.ingest("cache", "hit_rate", 92 + chance.gauss(0, 1), "%", timestamp=second * SECOND)


def arrivals(rate: float, chance: random.Random) -> Iterator[float]:
    """Moments within a second."""
    moment = chance.expovariate(rate)
    while moment < 1:
        yield moment
        moment += chance.expovariate(rate)


def main(picture: str, dark: bool) -> None:
    """Record, serve, look, save."""
    chance = random.Random(7)
    with tempfile.TemporaryDirectory() as folder, Metrics(f"{folder}/metrics", service="shop") as metrics:
        second = int(time.time()) - 3_700
        while second < time.time():  # to record an hour takes some seconds itself
            shop_second(metrics, second, chance)
            second += 1
        site = Site(Path(folder) / "metrics")
        site.start()
        with sync_playwright() as playwright:
            path = next(filter(None, map(shutil.which, BROWSERS)))
            browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
            page = browser.new_page(
                viewport={"width": SIZE[0], "height": SIZE[1]},
                color_scheme="dark" if dark else "light",
                reduced_motion="reduce",
            )
            page.goto(f"{site.url}#range=1h")
            page.locator("#operations tbody tr").first.wait_for()
            page.screenshot(path=picture)
            browser.close()
        site.stop()


if __name__ == "__main__":
    main(sys.argv[1], dark="--dark" in sys.argv)
