"""One training process from start to end: everything above the loop. Run by Ray Train on every worker, or by `python -m trainers`."""

import contextlib
import socket
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import PreTrainedTokenizerBase

from privacy.errors import ConsortiumError
from trainers import checkpoint, flops, objectives
from trainers import promise as promises
from trainers.attention import kernel_is_right, leave_blocks, use_blocks
from trainers.by_unit import to_float32
from trainers.checkpoint import Progress
from trainers.config import TrainConfig, read_config
from trainers.cpu import fast_products
from trainers.data import prepare
from trainers.data.packing import Layout
from trainers.data.planted import plant
from trainers.data.prepare import Prepared, Summary
from trainers.data.sampler import Sampler
from trainers.defaults import Choice, Hardware, Shape, apply, check_room_for_units, intervals, resolve
from trainers.engine import Engine, sharded_loading
from trainers.errors import ConfigError, DataError, RunBusyError
from trainers.events import EventLog, Listener, trackers
from trainers.finish import finish
from trainers.footprint import measure
from trainers.lease import Lease
from trainers.loop import Run, fit
from trainers.lora import fuse_updates
from trainers.model import Loaded, add_adapters, decoder_blocks, freeze_tables, load_base, load_tokenizer, shape_of
from trainers.notice import Notice
from trainers.private import fit_private
from trainers.promise import steps_of
from trainers.report import read_events, write_report
from trainers.schedule import learning_rate_schedule
from trainers.storage import Store, publish
from trainers.versions import versions
from trainers.watchdog import watching
from trainers.world import World

_OTHER_DATA = "put the files back as they were, or give the run another name"
PACKAGES = ("consortium", "torch", "deepspeed", "ray", "transformers", "peft", "bitsandbytes", "datasets", "safetensors")
"""Which decide what a run computes"""


@dataclass(frozen=True)
class Opened:
    """A run directory that this process group holds, and what is written to it."""

    config: TrainConfig
    run_dir: Path
    world: World
    log: EventLog
    lease: Lease
    store: Store | None


def train(
    run_dir: Path,
    *,
    run_id: str,
    choices: Sequence[Choice] = (),
    listeners: Sequence[Listener] = (),
    leaving: Callable[[], bool] = lambda: False,
) -> None:
    """Train the job of `run_dir/config.json`, from its newest whole checkpoint if there is one.

    `choices` are those the launcher has made, for the record. `leaving` says whether this worker's machine is about to be taken away; all
    workers ask at the same steps. All ranks call it. Rank 0 holds the lease and writes events, checkpoints,
    the model and the report. Raises ConsortiumError for what trying again would not mend; the report then says why the run ended.
    """
    with opened(run_dir, run_id=run_id, listeners=listeners) as held:
        _train(held, list(choices), leaving)


@contextlib.contextmanager
def opened(run_dir: Path, *, run_id: str, listeners: Sequence[Listener]) -> Iterator[Opened]:
    """The run directory, its lease and its events for a block; a ConsortiumError that ends it is put down there. All ranks enter."""
    quiet()
    world = World.from_environment()
    world.connect()
    config = read_config(run_dir / "config.json")
    store = Store(config.store_url) if config.store_url else None
    lease, log = Lease(run_dir, run_id, store), EventLog(None)
    world.on_main(lease.acquire)
    try:
        world.on_main(lambda: _fetch_events(run_dir, store))
        if world.is_main:
            private = run_dir / "private.jsonl" if config.privacy else None
            log = EventLog(run_dir / "events.jsonl", list(listeners), private=private)
        world.on_main(lambda: log.listen(trackers(config.tracking, config, run_dir)))
        yield Opened(config, run_dir, world, log, lease, store)
    except ConsortiumError as error:
        if world.is_main and not isinstance(error, RunBusyError):  # whoever holds the directory now writes it
            with contextlib.suppress(OSError):  # a full disk may be the very reason
                _record_failure(run_dir, log, error)
                publish(run_dir, store)
        raise
    finally:
        log.close()
        lease.release()


def _fetch_events(run_dir: Path, store: Store | None) -> None:
    """The run's events so far, where another machine has written them; what this one has written beyond them stays."""
    events, fetched = run_dir / "events.jsonl", run_dir / "events.fetched"
    if store is None or not store.get(events.name, fetched):
        return
    if events.exists() and events.read_bytes().startswith(fetched.read_bytes()):
        fetched.unlink()
    else:
        fetched.replace(events)


