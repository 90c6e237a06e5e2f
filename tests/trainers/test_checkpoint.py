"""A run that is stopped anywhere and goes on anywhere has the losses of one that was not stopped."""

import json
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests import helpers
from tests.trainers import jobs
from trainers.__main__ import main

STEPS, STOP = 8, 4
SAME = 1e-5
METHODS = ("full", "lora")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    helpers.make_model("llama", folder, **jobs.WIDE)
    return folder


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return jobs.write_rows(tmp_path_factory.mktemp("rows"), count=20)  # 3 1/3 steps an epoch: the run stops in the midst of the second


Job = Callable[..., Path]


@pytest.fixture(scope="module")
def make_job(llama: Path, rows: Path) -> Job:
    def make(folder: Path, *, train: Any = (), checkpoint: Any = (), **blocks: Any) -> Path:
        train = {"max_steps": STEPS, "weight_decay": 0.1} | dict(train)
        return jobs.make_job(folder, llama, rows, train=train, checkpoint={"every": 2, "keep": 100} | dict(checkpoint), **blocks)

    return make


@pytest.fixture(scope="module")
def on_one(tmp_path_factory: pytest.TempPathFactory, make_job: Job) -> dict[str, Path]:
    """Uninterrupted runs of one worker, by method."""
    folder = tmp_path_factory.mktemp("one")
    runs = {method: make_job(folder / method, method=method, zero=stage) for method, stage in zip(METHODS, (3, 1), strict=True)}
    jobs.train_all(list(runs.values()))
    return runs


@pytest.fixture(scope="module")
def on_two(tmp_path_factory: pytest.TempPathFactory, make_job: Job, on_one: dict[str, Path]) -> dict[str, dict[str, Path]]:
    """Of two workers: uninterrupted runs, and those of one worker continued; by method."""
    folder = tmp_path_factory.mktemp("two")
    whole = {method: make_job(folder / method, method=method, zero=2) for method in METHODS}
    continued = {
        method: jobs.as_left_after(STOP, on_one[method], folder / f"{method}-continued", zero=stage)
        for method, stage in zip(METHODS, (1, 3), strict=True)
    }
    helpers.run_distributed(jobs.train_all, 2, [*whole.values(), *continued.values()])
    return {"whole": whole, "continued": continued}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, llama_dir: Path, rows: Path) -> Path:
    """An uninterrupted run of the smallest model."""
    checkpoint = {"every": 2, "keep": 100}
    run_dir = jobs.make_job(tmp_path_factory.mktemp("small") / "run", llama_dir, rows, train={"max_steps": STEPS}, checkpoint=checkpoint)
    jobs.train_all([run_dir])
    return run_dir


def _first_step(run_dir: Path) -> int:
    return int(helpers.events(run_dir, "start")[-1]["step"])


@pytest.mark.parametrize("method", METHODS)
def test_a_run_of_two_workers_goes_on_on_one(tmp_path: Path, on_two: dict[str, dict[str, Path]], method: str) -> None:
    whole = on_two["whole"][method]
    continued = jobs.as_left_after(STOP, whole, tmp_path / "run", zero=3 if method == "lora" else 1)

    losses = jobs.train_here(continued)

    assert _first_step(continued) == STOP
    assert jobs.difference(losses, helpers.losses(whole)) <= SAME


@pytest.mark.parametrize("method", METHODS)
def test_a_run_of_one_worker_goes_on_on_two(on_one: dict[str, Path], on_two: dict[str, dict[str, Path]], method: str) -> None:
    continued = on_two["continued"][method]

    assert _first_step(continued) == STOP
    assert jobs.difference(helpers.losses(continued), helpers.losses(on_one[method])) <= SAME


