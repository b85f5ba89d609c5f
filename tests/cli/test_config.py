"""``tallymark config show``, and the commands that follow the settings."""

import json
import os
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from recording import DEADLINE_SECONDS
from services import free_port

from tallymark.cli import app
from tallymark.config import OTHER_NAMES, Settings, settings

from .conftest import HOSTILE, Program, eventually

CANARY = "canary5ecret"


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in (
        *OTHER_NAMES,
        "TALLYMARK_CONFIG",
        *(f"TALLYMARK_{name.upper()}" for name in Settings.model_fields),
    ):
        monkeypatch.delenv(variable, raising=False)


def write(tallymark: Program, text: str) -> Path:
    path = tallymark.folder / "tallymark.toml"
    path.write_text(text, "utf-8")
    return path


def test_every_setting_with_its_value_and_origin(tallymark: Program) -> None:
    path = write(tallymark, 'service = "shop"\nqueues = ["a", "b"]\n[retention]\napi_request = 7')
    tallymark.environment = {"METRICS_DATABASE": "./m", "TALLYMARK_PORT": "8080"}
    shown = json.loads(tallymark("config", "show", "--json").stdout)
    assert list(shown) == list(Settings.model_fields)
    assert shown["service"] == {"value": "shop", "origin": f"file {path}"}
    assert shown["queues"]["value"] == ["a", "b"]
    assert shown["retention"]["value"] == {"api_request": 7.0}
    assert shown["store"] == {"value": "./m", "origin": "environment variable METRICS_DATABASE"}
    assert shown["port"] == {"value": 8080, "origin": "environment variable TALLYMARK_PORT"}
    assert shown["host"] == {"value": "127.0.0.1", "origin": "default"}
    lines = tallymark("config", "show").stdout.splitlines()
    cells = {line.split()[0]: line.split(maxsplit=2)[1:] for line in lines}
    assert lines[0].split() == ["setting", "value", "origin"]
    assert list(cells)[1:] == list(Settings.model_fields)
    assert [cell.strip() for cell in cells["port"]] == ["8080", "environment variable TALLYMARK_PORT"]
    assert cells["enabled"][0] == "true"
    assert cells["retention"][0] == "api_request=7.0"
    assert "a, b" in next(line for line in lines if line.startswith("queues"))


def test_secrets_are_masked(tallymark: Program) -> None:
    tallymark.environment = {
        "TALLYMARK_KEYS": f"{CANARY},{CANARY}2",
        "TALLYMARK_REDIS": f"redis://user:{CANARY}@cache:6379/0",
        "TALLYMARK_POSTGRES": f"host=db password={CANARY}",
        "TALLYMARK_BROKER": f"amqp://guest:{CANARY}@rabbit//",
        "TALLYMARK_PSEUDONYM_KEY": CANARY,
        "TALLYMARK_STORE": f"postgresql://me:{CANARY}@db/metrics",
    }
    for arguments in (["config", "show"], ["config", "show", "--json"]):
        done = tallymark(*arguments)
        assert CANARY not in done.stdout + done.stderr
        for shown in ("redis://user:***@cache:6379/0", "amqp://guest:***@rabbit//", "postgresql://me:***@db/metrics"):
            assert shown in done.stdout


@pytest.mark.parametrize("command", [["config", "show"], ["query"], ["serve"]])
def test_what_is_not_valid_is_said_without_the_value(tallymark: Program, command: list[str]) -> None:
    path = write(tallymark, f'port = "{CANARY}"')
    error = tallymark(*command, code=1).stderr
    assert error.startswith("error: port ")
    assert str(path) in error
    assert CANARY not in error


@pytest.mark.parametrize("command", [["config", "show"], ["serve"]])
@pytest.mark.parametrize("name", ["redis", "postgres", "broker"])
def test_a_url_of_another_kind_is_said_without_it(tallymark: Program, command: list[str], name: str) -> None:
    variable = f"TALLYMARK_{name.upper()}"
    tallymark.environment = {variable: f"http://u:{CANARY}@h"}
    error = tallymark(*command, code=1).stderr
    assert error.startswith(f"error: {name}")
    assert "must begin with" in error
    assert error.endswith(f"(environment variable {variable})\n")
    assert CANARY not in error


def test_a_misspelled_name_has_a_hint(tallymark: Program) -> None:
    write(tallymark, f'sevice = "{CANARY}"')
    error = tallymark("config", "show", code=1).stderr
    assert "did you mean service?" in error
    assert CANARY not in error
    write(tallymark, "")
    tallymark.environment = {"TALLYMARK_SEVICE": CANARY}
    error = tallymark("config", "show").stderr
    assert "did you mean TALLYMARK_SERVICE?" in error
    assert CANARY not in error


