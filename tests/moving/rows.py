"""Records that are within the limits of one, and as hostile as those allow."""

import json
from typing import Any, Final

from hypothesis import strategies as st

from tallymark.model import MAX_DESCRIPTION_LENGTH, MAX_ERROR_LENGTH, MAX_ID_LENGTH, MAX_NAME_LENGTH
from tallymark.query import Query
from tallymark.store import Store
from tallymark.testing.oracle import Row
from tallymark.testing.rows import DAY, JOURNALS, MINUTE, NOON, batch, row

HOSTILE: Final = [
    "=1+1",
    "+cmd|' /C calc'!A0",
    "-2",
    "@SUM(A1)",
    "'quoted",
    "''",
    "\tx",
    "\r\nx",
    "a,b;c",
    'a"b',
    '"',
    "a\nb\r\rc\r\n",
    "a\\n",
    "null",
    "true",
    " 7 ",
    "bell\x07\x1b[31m",
    "🧾 \u202e \u2028",
    "\ufffd\ufeff",
    "x" * 128,
    "'; DROP TABLE records; --",
]

METADATA: Final = [
    "{}",
    '{"b":1,"a":1.0,"c":1e3}',
    '{"a":"\\u0007\\n","Ω":[1,{"x":null}]}',
    '{"=1+1":"@x","q":"\\"\\\\","n":12345678901234567890}',
    json.dumps({"text": "é" * 8_000}, ensure_ascii=False),
]
"""As they may have been recorded; the last is almost the largest."""


def some_rows(number: int, **given: Any) -> list[Row]:
    """Records of several days and journals, with every hostile text in every column."""
    rows = []
    for seq in range(number):
        text = HOSTILE[seq % len(HOSTILE)]
        rows.append(
            row(
                seq // 3,
                journal=JOURNALS[seq % 3],
                timestamp=NOON + seq % 7 * DAY + seq // 5 * MINUTE + seq % 2,
                service=text,
                metric_type=HOSTILE[-1 - seq % len(HOSTILE)],
                name=f"{text}{seq % 11}",
                value=[0.1, -0.0, 5e-324, -1.7976931348623157e308, 1 / 3, 2.0**53 + 2][seq % 6],
                unit=["ms", "1", "%"][seq % 3],
                success=[None, True, False][seq % 3],
                error=[None, "", text][seq % 3],
                trace_id=None if seq % 2 else text,
                session_id=text if seq % 2 else None,
                description=None if seq % 4 else text,
            )
            | {"metadata": METADATA[seq % len(METADATA)]}
            | given
        )
    return rows


def filled(store: Store, rows: list[Row]) -> Store:
    """A store with some records."""
    store.write(batch(rows))
    return store


def content(store: Store, **question: Any) -> list[Row]:
    """All records of a store, the oldest first."""
    return store.scan(Query.build(agg=(), order_by="timestamp", **question)).to_pylist()


def in_order(rows: list[Row]) -> list[Row]:
    return sorted(rows, key=lambda one: (one["timestamp"], one["journal"], one["seq"]))


def _texts(longest: int, least: int = 1) -> st.SearchStrategy[str]:
    written = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=least, max_size=8)
    texts = st.sampled_from(HOSTILE) | written | st.just("x" * longest)
    return texts if least == 0 else texts.filter(lambda text: not text.isspace())


@st.composite
def records(draw: st.DrawFn) -> list[Row]:
    """Up to twenty records as tallymark may have recorded them."""
    names, ids = _texts(MAX_NAME_LENGTH), st.none() | _texts(MAX_ID_LENGTH)
    keys = _texts(20, 0)
    metadata = st.dictionaries(keys, st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | keys, max_size=3)
    return [
        row(
            seq,
            journal=draw(st.sampled_from(JOURNALS)),
            timestamp=draw(st.integers(0, 4_102_444_800_000_000_000 - 1)),
            service=draw(names),
            metric_type=draw(names.filter(lambda text: text != "tallymark")),
            name=draw(names),
            value=draw(st.floats(allow_nan=False, allow_infinity=False)),
            unit=draw(names),
            success=draw(st.none() | st.booleans()),
            error=draw(st.none() | _texts(MAX_ERROR_LENGTH, 0)),
            trace_id=draw(ids),
            session_id=draw(ids),
            description=draw(st.none() | _texts(MAX_DESCRIPTION_LENGTH)),
            metadata=draw(metadata),
        )
        for seq in range(draw(st.integers(0, 20)))
    ]
