"""What starts a bank's ClientApps, in the place of `flower-superexec`: python -m federation.flower.executor FOLDER PORT

FOLDER is that of commands.py and PORT the SuperNode's. flower-superexec starts a program for every message, which spends about a
second of a processor on importing Flower; this one has imported it, and forks. Both speak the same protocol with the SuperNode
(AcquireTask, signed with the secret), and what runs then is Flower's own `run_clientapp`.
"""

import os
import signal
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path

import httpx
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor, SuperExecAuthHttpInterceptor
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.runtime.run_clientapp import run_clientapp

import federation.flower.client  # noqa: F401  once, for all that are forked
from federation import bundle
from federation.flower.processes import LOOPBACK

_POLL_SECONDS = 0.1


def tasks(folder: Path, port: int) -> RuntimeHttpClient:
    """A client to the process that has tasks to give, by its port on loopback."""
    secret = SuperExecAuthHttpInterceptor(
        master_secret=(folder / "secret").read_bytes(), protected_methods=frozenset({"/flwr.proto.Runtime/AcquireTask"})
    )
    version = RuntimeVersionHttpInterceptor(component_name="SuperExec")
    return RuntimeHttpClient.from_server_address(f"{LOOPBACK}:{port}", False, (folder / "ca.pem").read_bytes(), [version, secret])


def main(folder: Path, port: int) -> None:
    """Until it is killed. Raises httpx.HTTPStatusError where the secret is another."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that are forked
    client, parent, given = tasks(folder, port), os.getpid(), AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP])
    bundle.code()  # of the sources that were imported, whatever is installed in their place later
    while True:
        with suppress(httpx.TransportError):  # the SuperNode is being started again
            if (token := client.AcquireTask(given).token) and os.fork() == 0:
                _run(folder, port, token, parent)
        time.sleep(_POLL_SECONDS)


def _run(folder: Path, port: int, token: str, parent: int) -> None:
    """One ClientApp, in a process of its own that does not return."""
    try:
        run_clientapp(f"{LOOPBACK}:{port}", token, False, (folder / "ca.pem").read_bytes(), parent)
    except Exception:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)  # the connections of the process that was forked are not this one's to close


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
