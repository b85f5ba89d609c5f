"""A recorder that is switched off: everything may be called, nothing happens."""

import asyncio
import inspect
import threading
from pathlib import Path
from typing import Any

import pytest

from tallymark import ConfigError, Metrics, MetricsStats
from tallymark.disabled import METHODS
from tallymark.testing import ManualClock

pytestmark = pytest.mark.usefixtures("core")

NOTHING = MetricsStats(0, 0, 0, 0, None, 0.0, False, {})


@pytest.fixture
def off(folder: Path) -> Metrics:
    return Metrics(folder, service="shop", enabled=False)


def use(metrics: Metrics) -> None:
    """Every call, with arguments that a recorder would refuse, too."""
    nonsense: Any = object()
    with metrics as same:
        assert same is metrics
        metrics.record_operation("a", "b", 1.0, metadata={"region": "eu"})
        metrics.record_operation(nonsense, nonsense, -1.0, nonsense, nonsense, nonsense)
        metrics.record("a", "b", float("nan"), unit="", metadata={"password": "x"})
        assert metrics.ingest("a", "b", 1.0, service="x", timestamp=-1) is None
        with metrics.track_operation("") as timing:
            timing.metadata["rows"] = 1
        metrics.flush()
        metrics.drop_invalid("a", ValueError("b"))
    metrics.stop()


def test_nothing_is_made_and_nothing_is_counted(off: Metrics, folder: Path) -> None:
    threads = threading.enumerate()
    use(off)
    assert off.get_stats() == NOTHING
    assert not folder.exists()
    assert list(folder.parent.iterdir()) == []
    assert threading.enumerate() == threads


def test_start_and_stop_in_any_order(off: Metrics) -> None:
    off.stop()
    off.start()
    off.start()
    off.stop()
    off.stop()
    off.record("a", "b", 1.0)  # neither before nor after is an error
    assert off.get_stats() == NOTHING


def test_everything_can_be_awaited(off: Metrics) -> None:
    async def main() -> None:
        await off.start()
        await off.record_operation("a", "b", 1.0)
        await off.record("a", "b", 1.0)
        assert await off.get_stats() == NOTHING
        async with off.track_operation("c", {"a": 1}) as timing:
            timing.metadata["b"] = 2
        await off.flush()
        await off.stop(timeout=1.0)
        async with off as metrics:
            metrics.record("a", "b", 1.0)

    asyncio.run(main())


def test_a_block_may_add_to_its_metadata(off: Metrics) -> None:
    given = {"region": "eu"}
    with off.track_operation("a", given) as timing:
        assert timing.metadata == given
        timing.metadata["rows"] = 1
    assert given == {"region": "eu"}
    with pytest.raises(LookupError), off.track_operation("a"):
        raise LookupError


def test_what_is_decorated_stays_what_it_is(off: Metrics) -> None:
    def add(a: int, b: int) -> int:
        """Adds."""
        return a + b

    async def wait() -> int:
        return 1

    assert off.track_operation("a")(add) is add
    assert asyncio.run(off.track_operation("a")(wait)()) == 1


def test_each_method_is_called_as_the_one_that_it_stands_in_for(off: Metrics) -> None:
    for name in ("record_operation", "record", "track_operation"):
        ours, theirs = (inspect.signature(method).parameters for method in (METHODS[name], getattr(Metrics, name)))
        assert [(p.name, p.default) for p in ours.values()] == [(p.name, p.default) for p in list(theirs.values())[1:]]
    wrong: Any = off.record_operation
    with pytest.raises(TypeError):
        wrong("a")


def test_every_public_method_has_a_substitute(off: Metrics) -> None:
    public = {name for name, member in vars(Metrics).items() if callable(member) and not name.startswith("_")}
    assert public - set(METHODS) == {"monotonic_ns"}
    assert off.monotonic_ns() > 0


def test_a_subclass_is_switched_off_with_it(folder: Path) -> None:
    class Shop(Metrics):
        def sale(self, total: float) -> None:
            super().record("sale", "total", total)

    shop = Shop(folder, enabled=False)
    with shop:
        shop.sale(10.0)
    assert shop.get_stats() == NOTHING
    assert not folder.exists()


def test_a_forked_child_and_other_settings_change_nothing(folder: Path) -> None:
    off = Metrics(folder, clock=ManualClock(), durability="power", on_full="raise", max_queue_size=1, enabled=False)
    use(off)
    assert off.get_stats() == NOTHING
    assert (off.store, off.enabled) == (str(folder), False)


@pytest.mark.parametrize("word", ["false", "FALSE", "False", "0", "no", "No", "off", "OFF", " off "])
@pytest.mark.parametrize("name", ["TALLYMARK_ENABLED", "ENABLE_METRICS"])
def test_the_environment_switches_it_off(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, word: str) -> None:
    monkeypatch.setenv(name, word)
    off = Metrics(folder)
    use(off)
    assert not off.enabled
    assert not folder.exists()
    assert Metrics(folder, enabled=True).enabled


@pytest.mark.parametrize("word", ["true", "1", "yes", "on", "", "nothing"])
@pytest.mark.parametrize("name", ["TALLYMARK_ENABLED", "ENABLE_METRICS"])
def test_the_environment_leaves_it_on(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, word: str) -> None:
    monkeypatch.setenv(name, word)
    assert Metrics(folder).enabled
    assert not Metrics(folder, enabled=False).enabled


def test_our_own_variable_comes_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TALLYMARK_ENABLED", "true")
    monkeypatch.setenv("ENABLE_METRICS", "false")
    assert Metrics(folder).enabled
    monkeypatch.setenv("TALLYMARK_ENABLED", "no")
    monkeypatch.setenv("ENABLE_METRICS", "true")
    assert not Metrics(folder).enabled


@pytest.mark.parametrize("enabled", ["false", 0, 1])
def test_only_a_truth_value_switches_it(folder: Path, enabled: Any) -> None:
    with pytest.raises(ConfigError, match="enabled"):
        Metrics(folder, enabled=enabled)
