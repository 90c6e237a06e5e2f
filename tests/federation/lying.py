"""A coordinator that asks for more than it may, or lies, and what each side sees of the refusal: `python -m tests.federation.lying`.

Banks and coordinator are the product's, in one process (loopback.py); a lie that its code would not tell is put into its mouth before it
signs. Exit code 1 if a bank does what it must not, or says no by another rule.
"""

import io
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from rich.console import Console
from safetensors.numpy import save

from consortium.federation.status import line, of_bank, read_bank
from federation.dossier.report import record_of
from federation.enrolment.member import Known
from federation.enrolment.roster import Roster, SignedRoster
from federation.errors import NotTrusted, RunFailed
from federation.rounds import bank as bank_side
from federation.rounds import coordinator, record
from federation.rounds.aggregate import Adapter
from federation.rounds.letters import Invitation
from federation.rounds.session import Masked
from tests.federation.enrolment import BANKS, forged, make_federation
from tests.federation.loopback import Loopback, World, make_world, planned

ASKED = "alder"
"""The bank that is looked at"""
Words = Callable[[World, Invitation], Invitation]
"""What the coordinator signs, in the place of what it should"""


@dataclass(frozen=True)
class Scene:
    """What the coordinator tries in a run."""

    title: str
    rule: str
    """By which banks refuse"""
    lying: Callable[[World], AbstractContextManager[object]] = lambda world: nullcontext()
    set_up: Callable[[World], object] = lambda world: None
    refusing: tuple[str, ...] = BANKS
    """With the others the run goes on"""


@dataclass(frozen=True)
class Seen:
    """What came of it."""

    record: list[str]
    """Refusals in the bank's"""
    told: list[str]
    """Refusals among the coordinator's events, and how the run ended"""
    status: str
    """What the bank's person is shown"""
    faults: list[str]


def _says(words: Words) -> Callable[[World], AbstractContextManager[object]]:
    """Its invitations are others than it should write; what it reckons with itself is the honest one."""

    @contextmanager
    def lying(world: World) -> Iterator[None]:
        honest: list[Invitation] = []
        write, identity = coordinator._Coordinator._invitation, world.made.registry.identity

        def written(self: coordinator._Coordinator, roster: Roster, adapter: bytes) -> Invitation:
            honest.append(write(self, roster, adapter))
            said = words(world, honest[-1])
            return said if said.signature != honest[-1].signature else said.signed(identity)

        def session(invitation: Invitation, *rest: Any) -> Masked:
            return Masked(honest[-1], *rest)

        with mock.patch.multiple(coordinator._Coordinator, _invitation=written), mock.patch.object(coordinator, "Masked", session):
            yield

    return lying


def _training(**changes: Any) -> Callable[[World], AbstractContextManager[object]]:
    def words(world: World, invitation: Invitation) -> Invitation:
        training = invitation.training.model_validate(invitation.training.model_dump() | changes)
        return invitation.model_copy(update={"training": training})

    return _says(words)


def phantom(world: World) -> SignedRoster:
    """A roster with one bank more, which nobody has signed."""
    if "elm" not in world.made.homes:
        world.made.join("elm")
    return world.made.propose()


def other_roster(world: World) -> SignedRoster:
    """A second one under the version in force."""
    roster = world.made.registry.in_force
    assert roster
    return forged(roster, colluders=0)


def _under(roster: Callable[[World], SignedRoster]) -> Callable[[World], AbstractContextManager[object]]:
    def words(world: World, invitation: Invitation) -> Invitation:
        shown = roster(world).roster
        return invitation.model_copy(update={"version": shown.version, "roster": shown.hash})

    return _says(words)


def _twice(world: World, invitation: Invitation) -> Invitation:
    """In the second round it asks for the first once more."""
    return invitation.model_copy(update={"round": 1, "attempt": 1, "before": 0})


def _signed_by_another(world: World, invitation: Invitation) -> Invitation:
    return invitation.signed(Ed25519PrivateKey.generate())


def _changed(adapter: Adapter) -> bytes:
    draw = np.random.default_rng()
    return save({name: tensor + draw.normal(size=tensor.shape).astype(np.float32) for name, tensor in adapter.items()})


def _mind_less(world: World) -> None:
    for bank in BANKS:
        world.allow(bank, least_threshold=1, least_in_sum=1, least_honest_in_sum=0)


