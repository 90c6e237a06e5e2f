"""The loop itself: golden losses, when it stops, what it warns of, and how it ends when the loss is no number."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import helpers
from tests.trainers import jobs, plain
from trainers import checkpoint, objectives
from trainers.__main__ import main
from trainers.config import ModelConfig
from trainers.data.batches import NO_TARGET, Batch, collate, places_of
from trainers.data.prepare import Sample
from trainers.data.sampler import Sampler
from trainers.model import load_base, load_tokenizer

CPU = torch.device("cpu")

GOLDEN = {
    "full": [6.2757, 6.0436, 5.8253, 5.6504, 5.4596, 5.3294, 5.1756, 5.1326, 5.0441, 5.0371],
    "lora": [6.2757, 6.2093, 6.1734, 6.1212, 6.0872, 6.0620, 6.0718, 6.0756, 6.0376, 6.0443],
}
"""Of the tiny Llama, its tokenizer and the rows of these tests: new ones are due when one of the three changes, and at no other time."""


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return jobs.write_rows(tmp_path_factory.mktemp("rows"))


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return jobs.write_unlike_rows(tmp_path_factory.mktemp("held-out"))


@pytest.mark.parametrize("method", GOLDEN)
def test_golden_losses(tmp_path: Path, llama_dir: Path, rows: Path, method: str) -> None:
    losses = jobs.train_here(jobs.make_job(tmp_path / "run", llama_dir, rows, method=method))

    assert losses == pytest.approx(GOLDEN[method], abs=1e-3)


def _make_overfitting_job(folder: Path, llama: Path, rows: Path, held_out: Path, **train: Any) -> Path:
    train = {"max_steps": 14, "learning_rate": 2e-2, "schedule": "constant", "eval_every": 1} | train
    return jobs.make_job(folder, llama, rows, method="full", data={"validation": str(held_out)}, train=train)


def _evaluations(run_dir: Path) -> dict[int, float]:
    return {event["step"]: event["metrics"]["eval_loss"] for event in helpers.events(run_dir, "eval")}


def test_over_fitting_is_warned_of_once(tmp_path: Path, llama_dir: Path, rows: Path, held_out: Path) -> None:
    run_dir = _make_overfitting_job(tmp_path / "run", llama_dir, rows, held_out)

    jobs.train_all([run_dir])

    evaluations = _evaluations(run_dir)
    best = min(evaluations, key=lambda step: evaluations[step])
    [warning] = [event for event in helpers.events(run_dir, "warning") if "over-fitting" in event["message"]]
    assert best < 11 and warning["step"] == best + 3
    assert f"since step {best}" in warning["message"]


def test_early_stopping_stops_and_gives_the_best_weights(tmp_path: Path, llama_dir: Path, rows: Path, held_out: Path) -> None:
    from transformers import AutoModelForCausalLM

    run_dir = _make_overfitting_job(tmp_path / "run", llama_dir, rows, held_out, early_stopping=2)

    jobs.train_all([run_dir])

    evaluations = _evaluations(run_dir)
    best = min(evaluations, key=lambda step: evaluations[step])
    [end] = helpers.events(run_dir, "end")
    assert (end["status"], end["step"], end["best"]["step"]) == ("stopped_early", best + 2, best)
    assert end["metrics"]["eval_loss"] == pytest.approx(evaluations[best], abs=1e-5)
    exported = AutoModelForCausalLM.from_pretrained(run_dir / "model").eval()
    assert plain.mean_loss(exported, plain.read_examples(held_out, llama_dir)) == pytest.approx(evaluations[best], abs=1e-5)


def test_a_run_that_stopped_early_does_not_go_on_when_run_again(tmp_path: Path, llama_dir: Path, rows: Path, held_out: Path) -> None:
    run_dir = _make_overfitting_job(tmp_path / "run", llama_dir, rows, held_out, early_stopping=2)
    before = jobs.train_here(run_dir)

    assert jobs.train_here(run_dir) == before
    first, second = helpers.events(run_dir, "end")
    assert (first["status"], first["step"], first["best"]) == (second["status"], second["step"], second["best"])


def test_without_a_criterion_the_last_weights_are_taken(tmp_path: Path, llama_dir: Path, rows: Path, held_out: Path) -> None:
    run_dir = _make_overfitting_job(tmp_path / "run", llama_dir, rows, held_out)
    config = json.loads((run_dir / "config.json").read_text())
    (run_dir / "config.json").write_text(json.dumps(config | {"checkpoint": {"best_by": None}}))

    jobs.train_all([run_dir])

    [end] = helpers.events(run_dir, "end")
    assert end["metrics"]["eval_loss"] == pytest.approx(_evaluations(run_dir)[14], abs=1e-5)


@pytest.fixture
def poisoned(tmp_path: Path, llama_dir: Path) -> tuple[Path, Path, int]:
    """A model whose embedding of a character is not a number, rows of which one has it, and that one's line; it comes in step 4."""
    rows = jobs.write_rows(tmp_path, name="poisoned.jsonl")
    place = int(Sampler(40, 6, seed=0, max_steps=10).batch(3)[2])
    lines = rows.read_text().splitlines()
    lines[place] = json.dumps({"prompt": "§ 12", "completion": " fee"}, ensure_ascii=False)
    rows.write_text("\n".join(lines))
    model = tmp_path / "model"
    model.mkdir()
    for file in llama_dir.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    weights = load_file(model / "model.safetensors")
    weights["model.embed_tokens.weight"][_id_of("§", llama_dir)] = float("nan")
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    return model, rows, place + 1


