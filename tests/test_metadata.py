"""Metadata as JSON: what is kept, what is refused, and in which words."""

import contextlib
import enum
import json
import math
import sys
from collections import OrderedDict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallymark import metadata as module
from tallymark.metadata import encode_metadata
from tallymark.model import MAX_METADATA_DEPTH, MAX_METADATA_KEYS, clean_text
from tallymark.privacy import mask_text

SECRET = "s3cr3t-value"


@pytest.fixture(autouse=True)
def _nothing_was_seen_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "accepted_keys", set())


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = {"a": value}
    return value


class Color(enum.StrEnum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


class Tuned(float):
    pass


class Text(str):
    __slots__ = ()


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"a": None, "b": True, "c": False, "d": 0, "e": -1.5, "f": "", "g": "text"},
        {"list": [1, [2, [3]], {"a": []}], "dict": {"a": {"b": {}}}},
        {"big": 2**64 - 1, "small": -(2**63), "tiny": 5e-324, "huge": sys.float_info.max, "zero": -0.0},
        {"null": "null", "nothing": None},
        {"unicode": "žluťoučký 🐎 \x01 \x7f \u2028 \ud7ff", "": "an empty key", 'a"b\\c\n': 1},
        nested(MAX_METADATA_DEPTH),
        {f"k{i}": i for i in range(MAX_METADATA_KEYS)},
    ],
)
@pytest.mark.parametrize("times", [1, 2])
def test_it_comes_back_equal(metadata: dict[str, Any], times: int) -> None:
    for _ in range(times):  # the second time the keys are known
        text = encode_metadata(metadata)
        assert json.loads(text) == metadata
        assert repr(json.loads(text)) == repr(metadata)  # 1 is not 1.0 and -0.0 is not 0.0


def test_what_extends_a_built_in_type_is_kept_as_that() -> None:
    given_ = OrderedDict({Color.RED: Color.RED, "level": Level.HIGH, "tuned": Tuned(1.5), "pair": (1, 2)})
    assert json.loads(encode_metadata(given_)) == {"red": "red", "level": 3, "tuned": 1.5, "pair": [1, 2]}


def test_surrogates_are_normalised_once() -> None:
    broken = {"k\ud800": "pair \ud83d\ude00 and \ud800 alone"}
    text = encode_metadata(broken).decode()
    assert json.loads(text) == {"k\ufffd": "pair 😀 and \ufffd alone"}
    assert encode_metadata(json.loads(text)).decode() == text


@pytest.mark.parametrize(
    ("metadata", "kept"),
    [
        ({"a": "\0"}, {"a": "\ufffd"}),
        ({"a": "x\0y\0\0"}, {"a": "x\ufffdy\ufffd\ufffd"}),
        ({"a\0": 1}, {"a\ufffd": 1}),
        ({"a": {"\0": ["\0", {"b": ("\0",)}]}}, {"a": {"\ufffd": ["\ufffd", {"b": ["\ufffd"]}]}}),
        ({"a": "\\u0000"}, {"a": "\\u0000"}),  # a backslash and letters
        ({"a": "\\\0"}, {"a": "\\\ufffd"}),  # a backslash and NUL
        ({"a": "\\u0000\0"}, {"a": "\\u0000\ufffd"}),
        ({"\\u0000": "u0000"}, {"\\u0000": "u0000"}),
        ({"a": Text("x\0y")}, {"a": "x\ufffdy"}),
    ],
)
@pytest.mark.parametrize("times", [1, 2])
def test_nul_is_never_kept(metadata: dict[str, Any], kept: dict[str, Any], times: int) -> None:
    for _ in range(times):  # the second time the keys are known
        text = encode_metadata(metadata)
        assert json.loads(text) == kept
        assert encode_metadata(json.loads(text)) == text


def test_nul_is_replaced_before_a_rule_looks() -> None:
    module.accepted_keys.add("a")
    with pytest.raises(ValueError, match=r"metadata has the forbidden key '\ufffdemail'"):
        encode_metadata({"\0email": SECRET})
    assert json.loads(encode_metadata({"a": "\0anna@example.com"})) == {"a": mask_text("\ufffdanna@example.com")}


def test_private_use_and_other_control_characters_are_kept() -> None:
    texts = {"a": "".join(map(chr, range(1, 32))) + "\x7f\x80\ue000\ufffd\uffff"}
    assert json.loads(encode_metadata(texts)) == texts