def _record_failure(run_dir: Path, log: EventLog, error: ConsortiumError) -> None:
    step = max((event["step"] for event in read_events(run_dir / "events.jsonl") if event["event"] == "step"), default=0)
    log.emit("failure", step=step, error=type(error).__name__, message=error.message, hint=error.hint, exit_code=error.exit_code)
    write_report(run_dir)


def _train(held: Opened, choices: list[Choice], leaving: Callable[[], bool]) -> None:
    config, run_dir, world = held.config, held.run_dir, held.world
    tokenizer = load_tokenizer(config.model)
    shape = shape_of(config.model, config.task)
    config, chosen_here = decide(config, shape, world)
    promise = world.on_main(lambda: promises.make_promise(config, run_dir)) if config.privacy else None
    summary, *data = prepare_data(config, tokenizer, run_dir, world)
    if promise is not None:
        read = [file["sha256"] for file in summary.files[: len(config.data.train)]]
        world.on_main(lambda: promises.check_files(promise, config, read))
    planting = world.on_main(lambda: promises.plant_canaries(config, run_dir, summary.labels))
    if planting is not None:
        assert isinstance(config.data.max_length, int)
        data[0] = plant(data[0], planting.planted(), config.task, tokenizer, max_length=config.data.max_length)
    run, loaded, chosen_with_model = build(config, shape, tokenizer, data, run_dir, world, held.log, held.lease)
    run.notice, run.store = Notice(leaving, world), held.store
    progress = _resume(run, run_dir, summary)
    choices = [*choices, *chosen_here, *chosen_with_model, *(promise.choices if promise else [])]
    held.log.emit("start", step=progress.step, steps=run.sampler.steps, **start_facts(run, summary, shape, choices))
    with fast_products(longest=int(run.train.lengths.max())), watched(run):
        if promise is None:
            fit(run, progress)
        else:
            fit_private(run, loaded.base, promise, run_dir, progress)
        finish(run, loaded, run_dir, progress)


def build(
    config: TrainConfig,
    shape: Shape,
    tokenizer: PreTrainedTokenizerBase | None,
    data: list[Prepared],
    run_dir: Path,
    world: World,
    log: EventLog,
    lease: Lease,
) -> tuple[Run, Loaded, list[Choice]]:
    """Model, engine and all else the loop needs, from a resolved configuration; the model; what was chosen on the way.

    `data` are the rows to train on and those to validate on. The tokenizer is None where no text is read or written: in a benchmark.
    """
    train_data, validation = data
    loaded = _load_model(config, tokenizer, data, world)
    engine = Engine(_objective(config, loaded), config, world)
    layout, packing_choices = _decide_layout(config, engine, loaded.base, world)
    config = apply(config, packing_choices)
    sampler = sampler_of(config, len(train_data))
    eval_every, save_every, interval_choices = intervals(config, sampler.steps, evaluates=len(validation) > 0)
    run = Run(
        config=config,
        world=world,
        engine=engine,
        train=train_data,
        validation=validation,
        sampler=sampler,
        learning_rate=learning_rate_schedule(
            config.train.schedule, peak=float(config.train.learning_rate), total_steps=sampler.steps, warmup=config.train.warmup
        ),
        eval_every=eval_every,
        save_every=save_every,
        layout=layout,
        hidden_size=shape.hidden_size,
        pad_id=loaded.base.config.pad_token_id or 0,
        flops_per_token=_flops_per_token(config, shape, engine, train_data),
        peak_flops=flops.peak_flops(world.device),
        log=log,
        checkpoints=run_dir / "checkpoints",
        lease=lease,
        notice=Notice(lambda: False, world),
    )
    frozen = Choice("model.embeddings", "frozen", "private full fine-tuning: they and the head over tokens stay those of the base model")
    return run, loaded, [*([frozen] if config.private_full else []), *packing_choices, *interval_choices]


def sampler_of(config: TrainConfig, examples: int) -> Sampler:
    """Of a private run it counts steps and epochs, over the units declared; who takes part in a step is decided by secret coins."""
    train, seed = config.train, config.train.seed
    if config.privacy is not None:
        return Sampler(config.privacy.units, train.global_batch_size, seed=seed, max_steps=steps_of(config))
    return Sampler(examples, train.global_batch_size, seed=seed, epochs=train.epochs, max_steps=train.max_steps)


def watched(run: Run) -> contextlib.AbstractContextManager[None]:
    """Within it a worker whose collectives hang for `train.hang_after` is ended."""

    def report(message: str) -> None:
        run.log.emit("warning", step=None, message=message)

    return watching(lambda: run.engine.alive_at, limit=run.config.train.hang_after, report=report)


