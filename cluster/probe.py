"""What `consortium doctor` runs on a cluster's head, as a script of its own that needs ray alone.

It finds each node's clock, and whether the node sees what the head writes where runs go.
"""

import json
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

MARK = "consortium-nodes: "
_NODE_ANSWERS_SECONDS = 20


def look(path: str) -> tuple[float, bool]:
    return time.time(), Path(path).exists()


def main(output: str) -> None:
    """Print what was found as JSON behind MARK.

    `folder` is the output directory, or the nearest one above it that the head has; `writable` whether the head may write there. Of every
    live node: `skew` in seconds against the head's clock, and whether it `sees` a file that the head has written there.
    """
    ray.init(address="auto", log_to_driver=False)
    folder = next(place for place in (Path(output), *Path(output).parents) if place.is_dir())
    marker, writable = folder / f".doctor-{uuid.uuid4().hex}", True
    try:
        marker.touch()
    except OSError:
        writable = False
    try:
        nodes = _ask_nodes(str(marker))
    finally:
        if writable:
            marker.unlink()
    print(MARK + json.dumps({"folder": str(folder), "writable": writable, "nodes": nodes}))


def _ask_nodes(path: str) -> list[dict[str, Any]]:
    task, found = ray.remote(num_cpus=0)(look), []
    for node in ray.nodes():
        if node["Alive"]:
            here = task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))
            ray.get(here.remote(path), timeout=_NODE_ANSWERS_SECONDS)  # starts the process, so that the next one answers at once
            before = time.time()
            then, sees = ray.get(here.remote(path), timeout=_NODE_ANSWERS_SECONDS)
            found.append({"node": node["NodeManagerAddress"], "skew": then - (before + time.time()) / 2, "sees": sees})
    return found


if __name__ == "__main__":
    main(sys.argv[1])
