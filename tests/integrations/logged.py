"""What a log holds."""

import json
from pathlib import Path
from typing import Any


def lines(path: Path) -> list[dict[str, Any]]:
    """Every line of the file; each has to be one JSON object, in ASCII without control characters."""
    text = path.read_text("ascii")
    assert text.endswith("\n")
    found = text[:-1].split("\n")
    assert all(line.isprintable() for line in found)
    return [json.loads(line) for line in found]
