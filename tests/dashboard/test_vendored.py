"""What the page brings along: unchanged third-party files, and nothing that a strict browser would refuse."""

import hashlib
import re
from pathlib import Path

import pytest

import tallymark.server

DASHBOARD = Path(tallymark.server.__file__).parent / "dashboard"
VENDOR = DASHBOARD / "vendor"


def test_vendored_files_are_the_ones_that_were_released() -> None:
    lines = (VENDOR / "SHA256SUMS").read_text().splitlines()
    listed = {name: digest for digest, name in (line.split() for line in lines)}
    present = {file.name for file in VENDOR.iterdir()} - {"SHA256SUMS"}
    assert set(listed) == present
    for name, digest in listed.items():
        assert hashlib.sha256((VENDOR / name).read_bytes()).hexdigest() == digest, name


def test_the_licence_comes_along() -> None:
    assert "MIT License" in (VENDOR / "LICENSE").read_text()


@pytest.mark.parametrize("file", sorted(DASHBOARD.glob("*.js")), ids=lambda file: file.name)
def test_scripts_never_parse_text_as_html(file: Path) -> None:
    forbidden = (
        r"innerHTML|outerHTML|insertAdjacentHTML|createContextualFragment|document\.write|DOMParser"
        r"|\beval\(|new Function|set(?:Timeout|Interval)\(['\"`]"
    )
    assert re.findall(forbidden, file.read_text()) == []


def test_the_page_holds_no_inline_script_or_style() -> None:
    page = (DASHBOARD / "index.html").read_text()
    assert re.findall(r"<script(?![^>]*\bsrc=)|<style|\bstyle=|\bon[a-z]+=|javascript:", page) == []


def test_the_page_names_no_other_host() -> None:
    for file in (DASHBOARD / "index.html", DASHBOARD / "style.css", *DASHBOARD.glob("*.js")):
        assert re.findall(r"(?:https?:)?//[a-z0-9.-]+\.[a-z]{2,}", file.read_text()) == [], file.name