def _id_of(character: str, model: Path) -> int:
    """Of the last byte of a character."""
    from transformers import AutoTokenizer

    return int(AutoTokenizer.from_pretrained(model)(character)["input_ids"][-1])


@pytest.mark.parametrize(("method", "stage", "packing"), [("lora", 1, True), ("full", 2, False), ("lora", 3, True)])
def test_a_loss_that_is_no_number_ends_the_run_and_names_the_sample(
    tmp_path: Path, poisoned: tuple[Path, Path, int], capsys: pytest.CaptureFixture[str], method: str, stage: int, packing: bool
) -> None:
    model, rows, line = poisoned
    run_dir = jobs.make_job(
        tmp_path / "run", model, rows, method=method, zero=stage, data={"packing": packing}, checkpoint={"every": 2, "best_by": None}
    )

    code = main([str(run_dir / "config.json")])

    assert code == 1
    assert f"nan at step 4; first sample: {rows}:{line} (1 of 6 in the batch)" in capsys.readouterr().err
    [kept] = checkpoint.find(run_dir / "checkpoints")
    checkpoint.verify(kept)
    assert kept.step == 2
    report = json.loads((run_dir / "report.json").read_text())
    assert report["status"] == "failed" and f"{rows}:{line}" in json.dumps(report)


@pytest.mark.slow
def test_a_loss_that_is_no_number_on_one_worker_ends_the_run_on_all(tmp_path: Path, poisoned: tuple[Path, Path, int]) -> None:
    model, rows, line = poisoned
    train = {"micro_batch_tokens": 80}
    runs = [jobs.make_job(tmp_path / f"run-{stage}", model, rows, method="lora", zero=stage, train=train) for stage in (2, 3)]

    for problems in helpers.run_distributed(jobs.try_all, 2, runs):
        for problem in problems:
            assert problem.startswith(f"NonFiniteLoss: the loss became nan at step 4; first sample: {rows}:{line} (1 of 6")


