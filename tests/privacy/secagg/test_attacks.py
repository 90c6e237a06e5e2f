"""Every attack of the catalogue is stopped by its guard, and by nothing else."""

import re

import pytest

from tests.helpers import REPOSITORY
from tests.privacy.secagg.attacks import ATTACKS, Attack, Coordinator, play, table
from tests.privacy.secagg.driver import federation

every_attack = pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)


@every_attack
def test_it_is_stopped_by_a_named_error(attack: Attack) -> None:
    error = play(attack)
    assert type(error) is attack.error and re.search(attack.words, error.message) and error.banks == attack.blames


@every_attack
def test_it_succeeds_where_its_guards_are_gone(attack: Attack, monkeypatch: pytest.MonkeyPatch) -> None:
    _remove(attack, [*attack.guards], monkeypatch)
    with federation(attack.banks) as made:
        attack.play(Coordinator(made))


@pytest.mark.parametrize(
    ("attack", "guard"), [(attack, guard) for attack in ATTACKS.values() for guard in attack.guards if len(attack.guards) > 1]
)
def test_each_of_several_guards_stops_it_alone(attack: Attack, guard: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _remove(attack, [other for other in attack.guards if other != guard], monkeypatch)
    play(attack)


def test_the_document_shows_them_all() -> None:
    assert table() in (REPOSITORY / "docs" / "secure-aggregation.md").read_text()


def _remove(attack: Attack, guards: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for guard in guards:
        monkeypatch.setattr(f"privacy.secagg.{guard}", attack.guards[guard])
