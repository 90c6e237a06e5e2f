"""Base model, tokenizer and adapters: the one file that imports peft and loads transformers models."""

import contextlib
import json
import logging
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from huggingface_hub import constants
from peft import LoraConfig, PeftModel, TaskType, get_peft_model, get_peft_model_state_dict
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.pytorch_utils import Conv1D

from trainers.config import LoraMethod, Method, ModelConfig, Task
from trainers.data.masking import plain_template
from trainers.defaults import Shape
from trainers.errors import ModelError

LABELS = "labels.json"
_HUB_SECONDS = 5.0
"""For a connection to the hub"""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass
class Loaded:
    """A model ready to train: `module` may wrap `base` (the Hugging Face model) with adapters."""

    module: nn.Module
    base: Any
    tokenizer: PreTrainedTokenizerBase

    @property
    def trainable(self) -> dict[str, nn.Parameter]:
        return {name: parameter for name, parameter in self.module.named_parameters() if parameter.requires_grad}

    @property
    def is_adapter(self) -> bool:
        return isinstance(self.module, PeftModel)


def load_tokenizer(model: ModelConfig) -> PreTrainedTokenizerBase:
    """The tokenizer with its domain terms added and a padding token; the plain chat template where it has none. Raises ModelError."""
    with _loading(model, "tokenizer") as options:
        tokenizer = AutoTokenizer.from_pretrained(model.path, trust_remote_code=model.trust_remote_code, **options)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.chat_template is None and tokenizer.eos_token:
        tokenizer.chat_template = plain_template(tokenizer)
    if model.add_tokens:
        tokenizer.add_tokens(_terms_to_add(model.add_tokens, tokenizer))
    return tokenizer


def load_model_config(model: ModelConfig) -> PretrainedConfig:
    """The model's config.json: its shape, without its weights. Raises ModelError."""
    with _loading(model, "model") as options:
        return AutoConfig.from_pretrained(model.config_source, trust_remote_code=model.trust_remote_code, **options)


def shape_of(model: ModelConfig, task: Task) -> Shape:
    """Sizes of the model, from its config.json alone (built on the meta device, no weights). Raises ModelError."""
    empty = on_meta(model, task)
    config = empty.config
    text = config.get_text_config()
    widths = (getattr(text, name, None) for name in ("intermediate_size", "n_inner", "ffn_hidden_size"))
    head, embeddings = empty.get_output_embeddings(), empty.get_input_embeddings()
    total = sum(parameter.numel() for parameter in empty.parameters())
    return Shape(
        parameters=total,
        linear=total if head is not None and head.weight is embeddings.weight else total - embeddings.weight.numel(),
        layers=text.num_hidden_layers,
        hidden_size=text.hidden_size,
        intermediate_size=next((width for width in widths if width), 4 * text.hidden_size),
        attention_width=text.num_attention_heads * (getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads),
        longest_input=_longest_input(empty, text),
    )


def _whole(parameters: Sequence[nn.Parameter], *, modify: bool = False) -> contextlib.AbstractContextManager[None]:
    """For a block, also where ZeRO-3 has sharded them. Where it has not, nobody waits for DeepSpeed: most commands do without."""
    if not any(hasattr(parameter, "ds_id") for parameter in parameters):
        return contextlib.nullcontext()
    from trainers.engine import gathered

    return gathered(parameters, modify=modify)


def _longest_input(empty: Any, text: PretrainedConfig) -> int | None:
    """Tokens; None where nothing limits them. RoBERTa and its kin number places from behind that of padding."""
    most: int | None = getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None)
    words = empty.get_input_embeddings()
    tables = [module for module in empty.modules() if isinstance(module, nn.Embedding) and module is not words]
    padded = [table.padding_idx for table in tables if table.num_embeddings == most and table.padding_idx is not None]
    return most - padded[0] - 1 if most is not None and padded else most


def on_meta(model: ModelConfig, task: Task, *, layers: int | None = None) -> Any:
    """The Hugging Face model without weights, on the meta device; with `layers`, cut to so many. `model.dtype` auto is float32.

    Raises ModelError.
    """
    config = load_model_config(model)
    if layers is not None:
        _cut(config.get_text_config(), layers)
    auto = AutoModelForSequenceClassification if task == "classify" else AutoModelForCausalLM
    options: dict[str, Any] = {"dtype": DTYPES.get(model.dtype, torch.float32), "trust_remote_code": model.trust_remote_code}
    if model.attention in ("eager", "sdpa"):  # flash_attention_2 cannot be asked for where it is not installed
        options["attn_implementation"] = model.attention
    try:
        with torch.device("meta"):
            empty: Any = auto.from_config(config, **options)
    except ValueError as error:
        raise ModelError(f"{model.name}: a {config.model_type} model cannot be trained for task {task}",
                         "an encoder cannot write: use task: classify" if task != "classify" else "") from error  # fmt: skip
    empty.new_layers, empty.new_tokens = [], []
    return empty


