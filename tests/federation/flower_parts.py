"""A SuperLink and banks' SuperNodes on loopback, without gateways; at each bank a thread answers in its process's stead."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flwr.common.serde import run_from_proto
from flwr.proto.runtime_pb2 import AcquireTaskRequest, PullTaskInputRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import HttpGrid

from federation.flower.commands import clientapps, prepare, supernode
from federation.flower.executor import tasks
from federation.flower.processes import LOOPBACK, Children, free_ports, holding
from federation.flower.server import FlowerTransport, Running, SuperLink
from tests.federation.enrolment import NOW, Federation
from trainers.spool import Spool


@dataclass
class Bank:
    """What runs on its machine."""

    folder: Path
    gateway: int
    """The port of what stands there for one"""
    children: Children
    asked: list[bytes] = field(default_factory=list)

    def start(self, authority: Path) -> int:
        """The process id of its SuperNode, which connects to a gateway whose certificate this authority has issued."""
        flower, [port] = self.folder / "flower", free_ports(1)
        prepare(flower, NOW)
        started = self.children.start(supernode(flower, port, self.gateway, authority, self.folder / "keys" / "1" / "node", self.spool))
        self.children.start(clientapps(flower, port))
        return started

    @property
    def spool(self) -> Path:
        return self.folder / "spool"

    @contextmanager
    def answering(self, on: Callable[[bytes], bytes]) -> Iterator[None]:
        spool, going = Spool(self.spool), threading.Event()
        going.set()

        def serve() -> None:
            while (asked := spool.next(waiting=going.is_set)) is not None:
                self.asked.append(asked[1])
                spool.answer(asked[0], on(asked[1]))

        with holding(self.spool):
            thread = threading.Thread(target=serve)
            thread.start()
            try:
                yield
            finally:
                going.clear()
                thread.join()


@dataclass(frozen=True)
class Network:
    """All of it, and the transport as `coordinator.run` is given it."""

    superlink: SuperLink
    transport: FlowerTransport
    banks: dict[str, Bank]
    children: Children
    number: int
    """Of the run"""

    def legs(self, content: bytes, *banks: str, within: float = 60.0) -> dict[str, Any]:
        """What each bank answers to the same bytes."""
        for bank in banks:
            self.transport.send(bank, content)
        replies: dict[str, Any] = {}
        while len(replies) < len(banks):
            came = self.transport.receive(within)
            assert came, f"nothing within {within} s"
            replies |= {reply.bank: reply for reply in came}
        return replies


@contextmanager
def network(made: Federation, banks: Mapping[str, Callable[[bytes], bytes]]) -> Iterator[Network]:
    """Of a federation whose roster is in force; banks that are not given have no processes."""
    home, roster = made.folder / "coordinator", made.registry.in_force
    assert roster
    with ExitStack() as stack:
        children = stack.enter_context(Children(home / "logs"))
        superlink = SuperLink.launch(children, home, roster, NOW)
        port, folders = Running.at(home).port, {name: made.folder / name for name in banks}
        running = {name: Bank(folder, port, stack.enter_context(Children(folder / "logs"))) for name, folder in folders.items()}
        for name, on in banks.items():
            stack.enter_context(running[name].answering(on))
            running[name].start(home / "flower" / "ca.pem")
        number = superlink.start("test")
        transport = FlowerTransport(home, stack.enter_context(_grid(home / "flower", port)), Running.at(home).nodes)
        yield Network(superlink, transport, running, children, number)


@contextmanager
def _grid(folder: Path, port: int) -> Iterator[HttpGrid]:
    """What a ServerApp is given, in this process: its task taken from the SuperLink as a SuperExec takes it."""
    with tasks(folder, port) as client:
        token = client.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP])).token
    grid = HttpGrid(f"{LOOPBACK}:{port}", root_certificates=(folder / "ca.pem").read_bytes(), token=token)
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
