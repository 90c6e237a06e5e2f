"""A SuperLink and banks' SuperNodes on loopback, with a thread at each bank that answers in its process's stead."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from flwr.proto.runtime_pb2 import AcquireTaskRequest, PullTaskInputRequest
from flwr.common.serde import run_from_proto
from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor, SuperExecAuthHttpInterceptor
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import HttpGrid

from federation.flower_client import LOCK
from federation.processes import LOOPBACK, holding
from trainers.spool import Spool

Answers = Callable[[bytes], bytes]


@contextmanager
def answering(folder: Path, on: Answers) -> Iterator[None]:
    """A bank's process, as far as Flower sees it."""
    spool, going = Spool(folder), threading.Event()
    going.set()

    def serve() -> None:
        while (asked := spool.next(waiting=going.is_set)) is not None:
            spool.answer(asked[0], on(asked[1]))

    with holding(folder / LOCK):
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            going.clear()
            thread.join()


@contextmanager
def grid_of(folder: Path, port: int) -> Iterator[HttpGrid]:
    """What a ServerApp is given, in this process: its task taken from the SuperLink as a SuperExec takes it."""
    certificate, address = (folder / "ca.pem").read_bytes(), f"{LOOPBACK}:{port}"
    secret = SuperExecAuthHttpInterceptor(
        master_secret=(folder / "secret").read_bytes(), protected_methods=frozenset({"/flwr.proto.Runtime/AcquireTask"})
    )
    client = RuntimeHttpClient.from_server_address(
        address, False, certificate, interceptors=[RuntimeVersionHttpInterceptor(component_name="SuperExec"), secret]
    )
    token = client.AcquireTask(AcquireTaskRequest(supported_task_types=["flwr-serverapp"])).token
    assert token
    grid = HttpGrid(address, root_certificates=certificate, token=token)
    given = grid._runtime_client.PullTaskInput(PullTaskInputRequest())
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = given.task_id, given.run.run_id, given.context.node_id
    grid.set_run(run_from_proto(given.run))
    heartbeat = HeartbeatSender(make_task_heartbeat_fn_http(grid._runtime_client))
    heartbeat.start()
    try:
        yield grid
    finally:
        heartbeat.stop()
        grid.close()