def _cut(config: PretrainedConfig, layers: int) -> None:
    """Let a configuration be that of a model of so many layers, lists with an entry for each layer too."""
    before = config.num_hidden_layers
    for name, value in list(vars(config).items()):
        if "layer" in name and isinstance(value, list) and len(value) == before:
            setattr(config, name, (value * layers)[:layers])
    config.num_hidden_layers = layers


def load_base(
    model: ModelConfig, task: Task, tokenizer: PreTrainedTokenizerBase | None, *, labels: list[str], device: torch.device, seed: int
) -> Any:
    """The Hugging Face model with its vocabulary extended and its classes named. `model.dtype` must be resolved.

    Without a tokenizer the vocabulary stays as it is. Raises ModelError.
    """
    auto = AutoModelForSequenceClassification if task == "classify" else AutoModelForCausalLM
    options: dict[str, Any] = {"dtype": DTYPES[model.dtype], "trust_remote_code": model.trust_remote_code}
    if model.attention != "auto":
        options["attn_implementation"] = model.attention
    if task == "classify" and not model.shape:
        options |= _class_names(load_model_config(model), labels)
    if model.quantization != "none":
        options |= {"quantization_config": _quantization(model), "device_map": {"": device}}
    torch.manual_seed(seed)
    missing: list[str] = []
    if model.from_scratch:
        base = auto.from_config(load_model_config(model), **options)
    elif model.shape:
        base = _random_model(auto, load_model_config(model), options)
    else:
        with _loading(model, "model") as where:
            base, loading = auto.from_pretrained(model.path, use_safetensors=True, output_loading_info=True, **options, **where)
        missing = sorted(loading["missing_keys"])
    base.new_layers = _new_layers(base, missing, model, task)
    _keep_weights_trainable_through(base)
    base.new_tokens = [] if tokenizer is None else _fit_vocabulary(base, tokenizer, pieces_of=_pieces(model, tokenizer))
    if tokenizer is not None:
        base.config.pad_token_id = tokenizer.pad_token_id
    elif base.config.pad_token_id is None:
        base.config.pad_token_id = 0
    torch.manual_seed(seed)  # adapters begin the same however many numbers it took to make the base
    return base


def add_adapters(base: Any, method: Method, task: Task, *, quantized: bool) -> nn.Module:
    """The model as `method` trains it. Raises ModelError when a target module is not there, listing those that are."""
    if not isinstance(method, LoraMethod):
        return base
    _check_targets(base, method)
    for parameter in base.parameters():
        parameter.requires_grad_(False)
    embeddings = _embeddings(base)
    lora = LoraConfig(
        r=method.rank,
        lora_alpha=method.alpha,
        lora_dropout=method.dropout,
        target_modules=method.targets,
        use_rslora=method.rslora,
        modules_to_save=base.new_layers or None,
        trainable_token_indices=dict.fromkeys(embeddings, base.new_tokens) if base.new_tokens else None,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in base.modules()),  # GPT-2 has its weights transposed
        task_type=TaskType.SEQ_CLS if task == "classify" else TaskType.CAUSAL_LM,
    )
    # adapters in the model's own precision: DeepSpeed keeps float32 masters, and float32 adapters on a bf16 model double the activations
    with _whole([layer.weight for layer in embeddings.values()]):
        module = get_peft_model(base, lora, autocast_adapter_dtype=False)
    if quantized:
        _match_adapter_dtype(module, base.dtype)
    if not method.train_a:
        for name, parameter in module.named_parameters():
            if "lora_A" in name:
                parameter.requires_grad_(False)
    return module


def freeze_tables(base: Any) -> None:
    """Embeddings and the head over tokens, often one matrix, stay as they are: their gradients cannot be had record by record."""
    for layer in [*(module for module in base.modules() if isinstance(module, nn.Embedding)), base.get_output_embeddings()]:
        if layer is not None:
            layer.requires_grad_(False)


def load_finetuned(folder: Path, model: ModelConfig, task: Task, *, device: torch.device) -> Loaded:
    """A trained model for use: an adapter directory put on its base (`model`), or a whole model's directory. Raises ModelError."""
    here = model.model_copy(update={"path": str(folder), "add_tokens": None, "from_scratch": False})
    tokenizer = load_tokenizer(here)
    if not (folder / "adapter_config.json").exists():
        base = load_base(here.model_copy(update={"quantization": "none"}), task, tokenizer, labels=[], device=device, seed=0).to(device)
        return Loaded(base.eval(), base, tokenizer)
    labels = json.loads((folder / LABELS).read_text()) if task == "classify" else []
    base = load_base(model.model_copy(update={"from_scratch": False}), task, tokenizer, labels=labels, device=device, seed=0)
    if model.quantization == "none":
        base = base.to(device)
    with _loading(here, "adapter"):
        module = PeftModel.from_pretrained(base, str(folder), autocast_adapter_dtype=False)
    return Loaded(module.eval(), base, tokenizer)


