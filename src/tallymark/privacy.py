"""What may not be stored: keys of metadata that name a person or a secret, and texts that look like one.

Keys: the list is that of the interface documents. A key is compared without regard to case, ``-``, ``_`` and camelCase,
so ``userId``, ``user-id`` and ``USER_ID`` are one. Words that say nothing by themselves (``name``, ``key``) are refused
only alone, since ``cache_key`` and ``file_name`` are harmless; the others also as the end of a longer key
(``access_token``, ``billing_email``). ``tokens_used`` is a count, not a token, and passes.

Texts: one table of rules, :data:`_TABLE`. Most texts hold nothing of the kind, and :func:`looks_private` says so in one
pass; the compiled core asks the same question in C. Both may be wrong in one direction only: where a rule finds
something they say yes. Every pattern takes time in proportion to the length of the text, whatever the text is.
"""

import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Final, Literal, NamedTuple, Self

from tallymark.errors import ConfigError

FORBIDDEN_ALONE = ("name", "key")
FORBIDDEN_AT_END = (
    "email",
    "username",
    "password",
    "token",
    "secret",
    "api_key",
    "user_id",
    "client_id",
    "session_id",
)

_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_SEPARATORS = re.compile(r"[\W_]+")


def forbidden_word(key: str) -> str | None:
    """The word of the list that forbids this key, or ``None`` where the key may be stored."""
    # NFKC first: "ｅmail" in full-width letters is the same word to everybody who reads it.
    words = _SEPARATORS.split(_HUMP.sub("_", unicodedata.normalize("NFKC", key)))
    lowered = [word.casefold() for word in words if word]
    joined = "".join(lowered)
    for word in FORBIDDEN_ALONE:
        if joined == word:
            return word
    for word in FORBIDDEN_AT_END:
        parts = word.split("_")
        if joined == "".join(parts) or lowered[-len(parts) :] == parts or lowered[-1:] == ["".join(parts)]:
            return word
    return None


Action = Literal["mask", "reject", "allow"]
Finder = Callable[[str], Iterator[tuple[int, int]]]


class Rule(NamedTuple):
    """One kind of text that is not stored as it is.

    Attributes:
        name: stands in place of what is found, in brackets.
        find: where in a text it is found, from left to right.
    """

    name: str
    find: Finder


def _pattern(pattern: str) -> Finder:
    """What a regular expression finds; where it has a group, only that."""
    search = re.compile(pattern)

    def find(text: str) -> Iterator[tuple[int, int]]:
        for found in search.finditer(text):
            yield found.span(search.groups)

    return find


# Nothing begins inside a word: ``tasks-1`` has no key of OpenAI in it. Letters and digits of ASCII only, so that the
# core sees the same words in the bytes.
_START: Final = r"(?<![0-9A-Za-z])"

