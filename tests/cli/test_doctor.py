"""``tallymark doctor``."""

from .conftest import Program

HOPS = [
    "record -> journal",
    "journal -> query",
    "journal -> query, other process",
    "journal -> store, shipped",
    "store -> read back",
]


def test_a_healthy_installation(tallymark: Program) -> None:
    (report,) = tallymark.rows("doctor", "fresh")
    assert report["ok"], report
    assert [check["check"] for check in report["checks"]][-len(HOPS) :] == HOPS
    assert all(check["ms"] > 0 for check in report["checks"][-len(HOPS) :])
    (record,) = tallymark.rows("tail", "fresh")
    assert (record["metric_type"], record["name"]) == ("doctor", "round_trip")


def test_on_a_store_in_use(tallymark: Program, shop: object) -> None:
    text = tallymark("doctor").stdout
    assert text.count("ok  ") >= len(HOPS)
    assert "FAIL" not in text
    assert len(tallymark.rows("tail", "-n", "100")) == 31


def test_a_folder_that_cannot_be_written(tallymark: Program) -> None:
    (tallymark.folder / "file").touch()
    done = tallymark("doctor", "file/metrics", code=1)
    assert "FAIL  folder can be written" in done.stdout
    assert "hint: " in done.stdout
    assert "record -> journal" not in done.stdout
