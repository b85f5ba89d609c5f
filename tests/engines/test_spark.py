"""Spark, with workers in processes of their own, reads the lake as docs/other-engines.md says."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest
from services import find_program

from .recipes import check, code_of, recipe

ROWS = "[row.asDict() for row in answer.collect()]"


def cluster(folder: Path) -> dict[str, str]:
    """The environment in which a Spark session is a master and two workers, which leave their files in a folder."""
    java = find_program("java")
    package = find_spec("pyspark")
    assert package is not None
    assert package.origin is not None
    home = folder / "spark"
    home.mkdir()
    for part in ("bin", "jars"):
        (home / part).symlink_to(Path(package.origin).parent / part)
    settings = {
        "spark.log.level": "ERROR",
        "spark.scheduler.minRegisteredResourcesRatio": "1",  # begins when both workers are there
        "spark.sql.shuffle.partitions": "2",  # two hundred tasks take their time
        "spark.ui.enabled": "false",
    }
    arguments = " ".join(f"--conf {name}={value}" for name, value in settings.items())
    return {
        **os.environ,
        "JAVA_HOME": str(Path(java).resolve().parents[1]),
        "PYSPARK_PYTHON": sys.executable,
        "PYSPARK_SUBMIT_ARGS": f"--master local-cluster[2,1,1024] {arguments} pyspark-shell",
        "SPARK_HOME": str(home),
        "SPARK_LOCAL_DIRS": str(home / "local"),
        "SPARK_LOCAL_IP": "127.0.0.1",
        "TZ": "UTC",
    }


def command(process: psutil.Process) -> str:
    """The command line of a process; empty where it has just ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


@pytest.mark.timeout(600)
def test_its_answers_are_those_of_tallymark(tmp_path: Path) -> None:
    with recipe(code_of("Spark"), ROWS, tmp_path, cluster(tmp_path)) as spark:
        check(spark, tmp_path)
        processes = psutil.Process(spark.pid).children(recursive=True)
        workers = [process for process in processes if "CoarseGrainedExecutorBackend" in command(process)]
        assert len(workers) == 2
