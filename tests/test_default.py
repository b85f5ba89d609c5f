"""The recorder of a process: one of them, whoever asks first and however often."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from recording import in_threads, output, python, recording, stored

from tallymark import Metrics
from tallymark.config import settings
from tallymark.default import default_metrics, set_default
from tallymark.errors import ConfigError
from tallymark.lane import JOURNALS
from tallymark.shipper import shipping_lock


@pytest.fixture
def process(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process that has no recorder yet, and records to the folder."""
    for variable in ("TALLYMARK_ENABLED", "ENABLE_METRICS", "TALLYMARK_SERVICE", "TALLYMARK_PII"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("TALLYMARK_STORE", str(folder))
    monkeypatch.chdir(tmp_path)
    settings.cache_clear()
    set_default(None)
    yield
    set_default(None)
    settings.cache_clear()


def run(folder: Path, code: str) -> str:
    """What another process prints that records to the folder."""
    journals = folder / JOURNALS
    journals.mkdir(parents=True)
    with shipping_lock(journals):  # it leaves its journal to others, which takes no time
        return output(
            python("-c", code, env=os.environ | {"TALLYMARK_STORE": str(folder), "TALLYMARK_SERVICE": "shop"})
        )


@pytest.mark.usefixtures("process")
def test_it_is_made_once_however_many_threads_ask(folder: Path) -> None:
    found: list[Metrics] = []
    in_threads(lambda: found.append(default_metrics()), 16)
    assert len(found) == 16
    assert set(map(id, found)) == {id(default_metrics())}
    with default_metrics_stopped() as metrics:
        assert metrics.get_stats().is_running
        assert metrics.store == str(folder)


class default_metrics_stopped:
    """The recorder, stopped in the end: what the end of a process does."""

    def __enter__(self) -> Metrics:
        return default_metrics()

    def __exit__(self, *_: object) -> None:
        default_metrics().stop()


@pytest.mark.usefixtures("process")
def test_it_follows_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TALLYMARK_SERVICE", "billing")
    monkeypatch.setenv("TALLYMARK_PII", "email=reject")
    with default_metrics_stopped() as metrics:
        assert metrics.service == "billing"
        assert metrics.pii.actions["email"] == "reject"
        assert metrics.pii.actions["card"] == "mask"


@pytest.mark.usefixtures("process")
def test_a_recorder_may_be_given(folder: Path) -> None:
    with recording(folder) as given:
        set_default(given)
        assert default_metrics() is given
        set_default(None)
        with default_metrics_stopped() as other:
            assert other is not given
        assert given.get_stats().is_running


@pytest.mark.usefixtures("process")
@pytest.mark.parametrize("variable", ["TALLYMARK_ENABLED", "ENABLE_METRICS"])
def test_switched_off(variable: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "false")
    with default_metrics_stopped() as metrics:
        metrics.record("queue_metrics", "queue_depth", 3)
        assert metrics.get_stats().total_recorded == 0
    assert not folder.exists()


@pytest.mark.usefixtures("process")
def test_settings_that_are_not_valid_are_said_at_each_call_until_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TALLYMARK_PORT", "never")
    for _ in range(2):
        with pytest.raises(ConfigError, match="TALLYMARK_PORT"):
            default_metrics()
    monkeypatch.delenv("TALLYMARK_PORT")
    with default_metrics_stopped() as metrics:
        assert metrics.get_stats().is_running


def test_it_is_stopped_at_exit(folder: Path) -> None:
    run(folder, "from tallymark.default import default_metrics as m\nfor i in range(3): m().record('a', 'b', i)")
    assert [(record.service, record.value) for record in stored(folder)] == [("shop", 0), ("shop", 1), ("shop", 2)]


def test_nothing_heavy_is_loaded_before_the_first_call() -> None:
    code = "import sys, tallymark.default\nprint({'pydantic', 'tomllib', 'duckdb', 'asyncio'} & set(sys.modules))"
    assert output(python("-c", code)) == "set()\n"


def test_without_the_package_it_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['pydantic'] = None\n"
        "from tallymark import ConfigError\n"
        "from tallymark.default import default_metrics\n"
        "try: default_metrics()\n"
        "except ConfigError as error: print(error)"
    )
    said = output(python("-c", code))
    assert "pydantic" in said
    assert 'pip install "tallymark[config]"' in said


def test_a_program_whose_own_module_is_missing_is_told_that(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['tallymark.location'] = None\n"
        "from tallymark.default import default_metrics\ndefault_metrics()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert "tallymark.location" in done.stderr.splitlines()[-1]
    assert "pip" not in done.stderr


FORKS = """
import os, sys, threading
from tallymark.default import default_metrics

first = threading.Thread(target=default_metrics)  # loads what reads the settings, which takes a while
first.start()
children = []
for number in range(8):
    child = os.fork()
    if not child:
        default_metrics().record("fork", "child", number)
        default_metrics().stop()
        os._exit(0)
    children.append(child)
codes = {os.waitpid(child, 0)[1] for child in children}
first.join()
default_metrics().record("fork", "parent", 8)
print(codes)
"""


def test_forks_while_it_is_being_made(folder: Path) -> None:
    assert run(folder, FORKS) == "{0}\n"
    assert sorted(record.value for record in stored(folder)) == list(range(9))
