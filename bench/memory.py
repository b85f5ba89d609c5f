"""How much memory recording takes in the application."""

import subprocess
import sys
from tempfile import TemporaryDirectory

from bench import Row

RECORDS = 1_000_000

PEAK = """
def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
"""

IDLE = PEAK + "print(peak())"

RECORD = (
    PEAK
    + """
import tallymark
with tallymark.Metrics({folder!r}, service="bench") as metrics:
    for number in range({records}):
        metrics.record_operation(
            "api_request", "GET /users/{{id}}", 12.5 + number,
            metadata={{"region": "eu-west-1", "status_code": 200, "user": number}},
        )
    kept = metrics.get_stats()
print(peak(), sum(kept.dropped.values()))
"""
)


def run(quick: bool = False) -> list[Row]:
    """The peak of the resident memory of a process that records as fast as it can, over that of an idle one."""
    idle = _numbers(IDLE)[0]
    with TemporaryDirectory(prefix="tallymark-bench-") as folder:
        peak, dropped = _numbers(RECORD.format(folder=folder, records=RECORDS))
    note = f"an idle interpreter has {idle / 1024:.0f}; mapped journals count"
    if dropped:
        note += f"; {dropped} of the records were dropped, the journal was full"
    return [
        Row(
            f"peak memory of {RECORDS:,} records, over an idle interpreter",
            (peak - idle) / 1024,
            "MiB",
            limit=60,
            note=note,
        )
    ]


def _numbers(code: str) -> list[int]:
    """The numbers that some code prints in an interpreter of its own."""
    run = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True)
    return [int(number) for number in run.stdout.split()]
