"""DeepSpeed: its configuration (pure) and a thin `Engine`. The one file that imports deepspeed.

Traps of DeepSpeed 0.19 that are closed here, each pinned by a test: stage 0 with bf16 takes a wrong first step, so the stage is 1 at
least; `gradient_clipping` is 1.0 unless given; accumulation must not divide the loss; a process group must not build compiled ops on CPU.
"""

import contextlib
import logging
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from trainers.config import TrainConfig
from trainers.data.batches import Batch
from trainers.memory import PERSISTENT, PREFETCH, REDUCE_BUCKET, REUSE_DISTANCE, SUB_GROUP
from trainers.moments import Moments
from trainers.world import World

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "error")

_absent: dict[str, Any] = {} if "mlflow" in sys.modules else {"mlflow": None}
sys.modules |= _absent  # DeepSpeed's autotuner, which nobody uses here, would import mlflow where it is installed: that takes seconds
import deepspeed  # noqa: E402
import deepspeed.ops  # noqa: E402
from deepspeed.utils import logger as deepspeed_logger  # noqa: E402

for _name in _absent:
    del sys.modules[_name]
deepspeed_logger.setLevel(logging.ERROR)
if not torch.cuda.is_available():
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # over a minute to compile at first use; gloo does without

MASTER, FIRST_MOMENT, SECOND_MOMENT = "master", "exp_avg", "exp_avg_sq"


def ds_config(config: TrainConfig, *, world_size: int, trained: int = REDUCE_BUCKET) -> dict[str, Any]:
    """The DeepSpeed configuration of a resolved job that trains so many parameters: every default that matters is written out."""
    assert config.zero.stage != "auto" and config.model.dtype != "auto"
    # a bucket larger than all gradients is memory for nothing, and DeepSpeed takes it at once: 1 GB for an adapter of 80 MB
    zero: dict[str, Any] = {"stage": config.zero.stage, "reduce_bucket_size": min(trained, REDUCE_BUCKET)}
    if config.zero.offload_optimizer == "cpu":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    if config.zero.stage == 3:
        # the default threshold of 100k keeps whole LoRA matrices gathered, which is what we want; linear layers are sharded
        zero |= {
            "stage3_gather_16bit_weights_on_model_save": False,
            "stage3_param_persistence_threshold": PERSISTENT,
            "stage3_max_reuse_distance": REUSE_DISTANCE,
            "stage3_prefetch_bucket_size": PREFETCH,
            "sub_group_size": SUB_GROUP,
        }
        if config.zero.offload_params == "cpu":
            zero["offload_param"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "train_batch_size": world_size,
        "managed_gradient_accumulation": False,
        "gradient_clipping": config.train.max_grad_norm,
        # with it DeepSpeed would round adapters and their gradients, noise included; in a private run both stay float32
        "bf16": {"enabled": config.model.dtype == "bfloat16" and config.privacy is None},
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "wall_clock_breakdown": False,
        "steps_per_print": 2**31,
    }


@contextlib.contextmanager
def sharded_loading(config: TrainConfig, *, world_size: int) -> Iterator[None]:
    """Within it transformers loads weights straight into ZeRO-3 shards, so that no worker ever holds the whole model."""
    if config.zero.stage != 3 or config.model.quantization != "none":  # transformers cannot shard quantised weights while loading
        yield
        return
    from transformers.integrations.deepspeed import HfDeepSpeedConfig, unset_hf_deepspeed_config

    deepspeed.init_distributed(dist_init_required=False, verbose=False)  # else loading takes the number of workers for 1
    keep_alive = HfDeepSpeedConfig(ds_config(config, world_size=world_size))
    try:
        yield
    finally:
        del keep_alive
        unset_hf_deepspeed_config()


@contextlib.contextmanager
def gathered(parameters: Sequence[nn.Parameter], *, modify: bool = False) -> Iterator[None]:
    """Whole parameters within the block, wherever ZeRO-3 keeps their shards; with `modify`, what rank 0 wrote is kept. All ranks enter."""
    if any(hasattr(parameter, "ds_id") for parameter in parameters):
        with deepspeed.zero.GatheredParameters(list(parameters), modifier_rank=0 if modify else None):
            yield
    else:
        yield


@dataclass(frozen=True)
class Fragment:
    """The stretch [start, start + numel) of a flattened parameter whose float32 master and optimizer state this rank holds."""

    name: str
    start: int
    flat: torch.Tensor
    """This rank's flat partition of masters, the key of the optimizer's state"""
    offset: int
    """Where the stretch begins in `flat`"""
    numel: int

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """The same stretch of `flat` itself or of a state tensor of its shape."""
        return tensor.narrow(0, self.offset, self.numel)


