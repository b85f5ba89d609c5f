"""Settings: which place wins, where a value came from, what is refused and how, and what is never shown."""

import contextlib
import itertools
import json
import logging
import re
import subprocess
import sys
import tomllib
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from kombu.transport import TRANSPORT_ALIASES
from settings_page import PAGE, page

from tallymark import Metrics
from tallymark.config import BROKERS, OTHER_NAMES, Settings, settings
from tallymark.environment import OFF
from tallymark.errors import ConfigError
from tallymark.location import mask_url

CANARY = "canary5ecret"
SECRETS = ("keys", "redis", "postgres", "broker", "pseudonym_key")
LEVELS = ("file", "document", "environment", "argument")


@pytest.fixture(autouse=True)
def nothing_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment and a folder in which nothing is set."""
    for name in Settings.model_fields:
        monkeypatch.delenv(f"TALLYMARK_{name.upper()}", raising=False)
    for variable in OTHER_NAMES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.delenv("TALLYMARK_CONFIG", raising=False)
    monkeypatch.chdir(tmp_path)
    settings.cache_clear()


def toml(text: str, name: str = "tallymark.toml") -> Path:
    path = Path(name).absolute()
    path.write_text(text, "utf-8")
    return path


def refused(**values: Any) -> str:
    """What is said of values that are not valid. Nothing that belongs to the error may hold them."""
    with pytest.raises(ConfigError) as caught:
        Settings(**values)
    assert caught.value.__cause__ is None
    assert CANARY not in "".join(traceback.format_exception(caught.value))
    return str(caught.value)


# Which place wins

VALUES: dict[str, tuple[Any, ...]] = {
    "store": ("./a", "./b", "./c", "./d"),
    "log_file": ("a.jsonl", "b.jsonl", "c.jsonl", "d.jsonl"),
    "retention_days": (1.0, 2.0, 3.0, 4.0),
    "enabled": (False, True, False, True),
}
VARIABLES = {meant: variable for variable, meant in OTHER_NAMES.items()}


def give(monkeypatch: pytest.MonkeyPatch, name: str, levels: tuple[str, ...]) -> Settings:
    """Settings with one of them given in several places."""
    arguments: dict[str, Any] = {}
    for level, value in zip(LEVELS, VALUES[name], strict=True):
        if level not in levels:
            continue
        if level == "file":
            toml(f"{name} = {json.dumps(value)}")
        elif level == "argument":
            arguments[name] = value
        else:
            monkeypatch.setenv(VARIABLES[name] if level == "document" else f"TALLYMARK_{name.upper()}", str(value))
    return Settings(**arguments)


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("levels", [*itertools.combinations(LEVELS, 2), *((level,) for level in LEVELS)])
def test_of_two_places_the_later_one_wins(
    name: str, levels: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = give(monkeypatch, name, levels)
    winner = levels[-1]
    assert str(getattr(found, name)) == str(VALUES[name][LEVELS.index(winner)])
    origins = {
        "file": f"file {tmp_path / 'tallymark.toml'}",
        "document": f"environment variable {VARIABLES[name]}",
        "environment": f"environment variable TALLYMARK_{name.upper()}",
        "argument": "argument",
    }
    assert found.origin(name) == origins[winner]
    assert {found.origin(other) for other in Settings.model_fields if other != name} == {"default"}


def test_what_is_not_said_has_its_default() -> None:
    found = Settings()
    for name, field in Settings.model_fields.items():
        assert getattr(found, name) == field.default
        assert found.origin(name) == "default"


def test_each_place_gives_what_the_others_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    toml('store = "./file"\nport = 1\nservice = "file"\nhost = "file"')
    monkeypatch.setenv("METRICS_DATABASE", "./document")
    monkeypatch.setenv("TALLYMARK_PORT", "2")
    monkeypatch.setenv("TALLYMARK_SERVICE", "environment")
    found = Settings(service="argument")
    assert (found.store, found.port, found.service, found.host) == ("./document", 2, "argument", "file")


def test_lists_and_tables_are_taken_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    toml('queues = ["a", "b"]\n[retention]\napi_request = 7\nredis = 1.5')
    assert Settings().queues == ("a", "b")
    assert Settings().retention == {"api_request": 7, "redis": 1.5}
    monkeypatch.setenv("TALLYMARK_RETENTION", "stage=3")
    assert Settings().retention == {"stage": 3}
    assert Settings(retention={}).retention == {}


def test_an_empty_variable_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("TALLYMARK_PORT", "TALLYMARK_STORE", "METRICS_DATABASE", "TALLYMARK_CONFIG", "TALLYMARK_KEYS"):
        monkeypatch.setenv(variable, "")
    assert {Settings().origin(name) for name in Settings.model_fields} == {"default"}


def test_the_file_of_its_own_comes_before_that_of_the_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toml('[project]\nname = "x"', "pyproject.toml")
    assert Settings().origin("port") == "default"
    project = toml(
        "[tool.other]\nport = 1\n[tool.tallymark]\nport = 3\n[tool.tallymark.retention]\na = 1", "pyproject.toml"
    )
    assert (Settings().port, Settings().retention, Settings().origin("port")) == (3, {"a": 1}, f"file {project}")
    toml("port = 4")
    assert (Settings().port, Settings().retention) == (4, {})
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setenv("TALLYMARK_CONFIG", str(toml("port = 5", "elsewhere/any.conf")))
    assert (Settings().port, Settings().origin("port")) == (5, f"file {elsewhere / 'any.conf'}")
    monkeypatch.setenv("TALLYMARK_CONFIG", "pyproject.toml")
    assert Settings().port == 3


# How values are written

URL_LIST = "redis://:a,b@one:1/0, rediss://two/1,unix:///three"


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("queues", "a", ("a",)),
        ("queues", " a , b,,", ("a", "b")),
        ("queues", '["a,b", "c"]', ("a,b", "c")),
        ("queues", "[]", ()),
        ("queues", "ü,\U0001f40d", ("ü", "\U0001f40d")),
        ("allowed_hosts", "*", ("*",)),
        ("retention", "a=1, b = 2.5", {"a": 1.0, "b": 2.5}),
        ("retention", '{"a": 1, "b,c": 2}', {"a": 1.0, "b,c": 2.0}),
        ("retention", "a=0", {"a": 0.0}),
        ("pii", "allow", "allow"),
        ("pii", "email=reject,card=allow", {"email": "reject", "card": "allow"}),
        ("pii", '{"email": "reject"}', {"email": "reject"}),
        ("enabled", "off", False),
        ("enabled", "TRUE", True),
        ("collect_seconds", "0.5", 0.5),
        ("log_file", "a/b.jsonl", Path("a/b.jsonl")),
        ("store", "lake:./m", "lake:./m"),
    ],
)
def test_texts_of_the_environment(name: str, text: str, value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"TALLYMARK_{name.upper()}", text)
    assert getattr(Settings(), name) == value


@pytest.mark.parametrize(
    ("name", "text", "urls"),
    [
        ("redis", URL_LIST, ["redis://:a,b@one:1/0", "rediss://two/1", "unix:///three"]),
        ("postgres", "postgresql://u:p@one,two:2/db", ["postgresql://u:p@one,two:2/db"]),
        ("postgres", "host=one password=x", ["host=one password=x"]),
        ("postgres", '["postgres://b,postgres://c", "dbname=x"]', ["postgres://b,postgres://c", "dbname=x"]),
        ("redis", " ", []),
    ],
)
def test_a_comma_separates_urls_only_where_the_next_begins(
    name: str, text: str, urls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"TALLYMARK_{name.upper()}", text)
    assert [url.get_secret_value() for url in getattr(Settings(), name)] == urls


def test_a_store_may_be_a_path(tmp_path: Path) -> None:
    assert Settings(store=tmp_path).store == str(tmp_path)


def test_where_the_log_goes(tmp_path: Path) -> None:
    assert Settings().log_path == tmp_path / "metrics" / "logs" / "metrics.jsonl"
    assert Settings(log_file="x.jsonl", store="postgresql://u@h/d").log_path == Path("x.jsonl")
    elsewhere = Settings(store="postgresql://u:p@h/d").log_path
    assert elsewhere == Settings(store="postgresql://u:changed@h/d").log_path
    assert elsewhere != Settings(store="postgresql://u@h/e").log_path


@pytest.mark.parametrize(
    ("words", "is_on"),
    [(sorted(OFF), False), ([" off ", "FALSE\n", "No"], False), (["true", "t", "1", "yes", "Y", "on", " ON "], True)],
)
@pytest.mark.parametrize("variable", ["TALLYMARK_ENABLED", "ENABLE_METRICS"])
def test_settings_and_recorder_read_a_switch_alike(
    variable: str, words: list[str], is_on: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for word in words:
        monkeypatch.setenv(variable, word)
        assert (Settings().enabled, Metrics("./metrics").enabled) == (is_on, is_on), word
        monkeypatch.setenv("TALLYMARK_RAW_IDS", word)
        assert Settings().raw_ids == is_on


@pytest.mark.parametrize(
    "url",
    [
        *("amqp://g:p@h:5672//", "amqps://h", "pyamqp://", "redis://h/0", "rediss://h", "sentinel://a;sentinel://b"),
        *("sqla+postgresql://h/d", "redis+socket:///run/redis.sock", "SQS://", "memory://", "my.own.transport://h"),
    ],
)
def test_brokers_that_celery_knows(url: str) -> None:
    broker = Settings(broker=url).broker
    assert broker is not None
    assert broker.get_secret_value() == url


def test_every_broker_of_celery_is_known() -> None:
    assert {name.lower() for name in TRANSPORT_ALIASES} <= BROKERS


# What is refused

BAD: dict[str, list[Any]] = {
    "enabled": ["maybe", 2, []],
    "store": ["", 1, None],
    "service": [1, [], "", " \n", "x" * 201],
    "host": ["", None],
    "port": [-1, 65_536, "x", 1.5, None],
    "keys": [1, None, [1]],
    "allowed_hosts": [[""], 1],
    "max_body_bytes": [0, "x"],
    "collect_system": ["maybe"],
    "collect_seconds": [0, -1, float("nan"), float("inf"), 1e9, "soon"],
    "redis": [
        1,
        None,
        [None],
        ["h:6379"],
        ["redis://h", "http://h"],
        [""],
        ["redis:h"],
        ["REDIS://h"],
        ["postgres://h"],
    ],
    "postgres": [{}, [["x"]], ["mysql://h/d?a=b"], ["h"], [""], ["postgresql:h"], ["redis://h"], ["sqlite:///a=b"]],
    "broker": [1, ["x"], "", "h", "http://rabbit:15672", "postgresql://h/d", "redis://h;h", "amqp:h", "redis://h;"],
    "queues": [1, [""], [None], "[", "[" * 10_000],
    "retention_days": [-1, float("nan"), float("inf"), 1e300, "x", None],
    "retention": ["x", "{", {"a": -1}, {"a": float("nan")}, {"a": "x"}, 1, "a=b"],
    "log_file": [1, []],
    "pii": ["x", "email=x", "{", {"email": "x"}, {"nothing": "mask"}, 1, [], {"email": []}],
    "pseudonym_key": [1, []],
    "raw_ids": ["maybe"],
    "slow_stage_ms": [0, -1, float("nan")],
    "correction_rate_percent": [-1, 101, float("nan")],
}


def test_every_setting_is_in_the_table_of_bad_values() -> None:
    assert list(BAD) == list(Settings.model_fields)


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_bad_values(name: str, value: Any) -> None:
    said = refused(**{name: value})
    assert re.match(rf"{name}(\.\w+)? ", said)
    assert said.endswith("(argument)")
    assert len(said) < 300


@pytest.mark.parametrize("value", ["x", "email=x"])
def test_what_pii_may_be_is_said(value: str) -> None:
    assert "must be mask, reject or allow, or one of them for some of the rules" in refused(pii=value)


def test_a_bad_value_says_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    path = toml(f'retention_days = "{CANARY}"')
    assert refused().endswith(f"(file {path})")
    monkeypatch.setenv("METRICS_RETENTION_DAYS", CANARY)
    assert refused().endswith("(environment variable METRICS_RETENTION_DAYS)")
    monkeypatch.setenv("TALLYMARK_RETENTION_DAYS", CANARY)
    assert refused().endswith("(environment variable TALLYMARK_RETENTION_DAYS)")


def test_all_bad_values_are_said_at_once() -> None:
    assert refused(port="x", host="").count("(argument)") == 2


@pytest.mark.parametrize(
    ("text", "place"),
    [("port = 1\nport = ", "line 2"), ("port = 1\n[retention\n", "line 2"), ("a\n", "line 1"), ("x = '''\n", "line")],
)
@pytest.mark.parametrize("name", ["tallymark.toml", "pyproject.toml"])
def test_a_file_that_is_no_toml(text: str, place: str, name: str) -> None:
    path = toml(text, name)
    said = refused()
    assert str(path) in said
    assert place in said or "end of document" in said


def test_files_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TALLYMARK_CONFIG", "nowhere.toml")
    assert str(tmp_path / "nowhere.toml") in refused()
    monkeypatch.setenv("TALLYMARK_CONFIG", str(tmp_path))
    assert str(tmp_path) in refused()
    (tmp_path / "latin.toml").write_bytes("service = 'ü'".encode("latin-1"))
    monkeypatch.setenv("TALLYMARK_CONFIG", "latin.toml")
    assert "UTF-8" in refused()
    toml("x = " + "[" * 100_000)
    monkeypatch.setenv("TALLYMARK_CONFIG", "tallymark.toml")
    assert "not valid TOML" in refused()


@pytest.mark.parametrize("text", ["tool = 1", "[tool]\ntallymark = 1", "[[tool.tallymark]]\nport = 1"])
def test_a_project_with_something_else_in_that_place(text: str) -> None:
    toml(text, "pyproject.toml")
    if text == "tool = 1":
        assert Settings().port == 7070
    else:
        assert "must be a table" in refused()


def test_an_unknown_name_has_the_nearest_one_as_a_hint(caplog: pytest.LogCaptureFixture) -> None:
    assert "did you mean retention_days?" in refused(retension_days=1)
    assert "hint" not in refused(zzzzzzzz=1)
    path = toml(f'broket = "{CANARY}"')
    said = refused()
    assert "'broket'" in said
    assert str(path) in said
    assert "did you mean broker?" in said
    assert refused(**{"\x1b[31m": 1}).isprintable()


def test_a_misspelled_variable_is_a_warning(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("TALLYMARK_STROE", CANARY)
    monkeypatch.setenv("TALLYMARK_DEBUG", "1")
    monkeypatch.setenv("TALLYMARK_PURE_PYTHON", "")
    with caplog.at_level(logging.WARNING, "tallymark"):
        assert Settings().store == "./metrics"
        Settings()
    (message,) = (record.getMessage() for record in caplog.records)
    assert "TALLYMARK_STROE" in message
    assert "did you mean TALLYMARK_STORE?" in message
    assert CANARY not in message


# Secrets

URLS = [
    f"redis://:{CANARY}@localhost:6379/0",
    f"redis://user:{CANARY}@localhost",
    f"amqp://guest:{CANARY}@rabbit:5672//",
    f"postgresql://u:{CANARY}@h1,h2/db",
    f"postgresql://h/db?password={CANARY}",
    f"redis://{CANARY}@localhost",
    f"redis://:{CANARY}",
    f"redis://:a@{CANARY}@h",
    f"redis://:12/{CANARY}@h",
    f"redis://u:12#{CANARY}@h",
    f"redis://u:12?{CANARY}@h",
    f"redis://[{CANARY}",
    f"//u:{CANARY}@h",
    f"redis:u:{CANARY}@h",
    f"host=h password={CANARY}",
    CANARY,
    f"\n{CANARY}\x00\x1b",
]


@pytest.mark.parametrize("url", URLS)
def test_the_password_of_a_url_is_masked(url: str, caplog: pytest.LogCaptureFixture) -> None:
    values: dict[str, Any] = {
        "redis": [url],
        "postgres": [url, url],
        "broker": url,
        "keys": [url],
        "pseudonym_key": url,
    }
    values["store"] = url if re.match(r"\w+:", url) else "x"
    for name, value in values.items():
        try:
            found = Settings(**{name: value})
        except ConfigError:  # of another kind
            refused(**{name: value})
            continue
        assert CANARY not in f"{found!r} {found} {found.shown(name)} {caplog.text}"
    assert CANARY not in mask_url(url)


def test_of_a_url_only_the_password_is_masked() -> None:
    for url in URLS[:4]:
        assert mask_url(url) == url.replace(CANARY, "***")
    for url in ("redis://localhost:6379/0", "postgresql://me@h1,h2/db", "amqp://[::1]:1//"):
        assert mask_url(url).replace("***", "me") == url
    for store in ("./metrics", "lake:./a@b", "a@b", "/tmp/x:y"):
        assert Settings(store=store).shown("store") == store


@given(before=st.text(max_size=6), after=st.text(max_size=6), user=st.text("au:/", max_size=3))
@example(before="12/", after="", user="")
@example(before="a@", after=":", user="u")
@example(before="1/", after="?", user="u")
@example(before="@", after="?", user="u")
def test_no_password_whatever_it_holds_is_shown(before: str, after: str, user: str) -> None:
    url = f"redis://{user}:{before}{CANARY}{after}@h:1/0"
    assert CANARY not in mask_url(url)
    assert CANARY not in repr(Settings(redis=[url], keys=[url], pseudonym_key=url))
    try:
        assert CANARY not in repr(Settings(broker=url))
    except ConfigError:  # with a semicolon it is two of them
        refused(broker=url)


def test_keys_are_masked_altogether() -> None:
    found = Settings(keys=[f"https://{CANARY}/", CANARY], pseudonym_key=f"x://{CANARY}")
    assert (found.shown("keys"), found.shown("pseudonym_key")) == (["***", "***"], "***")
    assert CANARY not in repr(found)


@pytest.mark.parametrize("name", SECRETS)
@pytest.mark.parametrize(
    "wrong", [lambda: {"x": CANARY}, lambda: [[CANARY]], lambda: object(), lambda: CANARY.encode("utf-16")]
)
def test_a_refused_secret_is_not_shown(name: str, wrong: Callable[[], Any]) -> None:
    refused(**{name: wrong()})


@pytest.mark.parametrize("name", [name for name in Settings.model_fields if name not in ("store", "service", "host")])
def test_no_refused_value_is_shown(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for text in (f"[{CANARY}", f"{{{CANARY}", f"{CANARY}=", f'["{CANARY}", 1]'):
        monkeypatch.setenv(f"TALLYMARK_{name.upper()}", text)
        said = ""
        with contextlib.suppress(ConfigError):
            said = repr(Settings())
        if not said and name != "retention":  # there the text is the name of a metric type
            said = refused()
        assert CANARY not in said or name in ("queues", "allowed_hosts", "log_file")


# The rest


def test_they_are_read_once_and_do_not_change(monkeypatch: pytest.MonkeyPatch) -> None:
    first = settings()
    monkeypatch.setenv("TALLYMARK_PORT", "1234")
    assert settings() is first
    settings.cache_clear()
    assert settings().port == 1234
    with pytest.raises(ValueError, match="frozen"):
        first.port = 1


def test_recording_needs_no_settings(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from tallymark import Metrics\n"
        "import tallymark.default, tallymark.manager\n"
        f"with Metrics({str(tmp_path / 'm')!r}) as metrics: metrics.record('a', 'b', 1)\n"
        "print([name for name in ('pydantic', 'tomllib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_page_has_every_setting() -> None:
    assert PAGE.read_text("utf-8") == page(), "write it anew: cd tests && python settings_page.py"


def test_what_the_page_shows_is_valid() -> None:
    text = PAGE.read_text("utf-8")
    (example_file,) = re.findall(r"^```toml\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    toml(example_file)
    assert set(tomllib.loads(example_file)) == {
        name for name in Settings.model_fields if Settings().origin(name) != "default"
    }
    for line in re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        exec(line, {})
