"""What people get wrong at the command line: a line that says so, a hint, and nothing is left behind."""

from pathlib import Path

import pytest

from federation.enrolment.registry import Registry
from tests import helpers
from tests.federation.conftest import Command
from tests.federation.enrolment import Federation
from tests.federation.test_base_model import _make_model


def _refused(answer: tuple[int, str, str], message: str, hint: str, *, exit_code: int = 2) -> None:
    code, _, errors = answer
    assert code == exit_code and message in errors and hint in errors


@pytest.mark.parametrize("host", ["fed.example.com:9443", "::zz"])
def test_a_host_has_no_port(tmp_path: Path, consortium: Command, host: str) -> None:
    _refused(
        consortium("init", tmp_path / "new", "--name", "cards", "--host", host), f"hosts: {host}: a name or an address", "--name cards"
    )
    assert not (tmp_path / "new").exists()


def test_an_address_of_version_six_is_a_host(tmp_path: Path, consortium: Command) -> None:
    assert consortium("init", tmp_path / "new", "--name", "cards", "--host", "::1")[0] == 0


def test_folders_are_not_taken_for_others(made: Federation, tmp_path: Path, consortium: Command) -> None:
    coordinator, bank, request = made.folder / "coordinator", made.folder / "alder", tmp_path / "request.json"
    _refused(consortium("keygen", "elm", "--home", coordinator), "a coordinator's folder", "--home")
    assert not (coordinator / "keys").exists()
    assert consortium("request", request, "--home", bank)[0] == 0
    known = bank / "known.json"
    before = known.read_bytes() if known.exists() else None
    _refused(consortium("approve", request, "--home", bank), "no coordinator's folder", "federation init")
    assert (known.read_bytes() if known.exists() else None) == before
    _refused(consortium("roster", "propose", "--home", request), "not a directory", "name the folder")
    _refused(consortium("init", coordinator, "--name", "cards", "--host", "localhost"), "is there already", "new directory")


def test_who_is_not_asked_is_told_of_the_option_there_is(made: Federation, tmp_path: Path, consortium: Command) -> None:
    assert consortium("keygen", "elm", "--home", made.folder / "elm")[0] == 0
    assert consortium("request", tmp_path / "elm.json", "--home", made.folder / "elm")[0] == 0
    code, _, errors = consortium("approve", tmp_path / "elm.json", "--home", made.folder / "coordinator")
    assert code == 2 and "with --known FILE" in errors and "--yes" not in errors
    assert "elm" not in Registry(made.folder / "coordinator").approved


def test_a_run_is_not_begun_where_nobody_runs_it(made: Federation, tmp_path: Path, consortium: Command) -> None:
    home = made.folder / "coordinator"
    answer = consortium("run", "spring", "--base-model", tmp_path, "--home", home)
    _refused(answer, "no coordinator runs here", "federation coordinator", exit_code=1)
    assert not (home / "runs").exists()


def test_an_address_that_is_not_this_machine_s_is_said_before_anything_starts(made: Federation, consortium: Command) -> None:
    made.sign(made.propose())
    home = made.folder / "coordinator"
    _refused(consortium("coordinator", "--home", home, "--host", "192.0.2.1"), "nothing can listen at 192.0.2.1:9443", "0.0.0.0")
    assert not (home / "logs").exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"--train": "nowhere.jsonl"}, "--train nowhere.jsonl: no such file"),
        ({"--unit": "custmer"}, "--unit custmer: rows.jsonl has no such column"),
        ({"--coordinator": "fed.example.com"}, "coordinator: expected HOST:PORT, as in fed.example.com:9443 or null"),
    ],
)
def test_a_bank_is_not_drafted_of_what_is_not_there(
    made: Federation, tmp_path: Path, consortium: Command, monkeypatch: pytest.MonkeyPatch, changed: dict[str, str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    model, file = _make_model(tmp_path / "model"), made.folder / "coordinator" / "federation.yaml"
    helpers.write_jsonl(tmp_path / "rows.jsonl", [{"text": "a card", "customer": 1}])
    facts = ("--home", file.parent, "--base-model", model, "--banks", 4, "--units", 100)
    _refused(consortium("draft-training", *facts, "--task", "clasify"), "--task clasify: expected", "classify")
    assert consortium("draft-training", *facts, "--task", "sft")[0] == 0
    options = {"--for": file, "--bank": "alder", "--base-model": model, "--train": "rows.jsonl", "--units": 10, "--unit": "customer"}
    given = [part for option in (options | changed).items() for part in option]
    _refused(consortium("draft-bank", "bank.yaml", *given), message, "hint: ")
    assert not (tmp_path / "bank.yaml").exists()


def test_status_names_the_file_that_is_not_there(made: Federation, consortium: Command) -> None:
    _refused(consortium("status", "--home", made.folder / "alder", "--bank", "nowhere.yaml"), "--bank nowhere.yaml: no such file", "hint: ")
