"""Everything that records is tested twice: with the compiled core, and without it."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from recording import recording

import tallymark.core
from tallymark import Metrics, lane_reader

# Where the tests run in the background of a script SIGINT is ignored, and would be by every program that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)


# As the environment has it, with CI the same examples each time; but no example has to be quick.
settings.register_profile("patient", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

# Nobody knows how long a shipper may take on a machine that is busy with other tests; ten seconds, with which an
# application does, have been too little.
for _waits in (Metrics.flush, Metrics.stop):
    _waits.__defaults__ = (120.0,)


@pytest.fixture(params=["compiled", "pure"])
def core(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which way is taken to record and to read, in this process and in those that it starts."""
    if request.param == "pure":
        monkeypatch.setenv("TALLYMARK_PURE_PYTHON", "1")  # for other processes
        monkeypatch.setattr(lane_reader, "core", None)
        renew = Metrics._renew_journal

        def renew_without_core(metrics: Metrics) -> None:
            renew(metrics)
            metrics._pool.service = None

        monkeypatch.setattr(Metrics, "_renew_journal", renew_without_core)
    elif tallymark.core.core is None:
        assert not os.environ.get("CI"), "the core is not compiled"
        pytest.skip("the core is not compiled")
    return str(request.param)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a test records to."""
    return tmp_path / "metrics"


@pytest.fixture
def metrics(folder: Path) -> Iterator[Metrics]:
    """A recorder that runs."""
    with recording(folder, service="shop") as metrics:
        yield metrics


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """A real Redis for all tests; each empties what it uses."""
    from services.redis import redis_server

    with redis_server() as url:
        yield url


@pytest.fixture(scope="session")
def rabbitmq_url() -> Iterator[str]:
    """A real RabbitMQ for all tests: it takes ten seconds to start."""
    from services.rabbitmq import rabbitmq_server

    with rabbitmq_server() as url:
        yield url


STORES = ("lake", "sqlite", "postgres", "clickhouse", "json_files")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say which stores passed the suite that all of them have to; with CI set, fail where one is not among them."""
    from tallymark.testing.conformance import StoreConformance

    suite = {name for name in vars(StoreConformance) if name.startswith("test_")}
    passed: dict[str, set[str]] = {store: set() for store in STORES}
    for report in terminalreporter.stats.get("passed", []):
        file, _, test = report.nodeid.partition("::")
        store = file.rpartition("/test_")[2].removesuffix(".py")
        name = test.rpartition("::")[2].partition("[")[0]
        if store in passed and name in suite:
            passed[store].add(name)
    said = ", ".join(f"{store} {len(names)} of {len(suite)}" for store, names in passed.items())
    everything = config.args_source is pytest.Config.ArgsSource.TESTPATHS and not config.option.keyword
    if everything or any(passed.values()):
        terminalreporter.write_line(f"conformance of stores: {said}")
    if os.environ.get("CI") and everything and any(names != suite for names in passed.values()):
        terminalreporter.write_line("a store did not pass, or did not run, the whole suite", red=True)
        assert terminalreporter._session is not None
        terminalreporter._session.exitstatus = pytest.ExitCode.TESTS_FAILED
