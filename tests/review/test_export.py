"""The reports as files."""

import csv
import json
import os
from pathlib import Path

import pytest

from tallymark.review import MetricsService
from tallymark.review.export import write_json

HOSTILE = ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", "\rx", '"quoted", and\na line', "\x1b[2J\u202e🎉", "plain"]
FILES = {"overview", "stages", "corrections", "admins", "admin_performance", "alerts", "system_metrics"}


@pytest.fixture
def hostile(service: MetricsService) -> MetricsService:
    for number, name in enumerate(HOSTILE):
        with service.timer("s", 1, 2, name):
            pass
        service.record_correction("s", number, 1, name, "one", "two", 5)
        service.label_admin(number, name)
        service.record_system_metric(name, -1)
    return service


def test_json(hostile: MetricsService, tmp_path: Path) -> None:
    path = hostile.export_json(tmp_path / "report.json", hours=1)
    report = json.loads(path.read_text("ascii"))
    dashboard = hostile.get_dashboard_data(hours=1)
    assert report["processing_by_stage"] == dashboard["processing_by_stage"]
    assert report["corrections"] == dashboard["corrections"]
    assert len(report["admin_performance"]["admins"]) == len(HOSTILE)
    assert report["period"]["hours"] == 1


def test_csv(hostile: MetricsService, tmp_path: Path) -> None:
    paths = hostile.export_csv(tmp_path / "new" / "report")
    assert {path.stem for path in paths} == FILES
    tables = {}
    for path in paths:
        with path.open(encoding="utf-8", newline="") as file:
            tables[path.stem] = list(csv.DictReader(file))
    for table, column in (("stages", "stage"), ("corrections", "correction_type"), ("system_metrics", "name")):
        found = [row[column] for row in tables[table]]
        assert sorted(found) == sorted([f"'{name}" for name in HOSTILE[:6]] + HOSTILE[6:])
    assert {row["label"].lstrip("'") for row in tables["admins"]} == set(HOSTILE)
    assert tables["system_metrics"][0]["last"] == "-1.0"  # a number is one
    assert tables["overview"][0]["total_corrections"] == str(len(HOSTILE))
    everybody, *admins = tables["admin_performance"]
    assert (everybody["admin"], everybody["total_corrections"]) == ("", str(len(HOSTILE)))
    assert len(admins) == len(HOSTILE)


def test_of_nothing_the_headers(service: MetricsService, tmp_path: Path) -> None:
    lines = {path.stem: path.read_text().splitlines() for path in service.export_csv(tmp_path)}
    assert {name: len(found) for name, found in lines.items()} == dict.fromkeys(FILES, 1) | {
        "overview": 2,
        "admin_performance": 2,
    }


def test_a_file_is_replaced_as_a_whole_or_not_at_all(
    service: MetricsService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.json"
    service.export_json(path)
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            write_json({"another": "report"}, path)
    assert path.read_bytes() == before
    assert sorted(found.name for found in tmp_path.iterdir()) == ["report.json"]
    service.create_session(1, 2)
    assert service.export_json(path).read_bytes() != before


def test_a_folder_that_is_none(service: MetricsService, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="file"):
        service.export_csv(tmp_path / "file")
    with pytest.raises(OSError, match="nowhere"):
        service.export_json(tmp_path / "nowhere" / "report.json")