def prepare_data(
    config: TrainConfig, tokenizer: PreTrainedTokenizerBase, run_dir: Path, world: World
) -> tuple[Summary, Prepared, Prepared]:
    """One worker (with a store, which is no common disk: one of each machine) prepares the rows while the others wait; all map them."""
    assert isinstance(config.data.max_length, int)
    folder, max_length = run_dir / "data", config.data.max_length
    once = world.on_main if config.store_url is None else world.on_each_machine
    once(lambda: prepare.prepare(config.data, config.task, tokenizer, folder, max_length=max_length))
    summary = prepare.read_summary(folder)
    train_data, validation = prepare.load(folder)
    _check_data(config, summary, train_data)
    return summary, train_data, validation


def _load_model(config: TrainConfig, tokenizer: PreTrainedTokenizerBase | None, data: list[Prepared], world: World) -> Loaded:
    """The model with its adapters; for classify the data is told the order of the head's classes."""
    with sharded_loading(config, world_size=world.size):
        base = load_base(config.model, config.task, tokenizer, labels=data[0].labels, device=world.device, seed=config.train.seed)
    if config.task == "classify":
        for part in data:
            part.number_classes_as([base.config.id2label[index] for index in range(base.config.num_labels)])
    module = add_adapters(base, config.method, config.task, quantized=config.model.quantization != "none")
    if config.private_full:
        freeze_tables(base)
    if config.privacy is not None:
        to_float32(module)
    elif config.zero.stage != 3 and not config.train.compile:  # the compiler fuses by itself
        fuse_updates(module)
    _prepare_blocks(config, base)
    return Loaded(module, base, tokenizer)


def _resume(run: Run, run_dir: Path, summary: Summary) -> Progress:
    """Where the newest whole checkpoint stands, its state put into the engine; the beginning if there is none."""
    found = checkpoint.newest(run.checkpoints, run.world, store=run.store)
    if found is None:
        return Progress()
    events = run_dir / ("private.jsonl" if run.config.privacy else "events.jsonl")
    run.world.on_main(lambda: _check_same_data(events, summary))
    checkpoint.restore(found, run.engine)
    return found.manifest.progress


def _objective(config: TrainConfig, loaded: Loaded) -> torch.nn.Module:
    if config.task == "classify":
        return objectives.Classification(loaded.module, loaded.base)
    tokens, row = config.train.micro_batch_tokens, config.data.max_length
    assert isinstance(tokens, int) and isinstance(row, int)
    return objectives.NextToken(loaded.module, loaded.base, most_tokens=max(tokens, row) if config.zero.stage == 3 else None)


def _decide_layout(config: TrainConfig, engine: Engine, base: Any, world: World) -> tuple[Layout, list[Choice]]:
    """Pack where the attention keeps examples apart, which is tried on the model itself. Raises ConfigError when asked in vain."""
    found: Layout = "padded"
    if config.task == "classify":
        reason = "a classifier reads one class from a row; rows are grouped by length"
    elif config.private_full:
        reason = "private full fine-tuning: a row is a record; rows are grouped by length"
    else:
        engine.train(False)
        alone = objectives.logits_alone(engine, world.device)
        found = next((each for each in _layouts(config, base, world)
                      if all(world.gather(objectives.keeps_apart(engine, each, alone, world.device)))), "padded")  # fmt: skip
        engine.train()
        if found == "padded" and config.data.packing is True:
            raise ConfigError("data.packing: true, but this model's attention lets packed examples see each other",
                              "leave data.packing out: examples are then grouped by length")  # fmt: skip
        reason = _WHY[found]
    return found, [Choice("data.packing", found != "padded", reason)] if config.data.packing == "auto" else []


_WHY: dict[Layout, str] = {
    "padded": "this model's attention mixes packed examples; grouped by length",
    "packed": "tried on this model: packed examples give the logits they give alone",
    "blocks": "tried on this model: packed examples give the logits they give alone; attention goes over each by itself",
    "ragged": "tried on this model: packed examples give the logits they give alone; attention goes over each by itself, without padding",
}


def _layouts(config: TrainConfig, base: Any, world: World) -> Iterator[Layout]:
    """Ways to pack, the fastest first, the same on all workers; the model's attention is made to fit the one that was given last."""
    if config.data.packing is False:
        return
    if config.model.attention == "flash_attention_2":
        yield "ragged"
        return
    if config.model.attention == "auto" and use_blocks(base):
        head = getattr(text := base.config.get_text_config(), "head_dim", None) or text.hidden_size // text.num_attention_heads
        right = world.gather(world.device.type == "cuda" and kernel_is_right(base.dtype, head))
        yield "ragged" if all(right) else "blocks"
        leave_blocks(base)
    yield "packed"