SCENES = (
    Scene(
        "more epsilon a round than one bank's policy allows", "most_epsilon_round",
        set_up=lambda world: world.allow(ASKED, most_epsilon_round=1), refusing=(ASKED,),
    ),
    Scene("no privacy at all", "most_epsilon_round", _training(privacy=None, evaluation="off", metrics=[])),
    Scene("another model", "base_models", _training(base_model={"name": "other", "sha256": "d" * 64})),
    Scene("another bundle", "bundles", _says(lambda world, invitation: invitation.model_copy(update={"bundle": "e" * 64}))),
    Scene("a round of two banks", "least_members", _training(cohort=2, quorum=2, threshold=2)),
    Scene("a lower threshold", "least_in_sum", _training(threshold=2)),
    Scene("a lower threshold, where the policy would not mind", "header", _training(threshold=2), _mind_less),
    Scene("every bank's update in the clear", "least_in_sum", _training(secure_aggregation=False)),
    Scene("a roster with a phantom bank", "roster", _under(phantom)),
    Scene("another roster under the same version", "roster", _under(other_roster)),
    Scene("a signature that is not the coordinator's", "coordinator", _says(_signed_by_another)),
    Scene("the same round again, with another nonce", "order",
          _says(lambda world, invitation: invitation if invitation.round == 1 else _twice(world, invitation))),
    Scene("another adapter than the sum makes", "result", lambda world: mock.patch.object(coordinator, "save", _changed)),
)  # fmt: skip


def play(scene: Scene, folder: Path) -> Seen:
    """In a new federation."""
    world = make_world(make_federation(folder))
    scene.set_up(world)
    with mock.patch.object(bank_side, "plan_round", planned), scene.lying(world):  # planning takes seconds
        ended = _run(world)
    world.close()
    events = map(json.loads, (world.run_folder / "events.jsonl").read_text().splitlines())
    told = [line(event).split(maxsplit=1)[1] for event in events if event["event"] in ("refusal", "failure")]
    noted = {bank: record.decisions(record_of(world.bank_folder(bank))) for bank in BANKS}
    refused = {bank: [each for each in noted[bank] if each.rule] for bank in BANKS}
    faults = [
        *(f"{bank} did not refuse by {scene.rule}" for bank in scene.refusing if scene.rule not in {each.rule for each in refused[bank]}),
        *(f"{bank} refused by {each.rule}" for bank in BANKS for each in refused[bank] if (bank, each.rule) not in _expected(scene)),
        *(f"{bank} released {noted[bank][-1].released}" for bank in scene.refusing if not noted[bank][-1].rule),
        *(f"{bank} has a reservation open" for bank in BANKS if not all(closed for _, _, closed in world.held(bank))),
        *(f"the coordinator was not told by {bank}" for bank, rule in _expected(scene)
          if not any(each.startswith(f"{bank} refuses by {rule}: ") for each in told)),
    ]  # fmt: skip
    return Seen([f"{each.rule}: {dict(each.asked)}" for each in refused[ASKED]], [*dict.fromkeys(told), ended], _status(world), faults)


def _expected(scene: Scene) -> set[tuple[str, str]]:
    return {(bank, scene.rule) for bank in scene.refusing}


def _run(world: World) -> str:
    """How it ended."""
    try:
        Loopback(world).run()
    except RunFailed as error:
        return error.message
    rounds = json.loads((world.run_folder / "result" / "result.json").read_text())["rounds"]
    return f"the run is finished: {len(rounds)} rounds, of {', '.join(rounds[0]['banks'])}"


def _status(world: World) -> str:
    """As `consortium federation status` shows it."""
    console = Console(file=io.StringIO(), width=200, highlight=False, markup=False, emoji=False)
    console.print(of_bank(read_bank(world.bank_folder(ASKED), world.bank_folder(ASKED) / "bank.yaml")))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def sign(shown: Callable[[World], SignedRoster], folder: Path) -> NotTrusted | None:
    """What a bank's person is told who is to sign this roster and has confirmed nobody new."""
    world = make_world(make_federation(folder))
    try:
        world.made.homes[ASKED].sign(shown(world), Known(fingerprints={}))
    except NotTrusted as error:
        return error
    return None


def main() -> None:
    faults = []
    for scene in SCENES:
        with tempfile.TemporaryDirectory() as folder:
            seen = play(scene, Path(folder) / "federation")
        print(f"# {scene.title}", f"\nThe record of {ASKED}:", *seen.record, "\nThe coordinator's events:", *seen.told, sep="\n")
        print(f"\nconsortium federation status --home {ASKED}:\n{seen.status}")
        faults += [f"{scene.title}: {fault}" for fault in seen.faults]
    for title, roster in (("a roster with a phantom bank", phantom), ("another roster under the same version", other_roster)):
        with tempfile.TemporaryDirectory() as folder:
            error = sign(roster, Path(folder) / "federation")
        print(
            f"# consortium federation sign-roster, of {title}\n",
            error and f"{type(error).__name__}: {error.message}\n  hint: {error.hint}\n",
            sep="\n",
        )
        faults += [f"{ASKED} would sign {title}"] if error is None else []
    print("\n".join(faults) or "every lie was refused by its rule, on record, and told to the coordinator")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
