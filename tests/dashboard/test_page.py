"""The page in a real browser, over a real store."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect
from recording import eventually

from tallymark import Metrics

from .conftest import Looker, Site

pytestmark = pytest.mark.browser

HOSTILE = (
    "<img src=x onerror=alert(1)>",
    "</script><script>alert(1)</script>",
    "javascript:alert(1)",
    "{{7*7}}${7*7}' onclick='alert(1)",
    "long " + "x" * 190,
    "turned \u202egnp.exe\u202c around",
)


def record_a_shop(metrics: Metrics) -> None:
    """A little of everything that the page shows."""
    for index in range(40):
        metrics.record_operation("api_request", "GET /products", 10.0 + index, success=index % 10 != 0)
        metrics.record_operation("stage", "render_invoice", 400.0 + index)
        metrics.record("queue", "orders waiting", float(index % 7))
        metrics.record("sales", "basket value", 20.0 + index, unit="EUR")
    for name, value, unit in (
        ("cpu_percent", 37.5, "%"),
        ("cpu_count", 8.0, "1"),
        ("memory_percent", 42.0, "%"),
        ("memory_used_mb", 6_144.0, "MiBy"),
        ("memory_total_mb", 16_384.0, "MiBy"),
    ):
        metrics.record("system", name, value, unit=unit)


@pytest.fixture
def page(metrics: Metrics, site: Site, looker: Looker) -> Page:
    """The page over a shop that has recorded."""
    record_a_shop(metrics)
    return looker.open(site.url)


def row(page: Page, table: str, name: str) -> Locator:
    """The row of an operation or a metric."""
    return page.locator(f"#{table} tbody tr").filter(has=page.get_by_role("button", name=name, exact=True))


def test_everything_that_was_recorded_is_shown(page: Page) -> None:
    expect(page.locator("#status")).to_have_text("Live")
    expect(page.locator("[data-tile=error_rate] .tile-value")).to_have_text("10%")
    expect(page.locator("[data-tile=p50] .tile-value")).to_have_text("29.5 ms")
    operation = row(page, "operations", "render_invoice")
    expect(operation).to_contain_text("16.8 s")
    expect(operation).to_contain_text("40")
    metric = row(page, "metrics", "basket value")
    expect(metric).to_contain_text("59 EUR")
    expect(page.locator(".chart").filter(has_text="CPU")).to_contain_text("37.5%")
    expect(page.locator(".chart").filter(has_text="CPU")).to_contain_text("8 cores")
    expect(page.locator(".chart").filter(has_text="Memory")).to_contain_text("6 GiB of 16 GiB")
    expect(page.locator("[data-ingest=dropped]")).to_contain_text("0")
    expect(page.locator("[data-ingest=deleted]")).to_contain_text("0")
    expect(page.locator("#banners")).to_be_empty()


def test_what_is_recorded_appears_by_itself(page: Page, metrics: Metrics) -> None:
    expect(row(page, "metrics", "just now")).to_have_count(0)
    metrics.record("sales", "just now", 5.0)
    expect(row(page, "metrics", "just now")).to_be_visible()


def test_rows_stay_while_their_figures_change(page: Page, metrics: Metrics) -> None:
    before = row(page, "operations", "GET /products").element_handle()
    metrics.record_operation("api_request", "GET /products", 10.0)
    expect(row(page, "operations", "GET /products")).to_contain_text("41")
    assert before is not None
    assert before.evaluate("row => row.isConnected")


def test_hostile_names_are_text(metrics: Metrics, site: Site, looker: Looker) -> None:
    for name in HOSTILE:
        metrics.record_operation("api_request", name, 5.0)
        metrics.record("<b>kind</b>", name, 1.0, unit="<i>u</i>")
    metrics.ingest("sales", "by another", 1.0, service="<svg onload=alert(1)>")
    page = looker.open(site.url)
    for name in HOSTILE:
        shown = re.sub("[\u202a-\u202e]", lambda found: f"\\u{ord(found[0]):04x}", name)
        expect(row(page, "operations", shown)).to_have_count(1)
    expect(page.locator("#service")).to_contain_text("<svg onload=alert(1)>")
    assert page.locator("#content img, #content script, #content svg, #content b, #content i").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    row(page, "operations", HOSTILE[4]).click()
    expect(page.locator("#detail-title")).to_have_text(HOSTILE[4])
    assert page.locator("#detail").evaluate("dialog => dialog.scrollWidth <= dialog.clientWidth")
    page.keyboard.press("Escape")
    row(page, "metrics", HOSTILE[0]).first.click()
    expect(page.locator("#detail-title")).to_have_text(HOSTILE[0])
    expect(page.locator("#detail-figures")).to_contain_text("Records")
    page.reload()
    expect(page.locator("#detail-title")).to_have_text(HOSTILE[0])
    # That nothing ran, opened a dialog or broke the policy is checked for every window when it closes.


def test_nothing_is_asked_of_another_host(page: Page, looker: Looker, site: Site) -> None:
    expect(page.locator("#status")).to_have_text("Live")
    assert [url for url in looker.urls if not url.startswith(site.url)] == []


def test_an_empty_store_says_what_to_paste_where(site: Site, store: Path, looker: Looker, tmp_path: Path) -> None:
    page = looker.open(site.url)
    expect(page.locator("#empty")).to_be_visible()
    snippet = page.locator("#quickstart").inner_text()
    assert str(store) in snippet
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()").strip() == snippet.strip()
    exec(snippet, {})
    expect(page.locator("#empty")).to_be_hidden()
    expect(row(page, "operations", "GET /hello")).to_be_visible()


def test_a_server_that_is_gone_and_comes_back(page: Page, site: Site, metrics: Metrics) -> None:
    expect(page.locator("#status")).to_have_text("Live")
    site.stop()
    expect(page.locator("#status")).to_have_text("Reconnecting")
    expect(page.locator("#banners")).to_contain_text("Reconnecting")
    expect(page.locator("html")).to_have_attribute("data-stale", "")
    expect(row(page, "operations", "render_invoice")).to_be_visible()
    metrics.record("sales", "meanwhile", 5.0)
    site.start()
    expect(page.locator("#status")).to_have_text("Live")
    expect(row(page, "metrics", "meanwhile")).to_be_visible()
    expect(page.locator("#banners")).to_be_empty()


def test_the_server_says_what_failed(page: Page, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    from tallymark.errors import StoreError
    from tallymark.server import stream

    def failing(*_: object) -> None:
        raise StoreError("the table cannot be read: permission denied")

    monkeypatch.setattr(stream, "overview", failing)
    expect(page.locator("#banners")).to_contain_text("permission denied")
    expect(page.locator("#status")).to_have_text("Failing")
    expect(row(page, "operations", "render_invoice")).to_be_visible()


def test_operations_sort_and_filter(page: Page) -> None:
    names = page.locator("#operations .name")
    expect(names).to_have_text(["render_invoice", "GET /products"])
    count = page.locator("#operations th").filter(has_text="Operation")
    count.get_by_role("button").click()
    expect(names).to_have_text(["GET /products", "render_invoice"])
    expect(count).to_have_attribute("aria-sort", "ascending")
    page.locator("#operations-filter").fill("INVOICE")
    expect(names).to_have_text(["render_invoice"])
    page.locator("#operations-filter").fill("no such thing")
    expect(page.locator("#operations")).to_contain_text("Nothing matches")


def test_one_operation_large(page: Page) -> None:
    button = page.locator("#operations").get_by_role("button", name="GET /products", exact=True)
    button.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#detail-figures")).to_contain_text("29.5 ms")
    expect(page.locator("#detail-charts canvas")).to_have_count(2)
    page.keyboard.press("Escape")
    expect(page.locator("#detail")).to_be_hidden()
    expect(button).to_be_focused()
    expect(page).not_to_have_url(re.compile("GET"))


def test_ranges(page: Page) -> None:
    page.get_by_role("button", name="6h", exact=True).click()
    expect(page.locator("[data-range='6h']")).to_have_attribute("aria-pressed", "true")
    expect(page.locator("html[data-stale]")).to_have_count(0)
    assert "range=6h" in page.url
    page.get_by_role("button", name="Custom").click()
    expect(page.locator("#zone")).to_have_text("Europe/Berlin")
    page.locator("#from").fill("2020-01-01T01:00:00")
    page.locator("#to").fill("2020-01-01T00:00:00")
    page.get_by_role("button", name="Show", exact=True).click()
    expect(page.locator("#custom-error")).to_contain_text("after the start")
    page.locator("#to").fill("2020-01-01T02:00:00")
    page.get_by_role("button", name="Show", exact=True).click()
    expect(page.locator("#banners")).to_contain_text("Nothing was recorded in this range")
    expect(page.locator("#status")).to_have_text("Paused")
    assert f"from={1577836800}" in page.url  # 01:00 in Berlin is midnight UTC
    page.locator("#status").click()
    expect(page.locator("#status")).to_have_text("Live")
    expect(row(page, "operations", "render_invoice")).to_be_visible()


def test_dragging_in_a_chart_zooms(page: Page) -> None:
    area = page.locator("#request-charts .u-over").first
    box = area.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 40)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.9, box["y"] + 40, steps=5)
    page.mouse.up()
    expect(page.locator("#status")).to_have_text("Paused")
    found = re.search(r"from=(\d+)&to=(\d+)", page.url)
    assert found is not None
    assert int(found[2]) - int(found[1]) == pytest.approx(900 * 0.4, abs=15)


def test_the_crosshair_is_shared_and_needs_no_pointer(page: Page) -> None:
    page.locator("#request-charts .plot").first.focus()
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#request-charts .chart-time").first).to_be_visible()
    positions = page.locator(".u-cursor-x").evaluate_all("lines => lines.map(line => line.style.transform)")
    assert len(positions) == 7
    assert not [position for position in positions if "(-" in position]
    page.keyboard.press("Escape")
    expect(page.locator("#request-charts .chart-time").first).to_be_hidden()


def test_one_service_at_a_time(page: Page, metrics: Metrics) -> None:
    metrics.ingest("stage", "elsewhere", 5.0, "ms", service="warehouse", success=True)
    expect(row(page, "operations", "elsewhere")).to_contain_text("stage · warehouse")
    expect(page.locator("#service option")).to_have_text(["All applications", "shop", "tallymark", "warehouse"])
    page.locator("#service").select_option(label="warehouse")
    expect(row(page, "operations", "render_invoice")).to_have_count(0)
    expect(row(page, "operations", "elsewhere")).to_be_visible()
    page.reload()
    expect(row(page, "operations", "elsewhere")).to_be_visible()
    expect(row(page, "operations", "render_invoice")).to_have_count(0)


def test_thousands_of_series(metrics: Metrics, site: Site, looker: Looker) -> None:
    for index in range(3_000):
        metrics.record("many", f"metric {index:04}", float(index))
    page = looker.open(f"{site.url}#service=shop")
    expect(page.locator("#metrics-count")).to_have_text("3,000")
    expect(page.locator("#metrics tbody tr")).to_have_count(25)
    page.get_by_role("button", name="Show 100 more").click()
    expect(page.locator("#metrics tbody tr")).to_have_count(125)
    page.locator("#metrics-filter").fill("2718")
    expect(page.locator("#metrics .name")).to_have_text(["metric 2718"])


def test_a_hidden_page_asks_for_nothing(page: Page, site: Site) -> None:
    assert site.app is not None
    hub = site.app.state.hub
    eventually(lambda: len(hub.channels) == 1)
    _set_hidden(page, True)
    eventually(lambda: not hub.channels)
    _set_hidden(page, False)
    eventually(lambda: len(hub.channels) == 1)
    expect(page.locator("#status")).to_have_text("Live")


def test_an_open_page_does_not_grow(metrics: Metrics, site: Site, looker: Looker) -> None:
    record_a_shop(metrics)
    # One service: the server's own series become more as the page asks for more.
    page = looker.open(f"{site.url}#service=shop")

    def update_and_open(count: int) -> int:
        metrics.record_operation("api_request", "GET /products", 10.0)
        expect(row(page, "operations", "GET /products")).to_contain_text(str(count))
        row(page, "operations", "GET /products").click()
        expect(page.locator("#detail-charts canvas")).to_have_count(2)
        page.keyboard.press("Escape")
        expect(page.locator("#detail-charts canvas")).to_have_count(0)
        return int(page.evaluate("document.querySelectorAll('*').length"))

    elements = [update_and_open(count) for count in range(41, 46)]
    assert set(elements[1:]) == {elements[0]}


def test_colours_follow_the_system_or_the_choice(
    metrics: Metrics, site: Site, new_looker: Callable[..., Looker]
) -> None:
    record_a_shop(metrics)
    page = new_looker(dark=True).open(site.url)
    dark = _background(page)
    page.locator("#theme").click()
    assert page.locator("html").get_attribute("data-theme") == "light"
    light = _background(page)
    assert sum(light) > 600 > 200 > sum(dark)
    page.reload()
    assert _background(page) == light


def test_no_width_scrolls_sideways(page: Page) -> None:
    expect(row(page, "operations", "render_invoice")).to_be_visible()
    for width in (320, 390, 768, 1024, 1440, 2560):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width, width


def test_without_a_mouse_everything_is_reached(page: Page) -> None:
    reached: set[str] = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate(
                "(a => a.id || a.dataset.range || a.getAttribute('aria-label') || a.textContent.trim())"
                "(document.activeElement)"
            )
        )
    assert {"15m", "custom", "theme", "operations-filter", "metrics-filter", "render_invoice"} <= reached
    assert any(label.startswith("Latency. p50: latest") for label in reached)


def _set_hidden(page: Page, hidden: bool) -> None:
    page.evaluate(
        """hidden => {
            Object.defineProperty(document, "hidden", { configurable: true, get: () => hidden });
            document.dispatchEvent(new Event("visibilitychange"));
        }""",
        hidden,
    )


def _background(page: Page) -> list[int]:
    colour = str(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    return [int(part) for part in re.findall(r"\d+", colour)[:3]]