def base_of(adapter: Path) -> str:
    """The base model an adapter directory names. Raises ModelError."""
    try:
        return str(json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"])
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{adapter}: no adapter_config.json that names its base model") from error


def save_trained(loaded: Loaded, tensors: Mapping[str, torch.Tensor], folder: Path, *, labels: list[str]) -> None:
    """Write what was trained in Hugging Face layout: an adapter as PEFT has it, or the whole model; with its tokenizer."""
    folder.mkdir(parents=True)
    if loaded.is_adapter:
        cast(Any, loaded.module).save_pretrained(str(folder), state_dict=dict(tensors), save_embedding_layers=False)
        if labels:
            (folder / LABELS).write_text(json.dumps(labels))
    else:
        loaded.base.save_pretrained(str(folder), state_dict=dict(tensors))
    loaded.tokenizer.save_pretrained(str(folder))


def names_on_disk(module: nn.Module) -> dict[str, str]:
    """The name in an adapter's file of each parameter of `module` that goes into it, trained or not."""
    numbered = {name: torch.tensor(number) for number, (name, _) in enumerate(module.named_parameters())}
    saved = get_peft_model_state_dict(module, state_dict=numbered, save_embedding_layers=False)
    names = list(numbered)
    return {names[int(number)]: on_disk for on_disk, number in saved.items()}


def merge(loaded: Loaded, folder: Path) -> None:
    """Write the model with its adapter folded into the weights."""
    merged: Any = cast(Any, loaded.module).merge_and_unload()
    merged.save_pretrained(str(folder))
    loaded.tokenizer.save_pretrained(str(folder))


def decoder_blocks(base: Any) -> list[nn.Module]:
    """The repeated blocks of a transformer: what activation checkpointing and regional compilation work on."""
    names = set(getattr(base, "_no_split_modules", None) or ())
    return [module for module in base.modules() if type(module).__name__ in names]


def linear_names(base: Any) -> list[str]:
    """Last parts of the names of modules that can carry an adapter."""
    head = base.get_output_embeddings() if hasattr(base, "get_output_embeddings") else None
    return sorted({name.rsplit(".", 1)[-1] for name, m in base.named_modules() if isinstance(m, (nn.Linear, Conv1D)) and m is not head})


def _check_targets(base: Any, method: LoraMethod) -> None:
    if method.targets == "all-linear":
        return
    names = [f".{name}" for name, _ in base.named_modules()]
    missing = [target for target in method.targets if not any(name.endswith(f".{target}") for name in names)]
    if missing:
        raise ModelError(f"method.targets: no module named {', '.join(missing)}", f"this model has {', '.join(linear_names(base))}")


def _match_adapter_dtype(module: nn.Module, dtype: torch.dtype) -> None:
    for name, parameter in module.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(dtype)


def _class_names(shape: PretrainedConfig, labels: list[str]) -> dict[str, Any]:
    """The head's classes. A model that has a classification head keeps it, and must have a class for every label."""
    architectures = shape.architectures or []
    if any(name.endswith("ForSequenceClassification") for name in architectures):
        known = set(shape.label2id or {})
        if set(labels) <= known:
            return {}
        if len(labels) > shape.num_labels:
            raise ModelError(f"the data has {len(labels)} labels, the model's head {shape.num_labels}",
                             "start from a model without a classification head, or map the labels to the head's")  # fmt: skip
    return {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {label: index for index, label in enumerate(labels)},
    }


def _random_model(auto: Any, config: PretrainedConfig, options: Mapping[str, Any]) -> Any:
    """A model of this shape on the way that read weights take: they are quantised and sharded as they come.

    All matrices are views of one array of random numbers as large as the largest of them, so that any shape is made fast and in little
    memory. It is float16, which is no precision of a model here: each weight is converted and thereby becomes a copy of its own.
    """
    kind = auto._model_mapping[type(config)]
    with torch.device("meta"):
        empty = dict(kind(config).named_parameters())
    numbers = (0.02 * torch.randn(max(parameter.numel() for parameter in empty.values()))).half()
    weights = {
        name: numbers[: parameter.numel()].view(parameter.shape) if parameter.dim() > 1 else torch.ones(parameter.shape).half()
        for name, parameter in empty.items()
    }
    return kind.from_pretrained(None, config=config, state_dict=weights, **options)


def _quantization(model: ModelConfig) -> BitsAndBytesConfig:
    if model.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    dtype = DTYPES[model.dtype]
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_quant_storage=dtype,
    )