@pytest.mark.parametrize(
    ("metadata", "rule"),
    [
        ([("region", SECRET)], r"metadata must be a dict, not list"),
        (SECRET, r"metadata must be a dict, not str"),
        ({1: SECRET}, r"metadata has a key of type int; keys must be text"),
        ({b"region": SECRET}, r"metadata has a key of type bytes"),
        ({"a": {None: SECRET}}, r"metadata\.a has a key of type NoneType"),
        ({"a": SECRET.encode()}, r"metadata\.a must be JSON .* not bytes"),
        ({"a": {"b": [0, object()]}}, r"metadata\.a\.b\[1\] must be JSON .* not object"),
        ({"a": {SECRET}}, r"metadata\.a must be JSON .* not set"),
        ({"a": math.nan}, r"metadata\.a must be a finite number"),
        ({"a": [-math.inf]}, r"metadata\.a\[0\] must be a finite number"),
        ({"a": 1j}, r"metadata\.a must be JSON .* not complex"),
        ({"a": 2**64}, r"metadata\.a must fit in 64 bits"),
        ({"a": -(2**63) - 1}, r"metadata\.a must fit in 64 bits"),
        (nested(MAX_METADATA_DEPTH + 1), r"nested too deep; at most 8 levels"),
        ({f"k{i}": SECRET for i in range(MAX_METADATA_KEYS + 1)}, r"too many keys; at most 64"),
        ({f"k{i}": {"a": SECRET} for i in range(MAX_METADATA_KEYS)}, r"too many keys; at most 64"),
        ({"a": SECRET * 2000}, r"at most 16384"),
        ({"a": [SECRET] * 1200}, r"metadata is \d+ bytes of JSON; at most 16384"),
        ({"a": "\x01" * 3000}, r"metadata is \d+ bytes of JSON; at most 16384"),
        ({"a": [[0] * 100] * 100}, r"metadata has too many values"),
        ({"a" * 20_000: 1}, r"metadata has a key that is too long"),
        ({"email": SECRET}, r"metadata has the forbidden key 'email': 'email' may name a person or a secret"),
        ({"a": [{"b": {"accessToken": SECRET}}]}, r"metadata\.a\[0\]\.b has the forbidden key 'accessToken': 'token'"),
        ({"re\ud800gion": {"re\ud800gion": object()}}, r"re\ufffdgion\.re\ufffdgion must be JSON"),
    ],
)
def test_the_error_names_the_key_and_the_rule_and_never_the_value(metadata: Any, rule: str) -> None:
    for seen in ((), ("region",)):
        module.accepted_keys.update(seen)
        with pytest.raises(ValueError, match=rule) as caught:
            encode_metadata(metadata)
        assert SECRET not in str(caught.value)
        assert "object at" not in str(caught.value)
        assert len(str(caught.value)) < 1000
        str(caught.value).encode()  # whoever logs it can do so


def test_metadata_that_contains_itself_is_too_deep() -> None:
    loop: dict[str, Any] = {}
    loop["loop"] = [loop]
    with pytest.raises(ValueError, match="too deep"):
        encode_metadata(loop)


def test_what_is_shared_a_million_times_is_refused_at_once() -> None:
    value: Any = [0] * 8000
    for _ in range(5):
        value = [value] * 8000
    with pytest.raises(ValueError, match="too many values"):
        encode_metadata({"a": value})


def test_nan_is_refused_where_the_keys_are_known() -> None:
    encode_metadata({"a": 1.0})
    with pytest.raises(ValueError, match="finite"):
        encode_metadata({"a": math.nan})


def test_the_keys_that_are_remembered_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_ACCEPTED", 10)
    for i in range(100):
        assert json.loads(encode_metadata({f"k{i}": i})) == {f"k{i}": i}
    assert len(module.accepted_keys) == 10


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters()), inner, max_size=4),
    max_leaves=20,
)


def cleaned(value: Any) -> Any:
    """What every store can hold of it."""
    if isinstance(value, str):
        return mask_text(clean_text(value))
    if isinstance(value, int) and not isinstance(value, bool):  # a few of them look like cards
        return value if mask_text(str(value)) == str(value) else mask_text(str(value))
    if isinstance(value, list):
        return [cleaned(item) for item in value]
    if isinstance(value, dict):
        return {mask_text(clean_text(key)): cleaned(item) for key, item in value.items()}
    return value


@given(st.dictionaries(st.text(st.characters()), JSON, max_size=8))
def test_whatever_is_accepted_comes_back_equal(metadata: dict[str, Any]) -> None:
    with contextlib.suppress(ValueError):
        kept = repr(json.loads(encode_metadata(metadata)))
        assert kept == repr(cleaned(metadata))
        assert "\\x00" not in kept.replace("\\\\", "")
