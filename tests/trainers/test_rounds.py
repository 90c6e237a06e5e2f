"""A training process that takes rounds: against ordinary runs, and what it says when something is wrong with a round."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from privacy import evaluation
from privacy.ledger import Ledger
from privacy.plan import PrivacyPlan
from tests import helpers
from tests.trainers.jobs import make_job, write_labelled_rows, write_rows
from trainers import worker
from trainers.data.prepare import describe_file
from trainers.orders import READY, STOP, Done, Evaluation, Failed, Order, PrivateSteps, unpack_answer
from trainers.rounds import round_seed, train_rounds
from trainers.spool import Spool

RATE = 2e-3
CONSTANT = {"schedule": "constant", "warmup": 0}


def _take_rounds(run_dir: Path, spool: Path) -> None:
    train_rounds(run_dir, run_id="test", spool=spool)


def _order(run_dir: Path, **changes: Any) -> Order:
    """Of five steps from the adapter that a run of the same seed begins with."""
    return replace(Order(round=1, attempt=1, steps=5, learning_rate=RATE, adapter={}), **changes)


def _serve(run_dir: Path, orders: list[Order], *, workers: int = 1) -> list[Done | Failed]:
    """All rounds put into the spool beforehand, then taken, in this process or in a group."""
    spool = Spool(run_dir / "rounds")
    for number, order in enumerate(orders):
        spool.ask(f"{number:04d}", order.pack(), waiting=lambda: False)
    spool.ask(STOP, b"", waiting=lambda: False)
    if workers == 1:
        _take_rounds(run_dir, run_dir / "rounds")
    else:
        helpers.run_distributed(_take_rounds, workers, run_dir, run_dir / "rounds")
    assert spool.ask(STOP, b"", waiting=lambda: False) == b""
    answers = [spool.ask(f"{number:04d}", b"", waiting=lambda: False) for number in range(len(orders))]
    return [unpack_answer(answer) for answer in answers if answer is not None]


def _adapter(run_dir: Path) -> dict[str, np.ndarray]:
    return load_file(run_dir / "adapter" / "adapter_model.safetensors")


def test_a_round_takes_the_steps_of_an_ordinary_run(llama_dir: Path, tmp_path: Path) -> None:
    rows, seed = write_rows(tmp_path), round_seed(0, 1, 1)
    once, run = (
        make_job(tmp_path / name, llama_dir, rows, train={"max_steps": steps, "learning_rate": rate, "seed": seed} | CONSTANT)
        for name, steps, rate in (("once", 1, 1e-30), ("run", 5, RATE))
    )
    for run_dir in (once, run):
        worker.train(run_dir, run_id="test")
    job = make_job(tmp_path / "rounds", llama_dir, rows, train={"max_steps": 1} | CONSTANT)
    start = _adapter(once)

    first, again, second = _serve(job, [_order(job, adapter=start), _order(job, adapter=start), _order(job, adapter=start, round=2)])

    assert isinstance(first, Done) and isinstance(again, Done) and isinstance(second, Done)
    expected = _adapter(run)
    assert first.adapter.keys() == expected.keys() and first.steps == 5
    assert max(float(np.abs(first.adapter[name] - expected[name]).max()) for name in expected) < 1e-7
    assert all(np.array_equal(first.adapter[name], again.adapter[name]) for name in expected)  # nothing is left of the round before
    assert any(not np.array_equal(first.adapter[name], second.adapter[name]) for name in expected)
