"""What is looked for, and how: candidates by regular expressions, and what has the last word on each.

Every pattern reads a bounded stretch from each place it may begin at, so the time is linear in the length of the text. Repetitions that
could be tried in more ways than one are possessive.
"""

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from privacy import checksums


class Kind(StrEnum):
    """What is looked for; of two that overlap the earlier one here is kept."""

    SECRET = "SECRET"
    EMAIL = "EMAIL"
    IBAN = "IBAN"
    CARD = "CARD"
    LEI = "LEI"
    ISIN = "ISIN"
    SSN = "SSN"
    ROUTING = "ROUTING"
    BIC = "BIC"
    PHONE = "PHONE"
    ACCOUNT = "ACCOUNT"
    NAME = "NAME"


WITHOUT_DIGITS = frozenset({Kind.SECRET, Kind.EMAIL, Kind.BIC})
"""Kinds that may do without; the others are not looked for in a text that has no digit."""


@dataclass(frozen=True)
class Rule:
    """Candidates are the group `v` of a pattern; `holds` has the last word."""

    kind: Kind
    pattern: re.Pattern[str]
    holds: Callable[[re.Match[str]], bool]


def bare(value: str) -> str:
    """Letters and digits alone, in upper case, digits of all scripts as ASCII ones."""
    if value.isascii():
        return "".join(filter(str.isalnum, value.upper()))
    characters = filter(str.isalnum, unicodedata.normalize("NFKC", value).upper())
    return "".join(str(int(character)) if character.isdecimal() else character for character in characters)


# Pieces of patterns. A gap is what people put between groups, a line break and its indentation too.
_GAP = r"[\s.\-\u2010-\u2015_/]{0,3}+"
_BEFORE, _AFTER = r"(?<![^\W_])", r"(?![^\W_])"
_DIGIT = r"\d"
AT = re.compile(r"%40|\s*[\[(]at[\])]\s*", re.IGNORECASE)

_FILLERS = (
    "no|nr|num|number|numbers|nummer|numero|numéro|is|are|was|ist|lautet|est|es|my|the|his|her|our|new|old|this|on|at|to|from|for|with|of|"
    "me|us|id|code|back|home|work|mobile|cell|office|direct|line|unter|auf|au|ending in|savings|current|checking|holder|bank|you|can|"
    "anytime|please|reads"
)
_TO_VALUE = rf"(?:[\W_]{{0,3}}+(?:{_FILLERS})\b){{0,4}}+[\W_]{{0,4}}?"
"""From a word that announces a value to the value."""

_OTHERWISE = re.compile(
    r"(?<![^\W_])(?:order|invoice|inv|ref|reference|ticket|transaction|transfer id|txn?|case|tracking|parcel|shipment|policy|contract|"
    r"version|build|serial|sku|item|article|receipt|request|batch|job|row|customs|rechnung|bestellung|auftrag|vorgang|ip|total|amount|eur|usd|gbp|chf|"
    rf"[€$£])s?(?:[\W_]{{1,3}}(?:{_FILLERS}))*[\W_]*$",
    re.IGNORECASE,
)
"""Words that say a number is of another sort."""

_DATE = re.compile(
    r"\(?(?:(?:19|20)\d\d[-./ ]?(?:0[1-9]|1[0-2])[-./ ]?(?:0[1-9]|[12]\d|3[01])|"
    r"(?:0?[1-9]|[12]\d|3[01])([-./ ])(?:0?[1-9]|[12]\d|3[01])\1(?:19|20)?\d\d)(?!\d)"
)


def _is_announced_otherwise(match: re.Match[str]) -> bool:
    start = match.start("v")
    before = match.string[max(0, start - 40) : start]
    return not before.rstrip(" .:-")[-1:].isdigit() and _OTHERWISE.search(before) is not None


def _not_otherwise(match: re.Match[str]) -> bool:
    return not _is_announced_otherwise(match)


def _is_near(match: re.Match[str], words: frozenset[str]) -> bool:
    """Whether one of the words stands within 40 characters before the value or 25 behind it."""
    start, end = match.span("v")
    around = match.string[max(0, start - 40) : start] + " " + match.string[end : end + 25]
    return not words.isdisjoint(re.findall(r"[a-z]+", around.lower()))


def _passes(check: Callable[[str], bool]) -> Callable[[re.Match[str]], bool]:
    return lambda match: check(bare(match["v"]))


def _always(match: re.Match[str]) -> bool:
    return True


def _iban_layouts() -> str:
    """Countries by length, so that a match ends where its country's IBAN does. Begins behind the first letter."""
    lengths: dict[int, list[str]] = {}
    for country, length in checksums.IBAN_LENGTHS.items():
        lengths.setdefault(length, []).append(rf"(?<={country[0]}){country[1]}")
    return "|".join(
        rf"(?:{'|'.join(countries)})(?:{_GAP}\d){{2}}(?:{_GAP}[a-z0-9]){{{length - 4}}}" for length, countries in lengths.items()
    )


