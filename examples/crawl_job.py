"""A crawl job that is measured: it downloads pages, validates them, and uploads what is valid.

pip install "tallymark[server]"
python examples/crawl_job.py          # prints what took how long, and where to look

The pages come from a small server that this program starts itself; one page in ten is missing, and one in ten is no
page. Uploading means writing to a folder.
"""

import argparse
import asyncio
import threading
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager
from functools import partial
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TypeVar

from tallymark import Metrics
from tallymark.pipeline import PipelineRun, ResourceMonitor
from tallymark.processing import MetricsCollector

AT_ONCE = 8

Item = TypeVar("Item")
Result = TypeVar("Result")


class CrawlJob:
    """One job: three phases, each over everything that the one before it left over."""

    def __init__(self, metrics: Metrics, run: PipelineRun, uploads: Path) -> None:
        self.collector = MetricsCollector(metrics, service_name="crawler")
        self.run = run
        self.uploads = uploads

    async def crawl(self, addresses: Sequence[str]) -> int:
        """Download, validate and upload; returns how many pages made it."""
        metadata = {"job": self.run.run_id, "pages": len(addresses)}
        async with self.collector.track_operation("total", metadata):
            pages = await self.phase("download", self.download, addresses)
            titles = await self.phase("validation", self.validate, pages)
            uploaded = await self.phase("upload", self.upload, titles)
        await self.collector.record_success_rate("job", len(uploaded), len(addresses), metadata)
        return len(uploaded)

    async def phase(self, name: str, work: Callable[[Item], Awaitable[Result]], items: Sequence[Item]) -> list[Result]:
        """Do something with every item, a few at once: each is a pass of a stage, all of them are timed together."""
        places = asyncio.Semaphore(AT_ONCE)

        async def one(item: Item) -> Result:
            async with places, self.run.stage(name):
                return await work(item)

        async with self.collector.track_operation(name, {"job": self.run.run_id}):
            done = await asyncio.gather(*map(one, items), return_exceptions=True)
        good = [result for result in done if not isinstance(result, BaseException)]
        await self.collector.record_success_rate(name, len(good), len(items), {"job": self.run.run_id})
        return good

    async def download(self, address: str) -> bytes:
        return await asyncio.to_thread(_read, address)

    async def validate(self, page: bytes) -> tuple[str, bytes]:
        """The title of a page, and the page; ValueError where it is none."""
        parser = _Title()
        parser.feed(page.decode("utf-8"))
        if not parser.title:
            raise ValueError("the page has no title")
        return parser.title, page

    async def upload(self, titled: tuple[str, bytes]) -> Path:
        title, page = titled
        path = self.uploads / f"{title.replace(' ', '-').lower()}.html"
        await asyncio.to_thread(path.write_bytes, page)
        return path


class _Title(HTMLParser):
    """Finds the title of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.title = ""
        self._inside = False

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self._inside = tag == "title"

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.title += data

    def handle_endtag(self, tag: str) -> None:
        self._inside = False


def _read(address: str) -> bytes:
    with urllib.request.urlopen(address, timeout=30) as answer:
        content: bytes = answer.read()
        return content


class _Pages(BaseHTTPRequestHandler):
    """Page 3, 13, 23, … are missing; 7, 17, 27, … are no pages."""

    def do_GET(self) -> None:
        number = int(self.path.rpartition("/")[2])
        if number % 10 == 3:
            self.send_error(404)
            return
        text = "no page" if number % 10 == 7 else f"<title>Page {number}</title>{'<p>Some text.' * number}"
        self.send_response(200)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - the library's name
        """Nobody needs a line for each request."""


@contextmanager
def pages(count: int) -> Generator[list[str]]:
    """The addresses of so many pages, while their server runs."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Pages) as server:
        thread = threading.Thread(target=partial(server.serve_forever, poll_interval=0.05))
        thread.start()
        try:
            yield [f"http://127.0.0.1:{server.server_port}/pages/{number}" for number in range(count)]
        finally:
            server.shutdown()
            thread.join()


async def main(store: str, uploads: Path, count: int) -> None:
    uploads.mkdir(parents=True, exist_ok=True)
    with Metrics(store, service="crawler") as metrics, pages(count) as addresses:
        async with PipelineRun(metrics, "crawl") as run, ResourceMonitor(run=run):
            uploaded = await CrawlJob(metrics, run, uploads).crawl(addresses)
    run.export_json(uploads / "metrics.json")
    print(f"{uploaded} of {count} pages are in {uploads}\n")
    run.print_summary()
    print(f"\nthe same, with percentiles:   tallymark runs show {run.run_id} {store}")
    print(f"run this again, and compare:  tallymark runs diff latest~1 latest {store}")
    print(f"success rates:                tallymark query {store} --type success_rate --agg last --group-by name")
    print(f"the dashboard:                tallymark serve {store}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", nargs="?", default="./metrics", help="where to record to")
    parser.add_argument("--uploads", default="./crawled", type=Path, help="where to upload to")
    parser.add_argument("--pages", type=int, default=100, help="how many pages to crawl")
    options = parser.parse_args()
    if options.pages < 1:
        parser.error("--pages must be at least 1")
    asyncio.run(main(options.store, options.uploads, options.pages))