def _prepare_blocks(config: TrainConfig, base: Any) -> None:
    if config.train.activation_checkpointing is True:
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if config.train.compile:
        for block in decoder_blocks(base):
            block.compile()


def _check_data(config: TrainConfig, summary: Summary, train_data: Prepared) -> None:
    if config.task == "classify" and len(summary.labels) < 2:
        raise DataError(f"only one label in the data ({summary.labels[0]!r})", "is data.columns.label the right column?")
    if config.train.early_stopping and not summary.validation_rows:
        raise ConfigError("train.early_stopping needs validation rows", "set data.validation or data.validation_fraction")
    if not train_data.targets.sum():
        raise DataError("nothing to learn: no row has a token after its first", "are the texts empty?")


def _check_same_data(events: Path, summary: Summary) -> None:
    """The order of examples is a function of the data: a run cannot go on with other rows."""
    first = next((event for event in read_events(events) if event["event"] == "start"), None)
    before = first["data"]["files"] if first else summary.files
    if len(before) != len(summary.files):
        raise DataError(f"the run began with {len(before)} files of data and now has {len(summary.files)}", _OTHER_DATA)
    for old, new in zip(before, summary.files, strict=True):
        if old["sha256"] != new["sha256"]:
            raise DataError(f"{new['path']} has changed since this run began", _OTHER_DATA)


def start_facts(run: Run, summary: Summary, shape: Shape, choices: list[Choice]) -> dict[str, Any]:
    """Of the start event."""
    config, world, engine = run.config, run.world, run.engine
    quantized = config.model.quantization
    method = config.method.type if quantized == "none" else f"q{config.method.type}-{quantized}"
    trainable = _count(engine.names.values())
    total = shape.parameters + trainable if config.method.type == "lora" else _count(engine.module.parameters())
    return {
        "workers": world.size,
        "zero_stage": engine.stage,
        "method": method,
        "device": device_name(world),
        "versions": versions(PACKAGES),
        "data": _data_facts(summary),
        "parameters": {"total": total, "trainable": trainable},
        "choices": [choice.as_dict() for choice in choices],
        "flops_formula": flops.FORMULAS[config.method.type],
    }  # fmt: skip


def _count(parameters: Iterable[torch.nn.Parameter]) -> int:
    return sum(getattr(p, "ds_numel", p.numel()) for p in parameters)


def _data_facts(summary: Summary) -> dict[str, Any]:
    return {"train_rows": summary.train_rows, "validation_rows": summary.validation_rows, "truncated": summary.truncated,
            "bad_rows_skipped": summary.bad, "files": summary.files, "labels": len(summary.labels)}  # fmt: skip


def _flops_per_token(config: TrainConfig, shape: Shape, engine: Engine, data: Prepared) -> float:
    trainable = _count(engine.names.values())
    full = config.method.type == "full"
    return flops.flops_per_token(
        linear=shape.linear,
        adapter=0 if full else trainable,
        attention_width=shape.attention_width,
        layers=shape.layers,
        length=float((data.lengths.astype(float) ** 2).sum() / data.lengths.sum()),
        full=full,
    )


def device_name(world: World) -> str:
    return torch.cuda.get_device_name() if world.device.type == "cuda" else f"cpu, threads a worker: {torch.get_num_threads()}"


def decide(config: TrainConfig, shape: Shape, world: World) -> tuple[TrainConfig, list[Choice]]:
    """Every `auto` that can be decided before the model is loaded, alike on all ranks, which all call it.

    Raises ConfigError where the gradients of a private run's units have no room.
    """
    hardware = _hardware(world)
    counted = partial(measure, device=hardware.device)
    config, choices = resolve(config, hardware, shape, counted)
    check_room_for_units(config, hardware, counted)
    return config, choices


def _hardware(world: World) -> Hardware:
    """Memory is the least that any worker has, so that all decide alike; on CPUs they share that of their machine."""
    if world.device.type == "cuda":
        return Hardware("cuda", world.size, min(world.gather(torch.cuda.get_device_properties(world.device).total_memory)))
    machines = world.gather((socket.gethostname(), psutil.virtual_memory().total))
    return Hardware("cpu", world.size, min(total // machines.count((name, total)) for name, total in machines))


def quiet() -> None:
    """Third parties' progress bars and notices to each other, out of the log."""
    import datasets
    import transformers

    warnings.filterwarnings("ignore", category=FutureWarning)
    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
