"""A real recorder, a real server over the same folder, and a real browser that looks at it."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from fastapi import FastAPI
from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Dialog,
    Page,
    Request,
    expect,
    sync_playwright,
)
from recording import DEADLINE_SECONDS
from services import free_port
from serving import serving

from tallymark import Metrics
from tallymark.config import Settings
from tallymark.server import create_app
from tallymark.server.serve import Server

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


class Site:
    """A server that can be stopped and started again at the same address."""

    def __init__(self, store: Path) -> None:
        self.store = store
        self.port = free_port()  # nobody else gets it while the server is away
        self.url = ""
        self.app: FastAPI | None = None
        self._stack = ExitStack()

    def start(self) -> None:
        self.app = create_app(Settings(store=self.store, collect_system=False))
        self.url = self._stack.enter_context(serving(Server(self.app), self.port))

    def stop(self) -> None:
        self._stack.close()


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """The folder that is recorded into and looked at."""
    return tmp_path / "metrics"


@pytest.fixture
def metrics(store: Path) -> Iterator[Metrics]:
    """A running recorder of the service "shop"."""
    with Metrics(str(store), service="shop") as recorder:
        yield recorder


@pytest.fixture
def site(store: Path) -> Iterator[Site]:
    """A running server over the folder."""
    made = Site(store)
    made.start()
    try:
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """The system's Chromium, headless."""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        reason = f"no browser: install one of {', '.join(BROWSERS)}"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    with sync_playwright() as playwright:
        expect.set_options(timeout=DEADLINE_SECONDS * 1000)
        running = playwright.chromium.launch(executable_path=path, headless=True, args=list(FLAGS))
        yield running
        running.close()


class Looker:
    """A browser window, and everything that went wrong in it."""

    def __init__(self, context: BrowserContext) -> None:
        self.page: Page = context.new_page()
        self.page.set_default_timeout(DEADLINE_SECONDS * 1000)
        self.errors: list[str] = []
        self.urls: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", self._heard)
        self.page.on("request", self._requested)
        self.page.on("dialog", self._dialog_opened)

    def _heard(self, message: ConsoleMessage) -> None:
        # A server that is gone shows up here by design: the page tries again.
        if message.type in ("error", "warning") and "net::ERR_" not in message.text:
            self.errors.append(message.text)

    def _requested(self, request: Request) -> None:
        self.urls.append(request.url)

    def _dialog_opened(self, dialog: Dialog) -> None:
        self.errors.append("a dialog opened")
        dialog.dismiss()

    def open(self, url: str) -> Page:
        """The page, once it has shown figures or the lack of them."""
        self.page.goto(url)
        self.page.locator("html:not([data-state=loading])").wait_for(state="attached")
        return self.page


@pytest.fixture
def new_looker(browser: Browser) -> Iterator[Callable[..., Looker]]:
    """Opens windows with the settings given. Whatever goes wrong inside any of them fails the test."""
    lookers: list[Looker] = []
    contexts: list[BrowserContext] = []

    def opened(width: int = 1440, height: int = 900, dark: bool = False) -> Looker:
        context = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme="dark" if dark else "light",
            reduced_motion="reduce",
            locale="en-GB",
            timezone_id="Europe/Berlin",
        )
        contexts.append(context)
        lookers.append(Looker(context))
        return lookers[-1]

    yield opened
    for context in contexts:
        context.close()
    assert [error for looker in lookers for error in looker.errors] == []


@pytest.fixture
def looker(new_looker: Callable[..., Looker]) -> Looker:
    """A window of a desk's size."""
    return new_looker()