_PRIVATE_KEY: Final = (
    r"-----BEGIN (?:[A-Z0-9]++ ){0,4}?PRIVATE KEY(?: BLOCK)?-----"
    # Up to its end; where that was cut off, all the rest, if there is any key behind the line that begins it.
    r"(?:[^-]*+(?:-(?!----(?:BEGIN|END))[^-]*+)*+-----END (?:[A-Z0-9]++ ){0,4}?PRIVATE KEY(?: BLOCK)?-----"
    r"|(?:\s|\\[nr])*+(?:[0-9A-Za-z+/]{16}|Proc-Type:|Version:|Comment:)(?s:.)*+)"
)
_JWT: Final = (
    _START + r"eyJ[0-9A-Za-z_-]{8,2000}+\."  # not without end: the next one may begin behind any dash
    r"(?:ey[0-9A-Za-z_-]{8,}+(?:\.[0-9A-Za-z_-]*+)?|(?:[0-9A-Za-z_-]*+\.){3}[0-9A-Za-z_-]++)"
)
_PASSWORD: Final = (
    # Not what stands for one: ***, ${PASSWORD}, {password}, %s, or what this rule wrote.
    r"(?<=[0-9A-Za-z])://[^\s/?#:@\"'<>]*+:(?!(?:\*+|x{3,}|\$?\{[^}@]*\}+|%s|\[[a-z_]*\])@)([^\s/?#\"'<>]+)@"
)
_CLOUD_KEY: Final = (
    _START
    + "(?:"
    + "|".join(
        (
            r"A(?:KIA|SIA|BIA|CCA)[0-9A-Z]{16}(?![0-9A-Za-z])",  # AWS
            r"AIza[0-9A-Za-z_-]{35}",  # Google
            r"ya29\.[0-9A-Za-z_-]{20,}+",
            r"GOCSPX-[0-9A-Za-z_-]{20,}+",
            r"gh[pousr]_[0-9A-Za-z]{30,}+",  # GitHub
            r"github_pat_[0-9A-Za-z_]{22,}+",
            r"gl(?:pat|ptt|dt|rt|soat)-[0-9A-Za-z_.-]{20,}+",  # GitLab
            r"xox[a-z]-[0-9A-Za-z-]{10,}+",  # Slack
            r"xapp-[0-9]-[0-9A-Za-z-]{10,}+",
            r"hooks\.slack\.com/services/[0-9A-Za-z/]{20,}+",
            r"[sr]k_(?:live|test)_[0-9A-Za-z]{10,}+",  # Stripe
            r"whsec_[0-9A-Za-z+/]{24,}+",
            # OpenAI, Anthropic and those who copy them; sk-folding-cube is a class of CSS.
            r"sk-(?:(?=[0-9a-z_-]{0,99}+[A-Z])(?=[A-Za-z_-]{0,99}+[0-9])[0-9A-Za-z_-]{20,}+|[0-9a-z]{32,}+)",
            r"npm_[0-9A-Za-z]{36}",
            r"pypi-AgE[0-9A-Za-z_-]{50,}+",
            r"hf_[0-9A-Za-z]{30,}+",  # Hugging Face
            r"SG\.[0-9A-Za-z_-]{16,}+\.[0-9A-Za-z_-]{16,}+",  # SendGrid
            r"do[opr]_v1_[0-9a-f]{40,}+",  # DigitalOcean
            r"dckr_pat_[0-9A-Za-z_-]{20,}+",  # Docker
            r"shp(?:at|ca|pa|ss)_[0-9A-Fa-f]{32}",  # Shopify
            r"hvs\.[0-9A-Za-z_-]{20,}+",  # HashiCorp Vault
        )
    )
    + ")"
)
_BEARER: Final = (
    _START + r"[Bb][Ee][Aa][Rr][Ee][Rr](?:[ \t]{1,4}|%20)"
    r"((?=[A-Za-z._~+/-]*+[0-9])[0-9A-Za-z._~+/-]{16,}+=*+)"  # "Bearer authentication_required" has no digit
)
_EMAIL: Final = (
    # A repository, a worker of Celery: an address of nobody.
    r"(?<![\w.+-])(?!(?:git|hg|svn|celery)@)[\w.+-]++(?:@|%40)"
    r"(?!v?[0-9]+\.[0-9])"  # react@18.2.0-rc
    r"(?:[\w-]{1,63}+\.){1,8}"
    # logo@2x.png, getty@tty1.service
    r"(?!(?:png|jpe?g|gif|svg|webp|ico|pdf|css|js|json|html?|txt|log|gz|jar|whl|service|socket|timer|mount|slice|scope"
    r"|swap|device)(?![^\W_]|-[^\W_]))"
    r"(?:[^\W\d_]{2,24}|xn--[0-9a-z-]{1,59}+)(?![^\W_]|-[^\W_])"
)

_LENGTHS: Final = (
    "AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DJ27 DK18 DO28 EE20 EG29 "
    "ES24 FI18 FK18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HN28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 "
    "LB28 LC32 LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 MK19 MN20 MR27 MT31 MU30 NI28 NL18 NO15 OM23 PK24 PL28 PS29 "
    "PT25 QA29 RO24 RS22 RU33 SA24 SC31 SD18 SE24 SI19 SK24 SM27 SO23 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20 "
    "YE30"
)
IBANS: Final = {code[:2]: int(code[2:]) for code in _LENGTHS.split()}
"""How long the IBANs of each country are (the registry of SWIFT). ``_core.c`` has them too."""

_DIGITS_ONLY: Final = (
    "AE AT BA BE BI CR CZ DE DJ DK EE EG ES FI FO GL HR HU IL IS LT LY ME MN MR NO PL PT RS SD SE SI SK SO ST TL TN VA "
    "XK"
)
_ALL_DIGITS: Final = frozenset(_DIGITS_ONLY.split())
"""The countries in whose IBANs there is no letter after the first two. Only these are looked for in lower case."""

_IBAN_HEAD: Final = re.compile(_START + r"(?:[A-Z]{2}|[a-z]{2})[0-9]{2}(?=[ -]?[0-9A-Za-z])").finditer
_ALNUM: Final = re.compile("[0-9A-Za-z]+").fullmatch


