"""Every answer of the lake while some records are in journals, against the oracle."""

from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lakes import Live, lake_with

from tallymark.query import Query
from tallymark.testing import oracle
from tallymark.testing.conformance import assert_same_groups
from tallymark.testing.oracle import Row
from tallymark.testing.questions import aggregations, records, scans
from tallymark.testing.rows import JOURNALS, batch, of_journal, table


@settings(deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))
@given(
    rows=records(),
    shares=st.tuples(st.integers(0, 25), st.integers(0, 25)),
    questions=st.lists(aggregations() | scans(), min_size=6, max_size=12),
    compacted=st.booleans(),
)
def test_every_answer_is_that_of_the_oracle(
    rows: list[Row], shares: tuple[int, int], questions: list[Query], compacted: bool
) -> None:
    """Some rows are in one Parquet file, some in another, some in journals, some of these stored already."""
    first, second = sorted(shares)
    live = [Live(journal, table(of_journal(rows, journal))) for journal in JOURNALS]
    with TemporaryDirectory() as folder:
        lake = lake_with(Path(folder), live)
        for part in (rows[:first], rows[first:second]):
            lake.write(batch(part))
        if compacted:
            lake._delta.compact(sorted(lake._delta.file_sizes()), 1 << 20)
        for query in questions:
            if query.aggregates:
                assert_same_groups(lake.aggregate(query), oracle.aggregate(rows, query), query, rows)
            else:
                assert lake.scan(query).to_pylist() == oracle.scan(rows, query)
        lake.close()