_PASSWORD_WORDS = (
    r"pass ?words?|passwd|pwd|pass ?phrase|passcode|passwort|kennwort|mot de passe|contraseña|wachtwoord|secret(?:[ _-]?key)?|"
    r"api[ _-]?(?:key|token)|access[ _-]?(?:key|token)|auth[ _-]?token|bearer|client[ _-]?secret"
)
_TOKENS = (
    r"(?:AKIA|ASIA)[A-Z0-9]{16}|gh[pousr]_\w{36,255}+|github_pat_\w{22,255}+|glpat-[\w-]{20,255}+|xox[abeoprs]-[\w-]{10,255}+|"
    r"[rs]k_(?:live|test)_[A-Za-z0-9]{16,255}+|sk-[\w-]{20,255}+|AIza[\w-]{35}|hf_[A-Za-z0-9]{30,255}+|npm_[A-Za-z0-9]{36}|"
    r"SG\.[\w-]{16,64}+\.[\w-]{16,64}+|SK[0-9a-f]{32}|pypi-[\w-]{50,255}+|eyJ[\w-]{8,4000}+\.eyJ[\w-]{8,4000}+\.[\w-]{8,1000}+"
)


def _could_be_password(match: re.Match[str]) -> bool:
    """`password: reset` is none. A digit, a sign inside or both cases tell one from a word; after `=` or in quotes anything is one."""
    value, joined = match["v"], match["joined"]
    if joined == "=" or joined.endswith(('"', "'")):
        return True
    if joined.isspace():
        return re.search(r"\d", value) is not None and re.search(r"[^\W\d]", value) is not None
    return re.search(r"\d|\w[^\w\s'-]\w|[a-z][A-Z]", value) is not None


def _is_phone_here(match: re.Match[str]) -> bool:
    return not _is_announced_otherwise(match) and not _DATE.match(match["v"])


def _is_international(match: re.Match[str]) -> bool:
    digits = re.sub(r"\(0\)", "", match["v"])
    return checksums.is_international_phone(bare(digits).removeprefix("00"))


def _is_international_here(match: re.Match[str]) -> bool:
    return _is_phone_here(match) and _is_international(match)


def _is_american(match: re.Match[str]) -> bool:
    return _is_phone_here(match) and checksums.is_north_american_phone(bare(match["v"])[-10:])


def _has_digits(low: int, high: int) -> Callable[[re.Match[str]], bool]:
    return lambda match: low <= len(bare(match["v"])) <= high and _is_phone_here(match)


_SSN_WORDS = frozenset({"ssn", "social", "tax", "taxpayer"})
_ROUTING_WORDS = frozenset({"routing", "aba", "rtn", "fedwire", "wire", "wiring", "transit", "ach"})
_BIC_WORDS = rf"(?:bic|swift)(?:[ /-]{{0,3}}(?:bic|swift|code)){{0,2}}{_TO_VALUE}"
_BIC_BEFORE = re.compile(rf"\b{_BIC_WORDS}$", re.IGNORECASE)
_BIC_AFTER = re.compile(r"[\W_]{0,3}(?:is |as )?(?:the |our |its |their )?(?:bic|swift)\b", re.IGNORECASE)


def _is_ssn(match: re.Match[str]) -> bool:
    if not checksums.is_ssn(bare(match["v"])) or _is_announced_otherwise(match):
        return False
    return match["sep"] in ("-", "\u2011", "\u2013") or _is_near(match, _SSN_WORDS)


def _is_routing(match: re.Match[str]) -> bool:
    return checksums.is_routing_number(bare(match["v"])) and _is_near(match, _ROUTING_WORDS)


def _is_bic(match: re.Match[str]) -> bool:
    """Letters alone may be a word (CUSTOMER has Oman's in its place): then it must be announced."""
    value, text = match["v"], match.string
    if not checksums.is_bic(bare(value)):
        return False
    start, end = match.span("v")
    if _BIC_BEFORE.search(text[max(0, start - 40) : start]) or (value.isupper() and _BIC_AFTER.match(text[end : end + 20])):
        return True
    telling = value.isupper() and (value.endswith("XXX") or any(map(str.isdigit, value)))
    return telling and not _is_announced_otherwise(match)


def _rule(kind: Kind, pattern: str, holds: Callable[[re.Match[str]], bool] = _always, *, flags: re.RegexFlag = re.IGNORECASE) -> Rule:
    return Rule(kind, re.compile(pattern, flags), holds)


