"""Four banks that are approved, made once; and the commands, as `consortium` runs them."""

import io
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from consortium.main import main
from federation.enrolment.home import Home
from federation.enrolment.registry import Registry
from tests.federation.enrolment import BANKS, Federation, make_federation

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="session")
def enrolled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_federation(tmp_path_factory.mktemp("federation")).folder


@pytest.fixture
def made(enrolled: Path, tmp_path: Path) -> Federation:
    """A copy, to be changed."""
    folder = shutil.copytree(enrolled, tmp_path / "federation")
    return Federation(folder, Registry(folder / "coordinator"), {name: Home(folder / name) for name in BANKS})


@pytest.fixture
def consortium(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Exit code, output and errors of a command in which something is typed."""

    def run(*arguments: object, typed: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["consortium", "federation", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out, printed.err

    return run
