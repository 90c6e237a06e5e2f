"""What `consortium doctor` runs on a cluster, as a script of its own: each node's clock, and whether it sees a file. Needs ray alone."""

import json
import sys
import time
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

MARK = "consortium-nodes: "
_NODE_ANSWERS_SECONDS = 20


def look(path: str) -> tuple[float, bool]:
    return time.time(), Path(path).exists()


def main(path: str) -> None:
    """Print the facts of every live node as a JSON list behind MARK; `skew` is in seconds against the head's clock."""
    ray.init(address="auto", log_to_driver=False)
    task, found = ray.remote(num_cpus=0)(look), []
    for node in ray.nodes():
        if node["Alive"]:
            here = task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))
            ray.get(here.remote(path), timeout=_NODE_ANSWERS_SECONDS)  # starts the process, so that the next one answers at once
            before = time.time()
            then, sees = ray.get(here.remote(path), timeout=_NODE_ANSWERS_SECONDS)
            found.append({"node": node["NodeManagerAddress"], "skew": then - (before + time.time()) / 2, "sees": sees})
    print(MARK + json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
