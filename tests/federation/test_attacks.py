"""What kills, besieges and lies, as the scripts beside this file do it and print it."""

from pathlib import Path

import pytest

from tests.federation.killing import kill_banks, kill_coordinator
from tests.federation.lying import SCENES, Scene, other_roster, phantom, play, sign
from tests.federation.stranger import besiege

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def test_a_coordinator_that_is_killed_in_every_exchange_goes_on_and_nothing_is_lost_or_counted_twice(tmp_path: Path) -> None:
    kills, transcripts, _ = kill_coordinator(tmp_path, rounds=3)
    assert [kill.exchange for kill in kills] == [*range(7)] and not transcripts.findings


def test_banks_that_are_killed_in_every_exchange_come_back_and_nothing_is_lost_or_counted_twice(tmp_path: Path) -> None:
    kills, transcripts, _ = kill_banks(tmp_path, rounds=3)
    assert [kill.exchange for kill in kills] == [*range(7)] and not transcripts.findings


def test_a_stranger_is_let_in_nowhere_and_a_member_to_the_fleet_alone(tmp_path: Path) -> None:
    siege = besiege(tmp_path / "federation")
    assert siege.faults == [] and len(siege.attempts) > 40


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.title)
def test_a_lie_is_refused_by_its_rule_on_record_and_told_to_the_coordinator(scene: Scene, tmp_path: Path) -> None:
    seen = play(scene, tmp_path / "federation")
    assert seen.faults == [] and seen.record and scene.rule in seen.status


def test_rosters_that_show_a_phantom_or_another_story_are_not_signed(tmp_path: Path) -> None:
    for number, roster in enumerate((phantom, other_roster)):
        assert sign(roster, tmp_path / str(number)) is not None