_SPACES = r"(?:\.(?!\s)|[ \t\u00a0\u202f\-\u2010-\u2015/()]){0,3}"
_NO_AMOUNT = r"(?![.,:%]?\d)(?! ?(?:eur|usd|gbp|chf|[%€£$]))"
_PHONE_WORDS = (
    r"phones?|telephone|tel|telefon|téléphone|teléfono|telefono|telefoon|mobile|mobil|mobiel|cell|cellphone|handy|portable|fax|whats ?app|"
    r"wa\.me|sms|text me|text us|call|calls|called|ring|reach|dial|contact|hotline|landline|rückruf|anruf"
)
_ACCOUNT_WORDS = r"accounts?|acct|a/c|acc|konto|kontonummer|konto-?nr|compte|cuenta|conto|rekening|rekeningnummer|depot"
_KEY = r"PRIVATE KEY(?: BLOCK)?-----"
_LABEL = r"[^\W_][\w-]{0,62}+"
_AT_SIGN, _DOT = r"(?:@|%40| ?[\[(]at[\])] ?)", r"(?:\.| ?[\[(]dot[\])] ?)"


def _begins(first: str, *, not_after: str) -> str:
    """One of the characters `first`, unless one of `not_after` stands before it. In this order: the search then leaps to `first`."""
    return rf"{first}(?<!{not_after}{first})"


_WORD = r"[^\W_]"
_NUMERIC = r"[\w.,+/-]"

