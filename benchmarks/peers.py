"""Tokens a second against Hugging Face Trainer and TRL: same model, examples, loss, optimizer and precision, on this machine's CPU.

    python benchmarks/peers.py [--cases lora-1 lora-2 qlora-1 qlora-2] [--steps 30] [--json OUT] [--loss completion|all]
                               [--data FILE.csv] [--patience 120]

The model is a Llama (6 layers, 256 wide, random weights, a tokenizer of 4096 trained on the spot) with LoRA of rank 16 on every linear
layer, in float32; the data BANKING77 (../shared/data/banking77, or --data) as user and assistant turns, else our synthetic tickets. All
contenders train on the very same token ids and labels, 64 examples a step, with AdamW, a constant rate, clipping to 1.0, and the same loss:
the sum over all learnt tokens of a step divided by their number (what Trainer and TRL do by default). No evaluation, checkpoint or log line
of a peer falls into a timed step.

All have the N processes of the case, `lora-N`, or `qlora-N` on a base model in nf4 with double quantisation, and share this machine's two
processors. Every contender is tried in several set-ups and goes on with its fastest: peers with all sampling strategies Trainer has, and
the best of them in torch's `medium` precision, where that leaves float32 products exact and oneDNN computes them. To tell our loop from
what our worker sets by itself on a CPU (trainers/cpu.py: two switches of torch, one of the allocator), the fastest peer takes part once
more with the same settings, marked +. Then all take turns of a few steps, round after round, each in processes of its own, which wait,
blocked, while it is not their turn. Time is taken outside of them, here: from the word to go until the last process has finished its last
step. Tokens are counted at the door of the model, padding not. A turn during which other programs had more than a tenth of the processors
is done again, as long as the case's --patience (seconds) lasts.
Cases are added to OUT as they come; one that is there is not run again.

Only with sampling `random` does a peer draw its batches as we do; with `group_by_length` a batch is of examples of like length.
"""

import argparse
import contextlib
import csv
import json
import os
import signal
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest import mock

from facts import facts
from small_llama import write_llama

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))  # a checkout that is not installed
os.environ.setdefault("HF_HUB_OFFLINE", "1")

BANKING77 = REPOSITORY.parent / "shared" / "data" / "banking77" / "train.csv"
VOCABULARY, RANK, ALPHA = 4096, 16, 32
EXAMPLES_A_STEP = 64
LEARNING_RATE = 1e-3
STEADY = {"schedule": "constant", "warmup": 0}
NAMES = ("ours", "Trainer", "TRL", "TRL packed")
CASES = {"lora-1": (1, False), "lora-2": (2, False), "qlora-1": (1, True), "qlora-2": (2, True)}
"""Processes of everyone; whether the base model is nf4"""
TRIAL, TURN = 8, 3
"""Steps: to choose a set-up, of one turn in a round"""
TRIAL_SECONDS = 8.0
DISTURBED = 0.1
"""Share of the processors"""
PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "deepspeed", "datasets")
PRELOADED = ["trainers.worker", "torch.distributed", "transformers", "trl", "peft", "datasets"]


@dataclass(frozen=True)
class SetUp:
    """One way to run a contender."""

    name: str
    workers: int
    threads: int
    sampling: str = "random"
    accumulation: int = 1
    precision: str = "highest"
    """torch.set_float32_matmul_precision"""
    quantized: bool = False
    blockwise: bool = True
    """Whether attention may be computed in blocks (torch.backends.cuda.enable_flash_sdp, the CPU's switch too)"""

    @property
    def title(self) -> str:
        return self.name if self.blockwise else f"{self.name} +"

    def __str__(self) -> str:
        options = "" if self.name == "ours" else f", {self.sampling}, accumulation {self.accumulation}, {self.precision}"
        return f"{self.workers} x {self.threads} threads{options}{'' if self.blockwise else ', attention whole'}"


@dataclass
class Counts:
    """What passed through the model of one process, or of all: real tokens, tokens computed, examples, learnt tokens."""

    tokens: int = 0
    computed: int = 0
    examples: int = 0
    targets: int = 0
    losses: list[float] = field(default_factory=list)
    """By step; a process's share, to be averaged over processes"""
    cpu_seconds: float = 0.0


