"""ClickHouse reads the lake as docs/other-engines.md says."""

import os
from pathlib import Path

import pytest
from pyarrow.fs import S3FileSystem
from services.s3 import s3_server

from tallymark.stores.lake.store import Lake
from tallymark.testing.rows import count

from .recipes import check, code_of, fill, recipe

ROWS = "[dict(row) for row in answer.named_results()]"


@pytest.mark.parametrize("place", ["plain", "o'clock 100 ü"])
def test_its_answers_are_those_of_tallymark(tmp_path: Path, place: str) -> None:
    folder = tmp_path / place
    folder.mkdir()
    with recipe(code_of("ClickHouse"), ROWS, folder, dict(os.environ)) as clickhouse:
        check(clickhouse, folder)


def test_it_reads_an_object_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_server() as url:
        key, secret = "AKIDEXAMPLE", "of-no-importance"
        server = S3FileSystem(access_key=key, secret_key=secret, endpoint_override=url, allow_bucket_creation=True)
        server.create_dir("bucket")
        environment = {
            "AWS_ACCESS_KEY_ID": key,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": url,
            "AWS_ALLOW_HTTP": "true",
            "TALLYMARK_STATE": str(tmp_path),
        }
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        with Lake("s3://bucket/metrics") as lake:
            fill(lake)
            expected = count(lake) + 4  # with rows of its own
        query = code_of("ClickHouse", "sql").replace("https://s3.eu-central-1.amazonaws.com", url)
        query = query.replace("key id", key).replace("secret key", secret)
        code = f"import clickhouse_connect\nclient = clickhouse_connect.get_client(interface='chdb')\nquery = {query!r}"
        with recipe(code, "client.query(query).result_rows", tmp_path, dict(os.environ)) as clickhouse:
            assert clickhouse.found() == [[expected]]
