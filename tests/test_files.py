"""Replacing a file: as a whole and durably, or not at all. Locking one."""

import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tallymark.files import is_locked, locked, replace_file


def interrupted(*arguments: object) -> None:
    raise KeyboardInterrupt


def full(*arguments: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("text", ["", "a\nb\r\nc\r", "名前\x00\x7f\u202e🎉", "x" * 3_000_000])
@pytest.mark.parametrize("is_there", [True, False])
def test_the_file_holds_the_text_and_nothing_else(tmp_path: Path, text: str, is_there: bool) -> None:
    path = tmp_path / "file"
    if is_there:
        path.write_text("the one before")
    replace_file(path, text)
    assert path.read_bytes() == text.encode()
    assert os.listdir(tmp_path) == ["file"]


def test_who_has_the_old_one_open_keeps_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    replace_file(path, "old")
    with path.open() as old:
        replace_file(path, "new")
        assert (old.read(), path.read_text()) == ("old", "new")


def test_its_rights_are_those_of_any_new_file(tmp_path: Path) -> None:
    replace_file(tmp_path / "file", "text")
    (tmp_path / "other").touch()
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == stat.S_IMODE((tmp_path / "other").stat().st_mode)


def test_it_is_on_the_disk_before_it_has_the_name_and_the_name_is_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        done.append("folder" if is_folder else f"{os.fstat(descriptor).st_size} bytes")
        fsync(descriptor)

    def named(old: Any, new: Any) -> None:
        assert Path(new) == path
        done.append("named")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", named)
    replace_file(path, "text")
    assert done == ["4 bytes", "named", "folder"]


@pytest.mark.parametrize("function", ["fsync", "replace"])
@pytest.mark.parametrize("failure", [full, interrupted])
def test_a_failure_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, failure: Callable[..., None]
) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with monkeypatch.context() as patch:
        patch.setattr(os, function, failure)
        with pytest.raises((OSError, KeyboardInterrupt)):
            replace_file(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_text_that_cannot_be_encoded_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        replace_file(path, "x" * 100_000 + "\ud800")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_places_where_no_file_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "folder", tmp_path / "nowhere" / "file", tmp_path / ("x" * 300), Path()):
        with pytest.raises(OSError, match="Errno"):
            replace_file(path, "text")
    assert os.listdir(tmp_path) == ["folder"]


def test_one_holds_the_lock_of_a_file_and_others_see_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert not is_locked(path)
    assert os.listdir(tmp_path) == []
    with locked(path):
        assert is_locked(path)
        with locked(path, wait=False) as held:
            assert not held
        assert is_locked(path)
    assert not is_locked(path)
    with locked(path, wait=False) as held:
        assert held
        assert is_locked(path)


def test_a_lock_is_shared_by_those_who_share_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with pytest.raises(FileNotFoundError), locked(path, shared=True, make=False):
        pass
    with locked(path, shared=True), locked(path, shared=True):
        assert not is_locked(path)
        with locked(path, wait=False) as held:
            assert not held
    with locked(tmp_path, wait=False, make=False) as held:  # a folder
        assert held
        assert is_locked(tmp_path)
    with pytest.raises(IsADirectoryError), locked(tmp_path):
        pass


def test_who_waits_for_a_lock_gets_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    order: list[str] = []

    def next_one() -> None:
        with locked(path):
            order.append("next")

    with locked(path):
        thread = threading.Thread(target=next_one)
        thread.start()
        order.append("first")
    thread.join(60)
    assert order == ["first", "next"]


def test_a_forked_child_does_not_keep_a_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    reading, writing = os.pipe()
    with locked(path):
        child = os.fork()
        if not child:
            os.close(writing)
            os.read(reading, 1)  # until the parent has closed its end
            os._exit(0)
    try:
        assert not is_locked(path)
    finally:
        os.close(writing)
        os.close(reading)
        os.waitpid(child, 0)
