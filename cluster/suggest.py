"""Values for a job's fields, from how much data there is, how long its rows are, how large the model, and what it runs on.

Rules of thumb, each with its reason and, where there is one, its source: a place to start a search from, not a result.

- Schulman et al. 2025, "LoRA Without Regret" (Thinking Machines): adapters want about ten times the learning rate of full fine-tuning,
  whatever their rank; they lose more than full fine-tuning does by large batches; and they keep up with it while they can hold what the
  data says, about 2 bits a weight (Allen-Zhu and Li 2024) against about 1 bit a learnt token.
- Muennighoff et al. 2023, "Scaling Data-Constrained Language Models": up to four passes over the same text are nearly as good as new text.
- Dettmers et al. 2023, QLoRA: adapters on a frozen base of nf4 weights lose nothing that could be measured.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from cluster.job import JobSpec
from trainers.defaults import Choice, Shape

_RANKS = (8, 16, 32, 64, 128)
_BITS_A_WEIGHT, _BITS_A_TOKEN = 2, 1
_STEPS_WANTED = 200
_BATCHES = (8, 16, 32, 64, 128, 256)
_LARGEST_ADAPTER_BATCH = 64
_WEIGHTS_SHARE, _STATES_SHARE = 0.7, 0.85
"""Of a GPU: above it too little is left for activations"""
_BYTES_TRAINED = 16
"""A parameter trained in full: bfloat16 weight and gradient, float32 master and two moments"""
_NF4_BYTES = 0.53


@dataclass(frozen=True)
class Facts:
    rows: int
    """That are trained on"""
    p99: int
    """Tokens that 99 of 100 rows do not exceed"""
    longest: int
    learnt: float
    """Loss tokens of a row"""
    shape: Shape
    gpu_bytes: float | None
    """Memory of one GPU; None for CPUs"""
    workers: int


def suggest(job: JobSpec, facts: Facts) -> list[Choice]:
    """A value for each field that a person would otherwise guess, with the reason."""
    method = _method(job, facts)
    lora = method[0].value == "lora" if method else job.method.type == "lora"
    epochs = _epochs(job, facts)
    rank = [*_rank(job, facts)] if lora else []
    steps = [Choice("train.max_steps", None, "the epochs say how long")] if job.train.max_steps is not None else []
    return [*method, *_quantization(facts, lora=lora), _length(facts), epochs, *steps, _batch(facts, float(epochs.value), lora=lora),
            _rate(job, facts, lora=lora), *rank]  # fmt: skip


def changes(job: JobSpec, choices: Sequence[Choice]) -> list[tuple[Choice, object]]:
    """Each choice with what the job has there now; None where its method has no such field."""
    values = job.model_dump()
    now = []
    for choice in choices:
        block, name = choice.field.split(".")
        now.append((choice, values[block].get(name)))
    return now


def adapter_weights(shape: Shape, rank: int) -> int:
    """Of adapters on the four matrices of attention and the three of the MLP of every block."""
    return rank * shape.layers * (8 * shape.hidden_size + 3 * (shape.hidden_size + shape.intermediate_size))


def _method(job: JobSpec, facts: Facts) -> list[Choice]:
    """Adapters, where full fine-tuning does not fit even sharded (Rajbhandari et al. 2020: 16 bytes a parameter over all workers)."""
    if facts.gpu_bytes is None or job.method.type == "lora" or job.model.from_scratch:
        return []
    needed = _BYTES_TRAINED * facts.shape.parameters / facts.workers
    if needed <= _STATES_SHARE * facts.gpu_bytes:
        return []
    return [
        Choice("method.type", "lora", f"training all weights takes {_gb(needed)} on each of {facts.workers} GPUs of {_gb(facts.gpu_bytes)}")
    ]


def _quantization(facts: Facts, *, lora: bool) -> list[Choice]:
    if facts.gpu_bytes is None or not lora:
        return []
    weights = 2 * facts.shape.parameters
    if weights <= _WEIGHTS_SHARE * facts.gpu_bytes:
        return [Choice("model.quantization", "none", f"bfloat16 weights take {_gb(weights)} of {_gb(facts.gpu_bytes)}")]
    small = _NF4_BYTES * facts.shape.parameters
    fits = "" if small <= _WEIGHTS_SHARE * facts.gpu_bytes else ", which is still too much: use a larger GPU, or zero: 3 without it"
    return [Choice("model.quantization", "nf4", f"bfloat16 weights take {_gb(weights)} of {_gb(facts.gpu_bytes)}, nf4 {_gb(small)}{fits}")]


def _length(facts: Facts) -> Choice:
    """What 99 of 100 rows fit in, so that no row is far longer than the others; all of them, if that costs little more."""
    wanted, reason = _rounded_up(facts.p99), f"99 of 100 rows have up to {facts.p99} tokens, the longest sampled {facts.longest}"
    if facts.longest <= 1.25 * wanted:
        wanted, reason = _rounded_up(facts.longest), f"the longest sampled row has {facts.longest} tokens"
    limit = facts.shape.longest_input
    if limit is not None and wanted > limit:
        return Choice("data.max_length", limit, f"{reason}; the model takes no more")
    return Choice("data.max_length", wanted, reason)


def _epochs(job: JobSpec, facts: Facts) -> Choice:
    """Fewer for more data; never more than four (Muennighoff et al. 2023)."""
    if job.task == "pretrain":
        return Choice("train.epochs", 1.0, "plain text: one pass")
    epochs = next((count for limit, count in ((2_000, 4.0), (20_000, 3.0), (200_000, 2.0)) if facts.rows < limit), 1.0)
    return Choice("train.epochs", epochs, f"{facts.rows:,} rows" + ("" if epochs > 1 else ": each is seen once"))


def _batch(facts: Facts, epochs: float, *, lora: bool) -> Choice:
    """Enough steps for the schedule to do its work, then as large as that allows; adapters lose by large batches (Schulman et al. 2025)."""
    most = _LARGEST_ADAPTER_BATCH if lora else _BATCHES[-1]
    batch = max((size for size in _BATCHES if size <= most and facts.rows * epochs / size >= _STEPS_WANTED), default=_BATCHES[0])
    steps = round(facts.rows * epochs / batch)
    return Choice(
        "train.global_batch_size", batch, f"{steps:,} steps" + (", and adapters lose by larger batches" if lora and batch == most else "")
    )


def _rate(job: JobSpec, facts: Facts, *, lora: bool) -> Choice:
    """Ten times full fine-tuning's for adapters, at any rank (Schulman et al. 2025); higher for small models, lower for large ones."""
    if job.model.from_scratch:
        return Choice("train.learning_rate", 1e-3, "random weights")
    billions = facts.shape.parameters / 1e9
    size = f"{billions:.1f} billion" if billions >= 0.1 else f"{1000 * billions:.1f} million"
    rate = 5e-5 if billions < 1 else 2e-5 if billions < 30 else 1e-5
    if job.task == "classify" and lora:
        return Choice("train.learning_rate", 1e-3, "adapters with a new classification head")
    if not lora:
        return Choice("train.learning_rate", rate, f"all weights of a model of {size}")
    return Choice("train.learning_rate", 10 * rate, f"adapters: ten times {rate:g}, full fine-tuning's for {size} weights")


def _rank(job: JobSpec, facts: Facts) -> list[Choice]:
    """The least whose adapters can hold what the data says; alpha twice the rank, as the learning rate supposes."""
    says = _BITS_A_TOKEN * facts.rows * max(1.0, facts.learnt)
    enough = [rank for rank in _RANKS if _BITS_A_WEIGHT * adapter_weights(facts.shape, rank) >= says]
    rank = enough[0] if enough else _RANKS[-1]
    reason = f"{adapter_weights(facts.shape, rank) / 1e6:.1f} M weights for {says / 1e6:.2f} M learnt tokens"
    return [Choice("method.rank", rank, reason + ("" if enough else ": full fine-tuning would hold more")),
            Choice("method.alpha", float(2 * rank), "twice the rank")]  # fmt: skip


def _rounded_up(tokens: int) -> int:
    return -(-tokens // 64) * 64


def _gb(value: float) -> str:
    return f"{value / 1e9:.1f} GB"
