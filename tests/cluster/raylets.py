"""A Ray cluster of two raylets with a token and a dashboard, in a process of its own, so that no test's own Ray meets it.

As a program it starts the cluster and takes commands from standard input: `remove` the second raylet,
`drain` it (the notice before its machine is taken away), `add` one, `exit`.
"""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests import helpers


@dataclass(frozen=True)
class Raylets:
    dashboard: str
    address: str
    environment: dict[str, str]
    """With the cluster's token, for commands that talk to it"""
    process: subprocess.Popen[str]

    def do(self, command: str) -> None:
        """`remove`, `drain` or `add` the second raylet."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline().strip() == "done"

    def consortium(self, *arguments: object, timeout: float = 240, **environment: str) -> subprocess.CompletedProcess[str]:
        """The command, as a user with the cluster's token runs it."""
        return subprocess.run(
            [sys.executable, "-m", "consortium", *map(str, arguments)],
            capture_output=True, text=True, timeout=timeout, cwd=helpers.REPOSITORY, env=self.environment | environment,
        )  # fmt: skip


@contextmanager
def two_raylets(home: Path) -> Iterator[Raylets]:
    """One CPU each. `home` is where nothing of the user's own Ray is found."""
    kept = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")}
    environment = kept | {
        "HOME": str(home),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(helpers.REPOSITORY),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "8",
        "COLUMNS": "200",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.cluster.raylets"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=helpers.REPOSITORY, env=environment,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        ready, dashboard, address = process.stdout.readline().split()
        assert ready == "ready"
        yield Raylets(dashboard, address, environment, process)
    finally:
        process.communicate("exit\n", timeout=60)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _drain(address: str, node_id: str) -> None:
    """As an autoscaler or a watcher of spot machines does it: word to Ray that this node is preempted within a minute."""
    from ray._raylet import GcsClient
    from ray.core.generated.autoscaler_pb2 import DrainNodeReason

    reason = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    deadline = int((time.time() + 60) * 1000)
    accepted, why = GcsClient(address=address).drain_node(node_id, reason, "the machine is taken away", deadline)
    assert accepted, why


def main() -> None:
    from ray.cluster_utils import Cluster

    # agents on ports of their own: with the default one only the first raylet of a machine gets an agent that takes jobs
    head = {"num_cpus": 1, "include_dashboard": True, "dashboard_host": "127.0.0.1", "dashboard_port": _free_port()}
    cluster: Any = Cluster(initialize_head=True, head_node_args=head | {"dashboard_agent_listen_port": _free_port()})
    apart = {"num_cpus": 1, "temp_dir": tempfile.mkdtemp(prefix="ray-")}  # as machines have: neither touches the other's files
    second = cluster.add_node(**apart, dashboard_agent_listen_port=_free_port())
    print(f"ready http://{cluster.webui_url} {cluster.address}", flush=True)
    for line in sys.stdin:
        if line.strip() == "exit":
            break
        match line.strip():
            case "remove":
                cluster.remove_node(second, allow_graceful=False)
            case "drain":
                _drain(cluster.address, second.node_id)
            case "add":
                second = cluster.add_node(**apart, dashboard_agent_listen_port=_free_port())
        print("done", flush=True)
    cluster.shutdown()
    shutil.rmtree(str(apart["temp_dir"]), ignore_errors=True)


if __name__ == "__main__":
    main()
