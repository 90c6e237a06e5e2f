"""What a bank signs and what it does not, whoever the coordinator is."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from federation.enrolment.keys import Keys
from federation.enrolment.member import Known, check_name, ssh_line
from federation.enrolment.roster import NO_ROSTER, Roster, SignedRoster, changes, check_follows
from federation.errors import FactsError, Fork, NotTrusted
from federation.files import read, write
from privacy.errors import Refused
from tests.federation.enrolment import BANKS, NOW, Federation, forged, make_federation
from tests.helpers import REPOSITORY


def test_a_roster_counts_when_all_have_signed(made: Federation) -> None:
    proposal = made.propose()
    for name in BANKS[:3]:
        proposal = made.homes[name].sign(proposal, made.told)
    assert proposal.missing == ("dogwood",) and made.homes["alder"].in_force is None
    with pytest.raises(NotTrusted, match="not signed by dogwood"):
        proposal.check_complete()
    signed = made.sign(proposal)
    assert all(home.in_force == signed.roster for home in made.homes.values()) and made.registry.in_force == signed.roster
    assert signed.roster.previous == NO_ROSTER and signed.roster.names == BANKS


def test_the_roster_of_secure_aggregation_follows_from_it(made: Federation) -> None:
    roster = made.propose().roster
    sums = roster.for_sums
    assert (sums.version, sums.colluders, sums.names) == (1, 1, BANKS)
    alder = made.homes["alder"].keys[-1].identity
    sums.check_signature("alder", alder.sign(b"text"), b"text")


def test_a_phantom_bank_is_refused_by_every_honest_bank(made: Federation) -> None:
    """The coordinator has made the keys of one itself."""
    phantom = Keys.create("elm")
    made.registry.approve(phantom.request(), Known(fingerprints={"elm": phantom.member.fingerprint}), NOW)
    proposal = made.propose()
    assert "elm" in proposal.roster.names
    proposal = proposal.adding({"elm": phantom.identity.sign(proposal.roster.hash)})
    for home in made.homes.values():
        with pytest.raises(NotTrusted, match="no fingerprint was confirmed for elm"):
            home.sign(proposal, made.told)
        assert home.in_force is None


def test_a_bank_whose_key_was_exchanged_is_refused(made: Federation) -> None:
    roster, false = made.propose().roster, Keys.create("birch").member
    members = tuple(false if member.name == "birch" else member for member in roster.members)
    proposal = forged(roster, members=members)
    with pytest.raises(NotTrusted, match="the key shown for birch is not the one"):
        made.homes["alder"].sign(proposal, made.told)
    with pytest.raises(NotTrusted, match="has other keys for birch"):
        made.homes["birch"].sign(proposal, made.told)


@pytest.mark.parametrize("key", ["node", "tls"])
def test_a_bank_signs_only_a_line_with_all_of_its_own_keys(made: Federation, key: str) -> None:
    roster, other = made.propose().roster, Keys.create("alder").member
    first, *others = roster.members
    changed = first.model_copy(update={key: getattr(other, key)})
    with pytest.raises(NotTrusted, match="has other keys for alder"):
        made.homes["alder"].sign(forged(roster, members=(changed, *others)), made.told)


def test_a_bank_that_is_not_in_it_does_not_sign(made: Federation) -> None:
    roster = made.propose().roster
    with pytest.raises(NotTrusted, match="alder is not in the roster"):
        made.homes["alder"].sign(forged(roster, members=roster.members[1:]), made.told)


def test_roll_back_is_refused(made: Federation) -> None:
    first = made.sign(made.propose())
    made.join("elm")
    second = made.sign(made.propose())
    assert second.roster.previous == first.roster.hash and second.roster.version == 2
    with pytest.raises(NotTrusted, match="version 1 of the roster does not follow from version 2"):
        made.homes["alder"].sign(first, made.told)
    with pytest.raises(NotTrusted, match="does not follow"):
        check_follows(forged(second.roster, version=3).roster, second.roster)
    with pytest.raises(NotTrusted, match="does not follow"):
        check_follows(forged(second.roster, version=1, previous=second.roster.hash).roster, second.roster)
    with pytest.raises(Fork, match="another of that version"):
        check_follows(forged(second.roster, previous=second.roster.hash).roster, second.roster)
    with pytest.raises(NotTrusted, match="a roster of meadow, but this bank is in orchard"):
        check_follows(forged(second.roster, version=3, previous=second.roster.hash, federation="meadow").roster, second.roster)


def test_an_older_proposal_is_refused_before_any_is_in_force(made: Federation) -> None:
    older, newer = made.propose(), made.propose()
    made.homes["alder"].sign(newer, made.told)
    with pytest.raises(NotTrusted, match="version 1 of the roster, but this bank has signed version 2"):
        made.homes["alder"].sign(older, made.told)


def test_two_rosters_of_one_version_are_an_alarm(made: Federation) -> None:
    shown = made.propose()
    made.homes["alder"].sign(shown, made.told)
    with pytest.raises(Fork, match="another of that version") as alarm:
        made.homes["alder"].sign(forged(shown.roster, colluders=2), made.told)
    assert alarm.value.exit_code == 3 and "tell the other banks" in alarm.value.hint
    made.homes["alder"].sign(shown, made.told)


def test_what_a_bank_signed_can_come_into_force_after_it_signed_a_newer_one(made: Federation) -> None:
    """Else two banks could have different rosters in force and no way on."""
    older, newer = made.propose(), made.propose()
    for name in BANKS:
        older = made.homes[name].sign(older, made.told)
    made.homes["alder"].sign(newer, made.told)
    made.homes["alder"].sign(older, made.told)
    assert made.homes["alder"].in_force == older.roster
    with pytest.raises(NotTrusted, match="version 2 of the roster does not follow"):
        made.homes["alder"].sign(newer, made.told)
    with pytest.raises(Fork):  # it has not forgotten that it signed a version 2
        made.homes["alder"].sign(forged(newer.roster, previous=older.roster.hash), made.told)


def test_removal_is_signed_by_all_who_remain(made: Federation) -> None:
    first = made.sign(made.propose())
    proposal = made.propose("cedar")
    assert [*changes(proposal.roster, first.roster)] == ["leaves: cedar"]
    for name in ("alder", "birch"):
        proposal = made.homes[name].sign(proposal, Known())
    assert proposal.missing == ("dogwood",) and made.homes["alder"].in_force == first.roster
    made.sign(proposal)
    assert made.homes["alder"].in_force == proposal.roster and "cedar" not in made.registry.approved
    with pytest.raises(Refused, match="a roster of 2 banks of which 1 may collude"):
        made.propose("alder")


def test_rotation_needs_the_signature_of_the_old_key_and_no_telephone(made: Federation) -> None:
    first = made.sign(made.propose())
    before = made.told
    made.join("birch", rotate=True)
    proposal = made.propose()
    assert [*changes(proposal.roster, first.roster)] == ["has a new key, signed by its old one: birch"]
    signed = made.sign(proposal)
    assert signed.roster.for_sums.names == BANKS and made.homes["birch"].in_force == signed.roster
    assert made.told != before and made.homes["alder"].known.fingerprints["birch"] == made.told.fingerprints["birch"]


def test_a_new_key_that_the_old_one_has_not_signed_is_refused(made: Federation) -> None:
    first = made.sign(made.propose())
    thief = Keys.create("birch")
    with pytest.raises(NotTrusted, match="the key before has not signed it"):
        made.registry.approve(thief.request(), Known(fingerprints={"birch": thief.member.fingerprint}), NOW)
    other = thief.request(Keys.create("birch").identity).member
    for member in (thief.member, other):
        members = tuple(member if each.name == "birch" else each for each in first.roster.members)
        proposal = forged(first.roster, version=2, previous=first.roster.hash, members=members)
        with pytest.raises(NotTrusted, match="the key before has not signed it"):
            made.homes["alder"].sign(proposal, Known(fingerprints={"birch": thief.member.fingerprint}))


def test_a_succession_holds_for_the_keys_it_was_signed_for() -> None:
    old, new, other = Keys.create("alder"), Keys.create("alder"), Keys.create("alder")
    member = new.request(old.identity).member
    member.check_succeeds(old.identity.public)
    for field in ("node", "tls"):
        with pytest.raises(NotTrusted):
            member.model_copy(update={field: getattr(other.member, field)}).check_succeeds(old.identity.public)


def test_joining_is_signed_by_all(made: Federation) -> None:
    made.sign(made.propose())
    told = made.join("elm")
    proposal = made.propose()
    with pytest.raises(NotTrusted, match="no fingerprint was confirmed for elm"):
        made.homes["alder"].sign(proposal, Known())
    proposal = made.homes["alder"].sign(proposal, told)
    assert proposal.missing == ("birch", "cedar", "dogwood", "elm")
    with pytest.raises(NotTrusted, match="alder, birch, cedar, dogwood"):
        made.homes["elm"].sign(proposal, Known())
    assert made.sign(proposal).missing == ()


def test_a_changed_roster_file_is_no_roster(made: Federation, tmp_path: Path) -> None:
    signed, path = made.sign(made.propose()), tmp_path / "roster.json"
    write(path, signed)
    values = json.loads(path.read_text())
    for changed, expected in (
        (values | {"roster": values["roster"] | {"colluders": 0}}, "not its signature of this roster"),
        (values | {"roster": values["roster"] | {"version": 0}}, "roster.version: expected a whole number of at least 1"),
        (values | {"roster": values["roster"] | {"authority": "ab"}}, "roster.authority: expected 64 hexadecimal digits"),
        (values | {"roster": values["roster"] | {"verson": 2}}, "unknown field roster.verson, did you mean roster.version?"),
        (values | {"signatures": {"alder": values["signatures"]["birch"]}}, "not its signature of this roster"),
        (values | {"signatures": {"elm": values["signatures"]["birch"]}}, "what stands for elm"),
        (values | {"roster": values["roster"] | {"members": values["roster"]["members"][::-1]}}, "in the order of their names"),
    ):  # fmt: skip
        path.write_text(json.dumps(changed))
        with pytest.raises(FactsError) as found:
            read(SignedRoster, path)
        assert expected in found.value.message
    path.write_text(json.dumps(values, indent=7, sort_keys=True))
    assert read(SignedRoster, path) == signed
    path.write_text("{")
    with pytest.raises(FactsError, match="not JSON"):
        read(SignedRoster, path)


def test_the_bytes_that_are_signed_never_change() -> None:
    member = {"name": "alder", "identity": "01" * 32, "tls": "02" * 32, "node": _node_key(1)}
    other = {"name": "birch", "identity": "03" * 32, "tls": "04" * 32, "node": _node_key(2)}
    values = {
        "federation": "orchard",
        "version": 7,
        "previous": "00" * 32,
        "colluders": 0,
        "coordinator": "05" * 32,
        "authority": "06" * 32,
    }
    roster = Roster.model_validate_json(json.dumps(values | {"members": [member, other]}))
    assert roster.hash.hex() == "b21ba320236c7115f50646371537c842e13268a38229d3701adfbc83aabfd1bc"


def _node_key(number: int) -> str:
    return ssh_line(ec.derive_private_key(number, ec.SECP384R1()).public_key())


def test_one_key_for_two_banks_is_refused(made: Federation) -> None:
    roster = made.propose().roster
    first, second, *others = roster.members
    for key in ("node", "tls"):
        twice = second.model_copy(update={key: getattr(first, key)})
        with pytest.raises(ValueError, match=f"two of them have one {key} key"):
            forged(roster, members=(first, twice, *others))
    with pytest.raises(Refused, match="each name and key once"):
        forged(roster, members=(first, second.model_copy(update={"identity": first.identity}), *others))
    with pytest.raises(ValueError, match="the key of a member"):
        forged(roster, coordinator=first.identity)


@pytest.mark.parametrize("name", ["Alder", "\u0430lder", "al der", "", "-alder", "alder/..", "a" * 64, "ald\u200ber", "ａlder"])
def test_names_that_could_be_taken_for_others_are_refused(name: str) -> None:
    with pytest.raises(FactsError, match="expected up to 63") as found:
        check_name(name)
    assert found.value.message.isascii()


@pytest.mark.parametrize(
    ("one", "other"), [("bank-1", "bank-l"), ("bank0", "banko"), ("modern", "modem"), ("a-b", "ab"), ("vvest", "west")]
)
def test_names_that_look_alike_are_not_in_one_federation(tmp_path: Path, one: str, other: str) -> None:
    made = make_federation(tmp_path, (one, "yew", "zebra"))
    with pytest.raises(FactsError, match="look alike"):
        made.join(other)
    members = sorted((Keys.create(name).member for name in (one, other, "zebra")), key=lambda member: member.name)
    with pytest.raises(ValueError, match="look alike"):
        forged(made.propose().roster, members=tuple(members))


def test_the_federation_package_imports_nothing_heavy() -> None:
    heavy = "print(sorted(set(sys.modules) & {'torch', 'ray', 'flwr', 'transformers', 'datasets', 'deepspeed', 'numpy'}))"
    code = f"import sys, federation.enrolment.home, federation.enrolment.registry; {heavy}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert done.stdout.strip() == "[]"
