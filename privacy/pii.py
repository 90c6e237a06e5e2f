"""Personal and account data in text: found by shape and checksum, shown only masked, replaced by stable pseudonyms. No dependencies.

What has a checksum (IBAN, card, LEI, ISIN) is found wherever it stands. What has none, or a weak one, is found where its layout or the
words beside it say what it is: a bare number of nine digits may be anything. Names are found only by a plug-in. A finding is a piece of
the text, so an address, a date of birth or a story that gives somebody away is not looked for: this is a defence in depth and no promise.

Every pattern reads a bounded stretch from each place it may begin at, so the time is linear in the length of the text.
"""

import hmac
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from privacy.errors import PrivacyError
from privacy.pii_rules import AT, RULES, WITHOUT_DIGITS, Kind, Rule, bare

_PSEUDONYM = re.compile(rf"\[(?:{'|'.join(Kind)}):[0-9a-f]{{6}}\]")

NameFinder = Callable[[str], Iterable[tuple[int, int]]]
"""The plug-in: where the names in a text begin and end."""


@dataclass(frozen=True)
class Finding:
    """A piece of a text, from `start` up to `end`."""

    kind: Kind
    start: int
    end: int
    value: str

    @property
    def masked(self) -> str:
        """Enough to recognise the value by for one who knows it: `DE** **** 1234`."""
        head, tail = _SHOWN.get(self.kind, (0, 0))
        value = normalise(self.kind, self.value)
        return value[:head] + "** ****" + (" " + value[-tail:] if tail else "")


_SHOWN = {Kind.EMAIL: (1, 0), Kind.IBAN: (2, 4), Kind.CARD: (0, 4), Kind.LEI: (4, 0), Kind.ISIN: (2, 2), Kind.BIC: (4, 0),
          Kind.SSN: (0, 2), Kind.ROUTING: (0, 2), Kind.PHONE: (0, 2), Kind.ACCOUNT: (0, 2)}  # fmt: skip
"""First and last characters that a report may show."""


def find(text: str, *, field: str = "", kinds: Iterable[Kind] = tuple(Kind), names: NameFinder | None = None) -> list[Finding]:
    """What is in a text, in order and without overlaps. `field` is the name of the field it stands in, and counts as words before it.

    Pseudonyms of an earlier redaction are no findings. Raises PrivacyError when the plug-in for names finds one outside the text.
    """
    label = _words_of(field) + ': "' if field else ""
    whole, wanted = label + text, set(kinds)
    taken = bytearray(len(whole))
    for match in _PSEUDONYM.finditer(whole):
        _take(taken, *match.span())
    found = []
    for kind, start, end in _candidates(whole, len(label), names):
        if start >= len(label) and not any(taken[start:end]):
            _take(taken, start, end)
            if kind in wanted:
                found.append(Finding(kind, start - len(label), end - len(label), whole[start:end]))
    return sorted(found, key=lambda finding: finding.start)


def replace(text: str, findings: Iterable[Finding], pseudonym: Callable[[Finding], str]) -> str:
    """The text with every finding exchanged; they are in order and do not overlap."""
    pieces, position = [], 0
    for finding in findings:
        pieces += [text[position : finding.start], pseudonym(finding)]
        position = finding.end
    return "".join(pieces) + text[position:]


def pseudonym(finding: Finding, key: bytes) -> str:
    """`[IBAN:3f9a2c]`: the first 24 bits of HMAC-SHA256 of kind and normalised value. One value has one pseudonym under a key.

    Without the key it cannot be computed from the value. Two values may share one: of 1,000 of a kind two do with a probability of 3 %.
    """
    message = f"{finding.kind}\0{normalise(finding.kind, finding.value)}".encode(errors="surrogatepass")
    return f"[{finding.kind}:{hmac.digest(key, message, 'sha256').hex()[:6]}]"


def normalise(kind: Kind, value: str) -> str:
    """The same for all ways in which one value is written: spaces, dashes and case do not count, but for secrets.

    A telephone number with and without its calling code are two: which country a national number is of, the text does not say.
    """
    match kind:
        case Kind.SECRET:
            return value
        case Kind.EMAIL:
            return AT.sub("@", re.sub(r"\s*[\[(]dot[\])]\s*", ".", value.lower()))
        case Kind.NAME:
            return " ".join(value.casefold().split())
        case Kind.PHONE:
            digits = bare(value)
            return "+" + digits.removeprefix("00") if value.lstrip("( ").startswith(("+", "00")) else digits
        case Kind.BIC:
            return bare(value)[:8] + bare(value)[8:].replace("XXX", "")
        case _:
            return bare(value)


def _words_of(field: str) -> str:
    """`accountNumber`, `account_number` and `account.number` are the same words."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])|[\W_]+", " ", field[:100])


def _take(taken: bytearray, start: int, end: int) -> None:
    taken[start:end] = b"\1" * (end - start)


def _candidates(text: str, offset: int, names: NameFinder | None) -> Iterator[tuple[Kind, int, int]]:
    has_digit = re.search(r"\d", text) is not None
    for rule in RULES:
        if has_digit or rule.kind in WITHOUT_DIGITS:
            for match in _matches(rule, text):
                yield rule.kind, *match.span("v")
    if names is not None:
        for start, end in sorted(names(text[offset:])):
            if not 0 <= start < end <= len(text) - offset:
                raise PrivacyError(
                    f"the plug-in for names found one from {start} to {end} in a text of {len(text) - offset} characters",
                    "it returns pairs of where a name begins and ends",
                )
            yield Kind.NAME, start + offset, end + offset


def _matches(rule: Rule, text: str) -> Iterator[re.Match[str]]:
    """Of a candidate that does not hold only the first character is passed over: a real one may begin within it."""
    position = 0
    while match := rule.pattern.search(text, position):
        holds = rule.holds(match)
        position = match.end() if holds else match.start() + 1
        if holds:
            yield match