class Engine:
    """A module under ZeRO: forward, backward, step, and its state by fragments.

    The loss given to `backward` is this rank's share of the mean; DeepSpeed averages over ranks, so it is multiplied by their number here.
    """

    def __init__(self, module: nn.Module, config: TrainConfig, world: World) -> None:
        self.module, self.world = module, world
        self.names = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
        optimizer = torch.optim.AdamW(_decay_groups(self.names, config.train.weight_decay), lr=0.0, betas=config.train.betas)
        self._engine, self._zero, _, _ = deepspeed.initialize(
            model=module,
            optimizer=optimizer,
            model_parameters=list(self.names.values()),
            config=ds_config(config, world_size=world.size, trained=sum(getattr(p, "ds_numel", p.numel()) for p in self.names.values())),
            dist_init_required=False,
        )
        self.stage: Literal[1, 2, 3] = self._engine.zero_optimization_stage()
        self.alive_at = time.monotonic()
        """When it was last called"""

    @contextlib.contextmanager
    def resting(self) -> Iterator[None]:
        """Within it nobody waits for the next call: what was trained is written or sent, however long that takes."""
        self.alive_at = math.inf
        try:
            yield
        finally:
            self.alive_at = time.monotonic()

    def __call__(self, batch: Batch, **options: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        self.alive_at = time.monotonic()
        return self._engine(batch, **options)

    def compute(self, batch: Batch) -> torch.Tensor:
        """The summed loss of a pass whose gradients somebody else collects: nothing is reduced after its backward pass."""
        self.alive_at = time.monotonic()
        loss: torch.Tensor = self.module(batch)[0]
        return loss

    def accumulate(self, gradients: Mapping[str, torch.Tensor]) -> None:
        """Gradients made elsewhere, by name; the step takes their sum over ranks. A collective call.

        The gradient of sum <g, p> with respect to p is g: so DeepSpeed's own hooks reduce, partition and hold it, whatever the stage.
        """
        parameters = list(self.names.values())
        with gathered(parameters):
            form = torch.stack([(gradients[name] * parameter).sum() for name, parameter in self.names.items()]).sum()
            self.backward(form)

    def whole(self) -> dict[str, torch.Tensor]:
        """The trained parameters as they are, whole on every rank, without gradient: views, or copies under ZeRO-3. A collective call."""
        if self.stage != 3:
            return {name: parameter.detach() for name, parameter in self.names.items()}
        with gathered(list(self.names.values())):
            return {name: parameter.detach().clone() for name, parameter in self.names.items()}

    def train(self, mode: bool = True) -> None:
        self._engine.train(mode)

    def backward(self, loss: torch.Tensor) -> None:
        self._engine.backward(loss * self.world.size, scale_wrt_gas=False)

    def step(self, learning_rate: float) -> float:
        """Reduce, clip, update; the gradient's global norm before clipping."""
        for group in self._zero.param_groups:
            group["lr"] = learning_rate
        self._engine.step()
        norm = self._engine.get_global_grad_norm()
        return float(norm) if norm is not None else 0.0

    def fragments(self) -> Iterator[Fragment]:
        """Every stretch of a trainable parameter whose master this rank holds; over all ranks they cover each parameter once."""
        for name, parameter in self.names.items():
            fragment = self._fragment_stage3(name, parameter) if self.stage == 3 else self._fragment(name, parameter)
            if fragment is not None and fragment.numel:
                yield fragment

    def _fragment(self, name: str, parameter: Any) -> Fragment | None:
        mapping = parameter._hp_mapping
        if mapping is None:
            return None
        flat = self._zero.single_partition_of_fp32_groups[mapping.param_group_index]
        place = mapping.hp_fragment_address
        return Fragment(name, mapping.lp_fragment_address.start, flat, place.start, place.numel)

    def _fragment_stage3(self, name: str, parameter: Any) -> Fragment:
        group, offset, numel = self._zero.grad_position[self._zero.get_param_id(parameter)]
        start = numel * self.world.rank
        held = max(0, min(numel, parameter.ds_numel - start))  # the last partition is padded
        return Fragment(name, start, self._zero.fp32_partitioned_groups_flat[group], offset, held)

    def state(self, fragment: Fragment, kind: str) -> torch.Tensor:
        """The stretch of the master itself, or of one of Adam's moments (zeros before the first step)."""
        if kind == MASTER:
            return fragment.of(fragment.flat)
        if kind not in self._states.get(fragment.flat, {}):
            return torch.zeros(fragment.numel)
        return fragment.of(self._states[fragment.flat][kind])

    def begin_at(self, step: int) -> None:
        """Adam's state as after `step` steps, moments to be filled through `state`."""
        for flat in {id(f.flat): f.flat for f in self.fragments()}.values():
            moments = {kind: torch.zeros_like(flat) for kind in (FIRST_MOMENT, SECOND_MOMENT)}
            self._states[flat] = {"step": torch.tensor(float(step)), **moments}

    @torch.no_grad()
    def masters_to_parameters(self) -> None:
        """Make the model's weights those of the masters; a collective call."""
        if self.stage != 3:
            self._zero.update_lp_params()
            return
        self._zero._partition_all_parameters()  # drop the whole copies of small parameters, or gathering below would keep them as they are
        for flat, masters in zip(self._zero.fp16_partitioned_groups_flat, self._zero.fp32_partitioned_groups_flat, strict=True):
            flat.data.copy_(masters.data)
        for group in range(len(self._zero.fp16_partitioned_groups_flat)):
            self._zero._unflatten_partitioned_parameters(group)
        if self._zero.persistent_parameters:
            self._zero.persistent_parameters[0].all_gather(self._zero.persistent_parameters)

    @torch.no_grad()
    def whole_parameters(self, names: Sequence[str] | None = None) -> Iterator[tuple[str, torch.Tensor]]:
        """Trainable parameters one by one, whole, in the model's precision, on the CPU; all ranks iterate together."""
        for name in self.names if names is None else names:
            parameter = self.names[name]
            with gathered([parameter]):
                yield name, parameter.detach().cpu().clone()

    def forget_gradients(self) -> None:
        """Of a step that was given up between its backward pass and its update: `begin_with` is to follow. A collective call.

        Where each stage keeps them is its own affair; a step uses them up, whatever it makes of the weights.
        """
        self.accumulate(dict.fromkeys(self.names, torch.zeros((), device=self.world.device)))
        self.step(0.0)

    def whole_masters(self) -> dict[str, torch.Tensor]:
        """The trained parameters' float32 masters, whole on every rank, on the CPU. A collective call."""
        return self._whole(MASTER)

    def whole_moments(self) -> Moments:
        """Whole on every rank, on the CPU. A collective call."""
        taken = max((int(state["step"]) for state in self._states.values() if "step" in state), default=0)
        return Moments(max(self.world.gather(taken)), self._whole(FIRST_MOMENT), self._whole(SECOND_MOMENT))

    def _whole(self, kind: str) -> dict[str, torch.Tensor]:
        mine = [(f.name, f.start, self.state(f, kind).detach().cpu().clone()) for f in self.fragments()]
        found = {name: torch.empty(shape, dtype=torch.float32) for name, shape in self.shapes.items()}
        for name, start, stretch in (part for share in self.world.gather(mine) for part in share):
            found[name].view(-1)[start : start + len(stretch)] = stretch
        return found

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """Of the trained parameters, whole."""
        return {name: getattr(parameter, "ds_shape", parameter.shape) for name, parameter in self.names.items()}

    @torch.no_grad()
    def begin_with(self, masters: Mapping[str, torch.Tensor], moments: Moments | None = None) -> None:
        """Start from these float32 values of all trained parameters, the same on every rank; without moments anew. A collective call."""
        self.begin_at(moments.steps if moments else 0)
        whole = {MASTER: masters} | ({FIRST_MOMENT: moments.first, SECOND_MOMENT: moments.second} if moments else {})
        for fragment in self.fragments():
            for kind, tensors in whole.items():
                stretch = tensors[fragment.name].reshape(-1)[fragment.start : fragment.start + fragment.numel]
                self.state(fragment, kind).copy_(stretch)
        self.masters_to_parameters()

    @property
    def _states(self) -> dict[torch.Tensor, dict[str, torch.Tensor]]:
        return self._zero.optimizer.state


def _decay_groups(parameters: Mapping[str, nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; biases and norms do not (Loshchilov & Hutter 2019 leave it open; this is the field's custom)."""
    if weight_decay == 0:
        return [{"params": list(parameters.values()), "weight_decay": 0.0}]
    dimensions = {name: len(getattr(p, "ds_shape", p.shape)) for name, p in parameters.items()}
    matrices = [p for name, p in parameters.items() if dimensions[name] >= 2]
    others = [p for name, p in parameters.items() if dimensions[name] < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
