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


@dataclass(frozen=True)
class Rule:
    """Candidates are the group `v` of a pattern; `holds` has the last word."""

    kind: Kind
    pattern: re.Pattern[str]
    holds: Callable[[re.Match[str]], bool]


def bare(value: str) -> str:
    """Letters and digits alone, in upper case, digits of all scripts as ASCII ones."""
    characters = (character for character in unicodedata.normalize("NFKC", value).upper() if character.isalnum())
    return "".join(str(int(character)) if character.isdecimal() else character for character in characters)


# Pieces of patterns. A gap is what people put between groups, a line break and its indentation too.
_GAP = r"[\s.\-\u2010-\u2015_/]{0,3}+"
_BEFORE, _AFTER = r"(?<![^\W_])", r"(?![^\W_])"
_NUMBER_BEFORE, _NUMBER_AFTER = r"(?<!\d)(?<!\d[.,])", r"(?!\d)(?!\.\d)"
AT = re.compile(r"%40|\s*[\[(]at[\])]\s*", re.IGNORECASE)

_FILLERS = (
    "no|nr|num|number|numbers|nummer|numero|numéro|is|are|was|ist|lautet|est|es|my|the|his|her|our|new|old|this|on|at|to|from|for|with|of|me|us|"
    "id|code|back|home|work|mobile|cell|office|direct|line|unter|auf|au|ending in|savings|current|checking|holder|bank|you|can|anytime|please|reads"
)
_TO_VALUE = rf"(?:[\W_]{{0,3}}+(?:{_FILLERS})\b){{0,4}}+[\W_]{{0,4}}?"
"""From a word that announces a value to the value."""

_OTHERWISE = re.compile(
    r"(?:order|invoice|inv|ref|reference|ticket|transaction|transfer id|txn?|case|tracking|parcel|shipment|policy|contract|version|build|serial|"
    r"sku|item|article|receipt|request|batch|job|row|customs|rechnung|bestellung|auftrag|vorgang|ip|total|amount|eur|usd|gbp|chf|[€$£#])"
    rf"s?(?:[\W_]{{1,3}}(?:{_FILLERS}))*[\W_]*$",
    re.IGNORECASE,
)
"""Words that say a number is of another sort."""

_DATE = re.compile(
    r"\(?(?:(?:19|20)\d\d[-./ ]?(?:0[1-9]|1[0-2])[-./ ]?(?:0[1-9]|[12]\d|3[01])|"
    r"(?:0?[1-9]|[12]\d|3[01])([-./ ])(?:0?[1-9]|[12]\d|3[01])\1(?:19|20)?\d\d)(?!\d)"
)


def _is_announced_otherwise(match: re.Match[str]) -> bool:
    start = match.start("v")
    return _OTHERWISE.search(match.string[max(0, start - 40) : start]) is not None


def _near(match: re.Match[str], words: re.Pattern[str], *, before: int, after: int) -> bool:
    start, end = match.span("v")
    text = match.string
    return words.search(text[max(0, start - before) : start]) is not None or words.search(text[end : end + after]) is not None


def _passes(check: Callable[[str], bool]) -> Callable[[re.Match[str]], bool]:
    return lambda match: check(bare(match["v"]))


def _always(match: re.Match[str]) -> bool:
    return True