@pytest.mark.parametrize(("stage", "dtype"), [(1, "float32"), (2, "bfloat16")])
def test_a_gradient_that_overflows_ends_the_run_before_the_weights_change(
    tmp_path: Path, llama_dir: Path, rows: Path, capsys: pytest.CaptureFixture[str], stage: int, dtype: str
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for file in llama_dir.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    weights = load_file(model / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"] *= 1e-24
    weights["model.layers.0.mlp.down_proj.weight"] *= 1e24
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    run_dir = jobs.make_job(tmp_path / "run", model, rows, method="full", zero=stage, model={"dtype": dtype})

    code = main([str(run_dir / "config.json")])

    assert code == 1
    assert "the gradient norm became inf at step 1" in capsys.readouterr().err


def test_evaluations_that_are_no_number_are_never_the_best(tmp_path: Path, poisoned: tuple[Path, Path, int], rows: Path) -> None:
    model, held_out, _ = poisoned
    run_dir = _make_overfitting_job(tmp_path / "run", model, rows, held_out, max_steps=4)

    jobs.train_all([run_dir])

    [end] = helpers.events(run_dir, "end")
    assert end["step"] == 4 and end["best"] is None


@pytest.fixture
def next_token(llama_dir: Path) -> objectives.NextToken:
    config = ModelConfig(path=str(llama_dir), dtype="float32")
    base = load_base(config, "sft", load_tokenizer(config), labels=[], device=torch.device("cpu"), seed=0)
    return objectives.NextToken(base, base)


@pytest.mark.parametrize("head_is_trained", [True, False])
def test_chunked_cross_entropy_is_the_unchunked_one_and_makes_logits_once(
    next_token: objectives.NextToken, monkeypatch: pytest.MonkeyPatch, head_is_trained: bool
) -> None:
    ids = torch.randint(3, 512, (3, 20), generator=torch.Generator().manual_seed(0))
    targets = torch.where(torch.arange(20) % 4 == 3, NO_TARGET, ids.roll(-1, 1))
    batch = Batch(ids, torch.arange(20).expand(3, 20), torch.ones_like(ids), targets, places_of(targets))
    head, made = next_token._head[0], list[int]()
    head.requires_grad_(head_is_trained)
    whole, whole_gradients = _loss_and_gradients(next_token, batch)

    monkeypatch.setattr(objectives, "LOGITS_BYTES", 4 * 512 * 4)  # four tokens at a time
    head.register_forward_hook(lambda _module, inputs, _output: made.append(len(inputs[0])))
    chunked, chunked_gradients = _loss_and_gradients(next_token, batch)

    assert len(places_of(targets)) == 46 and made == [4] * 10 + [3] * 2
    assert chunked == pytest.approx(whole, rel=1e-6)
    assert chunked_gradients.keys() == whole_gradients.keys()
    for name, gradient in whole_gradients.items():
        torch.testing.assert_close(chunked_gradients[name], gradient, msg=name)


def test_chunked_cross_entropy_of_a_frozen_head_can_be_gone_back_through_twice(
    next_token: objectives.NextToken, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objectives, "LOGITS_BYTES", 4 * 512 * 4)
    next_token._head[0].requires_grad_(False)
    hidden = torch.randn(9, next_token._config.hidden_size, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = next_token.summed_loss(hidden, torch.arange(9))

    (first,) = torch.autograd.grad(3 * loss, hidden, retain_graph=True)
    (second,) = torch.autograd.grad(loss, hidden)

    assert first.abs().min() > 0
    torch.testing.assert_close(first, 3 * second)


def test_chunked_cross_entropy_of_a_trained_head_refuses_to_be_wrong_the_second_time(
    next_token: objectives.NextToken, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objectives, "LOGITS_BYTES", 4 * 512 * 4)
    loss = next_token.summed_loss(torch.randn(9, next_token._config.hidden_size), torch.arange(9))
    loss.backward(retain_graph=True)

    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_examples_packed_in_two_rows_have_the_losses_they_have_alone(next_token: objectives.NextToken) -> None:
    drawn = torch.randint(3, 512, (4, 9), generator=torch.Generator().manual_seed(0)).tolist()
    examples = [Sample(np.array(ids[:length]), np.ones(length, bool), 0, "") for ids, length in zip(drawn, (9, 4, 6, 5), strict=True)]
    packed = collate([examples[:2], examples[2:]], layout="packed", classify=False, pad_id=2)
    with torch.no_grad():
        alone = sum(float(next_token(collate([[each]], layout="padded", classify=False, pad_id=2))[0]) for each in examples)
        assert float(next_token(packed)[0]) == pytest.approx(alone, rel=1e-5)
        assert objectives.keeps_apart(next_token, "packed", objectives.logits_alone(next_token, CPU), CPU)


def test_attention_that_mixes_the_examples_of_a_row_is_found(next_token: objectives.NextToken) -> None:
    def forward(batch: Batch, *, probe: bool) -> Any:
        places = torch.arange(batch.input_ids.shape[1]).expand_as(batch.position_ids)  # as one text a row
        return next_token(replace(batch, position_ids=places), probe=probe)

    alone = objectives.logits_alone(forward, CPU)

    assert not objectives.keeps_apart(forward, "packed", alone, CPU)


def _loss_and_gradients(objective: objectives.NextToken, batch: Batch) -> tuple[float, dict[str, torch.Tensor]]:
    objective.zero_grad()
    loss, _ = objective(batch)
    loss.backward()
    return float(loss.detach()), {name: p.grad.clone() for name, p in objective.named_parameters() if p.grad is not None}
