"""From `keygen` to a roster that four banks have signed, as their people do it at four terminals."""

import shutil
from pathlib import Path

import pytest

from federation.enrolment.authority import chain, load
from federation.enrolment.home import Home
from federation.enrolment.registry import Registry
from tests.federation.conftest import Command
from tests.federation.enrolment import BANKS, NOW, Federation


def _fingerprint(printed: str) -> str:
    """What a bank reads out to the others: the last line."""
    return printed.splitlines()[-1].strip()


def test_four_banks_from_their_keys_to_a_roster_in_force(consortium: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, printed, _ = consortium("init", "coordinator", "--name", "orchard", "--host", "localhost")
    assert code == 0 and "certificate authority" in printed
    told, everything = {}, ""
    for name in BANKS:
        made = consortium("keygen", name, "--home", name)
        asked = consortium("request", f"{name}.json", "--home", name)
        told[name] = _fingerprint(asked[1])
        assert made[0] == asked[0] == 0 and _fingerprint(made[1]) == told[name]
        everything += made[1] + asked[1]
    code, printed, errors = consortium("approve", *(f"{name}.json" for name in BANKS), typed="\n".join(told.values()) + "\n")
    assert code == 0 and "approved dogwood" in printed and not any(each in printed + errors for each in told.values())
    assert consortium("roster", "propose")[0] == 0
    for name in BANKS:
        assert consortium("accept", f"coordinator/members/{name}.pem", "--home", name)[0] == 0
        shutil.copy("coordinator/roster-1.json", f"{name}.signed")
        others = [told[other] for other in BANKS if other != name]
        code, printed, errors = consortium("sign-roster", f"{name}.signed", "--home", name, typed="\n".join([*others, "y"]) + "\n")
        assert code == 0 and "not yet in force here" in printed and told[name] in printed
        assert not any(other in printed + errors for other in others)
        everything += printed + errors
    assert consortium("roster", "verify", "alder.signed") == (
        3, "", "error: version 1 is not signed by birch, cedar, dogwood\n  hint: it counts when all have signed\n"
    )  # fmt: skip
    assert consortium("roster", "gather", *(f"{name}.signed" for name in BANKS))[1].startswith("version 1 is signed by all")
    assert "signed by all 4" in consortium("roster", "verify", "coordinator/roster-1.json")[1]
    for name in BANKS:
        assert "version 1 is now in force here" in consortium("sign-roster", "coordinator/roster-1.json", "--home", name)[1]
    shown = consortium("roster", "show", "coordinator/roster-1.json")[1]
    assert "orchard, version 1; 1 of 4 may collude" in shown and shown.count("yes") == 4
    secrets = [path.read_text().splitlines()[1] for path in tmp_path.rglob("*") if path.name in ("identity.pem", "node", "tls.pem")]
    assert len(secrets) == 13 and not any(secret in everything + shown for secret in secrets)


def test_a_wrong_fingerprint_is_refused_and_nothing_is_signed(made: Federation, consortium: Command) -> None:
    path = made.registry.propose()[0]
    own, birch, cedar, dogwood = (made.told.fingerprints[name] for name in BANKS)
    before = path.read_bytes()
    for typed in (own, birch[:-1], "", f"{birch}\n{dogwood}", f"{birch}\n{own}"):
        code, _, errors = consortium("sign-roster", path, "--home", made.folder / "alder", typed=typed + "\n")
        assert code == 3 and "is not the one whose fingerprint was given for it" in errors
    code, printed, _ = consortium("sign-roster", path, "--home", made.folder / "alder", typed=f"{birch}\n{cedar}\n{dogwood}\nno\n")
    assert code == 1 and printed.endswith("not signed\n")
    assert path.read_bytes() == before and not (made.folder / "alder" / "signed.json").exists()
    spoken = birch.replace(" ", "").upper()
    assert consortium("sign-roster", path, "--home", made.folder / "alder", typed=f"{spoken}\n{cedar}\n{dogwood}\ny\n")[0] == 0


def test_a_script_gives_fingerprints_in_a_file(made: Federation, consortium: Command) -> None:
    path, known = made.registry.propose()[0], made.folder / "known.json"
    code, _, errors = consortium("sign-roster", path, "--home", made.folder / "alder")
    assert code == 2 and errors.endswith("error: nobody is there to answer\n  hint: run it at a terminal, or with --known FILE and --yes\n")
    known.write_text(made.told.model_dump_json())
    code, printed, _ = consortium("sign-roster", path, "--home", made.folder / "alder", "--known", known, "--yes")
    assert code == 0 and "signed as alder" in printed
    known.write_text('{"fingerprint": {}}')
    code, _, errors = consortium("sign-roster", path, "--home", made.folder / "birch", "--known", known, "--yes")
    assert code == 2 and "did you mean fingerprints?" in errors


def test_the_coordinator_s_own_authority_vouches_for_nobody(made: Federation, consortium: Command) -> None:
    path, authority = made.registry.propose()[0], made.folder / "coordinator" / "ca.pem"
    identities = made.folder / "identities.pem"
    identities.write_bytes(chain(load(authority)[0]))
    at = (path, "--home", made.folder / "alder", "--yes", "--vouched", identities)
    code, _, errors = consortium("sign-roster", *at, "--trust", authority)
    assert code == 3 and "the coordinator's own authority" in errors
    code, _, errors = consortium("sign-roster", *at)
    assert code == 2 and "--vouched and --trust go together" in errors


def test_a_request_is_not_approved_on_its_sender_s_word(made: Federation, consortium: Command) -> None:
    coordinator, home, request = made.folder / "coordinator", made.folder / "elm", made.folder / "elm.json"
    told = _fingerprint(consortium("keygen", "elm", "--home", home)[1])
    assert consortium("request", request, "--home", home)[0] == 0
    code, _, errors = consortium("request", request, "--home", home)
    assert code == 2 and "is there already" in errors
    code, _, errors = consortium("approve", request, "--home", coordinator, typed=made.told.fingerprints["alder"] + "\n")
    assert code == 3 and "ask elm itself" in errors and "elm" not in Registry(coordinator).approved
    assert consortium("approve", request, "--home", coordinator, typed=told + "\n")[0] == 0
    assert "elm" in Registry(coordinator).approved


def test_rotation_through_the_command_line(made: Federation, consortium: Command) -> None:
    made.sign(made.propose())
    coordinator, request = made.folder / "coordinator", made.folder / "rotated.json"
    assert consortium("keygen", "alder", "--home", made.folder / "alder")[0] == 2
    assert consortium("keygen", "alder", "--home", made.folder / "alder", "--rotate")[0] == 0
    assert consortium("request", request, "--home", made.folder / "alder")[0] == 0
    assert consortium("approve", request, "--home", coordinator)[0] == 0
    path = Registry(coordinator).propose()[0]
    code, printed, _ = consortium("sign-roster", path, "--home", made.folder / "birch", "--yes")
    assert code == 0 and "has a new key, signed by its old one: alder" in printed


def test_removal_through_the_command_line(made: Federation, consortium: Command) -> None:
    made.sign(made.propose())
    at = ("--home", made.folder / "coordinator")
    assert consortium("roster", "propose", "--without", "elm", *at)[0] == 2
    assert "version 2 with alder, birch, cedar" in consortium("roster", "propose", "--without", "dogwood", *at)[1]
    path = made.folder / "coordinator" / "roster-2.json"
    for name in ("alder", "birch", "cedar"):
        code, printed, _ = consortium("sign-roster", path, "--home", made.folder / name, "--yes")
        assert code == 0 and "leaves: dogwood" in printed
    assert (
        f"follows {made.folder / 'coordinator' / 'roster-1.json'}"
        in consortium("roster", "verify", path, "--after", made.folder / "coordinator" / "roster-1.json")[1]
    )
    code, _, errors = consortium("sign-roster", path, "--home", made.folder / "dogwood", "--yes")
    assert code == 3 and "dogwood is not in the roster of version 2" in errors


def test_signatures_of_another_roster_are_not_gathered(made: Federation, consortium: Command, tmp_path: Path) -> None:
    other = Federation(tmp_path, Registry.create(tmp_path / "other", "orchard", ["localhost"], NOW), {})
    for home in made.homes.values():
        other.registry.approve(home.request(), made.told, NOW)
    made.propose()
    code, _, errors = consortium("roster", "gather", other.registry.propose()[0], "--home", made.folder / "coordinator")
    assert code == 3 and "not version 1 as it was proposed here" in errors
    assert consortium("roster", "gather", other.registry.propose()[0], "--home", made.folder / "coordinator")[0] == 2


@pytest.mark.parametrize(("line", "expected"), [
    ("colluder: 2", "unknown field colluder, did you mean colluders?"),
    ("certificate_days: 0", "certificate_days: expected a whole number of at least 1"),
])  # fmt: skip
def test_a_mistake_in_federation_yaml_is_one_line(made: Federation, consortium: Command, line: str, expected: str) -> None:
    path = made.folder / "coordinator" / "federation.yaml"
    path.write_text(path.read_text().replace(f"{line.split(':')[0]}", "#") + f"{line}\n")
    code, _, errors = consortium("renew", "--home", made.folder / "coordinator")
    assert code == 2 and expected in errors and "consortium federation init" in errors


def test_a_folder_without_keys_says_how_to_make_them(consortium: Command, tmp_path: Path) -> None:
    code, _, errors = consortium("request", tmp_path / "request.json", "--home", tmp_path / "none")
    assert code == 2 and f"hint: consortium federation keygen NAME --home {tmp_path / 'none'}" in errors
    assert not Home(tmp_path / "none").known.fingerprints