def test_text_that_a_terminal_would_obey_is_escaped(tallymark: Program) -> None:
    write(tallymark, f"service = {json.dumps(HOSTILE)}\n[retention]\n{json.dumps(HOSTILE)} = 1")
    for arguments in (["config", "show"], ["config", "show", "--json"]):
        done = tallymark(*arguments)
        assert all(line.isprintable() for line in (done.stdout + done.stderr).splitlines())
    write(tallymark, f"{json.dumps(HOSTILE)} = 1")
    assert all(line.isprintable() for line in tallymark("config", "show", code=1).stderr.splitlines())


def test_help_begins_with_examples(tallymark: Program) -> None:
    for command in (["config"], ["config", "show"]):
        lines = [line.strip() for line in tallymark(*command, "--help").stdout.splitlines() if line.strip()]
        assert lines[0].startswith(f"Usage: tallymark {' '.join(command)}")
        assert lines[1:3] == ["Examples:", "tallymark config show"]
        assert max(map(len, lines)) <= 80
    assert "config" in tallymark("--help").stdout


def test_the_store_of_the_settings(tallymark: Program, shop: Path) -> None:
    elsewhere = shop.rename(shop.with_name("elsewhere"))
    assert "./metrics" in tallymark("info", code=1).stderr
    write(tallymark, 'store = "nowhere"')
    assert "nowhere" in tallymark("info", code=1).stderr
    tallymark.environment = {"METRICS_DATABASE": str(elsewhere)}
    assert tallymark.rows("info")[0]["recorded"] == 30
    tallymark.environment = {"TALLYMARK_STORE": "nowhere"}
    assert tallymark.rows("info", str(elsewhere))[0]["recorded"] == 30
    assert "''" in tallymark("info", "", code=1).stderr


def test_every_command_over_a_store_asks_the_settings(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stores(group: Any, context: Any) -> Iterator[tuple[str, Any]]:
        for name, command in group.commands.items():
            if hasattr(command, "commands"):
                yield from stores(command, context)
            for parameter in command.params:
                if parameter.name == "store" and parameter.param_type_name == "argument":
                    yield name, parameter.process_value(context, None)

    monkeypatch.setenv("TALLYMARK_STORE", str(folder))
    settings.cache_clear()
    program = typer.main.get_command(app)
    found = dict(stores(program, program.make_context("tallymark", ["info"])))
    settings.cache_clear()
    assert {"serve", "query", "tail", "info", "doctor"} <= set(found)
    assert set(found.values()) == {str(folder)}


class Served:
    """A running ``tallymark serve``."""

    def __init__(self, program: Program, *arguments: str) -> None:
        self.process: subprocess.Popen[str] = program.start("serve", *arguments)
        assert self.process.stderr is not None
        self.said = self.process.stderr.readline()

    def status(self, port: int, key: str = "") -> int:
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/api/v1/info", headers={"Authorization": f"Bearer {key}"} if key else {}
        )
        try:
            with urllib.request.urlopen(request, timeout=DEADLINE_SECONDS) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code


def test_serve_follows_the_settings_and_options_win(tallymark: Program) -> None:
    ports = [free_port(), free_port()]
    key = f"{CANARY}-0123456789"
    write(tallymark, f'store = "there"\nport = {ports[0]}\ncollect_system = false\nkeys = ["{key}"]')
    served = Served(tallymark)
    assert f"serving there at http://127.0.0.1:{ports[0]}/" in served.said
    assert (served.status(ports[0]), served.status(ports[0], key)) == (401, 200)
    os.killpg(served.process.pid, signal.SIGINT)
    assert served.process.wait(DEADLINE_SECONDS) == 0
    other = "another-key-0123456789"
    served = Served(tallymark, "here", "--port", str(ports[1]), "--key", other)
    assert f"serving here at http://127.0.0.1:{ports[1]}/" in served.said
    assert (served.status(ports[1], key), served.status(ports[1], other)) == (401, 200)
    eventually((tallymark.folder / "here").is_dir)
    os.killpg(served.process.pid, signal.SIGINT)
    assert served.process.wait(DEADLINE_SECONDS) == 0


def test_a_key_that_is_unfit_is_not_shown(tallymark: Program) -> None:
    tallymark.environment = {"TALLYMARK_KEYS": f"{CANARY}, short", "TALLYMARK_PORT": str(free_port())}
    error = tallymark("serve", code=1).stderr
    assert "16 ASCII characters" in error
    assert CANARY not in error
    assert "short" not in error
