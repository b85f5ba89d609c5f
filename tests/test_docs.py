"""What the README shows works as it is written there."""

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import tallymark

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
PYTHON = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
COMMANDS = [line[2:].partition("#")[0].strip() for line in re.findall(r"^\$ .*$", README, re.MULTILINE)]


def run(*arguments: str) -> str:
    """A program of this installation, in the current folder."""
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_quickstart_in_its_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    record, read, serve = PYTHON
    run("-c", record)
    with tallymark.open() as store:
        assert {record.name for record in store.records(since=None).records} == {"GET /users", "resize image"}
    assert "'name': 'GET /users'" in run("-c", read)
    query = next(shlex.split(command) for command in COMMANDS if command.startswith("tallymark query"))
    printed = run("-m", *query)
    assert "GET /users" in printed
    assert "resize image" in printed
    run("-c", serve)  # it is imported by an ASGI server, and starts nothing by itself


def test_every_command_exists() -> None:
    commands = {shlex.split(command)[1] for command in COMMANDS if command.startswith("tallymark ")}
    assert {"serve", "tail", "query"} <= commands
    for command in commands:
        assert "Usage" in run("-m", "tallymark", command, "--help")
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for command in COMMANDS:
        if command.startswith("make "):
            assert f"\n{command.removeprefix('make ')}:" in makefile


def test_every_link_within_the_repository_leads_somewhere() -> None:
    pages = [ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")]
    for page in pages:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), (page.name, target)


def test_what_the_pages_import_is_there() -> None:
    """Their samples need brokers and databases; that each name exists can be checked without."""
    for page in (ROOT / "docs").glob("*.md"):
        for block in re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE):
            imports = [node for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Import | ast.ImportFrom)]
            for node in imports:
                if "tallymark" in ast.unparse(node):
                    exec(ast.unparse(node), {})


def test_the_map_of_the_architecture_names_files_that_exist() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    named = set(re.findall(r"`([a-z_/]+(?:\.py|\.c|/))`", page))
    assert {"recorder.py", "journal.py", "shipper.py"} <= named
    for name in named:
        assert (ROOT / "src" / "tallymark" / name).exists(), name
