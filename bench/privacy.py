"""How good the privacy rules are, by the labelled texts of ``tests/privacy_corpus.tsv``: ``python -m bench.privacy``.

Prints the table of ``docs/privacy.md``; with ``--write`` puts it there; with ``--misses`` also what went wrong.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tallymark.privacy import RULES, mask_text

ROOT = Path(__file__).parent.parent
CORPUS = ROOT / "tests" / "privacy_corpus.tsv"
PAGE = ROOT / "docs" / "privacy.md"
BEGIN, END = "<!-- begin of what `python -m bench.privacy --write` wrote -->", "<!-- end -->"


@dataclass
class Score:
    """What one rule did.

    Attributes:
        found: positives of which exactly the secret was masked.
        missed: the other positives.
        wrong: texts without such a secret in which the rule found one.
        others: how many texts have no such secret.
    """

    found: int = 0
    missed: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    others: int = 0

    @property
    def recall(self) -> float:
        """The share of the positives that was found."""
        return self.found / (self.found + len(self.missed))

    @property
    def false_positives(self) -> float:
        """The share of the other texts in which something was found."""
        return len(self.wrong) / self.others


def corpus() -> Iterator[tuple[str | None, str, str]]:
    """Rule (None: nothing is to be found), text, and the text as it should become."""
    for line in CORPUS.read_text("utf-8").splitlines():
        if line.startswith("#"):
            continue
        rule, marked = line.split("\t")
        marked = marked.replace("·", "").replace("⏎", "\n")
        before, _, rest = marked.partition("«")
        secret, _, after = rest.partition("»")
        if rule == "-":
            yield None, marked, marked
        else:
            yield rule, before + secret + after, f"{before}[{rule}]{after}"


def scores() -> dict[str, Score]:
    """Of every rule."""
    result = {rule: Score() for rule in RULES}
    for rule, text, wanted in corpus():
        masked = mask_text(text)
        for name, score in result.items():
            if name != rule:
                score.others += 1
                if f"[{name}]" in masked and f"[{name}]" not in text:
                    score.wrong.append(text)
            elif masked == wanted:
                score.found += 1
            else:
                score.missed.append(text)
    return result


def table() -> str:
    """The scores as Markdown."""
    lines = ["| rule | to be found | found | recall | other texts | taken for one | rate |", f"|{' ---: |' * 7}"]
    lines[1] = "| --- |" + " ---: |" * 6
    for rule, score in scores().items():
        positives = score.found + len(score.missed)
        lines.append(
            f"| `{rule}` | {positives} | {score.found} | {score.recall:.0%} "
            f"| {score.others} | {len(score.wrong)} | {score.false_positives:.1%} |"
        )
    texts = list(corpus())
    harmless = [text for rule, text, _ in texts if rule is None]
    changed = sum(mask_text(text) != text for text in harmless)
    lines += ["", f"{len(texts)} texts, {len(harmless)} of them harmless; {changed} harmless ones were changed."]
    return "\n".join(lines)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m bench.privacy", description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"put the table into docs/{PAGE.name}")
    parser.add_argument("--misses", action="store_true", help="show the texts that were missed or taken for another")
    options = parser.parse_args()
    print(table())
    if options.misses:
        for rule, score in scores().items():
            for what, texts in (("missed", score.missed), ("taken for one", score.wrong)):
                for text in texts:
                    print(f"{rule}\t{what}\t{text!r}\t{mask_text(text)!r}")
    if options.write:
        before, _, rest = PAGE.read_text("utf-8").partition(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n{table()}\n\n{END}{rest.partition(END)[2]}", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