RULES = (
    _rule(Kind.SECRET, rf"(?P<v>-----BEGIN [A-Z ]{{0,30}}{_KEY}(?:[^-]|-(?!-))*+(?:-----END [A-Z ]{{0,30}}{_KEY})?)", flags=re.NOFLAG),
    _rule(Kind.SECRET, rf"(?<![A-Za-z0-9])(?P<v>{_TOKENS})", flags=re.NOFLAG),
    _rule(Kind.SECRET, r"://[^\s/:@]{1,64}+:(?P<v>[^\s/:@]{3,128}+)@"),
    _rule(
        Kind.SECRET,
        rf"{_BEFORE}(?:{_PASSWORD_WORDS})(?P<joined>[\"']?(?:\s{{0,3}}(?:[:=]|is now|is|was|ist|lautet|est|es))?[\s\"':]{{1,3}}+|=)"
        r"(?P<v>[^\s\"'<>,;]{4,128})(?<![.:?)])",
        _could_be_password,
    ),
    _rule(Kind.SECRET, rf"{_BEFORE}pin(?: ?(?:code|number))?\s{{0,3}}+(?:[:=]|is now|is|was|ist)[\s\"]{{0,3}}+(?P<v>\d{{4,8}})(?!\d)"),
    _rule(
        Kind.EMAIL,
        rf"(?P<v>{_begins(_WORD, not_after=_WORD)}[\w.+'-]{{0,63}}+{_AT_SIGN}(?:{_LABEL}{_DOT}){{1,6}}[^\W\d_]{{2,24}}+)(?![^\W_]|@)",
    ),
    _rule(
        Kind.IBAN,
        rf"(?P<v>[A-Za-z](?:(?<!{_WORD}.)|(?<=(?i:iban).))(?=[A-Za-z]{_GAP}\d)(?i:{_iban_layouts()}){_AFTER})",
        _passes(checksums.is_iban),
        flags=re.NOFLAG,
    ),
    *(
        _rule(
            Kind.CARD,
            rf"(?P<v>{_begins('[2-6]', not_after=_DIGIT)}(?<!\d[.,][2-6])(?<!\+[2-6]){layout})(?!\d)(?!\.\d)",
            _passes(checksums.is_card),
        )
        for layout in (
            r"\d{11,18}",
            rf"\d{{3}}(?:{_GAP}\d{{4}}){{3}}{_GAP}\d{{3}}",
            rf"\d{{3}}(?:{_GAP}\d{{4}}){{3}}",
            rf"\d{{3}}{_GAP}\d{{6}}{_GAP}\d{{4,5}}",
        )
    ),
    _rule(
        Kind.LEI,
        rf"(?P<v>[A-Za-z0-9](?:(?<!{_WORD}.)|(?<=(?i:lei).))[A-Za-z0-9]{{3}}"
        rf"(?: ?[A-Za-z0-9]{{4}}){{3}} ?[A-Za-z0-9]{{2}}\d\d){_AFTER}",
        _passes(checksums.is_lei),
        flags=re.NOFLAG,
    ),
    _rule(
        Kind.ISIN,
        rf"(?P<v>[A-Za-z](?:(?<!{_WORD}.)|(?<=(?i:isin).))[A-Za-z][A-Za-z0-9]{{9}}\d){_AFTER}",
        _passes(checksums.is_isin),
        flags=re.NOFLAG,
    ),
    _rule(Kind.ISIN, rf"isin{_TO_VALUE}(?P<v>[a-z]{{2}}(?:{_GAP}[a-z0-9]){{9}}{_GAP}\d){_AFTER}", _passes(checksums.is_isin)),
    _rule(
        Kind.SSN,
        rf"(?P<v>{_begins(_DIGIT, not_after='[0-9-]')}\d\d(?P<sep>[- .\u2011\u2013]?)\d{{2}}(?P=sep)\d{{4}})(?![\d-])(?!\.\d)",
        _is_ssn,
    ),
    _rule(
        Kind.ROUTING,
        rf"(?P<v>{_begins(_DIGIT, not_after='[0-9-]')}(?:\d{{3}}-\d{{4}}-\d|\d\d[ -]?\d{{3}}[ -]?\d{{3}}))(?![\d-])(?!\.\d)",
        _is_routing,
    ),
    _rule(
        Kind.BIC,
        rf"(?P<v>[A-Za-z](?:(?<!{_WORD}.)|(?<=(?i:bic).)|(?<=(?i:swift).))[A-Za-z]{{5}}[A-Za-z0-9]{{2}}(?:[A-Za-z0-9]{{3}})?){_AFTER}",
        _is_bic,
        flags=re.NOFLAG,
    ),
    _rule(
        Kind.BIC,
        rf"{_BEFORE}{_BIC_WORDS}(?P<v>[a-z]{{4}}[ -][a-z]{{2}}[ -][a-z0-9]{{2}}(?:[ -][a-z0-9]{{3}})?){_AFTER}",
        _passes(checksums.is_bic),
    ),
    _rule(Kind.PHONE, rf"(?P<v>\+(?<![\w+]\+){_SPACES}1(?:{_SPACES}\d){{10}})(?!\d)", _is_international),
    _rule(Kind.PHONE, rf"(?P<v>\+(?<![\w+]\+){_SPACES}[2-9](?:{_SPACES}\d){{6,15}})(?!\d)", _is_international),
    _rule(Kind.PHONE, rf"(?P<v>00(?<![\w+]00)(?<!\d 00)[1-9]\d{{0,2}}[ /-](?:{_SPACES}\d){{6,14}})(?!\d)", _is_international_here),
    _rule(
        Kind.PHONE,
        rf"(?P<v>{_begins('[(2-9]', not_after=_NUMERIC)}(?:(?<=\()[2-9]\d\d\)[ .-]{{0,2}}|(?<!\()\d\d[ .-])"
        r"[2-9]\d\d[ .-]\d{4})(?![\d-]|[.,]\d)",
        _is_american,
    ),
    _rule(
        Kind.PHONE,
        rf"(?P<v>{_begins('1', not_after=_NUMERIC)}[ .-]\(?[2-9]\d\d\)?[ .-][2-9]\d\d[ .-]\d{{4}})(?![\d-]|[.,]\d)",
        _is_american,
    ),
    _rule(
        Kind.PHONE,
        rf"(?P<v>{_begins('0', not_after=_NUMERIC)}[1-9](?P<sep>[ .-])\d\d(?:(?P=sep)\d\d){{3}})(?![\d-]|[.,]\d)",
        _not_otherwise,
    ),
    _rule(
        Kind.PHONE,
        rf"(?P<v>{_begins('[(0]', not_after=_NUMERIC)}(?<!\d [(0])(?:(?<=\()0\d{{1,5}}\)|(?<=0)(?:\d{{2,5}}|[2-9](?= \d{{4}})))"
        r"[ /-]{1,3}\d{3,8}(?:[ -]\d{2,5}){0,3})(?![\w-]|[.,:]\d)",
        _has_digits(9, 13),
    ),
    _rule(Kind.PHONE, rf"(?P<v>{_begins('0', not_after=_NUMERIC)}(?:7\d{{9}}|1[567]\d{{8,9}}))(?![\w-]|[.,]\d)", _has_digits(11, 12)),
    _rule(
        Kind.PHONE,
        rf"{_BEFORE}(?:{_PHONE_WORDS})\b{_TO_VALUE}(?P<v>\(?\+?\d(?:{_SPACES}\d){{5,14}}+){_AFTER}{_NO_AMOUNT}",
        _has_digits(6, 15),
    ),
    _rule(Kind.ACCOUNT, rf"{_BEFORE}sort ?codes?{_TO_VALUE}(?P<v>\d\d[- ]?\d\d[- ]?\d\d)(?!\d)"),
    _rule(
        Kind.ACCOUNT,
        rf"{_BEFORE}(?:{_ACCOUNT_WORDS})\b{_TO_VALUE}(?P<v>[a-z]{{0,3}}\d(?:[ -]?\d){{5,18}}+){_AFTER}{_NO_AMOUNT}",
        _has_digits(6, 22),
    ),
)