def _find_ibans(text: str) -> Iterator[tuple[int, int]]:
    for head in _IBAN_HEAD(text):
        start, country = head.start(), head[0][:2].upper()
        length = IBANS.get(country, 0)
        spaced = text[head.end() : head.end() + 1] in (" ", "-")  # as it is printed: in groups of four
        end = start + length + (spaced and (length - 1) // 4)
        iban = text[start:end]
        if spaced:
            if any(iban[at : at + 1] not in (" ", "-") for at in range(4, len(iban), 5)):
                continue
            iban = "".join(iban[at : at + 4] for at in range(0, len(iban), 5))
        if (
            length
            and len(iban) == length
            and _ALNUM(iban)
            and not _ALNUM(text[end : end + 1])
            and (iban[4:].isdigit() if country in _ALL_DIGITS else iban == iban.upper())
            and int("".join(str(int(character, 36)) for character in iban[4:] + iban[:4])) % 97 == 1
        ):
            yield start, end


# What each issuer's numbers begin with, and how long they are.
_ISSUERS: Final = (
    ((4,), (13, 16, 19)),  # Visa
    ((*range(51, 56), *range(2221, 2721)), (16,)),  # Mastercard
    ((34, 37), (15,)),  # American Express
    ((36, 38, 39, *range(300, 306)), (14,)),  # Diners
    ((*range(3528, 3590), 6011, *range(644, 650), 65, 60, 508), (16,)),  # JCB, Discover, RuPay
    ((62, *range(2200, 2205)), (16, 17, 18, 19)),  # UnionPay, Mir
    ((5018, 5020, 5038, 5893, 6304, 6759, 6761, 6762, 6763), (13, 14, 15, 16, 17, 18, 19)),  # Maestro
)
_CARDS: Final = frozenset(
    (length, str(begin)) for begins, lengths in _ISSUERS for begin in begins for length in lengths
)
_DIGIT_RUNS: Final = re.compile(
    _START
    + r"(?:[0-9A-Fa-f]{8}-(?:[0-9A-Fa-f]{4}-){3}[0-9A-Fa-f]{12}(?![0-9A-Za-z])"  # a UUID may look like four groups
    + r"|([0-9]++(?:[ -][0-9]++)*)(?![0-9A-Za-z]|\.[0-9]))"
).finditer


_FRACTION: Final = re.compile(r"[0-9]\.[0-9]+").fullmatch  # 0.4532015112830366


def _is_card(digits: str) -> bool:
    if not any((len(digits), digits[:k]) in _CARDS for k in (1, 2, 3, 4)):
        return False
    doubled = sum(sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2])
    return (doubled + sum(map(int, digits[-1::-2]))) % 10 == 0


def _find_cards(text: str) -> Iterator[tuple[int, int]]:
    for run in _DIGIT_RUNS(text):
        if run[1] is None or len(run[1]) < 13:
            continue
        if _FRACTION(text, max(0, run.start() - 2), run.end()):
            continue
        groups = [(found.start() + run.start(), found[0]) for found in re.finditer("[0-9]+", run[1])]
        end = 0
        for first, (start, _) in enumerate(groups):
            digits = ""
            for at, group in groups[first : first + 5]:
                digits += group
                if start >= end and 13 <= len(digits) <= 19 and _is_card(digits):
                    end = at + len(group)
                    yield start, end
                    break
                if len(group) < 4:  # only the last group of a card is shorter
                    break


_TABLE: Final = (
    Rule("private_key", _pattern(_PRIVATE_KEY)),
    Rule("jwt", _pattern(_JWT)),
    Rule("cloud_key", _pattern(_CLOUD_KEY)),
    Rule("bearer_token", _pattern(_BEARER)),
    Rule("password", _pattern(_PASSWORD)),  # before the addresses: what it leaves of secret@host is none
    Rule("email", _pattern(_EMAIL)),
    Rule("iban", _find_ibans),
    Rule("card", _find_cards),
)
RULES: Final = tuple(rule.name for rule in _TABLE)
"""The names of the rules, in the order in which they look at a text."""

MASKS: Final = re.compile(rf"\[(?:{'|'.join(RULES)})\]")
"""What stands in place of something that was masked."""

