"""Who this process is among the workers: the one reader of the environment that torchrun and Ray Train set."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from privacy.errors import ConsortiumError

T = TypeVar("T")
COLLECTIVE_SECONDS = 86_400
"""How long a collective may wait: one worker prepares the rows while the others do. Who hangs in training is ended by the watchdog."""


@dataclass(frozen=True)
class World:
    rank: int
    size: int
    local_rank: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @staticmethod
    def from_environment() -> "World":
        rank, size, local_rank = (int(os.environ.get(name, default)) for name, default in _VARIABLES)
        if torch.cuda.is_available():
            device = torch.device("cuda", local_rank)
            torch.cuda.set_device(device)
        else:
            device = torch.device("cpu")
        return World(rank, size, local_rank, device)

    def connect(self) -> None:
        """Join the process group, unless the launcher (Ray Train) has done so; a lone process makes a group of its own."""
        os.environ.setdefault("LOCAL_RANK", str(self.local_rank))  # DeepSpeed insists on it
        if dist.is_initialized():
            return
        backend = "nccl" if self.device.type == "cuda" else "gloo"
        if self.size == 1:
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        else:
            dist.init_process_group(backend, timeout=timedelta(seconds=COLLECTIVE_SECONDS))

    def on_main(self, work: Callable[[], T]) -> T:
        """Do `work` on rank 0 while the others wait; its result, or its exception, is everyone's.

        The others get an exception that is neither a ConsortiumError nor an OSError, and may not be picklable, as a RuntimeError.
        """
        outcome: list[T | Exception | None] = [None]
        failure: Exception | None = None
        if self.is_main:
            try:
                outcome[0] = work()
            except (ConsortiumError, OSError) as error:
                outcome[0] = failure = error
            except Exception as error:
                outcome[0], failure = RuntimeError(f"rank 0 failed: {error!r}"), error
        if self.size > 1:
            dist.broadcast_object_list(outcome, src=0, device=self.device)
        if failure is not None:
            raise failure
        if isinstance(outcome[0], Exception):
            raise outcome[0]
        return outcome[0]  # type: ignore[return-value]

    def on_each_machine(self, work: Callable[[], object]) -> None:
        """Do `work` on the first worker of every machine while the others wait; the first failure is everyone's."""
        failure: ConsortiumError | None = None
        if self.local_rank == 0:
            try:
                work()
            except ConsortiumError as error:
                failure = error
            except OSError as error:
                failure = ConsortiumError(str(error))
        self.agree(failure)

    def sum(self, *values: float) -> list[float]:
        """Sums over all workers, in float64."""
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor.tolist()

    def gather(self, value: T) -> list[T]:
        """Everyone's value, in the order of ranks; plain picklable values only."""
        values: list[Any] = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values

    def agree(self, error: ConsortiumError | None) -> None:
        """Raise on every worker the first worker's error, so that none waits for one that has stopped."""
        for found in self.gather(error):
            if found is not None:
                raise found


_VARIABLES = (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))