def _new_layers(base: nn.Module, missing: Sequence[str], model: ModelConfig, task: Task) -> list[str]:
    """The layers of a classifier's head that begin at random, as the directory has no weights for them. Raises ModelError for any other."""
    blocks = set(decoder_blocks(base))
    inside = tuple(f"{name}." for name, module in base.named_modules() if module in blocks)
    if lost := [name for name in missing if task != "classify" or name.startswith(inside)]:
        raise ModelError(f"{model.path} has no weights for {lost[0]}" + (f" and {len(lost) - 1} others" if lost[1:] else ""),
                         "is the directory complete, and a model of the kind the task needs?")  # fmt: skip
    return sorted({name.rpartition(".")[0] for name in missing})


def _embeddings(base: Any) -> dict[str, Any]:
    """Input embeddings and head over tokens by their names; only the first where they share their weight or there is no such head."""
    head, embeddings = base.get_output_embeddings(), base.get_input_embeddings()
    wanted = [embeddings] if head is None or head.weight is embeddings.weight else [embeddings, head]
    return {name: layer for name, layer in base.named_modules() if any(layer is one for one in wanted)}


def _keep_weights_trainable_through(base: nn.Module) -> None:
    """In evaluation on a CPU, bitsandbytes repacks 4-bit weights for good into a form through which no gradient flows: not here."""
    for module in base.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            cast(Any, module).support_avx512bf16_for_cpu = False


def _terms_to_add(path: Path, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    try:
        terms = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    except OSError as error:
        raise ModelError(f"model.add_tokens: {path}: {error.strerror}", "a text file, one term a line") from error
    return [term for term in dict.fromkeys(terms) if len(tokenizer.tokenize(term)) > 1]


def _pieces(model: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> dict[int, list[int]]:
    """For each added token the ids it would have been split into."""
    plain = AutoTokenizer.from_pretrained(model.path, trust_remote_code=model.trust_remote_code)
    added = {token: index for token, index in tokenizer.get_vocab().items() if index >= len(plain)} if len(tokenizer) > len(plain) else {}
    return {index: plain(token, add_special_tokens=False)["input_ids"] for token, index in added.items()}


@torch.no_grad()
def _fit_vocabulary(base: Any, tokenizer: PreTrainedTokenizerBase, pieces_of: Mapping[int, list[int]]) -> list[int]:
    """Grow the embeddings for added terms, each starting as the mean of its pieces; the terms' rows.

    Raises ModelError for a tokenizer of another model.
    """
    rows = base.get_input_embeddings().num_embeddings
    if len(tokenizer) - len(pieces_of) > rows:
        raise ModelError(f"the tokenizer has {len(tokenizer)} tokens, the model's embeddings {rows} rows: they do not belong together",
                         "use the tokenizer the model was trained with, in the same directory")  # fmt: skip
    if len(tokenizer) > rows:
        base.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    for embeddings in (base.get_input_embeddings(), base.get_output_embeddings()):
        if embeddings is not None:
            with _whole([embeddings.weight], modify=True):
                for index, pieces in pieces_of.items():
                    embeddings.weight[index] = embeddings.weight[pieces].mean(0)
    return sorted(pieces_of)


@contextlib.contextmanager
def _loading(model: ModelConfig, what: str) -> Iterator[dict[str, Any]]:
    """Options of `from_pretrained`; the many ways in which a model cannot be had come out as one line."""
    if model.shape and what == "tokenizer":
        raise ModelError(f"model.shape: {model.shape} has no tokenizer", "it is for plan and bench; give model.path, a directory, to train")
    local = Path(model.config_source)
    looks_local = local.is_absolute() or model.path.startswith(".") or local.exists()
    if looks_local and not model.shape and not local.is_dir():
        raise ModelError(f"model.path: no directory {model.path}", "a directory with config.json, weights and tokenizer, or a hub id")
    try:
        yield {} if looks_local or _hub_answers() else {"local_files_only": True}
    except (OSError, ValueError, KeyError, json.JSONDecodeError, ImportError) as error:
        logging.getLogger(__name__).debug("loading %s failed", model.path, exc_info=True)
        lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        hint = (
            "is the directory complete? (config.json, *.safetensors, tokenizer.json)"
            if looks_local
            else "no network? give the path of a directory"
        )
        raise ModelError(f"cannot load the {what} of {model.path}: {lines[0]}", hint) from error


@cache
def _hub_answers() -> bool:
    """Whether the hub may be asked: without a network its client would, for half a minute. Behind a proxy it has to find out itself."""
    if constants.HF_HUB_OFFLINE:
        return False
    hub = urlsplit(constants.ENDPOINT)
    if hub.scheme in getproxies():
        return True
    try:
        socket.create_connection((hub.hostname or "", hub.port or (80 if hub.scheme == "http" else 443)), _HUB_SECONDS).close()
    except OSError:
        return False
    return True
