"""What one training process is told: `TrainConfig` and its parts.

A person writes YAML, the command resolves it to `config.json` in the run directory, every worker reads that file. `auto` means: chosen in
`trainers.defaults`, printed with its reason. This module imports no torch.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from trainers.errors import ConfigError
from trainers.mistakes import explain

T = TypeVar("T", bound=BaseModel)
Auto = Literal["auto"]
Decay = Annotated[float, Field(ge=0, lt=1)]
Url = Annotated[str, Field(pattern=r"^[a-z][a-z0-9+.-]*://")]
Task = Literal["sft", "pretrain", "classify"]
Format = Literal["auto", "chat", "sharegpt", "alpaca", "completion", "text", "classification"]


ShapeName = Literal["llama-3.2-1b", "llama-3.2-3b", "llama-3.1-8b", "llama-3.1-70b", "qwen2.5-7b", "mistral-7b", "falcon-7b"]
SHAPES = Path(__file__).parent / "shapes"


class Part(BaseModel):
    """A block of the job file: unknown keys are errors, values cannot change after validation."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelConfig(Part):
    path: str = ""
    """Directory with weights and tokenizer, or a hub id."""
    shape: ShapeName | None = None
    """A known model's shape in place of a path, without weights or tokenizer: for `consortium plan` and `consortium bench`."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the forward and backward pass. Masters and optimizer states are float32 in any case."""
    quantization: Literal["none", "nf4", "int8"] = "none"
    """Of the frozen base model (bitsandbytes); needs `method: lora`. nf4 uses double quantisation (QLoRA, Dettmers et al. 2023)."""
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2"] = "auto"
    from_scratch: bool = False
    """Random weights of the shape in the directory's config.json; the tokenizer is still read from the directory."""
    add_tokens: Path | None = None
    """A text file of domain terms, one a line; those the tokenizer would split become tokens of their own.

    Their embeddings begin as the mean of their pieces' and are trained, with adapters too: a row that stays the mean is never likelier
    than the likeliest of its pieces.
    """
    trust_remote_code: bool = False

    @model_validator(mode="after")
    def _check_source(self) -> "ModelConfig":
        if bool(self.path) == (self.shape is not None):
            raise ValueError("model: give a path (a directory or a hub id)" + (" or a shape, not both" if self.path else ""))
        return self

    @property
    def config_source(self) -> str:
        """Where its config.json is found."""
        return self.path or str(SHAPES / f"{self.shape}.json")

    @property
    def name(self) -> str:
        return self.path or str(self.shape)


class FullMethod(Part):
    type: Literal["full"] = "full"