@pytest.mark.slow
def test_any_number_of_workers_and_any_stage_go_on_on_any_other(tmp_path: Path, make_job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    cases = [(method, workers, stage) for method in METHODS for workers in (1, 2, 3) for stage in (1, 2, 3)]
    whole = {case: make_job(tmp_path / "{}-{}-{}".format(*case), method=case[0], zero=case[2]) for case in cases}
    for workers in (1, 2, 3):
        helpers.run_distributed(jobs.train_all, workers, [run_dir for case, run_dir in whole.items() if case[1] == workers])
    moves = [(case, (case[0], workers, case[2] % 3 + 1)) for case in cases for workers in (1, 2, 3) if workers != case[1]]
    continued = {
        move: jobs.as_left_after(STOP, whole[move[0]], tmp_path / f"moved-{number}", zero=move[1][2]) for number, move in enumerate(moves)
    }

    for workers in (1, 2, 3):
        helpers.run_distributed(jobs.train_all, workers, [run_dir for move, run_dir in continued.items() if move[1][1] == workers])

    off = {move: jobs.difference(helpers.losses(run_dir), helpers.losses(whole[move[0]])) for move, run_dir in continued.items()}
    with capsys.disabled():
        print(f"\n\nlargest difference of the loss, stopped after {STOP} of {STEPS} steps, from the uninterrupted run")
        for (method, workers, stage), (_, then_workers, then_stage) in moves:
            move = ((method, workers, stage), (method, then_workers, then_stage))
            print(f"{method:5} {workers} worker(s) ZeRO-{stage} -> {then_workers} worker(s) ZeRO-{then_stage}  {off[move]:.1e}")
    assert all(_first_step(run_dir) == STOP for run_dir in continued.values())
    assert max(off.values()) <= SAME


@pytest.mark.parametrize(
    "zero", [{"stage": 1}, {"stage": 3, "offload_optimizer": "cpu", "offload_params": "cpu"}], ids=["here", "offloaded"]
)
def test_a_bfloat16_run_goes_on_bit_for_bit(tmp_path: Path, make_job: Job, zero: dict[str, Any]) -> None:
    whole = make_job(tmp_path / "whole", method="full", zero=zero, model={"dtype": "bfloat16"})
    expected = jobs.train_here(whole)
    continued = jobs.as_left_after(STOP, whole, tmp_path / "continued")

    assert jobs.train_here(continued) == expected


def test_the_frozen_half_of_an_adapter_is_drawn_again_as_it_was(tmp_path: Path, make_job: Job) -> None:
    whole = make_job(tmp_path / "whole", method={"lora": {"train_a": False}}, zero=1)
    expected = jobs.train_here(whole)
    continued = jobs.as_left_after(STOP, whole, tmp_path / "continued", zero=3)

    losses = jobs.train_here(continued)

    assert jobs.difference(losses, expected) <= SAME


def test_a_process_killed_in_mid_training_leaves_a_run_that_goes_on(tmp_path: Path, make_job: Job) -> None:
    long = {"max_steps": 40, "micro_batch_tokens": 64}
    whole, killed = (make_job(tmp_path / name, method="lora", train=long) for name in ("whole", "killed"))
    [process] = helpers.start_workers(killed)
    _wait_for_checkpoint(killed, at_least=2)
    assert process.kill().returncode == -9

    losses = jobs.train_here(killed)

    assert 2 <= _first_step(killed) < 40
    assert jobs.difference(losses, jobs.train_here(whole)) <= SAME
    assert [event["status"] for event in helpers.events(killed, "end")] == ["finished"]


def _wait_for_checkpoint(run_dir: Path, *, at_least: int) -> None:
    for _ in range(6000):
        if (run_dir / "checkpoints" / f"step-{at_least:08d}").exists():
            return
        time.sleep(0.01)
    raise AssertionError("no checkpoint after a minute")


def _truncate(checkpoint: Path) -> None:
    file = checkpoint / "rank-00000.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def _flip_a_byte(checkpoint: Path) -> None:
    file = checkpoint / "rank-00000.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def _lose_the_manifest(checkpoint: Path) -> None:
    (checkpoint / "manifest.json").unlink()


def _tear_the_manifest(checkpoint: Path) -> None:
    manifest = checkpoint / "manifest.json"
    manifest.write_text(manifest.read_text()[:-20])


def _lose_a_file(checkpoint: Path) -> None:
    (checkpoint / "rank-00000.safetensors").unlink()


def _leave_half_written(checkpoint: Path) -> None:
    checkpoint.rename(checkpoint.with_name(f".{checkpoint.name}.partial"))


@pytest.mark.parametrize("tear", [_truncate, _flip_a_byte, _lose_the_manifest, _tear_the_manifest, _lose_a_file, _leave_half_written])
def test_a_torn_checkpoint_is_passed_over_for_the_one_before(tmp_path: Path, small: Path, tear: Callable[[Path], None]) -> None:
    continued = jobs.as_left_after(STOP, small, tmp_path / "run")
    tear(continued / "checkpoints" / f"step-{STOP:08d}")

    losses = jobs.train_here(continued)

    assert _first_step(continued) == STOP - 2
    assert jobs.difference(losses, helpers.losses(small)) <= SAME
    assert not list((continued / "checkpoints").glob(".*"))


def test_without_any_whole_checkpoint_a_run_begins_again(tmp_path: Path, small: Path) -> None:
    continued = jobs.as_left_after(2, small, tmp_path / "run")
    _flip_a_byte(continued / "checkpoints" / "step-00000002")

    losses = jobs.train_here(continued)

    assert _first_step(continued) == 0
    assert jobs.difference(losses, helpers.losses(small)) <= SAME


def test_a_checkpoint_of_another_job_is_refused(tmp_path: Path, small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    continued = jobs.as_left_after(STOP, small, tmp_path / "run", method={"lora": {"rank": 32}})

    assert main([str(continued / "config.json")]) == 1
    assert "give the run another name" in capsys.readouterr().err


def test_a_run_goes_on_with_the_same_rows_wherever_they_lie_and_with_no_others(tmp_path: Path, small: Path) -> None:
    data = json.loads((small / "config.json").read_text())["data"]
    rows = Path(data["train"])
    (moved := tmp_path / "moved.jsonl").write_bytes(rows.read_bytes())
    (changed := tmp_path / "changed.jsonl").write_bytes(rows.read_bytes().replace(b"card", b"loan", 1))

    jobs.train_here(jobs.as_left_after(STOP, small, tmp_path / "run", data=data | {"train": str(moved)}))
    others = [{"train": str(changed)}, {"train": [str(rows), str(changed)]}]
    runs = [jobs.as_left_after(STOP, small, tmp_path / f"other{i}", data=data | other) for i, other in enumerate(others)]

    assert jobs.try_all(runs) == [
        f"DataError: {changed} has changed since this run began",
        "DataError: the run began with 1 files of data and now has 2",
    ]


def test_only_what_is_trained_is_saved(small: Path) -> None:
    tensors = load_file(small / "checkpoints" / f"step-{STEPS:08d}" / "rank-00000.safetensors")

    kinds, _, names = zip(*(key.split("|") for key in tensors), strict=True)
    assert set(kinds) == {"master", "exp_avg", "exp_avg_sq"}
    assert len(set(names)) == 2 * 7 * 2 and all("lora_" in name for name in names)  # A and B of seven matrices in two blocks


def test_the_newest_and_the_best_are_kept(tmp_path: Path, make_job: Job, rows: Path) -> None:
    held_out = jobs.write_unlike_rows(tmp_path)
    run_dir = make_job(
        tmp_path / "run",
        method="full",
        data={"validation": str(held_out)},
        train={"max_steps": 10, "learning_rate": 2e-2, "schedule": "constant"},
        checkpoint={"every": 1, "keep": 2},
    )

    jobs.train_all([run_dir])

    evaluations = {event["step"]: event["metrics"]["eval_loss"] for event in helpers.events(run_dir, "eval")}
    best = min(evaluations, key=lambda step: evaluations[step])
    assert best < 9
    assert sorted(path.name for path in (run_dir / "checkpoints").iterdir()) == [f"step-{step:08d}" for step in (best, 9, 10)]


@contextmanager
def _files_no_larger_than(limit: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_checkpoint_that_cannot_be_written_ends_the_run_and_leaves_the_one_before(
    tmp_path: Path, small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    continued = jobs.as_left_after(STOP, small, tmp_path / "run")

    with _files_no_larger_than(300_000):
        code = main([str(continued / "config.json")])

    assert code == 1
    assert "cannot write checkpoint" in capsys.readouterr().err
    assert json.loads((continued / "report.json").read_text())["status"] == "failed"
    assert [path.name for path in sorted((continued / "checkpoints").iterdir())] == ["step-00000002", "step-00000004"]
    assert jobs.difference(jobs.train_here(continued), helpers.losses(small)) <= SAME


def test_a_model_that_cannot_be_written_leaves_the_checkpoints(tmp_path: Path, small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    continued = jobs.as_left_after(STEPS, small, tmp_path / "run")

    with _files_no_larger_than(100_000):
        code = main([str(continued / "config.json")])

    assert code == 1 and "consortium resume" in capsys.readouterr().err
    jobs.train_all([continued])
    assert (continued / "adapter" / "adapter_model.safetensors").exists()


def test_a_best_checkpoint_that_was_damaged_is_no_reason_to_lose_the_run(tmp_path: Path, make_job: Job) -> None:
    held_out = jobs.write_unlike_rows(tmp_path)
    train = {"max_steps": 10, "learning_rate": 2e-2, "schedule": "constant", "eval_every": 1}
    run_dir = make_job(tmp_path / "run", method="full", data={"validation": str(held_out)}, train=train)
    jobs.train_all([run_dir])
    best = helpers.events(run_dir, "end")[0]["best"]["step"]
    shutil.rmtree(run_dir / "model")
    _flip_a_byte(run_dir / "checkpoints" / f"step-{best:08d}")

    jobs.train_all([run_dir])

    assert (run_dir / "model" / "model.safetensors").exists()
    assert "the last weights are taken" in helpers.events(run_dir, "warning")[-1]["message"]