def _iban_layouts() -> str:
    """Countries by length, so that a match ends where its country's IBAN does."""
    lengths: dict[int, list[str]] = {}
    for country, length in checksums.IBAN_LENGTHS.items():
        lengths.setdefault(length, []).append(country.lower())
    return "|".join(
        rf"(?:{'|'.join(countries)}){_GAP}\d{_GAP}\d(?:{_GAP}[a-z0-9]){{{length - 4}}}" for length, countries in lengths.items()
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


def _is_american(match: re.Match[str]) -> bool:
    return _is_phone_here(match) and checksums.is_north_american_phone(bare(match["v"])[-10:])


def _has_digits(low: int, high: int) -> Callable[[re.Match[str]], bool]:
    return lambda match: low <= len(bare(match["v"])) <= high and _is_phone_here(match)


_SSN_WORDS = re.compile(r"\bssn|social|tax(?:payer)? id", re.IGNORECASE)
_ROUTING_WORDS = re.compile(r"routing|\baba\b|\brtn\b|fed ?wire|transit|\bach\b|\bwire\b", re.IGNORECASE)
_BIC_WORDS = rf"(?:bic|swift)(?:[ /-]{{0,3}}(?:bic|swift|code)){{0,2}}{_TO_VALUE}"
_BIC_BEFORE = re.compile(rf"\b{_BIC_WORDS}$", re.IGNORECASE)
_BIC_AFTER = re.compile(r"[\W_]{0,3}(?:is |as )?(?:the |our |its |their )?(?:bic|swift)\b", re.IGNORECASE)


def _is_ssn(match: re.Match[str]) -> bool:
    if not checksums.is_ssn(bare(match["v"])) or _is_announced_otherwise(match):
        return False
    return match["sep"] in ("-", "\u2011", "\u2013") or _near(match, _SSN_WORDS, before=40, after=25)


def _is_routing(match: re.Match[str]) -> bool:
    return checksums.is_routing_number(bare(match["v"])) and _near(match, _ROUTING_WORDS, before=40, after=25)


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
_PHONE_WORDS = (
    r"phones?|telephone|tel|telefon|téléphone|teléfono|telefono|telefoon|mobile|mobil|mobiel|cell|cellphone|handy|portable|fax|whats ?app|wa\.me|sms|text me|text us|"
    r"call|calls|called|ring|reach|dial|contact|hotline|landline|rückruf|anruf"
)
_ACCOUNT_WORDS = r"accounts?|acct|a/c|acc|konto|kontonummer|konto-?nr|compte|cuenta|conto|rekening|rekeningnummer|depot"

RULES = (
    _rule(
        Kind.SECRET,
        r"(?P<v>-----BEGIN [A-Z ]{0,30}PRIVATE KEY(?: BLOCK)?-----(?:[^-]|-(?!-))*+(?:-----END [A-Z ]{0,30}PRIVATE KEY(?: BLOCK)?-----)?)",
    ),
    _rule(Kind.SECRET, rf"(?<![A-Za-z0-9])(?P<v>{_TOKENS})", flags=re.NOFLAG),
    _rule(Kind.SECRET, r"://[^\s/:@]{1,64}+:(?P<v>[^\s/:@]{3,128}+)@"),
    _rule(
        Kind.SECRET,
        rf"(?<![^\W_])(?:{_PASSWORD_WORDS})(?P<joined>[\"']?\s{{0,3}}+(?:[:=]|is now|is|was|ist|lautet|est|es)?[\s\"':]{{1,3}}+|=)(?P<v>[^\s\"'<>,;]{{4,128}})(?<![.:?)])",
        _could_be_password,
    ),
    _rule(Kind.SECRET, rf"{_BEFORE}pin(?: ?(?:code|number))?\s{{0,3}}+(?:[:=]|is now|is|was|ist)\s{{0,3}}+(?P<v>\d{{4,8}})(?!\d)"),
    _rule(
        Kind.EMAIL,
        r"(?<!\w)(?P<v>\w[\w.+'-]{0,63}+(?:@|%40| ?[\[(]at[\])] ?)(?:[^\W_](?:[\w-]{0,62}+)(?:\.| ?[\[(]dot[\])] ?)){1,6}[^\W\d_]{2,24}+)(?![^\W_]|@)",
    ),
    _rule(Kind.IBAN, rf"(?:{_BEFORE}|(?<=iban))(?=[a-z]{{2}}{_GAP}\d)(?=(?P<v>(?:{_iban_layouts()}){_AFTER}))", _passes(checksums.is_iban)),
    *(
        _rule(Kind.CARD, rf"{_NUMBER_BEFORE}(?=(?P<v>{layout}){_NUMBER_AFTER})", _passes(checksums.is_card))
        for layout in (
            r"\d{12,19}",
            rf"\d{{4}}(?:{_GAP}\d{{4}}){{3}}{_GAP}\d{{3}}",
            rf"\d{{4}}(?:{_GAP}\d{{4}}){{3}}",
            rf"\d{{4}}{_GAP}\d{{6}}{_GAP}\d{{4,5}}",
        )
    ),
    _rule(
        Kind.LEI,
        rf"(?:{_BEFORE}|(?<=lei))(?P<v>[a-z0-9]{{4}}(?:[ -]?[a-z0-9]{{4}}){{3}}[ -]?[a-z0-9]{{2}}\d\d){_AFTER}",
        _passes(checksums.is_lei),
    ),
    _rule(Kind.ISIN, rf"(?:{_BEFORE}|(?<=isin))(?P<v>[a-z]{{2}}[a-z0-9]{{9}}\d){_AFTER}", _passes(checksums.is_isin)),
    _rule(Kind.ISIN, rf"isin{_TO_VALUE}(?P<v>[a-z]{{2}}(?:{_GAP}[a-z0-9]){{9}}{_GAP}\d){_AFTER}", _passes(checksums.is_isin)),
    _rule(Kind.SSN, r"(?<![\d-])(?P<v>\d{3}(?P<sep>[- .\u2011\u2013]?)\d{2}(?P=sep)\d{4})(?![\d-])(?!\.\d)", _is_ssn),
    _rule(Kind.ROUTING, r"(?<![\d-])(?P<v>\d{4}-\d{4}-\d|\d{3}[ -]?\d{3}[ -]?\d{3})(?![\d-])(?!\.\d)", _is_routing),
    _rule(Kind.BIC, rf"(?:{_BEFORE}|(?<=bic)|(?<=swift))(?P<v>[a-z]{{6}}[a-z0-9]{{2}}(?:[a-z0-9]{{3}})?){_AFTER}", _is_bic),
    _rule(
        Kind.BIC,
        rf"{_BEFORE}{_BIC_WORDS}(?P<v>[a-z]{{4}}[ -][a-z]{{2}}[ -][a-z0-9]{{2}}(?:[ -][a-z0-9]{{3}})?){_AFTER}",
        _passes(checksums.is_bic),
    ),
    _rule(Kind.PHONE, rf"(?<![\w+])(?P<v>\(?\+{_SPACES}1(?:{_SPACES}\d){{10}})(?!\d)", _is_international),
    _rule(Kind.PHONE, rf"(?<![\w+])(?P<v>\(?\+{_SPACES}[2-9](?:{_SPACES}\d){{6,15}})(?!\d)", _is_international),
    _rule(
        Kind.PHONE,
        rf"(?<![\w+])(?P<v>00[1-9]\d{{0,2}}[ /-](?:{_SPACES}\d){{6,14}})(?!\d)",
        lambda m: _is_phone_here(m) and _is_international(m),
    ),
    _rule(
        Kind.PHONE,
        r"(?<![\w.,+/-])(?P<v>(?:1[ .-])?(?:\([2-9]\d\d\)[ .-]{0,2}|[2-9]\d\d[ .-])[2-9]\d\d[ .-]\d{4})(?![\d-])(?![.,]\d)",
        _is_american,
    ),
    _rule(Kind.PHONE, r"(?<![\w.,+/-])(?P<v>0[1-9]([ .-])\d\d(?:\2\d\d){3})(?![\d-])(?![.,]\d)", _has_digits(10, 10)),
    _rule(
        Kind.PHONE,
        r"(?<![\w.,+/-])(?P<v>(?:\(0\d{1,5}\)|0\d{2,5}|0[2-9](?= \d{4}))[ /-]{1,3}\d{3,8}(?:[ -]\d{2,5}){0,3})(?![\w-])(?![.,:]\d)",
        _has_digits(9, 13),
    ),
    _rule(Kind.PHONE, r"(?<![\w.,+/-])(?P<v>07\d{9}|01[567]\d{8,9})(?![\w-])(?![.,]\d)", _has_digits(11, 12)),
    _rule(
        Kind.PHONE,
        rf"{_BEFORE}(?:{_PHONE_WORDS})\b{_TO_VALUE}(?P<v>\(?\+?\d(?:{_SPACES}\d){{5,14}}+)(?![\w%])(?![.,:]\d)(?! ?(?:eur|usd|gbp|chf|€|£|\$))",
        _has_digits(6, 15),
    ),
    _rule(Kind.ACCOUNT, rf"{_BEFORE}sort ?codes?{_TO_VALUE}(?P<v>\d\d[- ]?\d\d[- ]?\d\d)(?!\d)"),
    _rule(
        Kind.ACCOUNT,
        rf"{_BEFORE}(?:{_ACCOUNT_WORDS})\b{_TO_VALUE}(?P<v>[a-z]{{0,3}}\d(?:[ -]?\d){{5,18}}+){_AFTER}(?![.,:%]\d)(?! ?(?:eur|usd|gbp|chf|€|£|\$))",
        _has_digits(6, 22),
    ),
)
