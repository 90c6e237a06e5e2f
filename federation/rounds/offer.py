"""Whether a bank takes part in an attempt: what it compares an invitation with, before anything is touched. What forbids it has a name.

roster        none is in force here, or the invitation is for another
coordinator   the roster's coordinator has not signed it, or not with this adapter
order         this or a later attempt of the run was answered before; a message is for another attempt than the last
training      the run's attempts before had another training block
...           the rules of the bank's policy: policy.py
base_model    the bank has another than the one its policy allows and the training names
adapters      the adapter has another rank than the training says
result        the adapter is not what the last sum makes of the one before
header        the sum would not keep what secure aggregation promises: privacy/secagg/rules.py
promise       all that the run's epsilon is for is taken: rounds failed more often than it has spare rounds
ledger        the population's budget, and the delta it was granted at
protocol      later: a message of secure aggregation that no honest coordinator sends
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from federation.config import BankConfig
from federation.enrolment.roster import Roster
from federation.errors import NotTrusted
from federation.policy import Refusal
from federation.rounds.aggregate import Adapter, Layout, agree
from federation.rounds.letters import Invitation, short
from federation.rounds.record import Decision
from privacy.errors import ConsortiumError, SecAggError
from privacy.secagg import rules
from privacy.secagg.codec import Buffer

_MOST_MODULUS_BITS = 32  # all there are


class Declined(Exception):
    """The bank will not. Never seen outside of it."""

    def __init__(self, rule: str, asked: str, allowed: str) -> None:
        self.refusal = Refusal(rule, short(asked), short(allowed))


@contextmanager
def rule(name: str, asked: str, *errors: type[ConsortiumError]) -> Iterator[None]:
    """What raises one of these in here is declined by this rule."""
    try:
        yield
    except errors as error:
        raise Declined(name, asked, error.message) from error


def check_sender(invitation: Invitation, body: Buffer, roster: Roster | None) -> Roster:
    """The roster in force, whose coordinator has signed the invitation under it."""
    asked = _shown(invitation.federation, invitation.version, invitation.roster)
    if roster is None:
        raise Declined("roster", asked, "none is in force here")
    with rule("coordinator", f"an invitation to {invitation.federation}", NotTrusted):
        invitation.check(roster.coordinator, body)
    if (invitation.federation, invitation.version, invitation.roster) != (roster.federation, roster.version, roster.hash):
        raise Declined("roster", asked, _shown(roster.federation, roster.version, roster.hash))
    return roster


def _shown(federation: str, version: int, hash: bytes) -> str:
    return f"{federation}, version {version}, {hash.hex()[:16]}"


def attempts_so_far(invitation: Invitation, decisions: Iterable[Decision]) -> int:
    """Attempts at the run's rounds that the bank has answered, and this one; declined where it does not come after all of them, or is not
    on their terms: what a run costs is settled before it begins."""
    of_run = [each for each in decisions if each.run == invitation.run and each.released]
    answered = {(each.round, each.attempt) for each in of_run}
    round, attempt = max(answered, default=(0, 0))
    if (invitation.round, invitation.attempt) <= (round, attempt):
        raise Declined(
            "order",
            f"round {invitation.round}, attempt {invitation.attempt}",
            f"what comes after round {round}, attempt {attempt}",
        )
    asked = invitation.training.hash.hex()
    if others := {each.asked["training"] for each in of_run if "training" in each.asked} - {asked}:
        raise Declined("training", f"a training block of hash {asked[:16]}", f"{others.pop()[:16]}, as the run began with")
    return len(answered) + 1


def check_adapter(invitation: Invitation, layout: Layout, adapter: Adapter, expected: Adapter | None) -> None:
    """`expected` is what the last sum makes of the adapter before, where the bank has seen it."""
    rank = invitation.training.adapter.rank
    if others := {adapter[a].shape[0] for a, _ in layout.pairs} - {rank}:
        raise Declined("adapters", f"an adapter of rank {others.pop()}", f"rank {rank}, as the training says")
    if expected is not None and not (Layout.of(expected, layout.method) == layout and agree(layout, expected, adapter)):
        raise Declined("result", f"adapter {invitation.model.hex()[:16]}", "what the sum of the last round makes of its adapter")


def check_session(invitation: Invitation, layout: Layout, roster: Roster, config: BankConfig) -> None:
    with rule("header", name(invitation), SecAggError):
        header = invitation.header(roster, layout)
        rules.check_header(header, roster.for_sums)
        rules.check_proposal(header, *terms(invitation, layout, config))


def terms(invitation: Invitation, layout: Layout, config: BankConfig) -> tuple[rules.Expected, rules.Policy]:
    """What the bank knows of the session, and what it allows."""
    expected = rules.Expected(
        run=invitation.run,
        round=invitation.round,
        model=invitation.model,
        config=invitation.digest,
        length=invitation.length(layout),
    )
    return expected, rules.Policy(config.policy.least_members, config.policy.most_clip, _MOST_MODULUS_BITS)


def name(invitation: Invitation) -> str:
    """Of an attempt, as the ledger has it."""
    return f"{attempts_of(invitation)} {invitation.round}, attempt {invitation.attempt}"


def attempts_of(invitation: Invitation) -> str:
    """How the names of a run's attempts begin."""
    return f"{invitation.federation}/{invitation.run}, round"
