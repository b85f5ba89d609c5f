"""How the page writes figures, in the browser that shows them."""

from typing import Any

import pytest
from playwright.sync_api import Page

from .conftest import Looker, Site

pytestmark = pytest.mark.browser


@pytest.fixture
def page(site: Site, looker: Looker) -> Page:
    return looker.open(site.url)


def call(page: Page, module: str, function: str, *arguments: Any) -> Any:
    return page.evaluate(
        "([module, name, given]) => import(new URL(module, document.baseURI)).then(m => m[name](...given))",
        [module, function, list(arguments)],
    )


def test_values_with_units(page: Page) -> None:
    written = {
        (0, "ms"): "0 ms",
        (0.012, "ms"): "12 µs",
        (0.00012, "ms"): "120 ns",
        (340, "ms"): "340 ms",
        (999.9, "ms"): "1 s",
        (1_234, "ms"): "1.23 s",
        (61, "s"): "1 min 1 s",
        (3_599.9, "s"): "1 h",
        (7_500, "s"): "2 h 5 min",
        (90_000, "s"): "1 d 1 h",
        (-2_500, "ms"): "-2.5 s",
        (0, "By"): "0 B",
        (1_536, "By"): "1.5 KiB",
        (2_048, "MiBy"): "2 GiB",
        (1_048_576, "By/s"): "1 MiB/s",
        (0, "%"): "0%",
        (0.004, "%"): "<0.01%",
        (12.345, "%"): "12.3%",
        (99.99, "%"): "99.99%",
        (100, "%"): "100%",
        (0, "1"): "0",
        (7, "1"): "7",
        (999.6, "1"): "1k",
        (12_345, "1"): "12.3k",
        (2_500_000, "1"): "2.5M",
        (0.5, "1"): "0.5",
        (0.0021, "1"): "2.1m",
        (12.34, "1/s"): "12.3/s",
        (0, "1/s"): "0/s",
        (0.1, "1/s"): "0.1/s",
        (0.05, "1/s"): "3/min",
        (0.001, "1/s"): "3.6/h",
        (59.0, "EUR"): "59 EUR",
        (None, "ms"): "–",
    }
    for (number, unit), text in written.items():
        assert call(page, "format.js", "value", number, unit) == text, (number, unit)


def test_what_would_not_show_is_shown_as_its_code(page: Page) -> None:
    shown = call(page, "format.js", "visible", "a\u202eb\u0000c\u200bd é 漢 🎉")
    assert shown == "a\\u202eb\\u0000c\\u200bd é 漢 🎉"


def test_gaps_are_what_is_missing_longer_than_usual(page: Page) -> None:
    cases: list[tuple[list[float | None], list[int]]] = [
        ([1, 2, 3], []),
        ([1, None, 2, None, 3, None, 4], []),
        ([1, None, 2, None, 3, None, None, None, None, None, 4, None, 5], [5, 6, 7, 8, 9]),
        ([1, 2, 3, None, 4, 5], [3]),
        ([None, None, 1, 2], [0, 1]),
        ([None, None, 7, None], [0, 1, 3]),
    ]
    for values, gaps in cases:
        found = page.evaluate(
            "values => import(new URL('chart.js', document.baseURI)).then(({ bridge }) =>"
            " bridge(values).flatMap((value, index) => value === null ? [index] : []))",
            values,
        )
        assert found == gaps, values
