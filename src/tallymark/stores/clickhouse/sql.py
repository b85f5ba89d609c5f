"""ClickHouse, and what is its own in the SQL of a query."""

import json
import re
from typing import Any, ClassVar, Final

from tallymark.stores.sql import NUMBER, Statement

_INDEX: Final = re.compile("0|[1-9][0-9]{0,8}", re.ASCII)
_PLAIN: Final = re.compile(r'[^\x00-\x1f"\\]+')

# ClickHouse writes JSON anew where it takes a value out: 1.0 becomes 1, "/" becomes "\/". So what it takes out has
# nothing in it that it would write differently: escapes become letters behind a tilde, a number becomes a string with
# "#" in front, and every string gets "#" at its end, which tells the two apart.
_LETTERS: Final = (
    ("~", "~t"),
    ("/", "~s"),
    ("\\\\", "~b"),
    ('\\"', "~q"),
    ("\\", "~e"),
    ("\u2028", "~8"),
    ("\u2029", "~9"),
)
_DIGITS: Final = "-?[0-9][-+.0-9eE]*"
_MARKED: Final = '"\\1#\\2"'
_PLAIN_AGAIN: Final = "\\1"


class ClickHouseStatement(Statement):
    """SQL of ClickHouse; the server binds the parameters."""

    partials: ClassVar = {**Statement.partials, "last": "argMax(value, (timestamp, journal, seq)) AS newest"}

    finals: ClassVar = {
        **Statement.finals,
        "sum": "if(isFinite(total), total, NULL)",
        "avg": "if(isFinite(total), total / n, NULL)",
    }

    def bind(self, value: Any) -> str:
        name = f"p{len(self.parameters)}"
        self.parameters[name] = value
        # A bool is an int too.
        kind = next(kind for python, kind in _KINDS.items() if isinstance(value, python))
        return f"{{{name}:{kind}}}"

    def metadata(self, path: tuple[str, ...]) -> str:
        if any(_INDEX.fullmatch(key) for key in path):
            return self._careful(path)
        where = ", ".join(["metadata", *map(self.bind, path)])
        kind, raw = f"JSONType({where})", f"JSONExtractRaw({where})"
        text = [
            f"{kind} = 'Null', NULL",
            f"{kind} = 'String', JSONExtractString({where})",
            f"{kind} IN ('Int64', 'UInt64', 'Bool'), {raw}",
        ]
        if _PLAIN.fullmatch(path[-1]):
            # Takes what stands behind the key as it is, but the first such key at any depth.
            once = f"countSubstrings(metadata, {self.bind(json.dumps(path[-1], ensure_ascii=False) + ':')}) = 1"
            text.append(f"{once}, simpleJSONExtractRaw(metadata, {self.bind(path[-1])})")
        return f"multiIf({', '.join(text)}, {self._careful(path)})"

    def _careful(self, path: tuple[str, ...]) -> str:
        """As :meth:`metadata`, for every spelling and with numbers that pick items of lists; some ten times slower."""
        found = _guarded("metadata")
        for key in path:
            named = f"JSONExtractRaw({found}, {self.bind(_guarded_key(key))})"
            if _INDEX.fullmatch(key):
                item = f"JSONExtractRaw({found}, {self.bind(int(key) + 1)})"
                named = f"if(JSONType({found}) = 'Array', {item}, {named})"
            found = named
        plain = _unguarded(found)
        string = f"endsWith({found}, '#\"'), JSONExtractString({plain})"
        return f"multiIf({found} IN ('', 'null'), NULL, {string}, {plain})"

    def number(self, text: str) -> str:
        return f"if(match({text}, {_quoted(f'^(?:{NUMBER})$')}), toFloat64OrNull({text}), NULL)"

    def percentiles(self, shares: list[float]) -> tuple[str, list[str]]:
        # Parameters of an aggregate function cannot be bound.
        each = [f"percentiles[{number}]" for number in range(1, len(shares) + 1)]
        return f"quantilesExactInclusive({', '.join(map(repr, shares))})(value) AS percentiles", each

    def quotient(self, dividend: str, divisor: str) -> str:
        return f"intDiv({dividend}, {divisor})"


_KINDS: Final[dict[type, str]] = {
    str: "String",
    bool: "Bool",
    int: "Int64",
    float: "Float64",
    list: "Array(String)",
}


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _guarded(json_text: str) -> str:
    """SQL: a JSON text that stays as it is when values are taken out."""
    for plain, letter in _LETTERS:
        json_text = f"replaceAll({json_text}, {_quoted(plain)}, {_quoted(letter)})"
    # One of the two is empty each time.
    return f"""replaceRegexpAll({json_text}, '"([^"]*)"|({_DIGITS})', {_quoted(_MARKED)})"""


def _guarded_key(key: str) -> str:
    text = json.dumps(key, ensure_ascii=False)[1:-1]
    for plain, letter in _LETTERS:
        text = text.replace(plain, letter)
    return f"{text}#"


def _unguarded(sql: str) -> str:
    """SQL: the JSON text that a part of a guarded one was before."""
    sql = f"""replaceRegexpAll({sql}, '"#({_DIGITS})"', {_quoted(_PLAIN_AGAIN)})"""
    sql = f"""replaceAll({sql}, '#"', '"')"""
    for plain, letter in reversed(_LETTERS):
        sql = f"replaceAll({sql}, {_quoted(letter)}, {_quoted(plain)})"
    return sql
