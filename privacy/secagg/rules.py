"""How many banks it takes. Checked by the coordinator for its own sake, and by every bank because the coordinator may lie.

With n banks holding shares, of which c may collude, and a threshold t:

- 2t > n + c: the coordinator needs t shares for a secret and c come free. For both secrets of one bank it would need 2(t - c) answers of
  honest banks, each of which gives one kind only, and there are but n - c of them. By the same count not two views of these n banks, nor
  two sums, can have t signatures.
- n >= c + 2: with the above t >= c + 2 too, so a decoded sum, of t vectors or more, holds at least two of honest banks.

`dropouts_survived` is what that leaves: with c = 1 none of 3 banks, 1 of 4, 4 of 10.
"""

from dataclasses import dataclass, fields

from privacy.errors import Aborted, PlanError, Refused
from privacy.secagg.fixed_point import FixedPoint
from privacy.secagg.identity import Roster
from privacy.secagg.messages import Header


@dataclass(frozen=True)
class Expected:
    """What the bank itself knows of the session it is about to take part in; fields of the header."""

    run: str
    round: int
    model: bytes
    config: bytes
    length: int


@dataclass(frozen=True)
class Policy:
    """What the bank allows, whoever asks."""

    least_members: int
    """How many a session must at least have; banks may vanish from it later, down to the threshold"""
    most_clip: float
    """The largest coordinate it will send"""
    most_modulus_bits: int
    """The most it will send of a coordinate"""


def least_threshold(banks: int, colluders: int) -> int:
    return (banks + colluders) // 2 + 1


def dropouts_survived(banks: int, colluders: int) -> int:
    """Of so many banks, c + 2 or more, with the least threshold."""
    return banks - least_threshold(banks, colluders)


def encoding(header: Header, roster: Roster) -> FixedPoint:
    """Raises PlanError where a sum of the whole roster could wrap around."""
    return FixedPoint(len(roster.names), header.clip, header.fraction_bits, header.modulus_bits)


def check_header(header: Header, roster: Roster) -> None:
    """Refused unless a session under this header can keep what it promises, whoever comes."""
    if header.roster != roster.hash:
        raise Refused(
            f"the session is for another roster than version {roster.version}, held here", "install the roster that all banks have signed"
        )
    if header.length < 1:
        raise Refused("a vector of no coordinates")
    if header.least_members < (least := roster.colluders + 2):
        raise Refused(f"sessions of {header.least_members} banks or more: expected at least {least}", "two banks that do not collude")
    check_threshold(header, roster, header.least_members)
    if max(header.threshold, header.least_members) > len(roster.names):
        raise Refused(
            f"threshold {header.threshold} and least members {header.least_members}, but the roster has {len(roster.names)} banks"
        )
    try:
        encoding(header, roster)
    except PlanError as error:
        raise Refused(error.message, error.hint) from error


def check_proposal(header: Header, expected: Expected, policy: Policy) -> None:
    """Refused unless the header is what this bank expects and allows."""
    for field in fields(expected):
        wanted, got = getattr(expected, field.name), getattr(header, field.name)
        if wanted != got:
            raise Refused(f"the header's {field.name} is {_shown(got)}, expected {_shown(wanted)}", "is the bank at the right round?")
    if header.least_members < policy.least_members:
        raise Refused(
            f"sessions of {header.least_members} banks or more, this bank's policy wants {policy.least_members}",
            "ask the coordinator for more",
        )
    if header.clip > policy.most_clip or header.modulus_bits > policy.most_modulus_bits:
        raise Refused(
            f"a clip of {header.clip:g} and {header.modulus_bits} modulus bits, this bank's policy allows {policy.most_clip:g} and "
            f"{policy.most_modulus_bits}",
            "the coordinator has to lower them, or the bank's officer to allow them",
        )


def check_threshold(header: Header, roster: Roster, holders: int) -> None:
    """Refused unless 2t > n + c."""
    if header.threshold < (least := least_threshold(holders, roster.colluders)):
        raise Refused(
            f"threshold {header.threshold} for {holders} banks of which {roster.colluders} may collude: expected {least} or more",
            "2t > n + c, or the coordinator could unmask a bank",
        )


def check_members(header: Header, banks: int) -> None:
    """Aborted with too few to begin."""
    _check_left(banks, max(header.least_members, header.threshold), "start another session when more are there")


def check_left(header: Header, banks: int) -> None:
    """Aborted with too few to go on once vectors have left: online, or with a signature or shares."""
    _check_left(banks, header.threshold, "start another session, with fresh updates, when more are there")


def _check_left(banks: int, needed: int, hint: str) -> None:
    if banks < needed:
        raise Aborted(f"{banks} banks are left, {needed} are needed", hint)


def _shown(value: str | int | bytes) -> str:
    return value.hex()[:12] if isinstance(value, bytes) else repr(value)