class LoraMethod(Part):
    """Low-rank adapters (Hu et al. 2021)."""

    type: Literal["lora"] = "lora"
    rank: int = Field(16, ge=1)
    alpha: float = Field(32, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: Literal["all-linear"] | Annotated[list[str], Field(min_length=1)] = Field(
        "all-linear", description="all-linear or a list of module names"
    )
    """Module names, by their last part (`q_proj`); `all-linear` is every linear layer but the head."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank) instead of alpha / rank (Kalajdzievski 2023)."""
    train_a: bool = True
    """False freezes A at its initial value and trains B only (FFA-LoRA, Sun et al. 2024)."""


def _expand_method(value: Any) -> Any:
    """`lora`, `{lora: {rank: 8}}` and `{type: lora, rank: 8}` say the same."""
    if isinstance(value, str):
        return {"type": value}
    if isinstance(value, Mapping) and len(value) == 1 and "type" not in value:
        name, body = next(iter(value.items()))
        body = {} if body is None else body
        return {"type": name, **body} if isinstance(body, Mapping) and "type" not in body else value
    return value


Method = Annotated[
    FullMethod | LoraMethod, Field(discriminator="type", description="full, lora, or {lora: {rank: 8}}"), BeforeValidator(_expand_method)
]


class DataConfig(Part):
    train: list[Path] = Field(min_length=1)
    """JSONL, CSV or Parquet files, or a Hugging Face dataset directory."""
    validation: list[Path] = []
    validation_fraction: float = Field(0.2, ge=0, lt=1)
    """Share of `train` held out when `validation` is empty, by a stable hash of the row (or of `group_by`)."""
    group_by: str | None = None
    """Column whose rows stay together: a customer is never on both sides of the split."""
    format: Format = "auto"
    columns: dict[str, str] = {}
    """Canonical field to the file's column, as in `{text: query, label: intent}`."""
    labels: list[str] = []
    """For classify: the classes, in the order of a new head; a row of another one is bad. Without them: those met in the rows."""
    system_prompt: str | None = None
    """Put before every conversation that has none."""
    max_length: Annotated[int, Field(ge=2)] | Auto = "auto"
    """Tokens of an example; documents of `pretrain` are cut into blocks of this length."""
    over_length: Literal["bad_row", "truncate"] = "bad_row"
    on_bad_row: Literal["error", "skip"] = "error"
    packing: bool | Auto = "auto"
    """Several examples in one row, kept apart: position ids start again, and attention goes over each by itself."""

    @model_validator(mode="before")
    @classmethod
    def _accept_single_paths(cls, value: Any) -> Any:
        if isinstance(value, (str, Path)):
            value = {"train": value}
        if isinstance(value, Mapping):
            value = {k: [v] if k in ("train", "validation") and isinstance(v, (str, Path)) else v for k, v in value.items()}
        return value


class OptimConfig(Part):
    """The `train` block: how long, how fast, in which portions."""

    epochs: float | None = Field(None, gt=0)
    max_steps: int | None = Field(None, ge=1)
    global_batch_size: int = Field(32, ge=1)
    """Examples a step, over all workers; kept whatever their number."""
    micro_batch_tokens: Annotated[int, Field(ge=8)] | Auto = "auto"
    """Tokens of one forward pass of one worker, padding counted."""
    units_at_once: Annotated[int, Field(ge=1)] | Auto = "auto"
    """Of a private run: units whose gradients one worker keeps open together, 4 bytes for every trained parameter and unit."""
    learning_rate: Annotated[float, Field(gt=0)] | Auto = "auto"
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = Field(0.03, ge=0)
    """Below 1: a share of all steps. From 1: a number of steps."""
    weight_decay: float = Field(0.0, ge=0)
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    max_grad_norm: float = Field(1.0, ge=0)
    """Global gradient norm is clipped to this; 0 switches clipping off."""
    seed: int = Field(0, ge=0)
    activation_checkpointing: bool | Auto = "auto"
    compile: bool = False
    """torch.compile for each decoder block."""
    eval_every: Annotated[int, Field(ge=1)] | Auto = "auto"
    """Steps between evaluations on the validation rows."""
    early_stopping: int | None = Field(None, ge=1)
    """Stop after this many evaluations without a better one."""
    hang_after: float = Field(1800, gt=0)
    """Seconds without a forward pass after which a worker takes the group for hung and ends, to be started again from the checkpoint."""


class ZeroConfig(Part):
    """DeepSpeed ZeRO (Rajbhandari et al. 2020)."""

    stage: Literal["auto", 1, 2, 3] = "auto"
    offload_optimizer: Literal["none", "cpu"] = "none"
    offload_params: Literal["none", "cpu"] = "none"
    """Needs stage 3."""


class CheckpointConfig(Part):
    every: Annotated[int, Field(ge=1)] | Auto = "auto"
    """Steps between checkpoints."""
    keep: int = Field(2, ge=1)
    """Newest checkpoints kept; the best one is kept beside them."""
    best_by: Literal["eval_loss", "accuracy", "macro_f1"] | None = "eval_loss"
    """The checkpoint the final model is taken from; null takes the last."""


class TrackingConfig(Part):
    tensorboard: bool = True
    mlflow: str | None = None
    """MLflow tracking URI or directory (extra `mlflow`)."""
    wandb: bool = False
    """Weights & Biases, offline: files in the run directory, nothing sent (extra `wandb`)."""


class UnitColumn(Part):
    """Rows with the same value in a column are one unit's: a customer's, an account's."""

    column: str
    max_records: int = Field(ge=1)
    """Of a unit the first so many examples are used, in the order of the files."""


class AuditConfig(Part):
    canaries: int = Field(ge=1)
    """Synthetic units, each planted or not by a secret coin, by which `consortium privacy audit` tries to refute the claim."""


class PrivacyConfig(Part):
    """What a private run promises: differential privacy for one unit more or less (see privacy/plan.py). Nothing here has a default that
    the promise rests on. `train.global_batch_size` is the expected number of units a step.
    """

    epsilon: float | None = Field(None, gt=0)
    """What the whole run may cost, by PLD at `delta`; the noise follows from it."""
    noise_multiplier: float | None = Field(None, gt=0)
    """Or the noise itself, over `clip_norm`; epsilon follows from it."""
    delta: float = Field(gt=0, lt=1)
    """Less than 1 / units."""
    clip_norm: float = Field(gt=0)
    """Most that a unit's gradient may measure (L2, over all its records and all trained parameters)."""
    unit: Literal["record"] | UnitColumn
    """Whose data are protected: every record for itself, or all records of a person."""
    units: int = Field(ge=1)
    """How many there are at most, declared and public; sampling and delta are reckoned with it."""
    ledger: Path
    """The budget's ledger, to which the training files are attached; on a disk of the machine where rank 0 runs."""
    restarts: int = Field(3, ge=0)
    """Failures whose repeated steps are reserved and calibrated for."""
    audit: AuditConfig | None = None

    @model_validator(mode="after")
    def _check_target(self) -> "PrivacyConfig":
        if (self.epsilon is None) == (self.noise_multiplier is None):
            raise ValueError("privacy: give epsilon or noise_multiplier, and not both")
        if self.delta >= 1 / self.units:
            raise ValueError(
                f"privacy.delta: {self.delta:g} is not less than 1 / units = {1 / self.units:.3g}, at which nothing is promised"
            )
        return self


def _expand_zero(value: Any) -> Any:
    return {"stage": value} if isinstance(value, (str, int)) and not isinstance(value, bool) else value


def _expand_model(value: Any) -> Any:
    return {"path": value} if isinstance(value, (str, Path)) else value


class TrainConfig(Part):
    """One run, as every worker sees it."""

    name: str = Field("run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="letters, digits and . _ -, a letter or digit first")
    task: Task
    model: Annotated[ModelConfig, BeforeValidator(_expand_model)]
    method: Method = LoraMethod()
    data: DataConfig
    train: OptimConfig = OptimConfig()
    zero: Annotated[ZeroConfig, BeforeValidator(_expand_zero)] = ZeroConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    tracking: TrackingConfig = TrackingConfig()
    privacy: PrivacyConfig | None = None
    """Differentially private training; without it training is ordinary."""
    output: Url | Path = Field(Path("runs"), description="a folder, or a URL", union_mode="left_to_right")
    """Folder in which the run directory `output/name` is made; or a URL (fsspec: s3://, gs://, ...), to which checkpoints, events and
    results are copied from a folder of this machine.
    """

    @model_validator(mode="before")
    @classmethod
    def _set_private_defaults(cls, values: Any) -> Any:
        """Where the job says nothing, what a private run cannot do is left out of it."""
        if not isinstance(values, Mapping) or not isinstance(values.get("privacy"), Mapping):
            return values
        unit = values["privacy"].get("unit")
        group = unit.get("column") if isinstance(unit, Mapping) else None
        defaults: dict[str, dict[str, Any]] = {
            "train": {"max_grad_norm": 0.0}, "checkpoint": {"best_by": None}, "data": {"group_by": group} if group else {}
        }  # fmt: skip
        blocks = {name: values.get(name) or {} for name in defaults}
        if isinstance(blocks["data"], (str, Path)):
            blocks["data"] = {"train": blocks["data"]}
        merged = {name: {**defaults[name], **block} if isinstance(block, Mapping) else block for name, block in blocks.items()}
        return {**values, **merged}

    @model_validator(mode="after")
    def _check_combinations(self) -> "TrainConfig":
        quantized, best_by = self.model.quantization != "none", self.checkpoint.best_by
        refused = {
            "quantised weights cannot be trained in full: set method: lora, or model.quantization: none": (
                quantized and self.method.type == "full"
            ),
            "model.from_scratch makes new weights, which are trained in full: set model.quantization: none": (
                quantized and self.model.from_scratch
            ),
            "model.from_scratch makes new weights, of which an adapter is no record: set method: full": (
                self.model.from_scratch and self.method.type == "lora"
            ),
            "zero.offload_params needs zero.stage: 3": self.zero.offload_params == "cpu" and self.zero.stage in (1, 2),
            "train.epochs and train.max_steps exclude each other: give one": None not in (self.train.epochs, self.train.max_steps),
            f"checkpoint.best_by: {best_by} needs task: classify; use eval_loss": (
                best_by in ("accuracy", "macro_f1") and self.task != "classify"
            ),
            "train.units_at_once is for private runs, which this is none of: leave it out": (
                self.train.units_at_once != "auto" and self.privacy is None
            ),
            f"data.labels: only task: classify has classes, this is {self.task}: leave them out": (
                bool(self.data.labels) and self.task != "classify"
            ),
            "data.labels: a class stands there more than once": len(set(self.data.labels)) < len(self.data.labels),
            "data.packing: true does not go with task: classify, whose models read one class from a row: leave it out": (
                self.data.packing is True and self.task == "classify"
            ),
        }
        if self.privacy is not None:
            refused |= self._refused_in_private(self.privacy)
        if found := [message for message, applies in refused.items() if applies]:
            raise ValueError("; ".join(found))
        return self

    def _refused_in_private(self, privacy: PrivacyConfig) -> dict[str, bool]:
        column = privacy.unit.column if isinstance(privacy.unit, UnitColumn) else None
        validation = "evaluations on private rows are no part of what the noise covers"
        return {
            "privacy: model.add_tokens: terms taken from private rows would be published as they are, and embeddings are not trained": (
                self.model.add_tokens is not None
            ),
            "privacy: train.max_grad_norm clips a batch as a whole, after the noise; privacy.clip_norm is what counts: leave it out": (
                self.train.max_grad_norm != 0
            ),
            f"privacy: checkpoint.best_by: {validation}: leave it out": self.checkpoint.best_by is not None,
            f"privacy: train.early_stopping: {validation}: leave it out": self.train.early_stopping is not None,
            f"privacy: train.global_batch_size: {self.train.global_batch_size} is more than privacy.units": (
                self.train.global_batch_size > privacy.units
            ),
            f"privacy: data.group_by: {self.data.group_by} is not the unit's column: rows of a unit would stand on both sides": (
                column is not None and self.data.group_by != column
            ),
            "privacy: model.quantization: int8 rounds every row of a batch by the outliers of any: use nf4, which rounds weights alone": (
                self.model.quantization == "int8"
            ),
            "privacy: output: what a private run must not forget stays in its directory: name a folder that all nodes see, and no URL": (
                self.store_url is not None
            ),
            "privacy: train.compile is not tried with gradients unit by unit: leave it out": self.train.compile,
        } | (self._refused_in_private_full(column) if self.private_full else {})

    def _refused_in_private_full(self, column: str | None) -> dict[str, bool]:
        lora = "set method: lora"
        return {
            f"privacy.unit: {column}: with method: full norms are taken row by row, so that a unit is a record: {lora}, or unit: record": (
                column is not None
            ),
            "data.packing: true: with privacy and method: full a row has to be one record: leave it out": self.data.packing is True,
            f"zero.stage: 3: with privacy and method: full every worker needs whole weights: set zero.stage: 2, or {lora}": (
                self.zero.stage == 3 or self.zero.offload_params == "cpu"
            ),
            f"model.dtype: bfloat16: with privacy and method: full weights are float32, as their gradients are: leave it out, or {lora}": (
                self.model.dtype == "bfloat16"
            ),
            "privacy: model.from_scratch: embeddings are not trained, and would stay random: start from a trained model": (
                self.model.from_scratch
            ),
        }

    @property
    def private_full(self) -> bool:
        """Whether whole layers are trained privately: privacy.dp_full."""
        return self.privacy is not None and self.method.type == "full"

    @property
    def run_dir(self) -> Path:
        """Where this machine keeps the run."""
        return (self.output if isinstance(self.output, Path) else _scratch(self.output)) / self.name

    @property
    def store_url(self) -> str | None:
        """Where the run is copied to, if `output` is a URL."""
        return None if isinstance(self.output, Path) else f"{self.output.rstrip('/')}/{self.name}"


def _scratch(url: str) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "consortium" / hashlib.sha256(url.encode()).hexdigest()[:16]


def read_config(path: Path) -> TrainConfig:
    """The resolved configuration of a run, from its config.json; the launcher's `cluster` block is not a worker's concern.

    Raises ConfigError when the file is missing, is not JSON or does not validate.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", "give the config.json of a run directory") from error
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}:{error.lineno}: not JSON ({error.msg})") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text") from error
    if isinstance(values, dict):
        values.pop("cluster", None)
    return validate(TrainConfig, values, source=str(path))


def validate(
    model: type[T], values: Mapping[str, Any], *, source: str, hint: str = "`consortium init DIR` writes a commented job file"
) -> T:
    """`model` from plain values; every mistake in one ConfigError that names file, field and the nearest known name."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{source}: " + "; ".join(explain(model, values, error)), hint) from error
