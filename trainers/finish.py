"""The end of a run: the best weights, their evaluation, model, card and report."""

import json
import resource
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from privacy.statement import FILE, paragraph
from trainers import checkpoint
from trainers.checkpoint import Progress
from trainers.engine import Engine, gathered
from trainers.errors import CheckpointError
from trainers.loop import Run, evaluate
from trainers.model import Loaded, save_trained
from trainers.report import Library, read_events, write_model_card, write_report
from trainers.storage import publish
from trainers.world import World


def finish(run: Run, loaded: Loaded, run_dir: Path, progress: Progress) -> None:
    """Take the best weights, evaluate them, write model, card and report."""
    with run.engine.resting():
        _take_best(run, progress)
    metrics = evaluate(run, run.validation) if len(run.validation) and run.config.privacy is None else {}
    with run.engine.resting():
        _write(run, loaded, run_dir, progress, metrics)


def _take_best(run: Run, progress: Progress) -> None:
    if run.config.checkpoint.best_by is not None and progress.best_step not in (None, progress.step):
        best = checkpoint.newest(run.checkpoints, run.world, step=progress.best_step, store=run.store)
        if best is not None:
            checkpoint.restore(best, run.engine)
        else:
            run.log.emit("warning", step=progress.step, message=f"the checkpoint of step {progress.best_step}, the best, is not whole "
                         "any more: the last weights are taken")  # fmt: skip


def _write(run: Run, loaded: Loaded, run_dir: Path, progress: Progress, metrics: dict[str, Any]) -> None:
    folder = run_dir / ("adapter" if loaded.is_adapter else "model")
    tensors = _whole_tensors(loaded, run.engine, run.world)
    run.world.on_main(lambda: _export(loaded, tensors, folder, run.train.labels))
    peak = max(run.world.gather(peak_memory(run.world)))
    if run.store is not None:  # every machine has made its own
        run.world.on_each_machine(lambda: shutil.rmtree(run_dir / "data", ignore_errors=True))
    if not run.world.is_main:
        return
    speeds = [e for e in read_events(run_dir / "events.jsonl") if e["event"] == "step" and "tokens" in e]
    seconds, tokens = sum(e["seconds"] for e in speeds), sum(e["tokens"] for e in speeds)
    padded = sum(e["tokens"] / (1 - e["padding_share"]) for e in speeds)
    run.log.emit(
        "end",
        step=progress.step,
        status="stopped_early" if progress.step < run.sampler.steps else "finished",
        metrics=metrics,
        tokens_per_second=round(tokens / seconds, 1) if seconds else None,
        peak_memory_bytes=peak,
        padding_share=round(1 - tokens / padded, 4) if padded else None,
        best=_best(run, progress),
        output=str(folder),
    )
    report = write_report(run_dir)
    claim = paragraph(json.loads((run_dir / FILE).read_text())) if run.config.privacy else None
    library: Library = "peft" if loaded.is_adapter else "transformers"
    write_model_card(folder, report, base_model=run.config.model.name, library=library, privacy=claim)
    if claim is not None:
        shutil.copyfile(run_dir / FILE, folder / FILE)
    publish(run_dir, run.store, folder)
    shutil.rmtree(run_dir / "data", ignore_errors=True)  # tokens of the rows, of no further use


def _best(run: Run, progress: Progress) -> dict[str, Any] | None:
    metric = run.config.checkpoint.best_by or "eval_loss"
    if progress.best_step is None or progress.best_value is None:
        return None
    return {"step": progress.best_step, "metric": metric, "value": progress.best_value if metric == "eval_loss" else -progress.best_value}


def _export(loaded: Loaded, tensors: dict[str, torch.Tensor], folder: Path, labels: list[str]) -> None:
    """Written beside its place and renamed, so that a model directory is always whole."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        save_trained(loaded, tensors, partial, labels=labels)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"cannot write {folder}: {error}", "the checkpoints are intact: free space, then consortium resume RUN"
        ) from error


def _whole_tensors(loaded: Loaded, engine: Engine, world: World) -> dict[str, torch.Tensor]:
    """Rank 0 collects what was trained, and what was not but belongs to it: a frozen A, frozen embeddings. The others take part."""
    tensors = {name.removeprefix("model."): tensor for name, tensor in engine.whole_parameters() if world.is_main}
    for name, parameter in loaded.module.named_parameters():
        if not parameter.requires_grad and ("lora_" in name or not loaded.is_adapter):
            with gathered([parameter]):
                tensors[name] = parameter.detach().cpu().clone()
    return tensors if world.is_main else {}


def peak_memory(world: World) -> int:
    """Bytes: allocated on the GPU, or resident of the process on a CPU."""
    if world.device.type == "cuda":
        return torch.cuda.max_memory_allocated(world.device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
