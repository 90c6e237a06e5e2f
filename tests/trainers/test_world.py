import os
from collections.abc import Callable
from typing import Any

import pytest
import torch.distributed as dist

from tests.helpers import run_distributed
from trainers.errors import DataError, ModelError, TrainersError
from trainers.world import World

Outcomes = list[dict[str, Any]]
_ERRORS: list[Exception] = [DataError("bad row", "mend it"), FileNotFoundError(2, "gone"), KeyError("label")]


class _Unpicklable(Exception):
    def __reduce__(self) -> Any:
        raise TypeError("not to be pickled")


def _connected() -> World:
    world = World.from_environment()
    world.connect()
    return world


def _raise(error: Exception) -> None:
    raise error


def _outcome(work: Callable[[], Any]) -> Any:
    try:
        return work()
    except Exception as error:
        return f"{type(error).__name__}: {error}", getattr(error, "hint", None)


def _everything() -> dict[str, Any]:
    """What each call gives on this rank, all in one group of processes: they take two seconds to start."""
    world, calls = _connected(), []
    mine = DataError(f"rank {world.rank} failed", "mend it")
    return {
        "place": (world.rank, world.size, world.local_rank, world.device.type, world.is_main),
        "result": world.on_main(lambda: {"from": os.environ["RANK"]}),
        "calls": (world.on_main(lambda: calls.append(world.rank)), calls)[1],
        "errors": [_outcome(lambda error=error: world.on_main(lambda: _raise(error))) for error in _ERRORS],  # type: ignore[misc]
        "unpicklable": _outcome(lambda: world.on_main(lambda: _raise(_Unpicklable("odd")))),
        "sum": world.sum(world.rank + 1, 2**53 - world.rank),
        "gather": world.gather(f"rank {world.rank}"),
        "no error": _outcome(lambda: world.agree(None)),
        "first fails": _outcome(lambda: world.agree(mine if world.rank == 0 else None)),
        "second fails": _outcome(lambda: world.agree(mine if world.rank == 1 else None)),
        "both fail": _outcome(lambda: world.agree(mine)),
    }


def _fail(failing: int) -> str:
    if _connected().rank == failing:
        raise DataError("mine alone")
    return "went on"


@pytest.fixture(scope="module")
def outcomes() -> Outcomes:
    """By rank, of two processes."""
    return run_distributed(_everything, 2)


def test_a_process_knows_its_place_from_the_environment(outcomes: Outcomes) -> None:
    assert [found["place"] for found in outcomes] == [(0, 2, 0, "cpu", True), (1, 2, 1, "cpu", False)]


def test_what_main_computes_is_everyones(outcomes: Outcomes) -> None:
    assert [found["result"] for found in outcomes] == [{"from": "0"}] * 2


def test_only_main_does_the_work(outcomes: Outcomes) -> None:
    assert [found["calls"] for found in outcomes] == [[0], []]


def test_our_errors_and_the_systems_on_main_are_raised_everywhere_as_they_are(outcomes: Outcomes) -> None:
    expected = [("DataError: bad row", "mend it"), ("FileNotFoundError: [Errno 2] gone", None)]
    assert [found["errors"][:2] for found in outcomes] == [expected] * 2


def test_any_other_error_on_main_keeps_nobody_waiting(outcomes: Outcomes) -> None:
    assert outcomes[0]["errors"][2] == ("KeyError: 'label'", None)
    assert outcomes[1]["errors"][2] == ("RuntimeError: rank 0 failed: KeyError('label')", None)


def test_an_error_that_cannot_be_pickled_is_told_in_words(outcomes: Outcomes) -> None:
    assert outcomes[0]["unpicklable"] == ("_Unpicklable: odd", None)
    assert outcomes[1]["unpicklable"] == ("RuntimeError: rank 0 failed: _Unpicklable('odd')", None)


def test_a_sum_is_over_all_workers_and_in_float64(outcomes: Outcomes) -> None:
    assert [found["sum"] for found in outcomes] == [[3.0, float(2**54 - 1)]] * 2


def test_gathered_values_come_in_the_order_of_ranks(outcomes: Outcomes) -> None:
    assert [found["gather"] for found in outcomes] == [["rank 0", "rank 1"]] * 2


@pytest.mark.parametrize(("case", "rank"), [("first fails", 0), ("second fails", 1), ("both fail", 0)])
def test_the_first_workers_error_is_raised_on_every_worker(outcomes: Outcomes, case: str, rank: int) -> None:
    assert [found[case] for found in outcomes] == [(f"DataError: rank {rank} failed", "mend it")] * 2


def test_without_an_error_everyone_goes_on(outcomes: Outcomes) -> None:
    assert [found["no error"] for found in outcomes] == [None] * 2


def test_a_lone_process_needs_no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.setenv(name, "to be put back as it was")
        monkeypatch.delenv(name)
    world = _connected()
    try:
        assert (world.rank, world.size, dist.get_world_size()) == (0, 1, 1)
        assert world.on_main(lambda: 3) == 3 and world.sum(1.5) == [1.5] and world.gather("x") == ["x"]
    finally:
        dist.destroy_process_group()


def test_a_lone_process_raises_its_own_errors() -> None:
    world = World(0, 1, 0, World.from_environment().device)
    with pytest.raises(KeyError):
        world.on_main(lambda: _raise(KeyError("label")))
    with pytest.raises(ModelError, match="no such module"):
        world.agree(ModelError("no such module"))


def test_the_helper_returns_the_errors_it_expects_and_raises_the_others() -> None:
    mine, other = run_distributed(_fail, 2, 0, expect=TrainersError)
    assert (str(mine), other) == ("mine alone", "went on")
    with pytest.raises(DataError, match="mine alone"):
        run_distributed(_fail, 2, 1, expect=ModelError)
