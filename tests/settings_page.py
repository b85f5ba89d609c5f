"""The table of all settings in docs/configuration.md: ``cd tests && python settings_page.py`` writes it anew."""

import json
from pathlib import Path

from pydantic import SecretStr

from tallymark.config import OTHER_NAMES, PREFIX, Settings

PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"
BEGIN, END = "<!-- the settings, made by tests/settings_page.py -->\n", "<!-- end of the settings -->\n"


def table() -> str:
    """The settings, as the model has them."""
    lines = ["| setting | in the environment | default | meaning |", "| --- | --- | --- | --- |"]
    for name, field in Settings.model_fields.items():
        variables = [PREFIX + name.upper(), *(other for other, meant in OTHER_NAMES.items() if meant == name)]
        lines.append(
            f"| `{name}` | {', '.join(f'`{variable}`' for variable in variables)} "
            f"| {_toml(field.default)} | {field.description} |"
        )
    return "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    assert not isinstance(value, SecretStr)
    return "" if value is None else f"`{json.dumps(value)}`"


def page() -> str:
    """The whole page, with the table as it should be."""
    before, _, rest = PAGE.read_text("utf-8").partition(BEGIN)
    return before + BEGIN + table() + END + rest.partition(END)[2]


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