# What is worth a closer look, by the character at which it is noticed: a rare one, where there is a choice.
_RUN: Final = r"(?=[0-9A-Za-z_/-]{10})"
_IBAN_CLUE: Final = r"[0-9](?<=[A-Za-z]{2}..)(?<![0-9A-Za-z]....)"
_CLUES: Final = {
    "23456": rf"(?:[0-9]{{3}}[0-9 -]{{9}}(?<![0-9A-Za-z].{{13}})|{_IBAN_CLUE})",
    "01789": _IBAN_CLUE,
    "_": _RUN + r"(?:(?<=gh[pousr]_)|(?<=[sr]k_)|(?<=_pat_)|(?<=npm_)|(?<=hf_)|(?<=do[opr]_)|(?<=whsec_)|(?<=shp.._))",
    "-": _RUN + r"(?:(?<=sk-)|(?<=xox.-)|(?<=gl..-)|(?<=gl...-)|(?<=gl....-)|(?<=GOCSPX-)|(?<=pypi-))|(?<=xapp-)",
    ".": r"(?:" + _RUN + r"(?:(?<=SG\.)|(?<=hvs\.)|(?<=ya29\.))|(?<=hooks\.)slack)",
    "@": "",
    "%": "40",
    "J": r"(?<=eyJ)",
    "P": r"RIVATE KEY",
    "Bb": r"[Ee][Aa][Rr][Ee][Rr]",
    "A": r"(?:[KS]IA|BIA|CCA|Iza)",
}
_clue: Final = re.compile(
    "|".join(f"{re.escape(character)}(?:{rest})" for characters, rest in _CLUES.items() for character in characters)
).search
_plain_id: Final = re.compile(r"[0-9a-f]{32}|[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}").fullmatch

SHORT: Final = 12
"""In a text of so many characters only ``@`` and ``%40`` are worth a look: every other rule finds longer ones."""


def looks_private(text: str) -> bool:
    """Whether a rule may find something in a text. Where this says no, none does."""
    if len(text) <= SHORT:
        return "@" in text or "%40" in text
    return not (len(text) in (32, 36) and _plain_id(text)) and _clue(text) is not None


_ROUNDS: Final = 5  # two addresses without a gap: the second is one only when the first is gone


class PiiPolicy(NamedTuple):
    """What becomes of texts that look like a secret or a person.

    Attributes:
        actions: of each rule: ``mask`` (the name of the rule stands in its place), ``reject`` or ``allow``.
    """

    actions: Mapping[str, Action]

    @classmethod
    def of(cls, pii: "PiiPolicy | str | Mapping[str, str]") -> Self:
        """One action for every rule, or an action for some of them; the others mask.

        Raises:
            ConfigError: there is no such rule or action.
        """
        if isinstance(pii, PiiPolicy):
            pii = pii.actions
        if not isinstance(pii, str | Mapping):
            raise ConfigError("pii must be 'mask', 'reject' or 'allow', for all rules or for each")
        given = dict.fromkeys(RULES, pii) if isinstance(pii, str) else dict(pii)
        actions: dict[str, Action] = dict.fromkeys(RULES, "mask")
        for rule, action in given.items():
            if rule not in actions:
                raise ConfigError(f"pii: there is no such rule; the rules are {', '.join(RULES)}")
            if action not in ("mask", "reject", "allow"):
                raise ConfigError("pii must be 'mask', 'reject' or 'allow', for all rules or for each")
            actions[rule] = action  # type: ignore[assignment]
        return cls(MappingProxyType(actions))

    def clean(self, field: str, text: str) -> str:
        """The text as it may be stored.

        Raises:
            ValueError: a rule rejects it; the message names the field and the rule, never the text.
        """
        for _ in range(_ROUNDS):
            if not looks_private(text):
                break
            before, text = text, self._apply(field, text)
            if text == before:
                break
        return text

    def _apply(self, field: str, text: str) -> str:
        for rule in _TABLE:
            action = self.actions[rule.name]
            if action == "allow":
                continue
            kept: list[str] = []
            at = 0
            for start, end in rule.find(text):
                if action == "reject":
                    raise ValueError(f"{field} is refused by the privacy rule {rule.name!r}")
                kept += (text[at:start], f"[{rule.name}]")
                at = end
            if at:
                text = "".join((*kept, text[at:]))
        return text


MASK: Final = PiiPolicy.of("mask")
"""Every rule masks: the default."""
ALLOW: Final = PiiPolicy.of("allow")
"""No rule is applied."""


def mask_text(text: str) -> str:
    """The text with what looks like a secret or a person replaced: ``[email]``, ``[card]`` …"""
    return MASK.clean("text", text)
