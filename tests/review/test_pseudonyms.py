"""Pseudonyms, and the key that they are made with."""

import os
import re
import stat
from pathlib import Path

import pytest
from recording import output, python

from tallymark.errors import ConfigError
from tallymark.privacy import forbidden_word
from tallymark.review import Pseudonyms
from tallymark.review.pseudonyms import KEY_FILE, KINDS


def test_they_are_stable_and_say_nothing(folder: Path) -> None:
    pseudonyms = Pseudonyms(folder, key="a secret")
    # Written down: another release that gives another would lose everybody.
    assert pseudonyms.of("admin", 12345) == "admin_rbpgkskldgcbspggqklf"
    assert pseudonyms.of("admin", "12345") == pseudonyms.of("admin", 12345)
    assert Pseudonyms(folder, key=b"a secret").known("admin", 12345) == pseudonyms.of("admin", 12345)
    assert Pseudonyms(folder, key="another").of("admin", 12345) != pseudonyms.of("admin", 12345)
    assert not folder.exists()


def test_kinds_have_nothing_in_common(folder: Path) -> None:
    pseudonyms = Pseudonyms(folder, key="a secret")
    found = {pseudonyms.of(kind, 7).partition("_")[2] for kind in KINDS}
    assert len(found) == 4
    assert all(re.fullmatch("[bcdfghjklmnpqrst]{20}", letters) for letters in found)


def test_many_ids_have_many_pseudonyms(folder: Path) -> None:
    pseudonyms = Pseudonyms(folder, key="a secret")
    assert len({pseudonyms.of("user", number) for number in range(100_000)}) == 100_000


def test_the_keys_of_metadata_pass_the_rule_about_persons() -> None:
    assert [forbidden_word(kind) for kind in KINDS] == [None] * 4


@pytest.mark.parametrize("identifier", [None, 1.5, True, b"1", "", "  ", "x" * 129, 10**200, [1]])
def test_what_is_no_id(folder: Path, identifier: int | str) -> None:
    with pytest.raises(ValueError, match="the id of the user"):
        Pseudonyms(folder, key="a secret").of("user", identifier)


def test_hostile_ids(folder: Path) -> None:
    pseudonyms = Pseudonyms(folder, key="a secret")
    hostile = ["'; DROP TABLE", "a\x00", "\x1b[2J", "🎉", "\ud83d", "-1", "é", "e\u0301", str(2**64), "=1+1"]
    assert len({pseudonyms.of("user", text) for text in hostile}) == len(hostile)
    with pytest.raises(ValueError, match="kind must be one of"):
        pseudonyms.of("dog", 1)  # type: ignore[arg-type]


def test_raw_ids_are_asked_for(folder: Path) -> None:
    assert Pseudonyms(folder, raw_ids=True).of("admin", 123) == "admin_123"
    assert Pseudonyms(folder, raw_ids=True).known("chat", -100) == "chat_-100"
    assert not folder.exists()


def test_the_key_file_is_made_once_for_its_owner_only(folder: Path) -> None:
    mask = os.umask(0)
    try:
        first = Pseudonyms(folder).of("user", 1)
    finally:
        os.umask(mask)
    file = folder / KEY_FILE
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in folder.iterdir()] == [KEY_FILE]
    before = file.read_bytes()
    assert Pseudonyms(folder).of("user", 1) == Pseudonyms(folder).known("user", 1) == first
    assert file.read_bytes() == before


def test_it_stays_where_it_is_when_the_program_goes_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pseudonyms = Pseudonyms("./metrics")
    monkeypatch.chdir("/")
    pseudonyms.of("user", 1)
    assert (tmp_path / "metrics" / KEY_FILE).exists()


def test_whoever_looks_makes_no_key(folder: Path) -> None:
    with pytest.raises(ConfigError, match="there is no key at"):
        Pseudonyms(folder).known("user", 1)
    assert not folder.exists()


@pytest.mark.parametrize("content", [b"", b"\x00" * 65, b"ab" * 31, b"zz" * 32, "é".encode() * 32])
def test_a_damaged_key_is_not_written_over(folder: Path, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    folder.mkdir()
    (folder / KEY_FILE).write_bytes(content)
    with pytest.raises(ConfigError, match="is damaged"):
        Pseudonyms(folder).known("user", 1)
    pseudonyms = Pseudonyms(folder)
    assert pseudonyms.of("user", 1) == pseudonyms.of("user", 1)
    assert "other pseudonyms than usual" in caplog.text
    assert len(caplog.records) == 1
    assert (folder / KEY_FILE).read_bytes() == content


def test_a_folder_that_cannot_be_made_does_not_hurt(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    assert Pseudonyms(tmp_path / "file" / "metrics").of("user", 1).startswith("user_")
    assert "other pseudonyms than usual" in caplog.text


def test_an_empty_key_is_none(folder: Path) -> None:
    with pytest.raises(ConfigError, match="pseudonym_key"):
        Pseudonyms(folder, key="")


TOGETHER = """
import os, sys, threading
from tallymark.review import Pseudonyms

sys.stdin.readline()
found = []
together = threading.Barrier(4)
def work():
    together.wait()
    found.append(Pseudonyms(sys.argv[1]).of("user", 1))
threads = [threading.Thread(target=work) for _ in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
(only,) = set(found)
print(only)
"""


def test_processes_that_begin_at_once_agree(folder: Path) -> None:
    import subprocess

    processes = [python("-c", TOGETHER, str(folder), stdin=subprocess.PIPE) for _ in range(4)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    assert len({output(process) for process in processes}) == 1
    assert [path.name for path in folder.iterdir()] == [KEY_FILE]
