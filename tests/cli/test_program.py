"""The program as a whole: its help, its exit codes, and what importing it costs."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tallymark import __version__

from .conftest import PROGRAM, Program

COMMANDS = ["serve", "demo", "query", "tail", "info", "doctor"]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_begins_with_examples(tallymark: Program, command: str) -> None:
    lines = [line.strip() for line in tallymark(command, "--help").stdout.splitlines() if line.strip()]
    assert lines[0].startswith(f"Usage: tallymark {command}")
    assert lines[1] == "Examples:"
    assert lines[2].startswith(f"tallymark {command}")
    assert max(map(len, lines)) <= 80


def test_help_names_every_command_and_the_exit_codes(tallymark: Program) -> None:
    text = tallymark("--help").stdout
    assert text.index("Examples:") < text.index("Commands:") < text.index("Exit codes:")
    for word in (*COMMANDS, "130", "TALLYMARK_DEBUG"):
        assert word in text


def test_version(tallymark: Program) -> None:
    assert tallymark("--version").stdout == f"tallymark {__version__}\n"


@pytest.mark.parametrize("arguments", [["nonsense"], ["query", "--nonsense"], ["query", "--limit", "0"], []])
def test_wrong_usage_is_exit_code_2(tallymark: Program, arguments: list[str]) -> None:
    tallymark(*arguments, code=2)


def shell(program: Program, script: str) -> subprocess.CompletedProcess[str]:
    """Run a script in which ``tallymark`` is the program."""
    words = " ".join(map(shlex.quote, PROGRAM))
    return subprocess.run(
        ["bash", "-c", script.replace("tallymark", words)],
        cwd=program.folder,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.usefixtures("shop")
def test_what_does_not_fit_is_an_error_without_a_buffer_too(tallymark: Program) -> None:
    done = shell(tallymark, "ulimit -f 4; tallymark export metrics - > cut.ndjson")
    assert (done.returncode, "File too large" in done.stderr) == (1, True)
    done = shell(tallymark, "tallymark export metrics - | wc -l")
    assert done.stdout.strip() == "30"


@pytest.mark.usefixtures("shop")
def test_closed_streams_are_no_tracebacks(tallymark: Program) -> None:
    for script in (
        "tallymark info metrics >&-",
        "tallymark info metrics 2>&-",
        "tallymark info none >&- 2>&-; test $? = 1",
    ):
        done = shell(tallymark, script)
        assert (done.returncode, done.stderr) == (0, ""), script


def test_a_place_of_another_kind(tallymark: Program) -> None:
    (tallymark.folder / "shop.db").write_bytes(b"")
    (tallymark.folder / "files" / ".tallymark").mkdir(parents=True)
    assert "hint: a file may be sqlite:///shop.db" in tallymark("info", "shop.db", code=1).stderr
    assert "hint: these are JSON files, so json:files" in tallymark("info", "files", code=1).stderr
    assert "lake:s3://bucket/path" in tallymark("info", "s3://bucket/path", code=1).stderr


@pytest.mark.parametrize("url", ["clickhouse://h/x?nonsense=1", "postgresql://u@h/x?nonsense=1"])
def test_serve_says_what_is_wrong_with_a_url(tallymark: Program, url: str) -> None:
    assert tallymark("serve", url, code=1).stderr.startswith("error: ")


def test_importing_the_command_line_loads_nothing_heavy() -> None:
    code = (
        "import sys, tallymark.cli\n"
        "heavy = {'duckdb', 'pyarrow', 'deltalake', 'numpy', 'fastapi', 'uvicorn', 'psutil', 'rich'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("library", ["typer", "rich"])
def test_without_its_libraries_it_says_what_to_install(library: str) -> None:
    code = (
        f"import sys; sys.modules[{library!r}] = None\n"
        "from tallymark.__main__ import main\n"
        "sys.argv = ['tallymark', 'query', 'nowhere']; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == (
        f"error: this needs {library}, which is not installed; hint: pip install 'tallymark[server]'\n"
    )


@pytest.mark.parametrize(
    ("module", "library", "extra"),
    [("tallymark.server", "fastapi", "server"), ("tallymark.integrations.celery", "celery", "celery")],
)
def test_a_module_says_what_it_needs(module: str, library: str, extra: str) -> None:
    code = f"import sys; sys.modules[{library!r}] = None\nimport {module}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert f'{library}; hint: pip install "tallymark[{extra}]"' in done.stderr


def test_an_error_is_one_line(tallymark: Program) -> None:
    done = tallymark("query", "nowhere", code=1)
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: there is no store at 'nowhere'; hint: ")
    assert not (tallymark.folder / "nowhere").exists()


def test_debug_shows_where_an_error_came_from(tallymark: Program) -> None:
    tallymark.environment["TALLYMARK_DEBUG"] = "1"
    with pytest.raises(AssertionError, match="Traceback"):
        tallymark("info", "nowhere", code=1)


def test_a_file_that_cannot_be_written_is_one_line(tallymark: Program, shop: Path) -> None:
    (shop / "journals" / ".shipping-turn").mkdir(parents=True)  # root may write wherever permissions forbid it
    done = tallymark("erase", "--session", "x", "--yes", code=1)
    assert done.stderr.splitlines()[-1].startswith("error: [Errno 21] Is a directory: ")


INTERRUPTED = """
import os, signal, sys

class Held:
    def __set_name__(self, owner, name):
        os.kill(os.getpid(), signal.SIGINT)

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            sys.meta_path.remove(self)
            if {in_class}:
                type("Class", (), {{"held": Held()}})
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Finder())
sys.argv = ["tallymark", "query", "nowhere"]
from tallymark.__main__ import main
"""
"""Ctrl-C at the moment at which a module is imported, or while it defines a class."""

MOMENTS = ["tallymark.without_pandas", "typer", "tallymark.cli", "tallymark.cli.keep", "tallymark.cli.output"]


def interrupt(tmp_path: Path, module: str, in_class: bool, first: str = "") -> tuple[int, str, str]:
    code = f"{INTERRUPTED.format(module=module, in_class=in_class)}\n{first}\nmain()"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("in_class", [False, True])
@pytest.mark.parametrize("module", MOMENTS)
def test_ctrl_c_while_it_starts_is_silent(tmp_path: Path, module: str, in_class: bool) -> None:
    assert interrupt(tmp_path, module, in_class) == (130, "", "")


def test_ctrl_c_that_is_ignored_stays_so(tmp_path: Path) -> None:
    first = "signal.signal(signal.SIGINT, signal.SIG_IGN)"
    code, _, error = interrupt(tmp_path, "typer", False, first)
    assert (code, error[:32]) == (1, "error: there is no store at 'now")
