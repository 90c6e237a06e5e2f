"""Copies of one object, each in a Ray actor of its own, on any cluster: a call goes to one that is free."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import ray
import ray.exceptions

from cluster.errors import ClusterTooSmall
from cluster.launch import check_shared, connected


@contextlib.contextmanager
def pooled(kind: type, method: str, workers: int, address: str | None, folder: Path) -> Iterator[Callable[..., Any]]:
    """A function that calls the method of one of so many objects of a kind, and waits while all are busy; from any thread.

    Each has a CPU and, where there are GPUs, its share of them. One that dies is made anew, and the call repeated, once. All nodes have to
    see `folder`. Raises ClusterUnreachable, ClusterTooSmall, ConfigError.
    """
    with connected(address, cpus=workers):
        has = ray.cluster_resources()
        if (cpus := int(has.get("CPU", 0))) < workers:
            raise ClusterTooSmall(f"{workers} workers, and the cluster has {cpus} CPUs", "ask for fewer workers")
        check_shared(folder)
        gpus = min(1.0, has.get("GPU", 0.0) / workers)
        actor = ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=-1, max_task_retries=1)(kind)
        idle: SimpleQueue[Any] = SimpleQueue()
        for _ in range(workers):
            idle.put(actor.remote())

        def call(*arguments: Any) -> Any:
            mine = idle.get()
            try:
                return ray.get(getattr(mine, method).remote(*arguments))
            except ray.exceptions.RayTaskError as error:
                raise error.cause from error
            finally:
                idle.put(mine)

        yield call