@dataclass
class Turn:
    """Some steps of one contender."""

    steps: int
    seconds: float
    counts: Counts
    disturbance: float = 0.0
    """Share of the processors that other programs had"""

    @property
    def speed(self) -> float:
        return self.counts.tokens / self.seconds


def _strategies(name: str, workers: int, quantized: bool) -> list[SetUp]:
    common = SetUp(name, workers, 2 // workers, quantized=quantized)
    match name:
        case "ours":
            return [common]
        case "TRL packed":
            return [replace(common, accumulation=workers * n // 2) for n in (2, 4, 8)]
        case _:
            tried = [("random", 1), ("group_by_length", 1), ("batch_rebalance", 2), ("batch_rebalance", 4)]
            return [replace(common, sampling=sampling, accumulation=accumulation) for sampling, accumulation in tried]


# in the processes of a contender


class Gate:
    """Counts steps, and holds the process when its turn is over until the next one begins."""

    def __init__(self, connection: Connection) -> None:
        self.connection, self.counts, self.left = connection, Counts(), 0

    def wait(self) -> None:
        self.left = self.connection.recv()
        self.counts, self.began = Counts(), time.process_time()

    def step_done(self) -> None:
        self.left -= 1
        if self.left == 0:
            self.counts.cpu_seconds = time.process_time() - self.began
            self.connection.send(self.counts)
            self.wait()


def _work(set_up: SetUp, rank: int, port: int, folder: Path, loss: str, connection: Connection) -> None:
    """One process of a contender, until it is killed."""
    os.environ["OMP_NUM_THREADS"] = str(set_up.threads)
    if set_up.workers > 1:
        places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": set_up.workers, "MASTER_PORT": port}
        os.environ.update({"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in places.items()}})
    import torch

    from trainers.cpu import keep_memory
    from trainers.worker import quiet

    quiet()
    if not set_up.blockwise:
        keep_memory()
    torch.set_num_threads(set_up.threads)
    torch.set_float32_matmul_precision(set_up.precision)
    torch.backends.cuda.enable_flash_sdp(set_up.blockwise)
    gate = Gate(connection)
    if set_up.name == "ours":
        _run_ours(set_up, folder, loss, gate)
    else:
        _run_peer(set_up, folder, gate)


def _run_ours(set_up: SetUp, folder: Path, loss: str, gate: Gate) -> None:
    """The real thing, `trainers.worker.train`, with a gate behind every step."""
    from trainers import loop, worker
    from trainers.data.batches import NO_TARGET

    real_step = loop.train_step

    def gated_step(run: loop.Run, step: int, work: loop.StepWork) -> loop.Step:
        done = real_step(run, step, work)
        for micro in work.passes:
            gate.counts.tokens += int(run.train.lengths[micro.examples].sum())
            gate.counts.computed += micro.batch.input_ids.numel()
            gate.counts.examples += len(micro.examples)
            gate.counts.targets += int((micro.batch.targets != NO_TARGET).sum()) if micro.examples else 0
        gate.counts.losses.append(losses.pop())
        gate.step_done()
        return done

    losses: list[float] = []
    emit = worker.EventLog.emit

    def noting_emit(log: worker.EventLog, event: str, **fields: Any) -> None:
        losses.extend([fields["loss"]] if event == "step" else [])
        emit(log, event, **fields)

    gate.wait()
    with mock.patch.object(loop, "train_step", gated_step), mock.patch.object(worker.EventLog, "emit", noting_emit):
        worker.train(_our_run(set_up, folder, loss), run_id="benchmark")


def _our_run(set_up: SetUp, folder: Path, loss: str) -> Path:
    config = {
        "name": f"ours-{set_up.workers}",
        "task": "sft" if loss == "completion" else "pretrain",
        "model": {"path": str(folder / "model"), "quantization": "nf4" if set_up.quantized else "none"},
        "method": {"lora": {"rank": RANK, "alpha": ALPHA}},
        "data": {"train": str(folder / f"{loss}.jsonl"), "validation_fraction": 0},
        "train": {"max_steps": 100_000, "global_batch_size": EXAMPLES_A_STEP, "learning_rate": LEARNING_RATE, **STEADY},
        "zero": 2,
        "checkpoint": {"every": 100_000},
        "tracking": {"tensorboard": False},
        "output": str(folder),
    }
    run_dir = folder / config["name"]
    run_dir.mkdir(exist_ok=True)
    (run_dir / "config.json").write_text(json.dumps(config))
    return run_dir


def _run_peer(set_up: SetUp, folder: Path, gate: Gate) -> None:
    import datasets
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    torch.manual_seed(0)
    examples = datasets.load_from_disk(str(folder / "examples"))
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    lora = LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    options: dict[str, Any] = {"dtype": torch.float32}
    if set_up.quantized:
        nf4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
        options |= {"quantization_config": BitsAndBytesConfig(**nf4, bnb_4bit_compute_dtype=torch.float32), "device_map": {"": "cpu"}}
    base = AutoModelForCausalLM.from_pretrained(folder / "model", **options)
    trainer = _make_trainer(set_up, get_peft_model(base, lora), tokenizer, examples, folder)
    _count(trainer, gate)
    gate.wait()
    trainer.train()


def _make_trainer(set_up: SetUp, model: Any, tokenizer: Any, examples: Any, folder: Path) -> Any:
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments
    from trl import SFTConfig, SFTTrainer

    shares = set_up.workers * set_up.accumulation
    common = {
        "output_dir": str(folder / "peers"),
        "use_cpu": True,
        "bf16": False,
        "per_device_train_batch_size": EXAMPLES_A_STEP // shares,
        "gradient_accumulation_steps": set_up.accumulation,
        "gradient_checkpointing": False,  # TRL's default is True
        "train_sampling_strategy": set_up.sampling,
        "max_steps": 100_000,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 1.0,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "ddp_find_unused_parameters": False,  # True by default, and slower
        "dataloader_pin_memory": False,
    }
    longest = max(examples["length"])
    if set_up.name == "Trainer":
        collator = DataCollatorForSeq2Seq(tokenizer, padding=True, label_pad_token_id=-100)
        return Trainer(model, TrainingArguments(**common), data_collator=collator, train_dataset=examples, processing_class=tokenizer)
    if set_up.name == "TRL":
        return SFTTrainer(model, SFTConfig(**common, max_length=longest), train_dataset=examples, processing_class=tokenizer)
    # rows of as many tokens as each process would get of 64 examples, one row a pass: as many tokens a step as everyone else
    row = max(longest, round(EXAMPLES_A_STEP * statistics.mean(examples["length"]) / shares))
    packed = common | {"per_device_train_batch_size": 1}
    config = SFTConfig(**packed, max_length=row, packing=True, packing_strategy="bfd")
    return SFTTrainer(model, config, train_dataset=examples.remove_columns("length"), processing_class=tokenizer)


def _count(trainer: Any, gate: Gate) -> None:
    """Count at the model's door, note losses, and hold at the end of a turn."""
    from transformers import TrainerCallback

    def at_the_door(module: Any, arguments: Any, inputs: dict[str, Any]) -> None:
        ids, mask, positions = inputs["input_ids"], inputs.get("attention_mask"), inputs.get("position_ids")
        gate.counts.computed += ids.numel()
        gate.counts.tokens += ids.numel() if mask is None else int(mask.sum())
        gate.counts.examples += len(ids) if positions is None else int((positions == 0).sum())
        gate.counts.targets += int((inputs["labels"][:, 1:] != -100).sum())

    share = [0.0]
    real_step = trainer.training_step

    def noting_step(*arguments: Any, **options: Any) -> Any:
        loss = real_step(*arguments, **options)
        share[0] += float(loss)
        return loss

    class AtStepEnd(TrainerCallback):
        def on_step_end(self, *arguments: Any, **options: Any) -> None:
            gate.counts.losses.append(share[0])
            share[0] = 0.0
            gate.step_done()

    trainer.model.register_forward_pre_hook(at_the_door, with_kwargs=True)
    trainer.training_step = noting_step
    trainer.add_callback(AtStepEnd())


# here


class Patience:
    """How long, in seconds, to wait altogether for other programs to give the processors free."""

    def __init__(self, seconds: float) -> None:
        self.left = seconds

    def wait(self) -> None:
        while self.left > 0:
            busy, began = _busy_seconds(), time.perf_counter()
            time.sleep(0.2)
            if _share_of_others(busy, began) <= DISTURBED:
                return
            self.left -= time.perf_counter() - began


def _busy_seconds() -> float:
    """Processor time this machine has spent since it started, and what its host took from it; 0 where that is not told."""
    if not Path("/proc/stat").exists():
        return 0.0
    user, nice, system, _, _, *interrupts_and_stolen = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:9])
    return (user + nice + system + sum(interrupts_and_stolen)) / os.sysconf("SC_CLK_TCK")


def _share_of_others(busy: float, began: float, own: float = 0.0) -> float:
    return max(0.0, _busy_seconds() - busy - own) / (time.perf_counter() - began) / (os.cpu_count() or 1)


class Contender:
    """The processes of one set-up."""

    def __init__(self, set_up: SetUp, folder: Path, loss: str, patience: Patience) -> None:
        self.set_up, self.patience = set_up, patience
        self.turns: list[Turn] = []
        self.losses: list[float] = []
        self._processes: list[BaseProcess] = []
        self._connections: list[Connection] = []
        context = get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        for rank in range(set_up.workers):
            mine, theirs = context.Pipe()
            process = context.Process(target=_work, args=(set_up, rank, port, folder, loss, theirs), daemon=True)
            process.start()
            theirs.close()  # so that a dead process is seen as the end of its pipe
            self._processes.append(process)
            self._connections.append(mine)

    def turn(self, steps: int) -> Turn:
        """Steps that were not disturbed, or the last attempt at such when patience has run out."""
        self.patience.wait()
        turn = self._attempt(steps)
        while turn.disturbance > DISTURBED and self.patience.left > 0:
            self.patience.left -= turn.seconds
            self.patience.wait()
            turn = self._attempt(steps)
        return turn

    def _attempt(self, steps: int) -> Turn:
        busy, began = _busy_seconds(), time.perf_counter()
        for connection in self._connections:
            connection.send(steps)
        found = [connection.recv() for connection in self._connections]
        seconds, counts = time.perf_counter() - began, _together(found)
        self.losses += counts.losses
        return Turn(steps, seconds, counts, _share_of_others(busy, began, counts.cpu_seconds))

    def trial(self) -> tuple[float, float]:
        """Real tokens a second of the fastest step but the first two, and the share of padding."""
        self._attempt(2)
        turns: list[Turn] = []
        while not turns or (len(turns) < TRIAL and sum(turn.seconds for turn in turns) < TRIAL_SECONDS):
            turns.append(self.turn(1))
        tokens, computed = (sum(getattr(turn.counts, name) for turn in turns) for name in ("tokens", "computed"))
        return max(turn.speed for turn in turns), 1 - tokens / computed

    def stop(self) -> None:
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):  # it ends by itself when another of its group is gone
                os.kill(process.pid or 0, signal.SIGKILL)
            process.join()


def _together(shares: list[Counts]) -> Counts:
    sums = {name: sum(getattr(share, name) for share in shares) for name in ("tokens", "computed", "examples", "targets", "cpu_seconds")}
    losses = [statistics.mean(step) for step in zip(*(share.losses for share in shares), strict=True)]
    return Counts(**sums, losses=losses)


class Choice:
    """The fastest set-up of one contender so far, running; the others are stopped."""

    def __init__(self, folder: Path, loss: str, patience: Patience) -> None:
        self.trials: list[dict[str, Any]] = []
        self.best: Contender | None = None
        self.speed = 0.0
        self._start = partial(Contender, folder=folder, loss=loss, patience=patience)

    def attempt(self, set_ups: list[SetUp]) -> Contender:
        """Try these too; the best of all."""
        for set_up in set_ups:
            contender = self._start(set_up)
            speed, padding = contender.trial()
            self.trials.append({**asdict(set_up), "tokens_per_second": speed, "padding": padding})
            print(f"  tried {set_up.title:<11} {speed:7.0f} tokens/s  padding {padding:5.1%}  {set_up}", file=sys.stderr, flush=True)
            loser = contender if speed <= self.speed else self.best
            if speed > self.speed:
                self.best, self.speed = contender, speed
            if loser is not None:
                loser.stop()
        assert self.best is not None
        return self.best


def _choose(name: str, choice: Choice, workers: int, quantized: bool) -> Contender:
    best = choice.attempt(_strategies(name, workers, quantized))
    from trainers.cpu import onednn_is_exact

    if name == "ours" or not onednn_is_exact():
        return best
    return choice.attempt([replace(best.set_up, precision="medium")])


def _with_our_settings(choices: dict[str, Choice], again: Choice) -> list[Contender]:
    from trainers.cpu import onednn_is_exact

    fastest = max((choice for name, choice in choices.items() if name != "ours"), key=lambda choice: choice.speed)
    assert fastest.best is not None
    if not onednn_is_exact():
        return []
    return [again.attempt([replace(fastest.best.set_up, precision="medium", blockwise=False)])]


def _rounds(contenders: list[Contender], steps: int) -> list[dict[str, Any]]:
    """Turns of all contenders, round after round, each round begun by another one."""
    results = []
    for number in range(-(-steps // TURN)):
        first = number % len(contenders)
        for contender in contenders[first:] + contenders[:first]:
            contender.turns.append(contender.turn(TURN))
        speeds = {c.set_up.title: c.turns[-1].speed for c in contenders}
        results.append({"speeds": speeds, "disturbance": max(c.turns[-1].disturbance for c in contenders)})
    return results


def _ratio(speeds: dict[str, float], *, switched: bool) -> float:
    """Ours over the fastest peer as it comes, or over the one that was given our settings."""
    return speeds["ours"] / max(speed for name, speed in speeds.items() if name != "ours" and name.endswith("+") == switched)


def _summary(contender: Contender) -> dict[str, Any]:
    speeds, counts = [turn.speed for turn in contender.turns], [turn.counts for turn in contender.turns]
    steps = sum(turn.steps for turn in contender.turns)
    tokens, computed = sum(c.tokens for c in counts), sum(c.computed for c in counts)
    return {
        "title": contender.set_up.title,
        **asdict(contender.set_up),
        "tokens_per_second": statistics.median(speeds),
        "tokens_per_second_overall": tokens / sum(turn.seconds for turn in contender.turns),
        "slowest": min(speeds),
        "fastest": max(speeds),
        "tokens_per_cpu_second": tokens / sum(c.cpu_seconds for c in counts),
        "disturbance": statistics.median(turn.disturbance for turn in contender.turns),
        "padding": 1 - tokens / computed,
        "examples_per_step": sum(c.examples for c in counts) / steps,
        "tokens_per_step": tokens / steps,
        "targets_per_example": sum(c.targets for c in counts) / sum(c.examples for c in counts),
        "first_loss": contender.losses[0],
        "loss_of_steps_21_to_30": statistics.mean(contender.losses[20:30] or contender.losses[-10:]),
    }


def _print(contenders: list[Contender], summaries: list[dict[str, Any]], rounds: list[dict[str, Any]]) -> None:
    print(
        f"\n{'':<11} {'tokens/s':>8} {'(slowest - fastest)':>19}  {'per CPU s':>9}  {'padding':>7}  "
        f"{'examples':>8} {'tokens':>6} {'learnt':>6}  {'loss: first':>11} {'21-30':>6}  set-up"
    )
    for contender, s in zip(contenders, summaries, strict=True):
        spread = f"({s['slowest']:.0f} - {s['fastest']:.0f})"
        print(
            f"{s['title']:<11} {s['tokens_per_second']:>8.0f} {spread:>19}  {s['tokens_per_cpu_second']:>9.0f}  {s['padding']:>7.1%}  "
            f"{s['examples_per_step']:>8.1f} {s['tokens_per_step']:>6.0f} {s['targets_per_example']:>6.2f}  "
            f"{s['first_loss']:>11.3f} {s['loss_of_steps_21_to_30']:>6.3f}  {contender.set_up}"
        )
    overall = {s["title"]: s["tokens_per_second_overall"] for s in summaries}
    print()
    for switched in [False] + [True] * any(title.endswith("+") for title in overall):
        ratios = [_ratio(r["speeds"], switched=switched) for r in rounds]
        print(
            f"ours / {'the same with our settings' if switched else 'fastest peer'}: {_ratio(overall, switched=switched):.2f}, "
            f"by round {' '.join(f'{ratio:.2f}' for ratio in ratios)}"
        )


# what all train on


def _make_inputs(folder: Path, data: Path, loss: str) -> str:
    """Model, tokenizer, our rows and the peers' examples of the same tokens; where the data came from."""
    import datasets

    from trainers.config import DataConfig
    from trainers.data import prepare

    turns = list(_conversations(data, folder))
    texts = (f"User:\n{question}\nAssistant:\n{answer}" for question, answer in turns)
    tokenizer = write_llama(folder / "model", texts, vocabulary=VOCABULARY)
    _write_rows(turns, folder / f"{loss}.jsonl", loss)
    task = "sft" if loss == "completion" else "pretrain"
    prepare.prepare(DataConfig(train=[folder / f"{loss}.jsonl"], validation_fraction=0), task, tokenizer, folder / "data", max_length=1024)
    ours, _ = prepare.load(folder / "data")
    datasets.Dataset.from_list([_as_peers_read(sample) for sample in ours.samples(range(len(ours)))]).save_to_disk(folder / "examples")
    source = f"{data.parent.name}/{data.name}" if data.exists() else "synthetic tickets"
    return f"{len(turns)} examples of {source}: {_spread(ours.lengths.tolist())}"


def _conversations(data: Path, folder: Path) -> Iterator[tuple[str, str]]:
    if data.exists():
        with data.open(newline="", encoding="utf-8") as stream:
            yield from ((row["text"].strip(), row["category"].replace("_", " ")) for row in csv.DictReader(stream))
        return
    from trainers.data.synthetic import write_demo_data

    for line in write_demo_data(folder / "synthetic").tickets_train.open(encoding="utf-8"):
        question, answer = json.loads(line)["messages"]
        yield question["content"], answer["content"]


def _write_rows(turns: list[tuple[str, str]], path: Path, loss: str) -> None:
    """Conversations, of which the answers are learnt; or texts, of which all is."""

    def row(question: str, answer: str) -> dict[str, Any]:
        if loss == "all":
            return {"text": f"User:\n{question}\nAssistant:\n{answer}"}
        return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}

    path.write_text("".join(json.dumps(row(*turn)) + "\n" for turn in turns), encoding="utf-8")


def _as_peers_read(sample: Any) -> dict[str, Any]:
    labels = [int(token) if learnt else -100 for token, learnt in zip(sample.ids, sample.learnt, strict=True)]
    return {"input_ids": sample.ids.tolist(), "labels": labels, "length": len(sample.ids)}


def _spread(lengths: list[int]) -> str:
    quarters = statistics.quantiles(lengths, n=4)
    return f"{min(lengths)} to {max(lengths)} tokens, quartiles {quarters[0]:.0f}, {quarters[1]:.0f}, {quarters[2]:.0f}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30, help="timed steps of each contender (default 30)")
    parser.add_argument("--json", type=Path, help="results, added to")
    parser.add_argument("--loss", choices=["completion", "all"], default="completion", help="over the answers' tokens, or over all")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=[*CASES], metavar="CASE", help=f"of {', '.join(CASES)} (default: all)")
    parser.add_argument("--data", type=Path, default=BANKING77, help="a CSV file with columns text and category")
    parser.add_argument("--patience", type=float, default=120, help="seconds to wait in a case for a quiet machine (default 120)")
    return parser.parse_args()


def _run(case: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """A case, from the choice of set-ups to the last round."""
    workers, quantized = CASES[case]
    patience = Patience(arguments.patience)
    choices = {name: Choice(folder, arguments.loss, patience) for name in NAMES}
    contenders = [_choose(name, choice, workers, quantized) for name, choice in choices.items()]
    contenders += _with_our_settings(choices, Choice(folder, arguments.loss, patience))
    rounds = _rounds(contenders, arguments.steps)
    for contender in contenders:
        contender.stop()
    summaries = [_summary(contender) for contender in contenders]
    _print(contenders, summaries, rounds)
    return {"results": summaries, "rounds": rounds, "trials": [trial for choice in choices.values() for trial in choice.trials]}


def main() -> int:
    arguments = _arguments()
    stored = json.loads(arguments.json.read_text()) if arguments.json and arguments.json.exists() else {"cases": {}}
    with tempfile.TemporaryDirectory() as name:
        data = _make_inputs(Path(name), arguments.data, arguments.loss)
        print(data, file=sys.stderr)
        now = facts(PACKAGES) | {"data": data, "loss": arguments.loss}
        if any(stored.get(key, now[key]) != now[key] for key in ("data", "loss", "versions", "revision")) or "cases" not in stored:
            raise SystemExit(f"{arguments.json}: of other data, versions or another revision; name another file")
        for case in arguments.cases:
            if case in stored["cases"]:
                continue
            print(f"\n{case}", file=sys.stderr)
            stored["cases"][case] = _run(case, Path(name), arguments)
            stored |= now
            if arguments.json:
                arguments.json.write_text(json.dumps(stored, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
