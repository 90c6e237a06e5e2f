"""The coordinator's side of Flower: its ServerApp, the transport that `coordinator.run` speaks through, and orders to the SuperLink.

What Flower keeps. The SuperLink runs with its database in memory: masked vectors never reach its disk, where SQLite would keep them (its
files are not overwritten, and a run of 3 x 160 MB left 481 MB behind). What that costs: with the SuperLink ends the run
and the list of its nodes. Neither is needed: rounds go on from our journal in a new run, nodes are those of the roster, and a SuperNode
that is not known any more ends and is started again by its bank. In memory an object is dropped when its reply was pulled
(`ConfirmMessageReceived`), and all of a run when it ends; `FlowerTransport.forget` pulls what comes after a round has ended.
"""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Self

import httpx
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from flwr.app import Context, Message, MessageType
from flwr.proto.control_pb2 import ListRunsRequest, RegisterNodeRequest, StartRunRequest
from flwr.proto.fab_pb2 import Fab
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from federation import bundle
from federation.enrolment.member import Member
from federation.enrolment.roster import Roster
from federation.errors import ProcessError
from federation.files import Facts, read, write
from federation.flower.client import packed, unpacked
from federation.flower.commands import HOME, prepare, serverapps, superlink
from federation.flower.processes import LOOPBACK, Children, free_ports, without_proxies
from federation.flower.traffic import take_refused_bundle
from federation.rounds import letters
from federation.rounds.coordinator import Reply, run

_LOOK_SECONDS = 0.5

app = ServerApp()


class Running(Facts):
    """The SuperLink that runs: `flower/running.json` in the coordinator's folder."""

    port: int
    """On loopback"""
    nodes: dict[str, int]
    """What it calls the banks"""

    @classmethod
    def at(cls, home: Path) -> Self:
        """Raises FolderError."""
        return read(cls, _folder(home) / "running.json")


@app.main()
def main(grid: Grid, context: Context) -> None:
    """One run, or what is left of it."""
    home = Path(os.environ[HOME])
    run(home, str(context.run_config["run"]), FlowerTransport(home, grid, Running.at(home).nodes))


class FlowerTransport:
    """`coordinator.Transport` over Flower's messages, all of type train. A SuperNode takes one at a time.

    A leg has failed when the bank's app says so, when the SuperLink does not know its node, when the node has not been heard of for twice
    30 s (Flower's heartbeat; at once if it was ended in order), and when its SuperNode was started again after the message was sent. Where
    a bank's gateway has refused the bundle there is no app to say so: `home`, the coordinator's folder, has that from our own gateway.
    """

    def __init__(self, home: Path, grid: Grid, nodes: Mapping[str, int]) -> None:
        self._home, self._grid, self._nodes = home, grid, nodes
        self._sent: dict[str, tuple[str, float]] = {}
        self._forgotten: set[str] = set()
        self._failed: list[Reply] = []

    def reachable(self) -> frozenset[str]:
        """Banks that are connected now."""
        online = set(self._grid.get_node_ids())
        return frozenset(bank for bank, node in self._nodes.items() if node in online)

    def send(self, bank: str, content: bytes) -> None:
        """On its way when this returns, or a failed leg of what `receive` tells next."""
        message = Message(packed(content), self._nodes[bank], MessageType.TRAIN)
        if accepted := [each for each in self._grid.push_messages([message]) if each]:
            self._sent[accepted[0]] = bank, message.metadata.created_at
        else:
            self._failed.append(Reply(bank, None, "Flower does not take a message for it"))

    def receive(self, timeout: float) -> list[Reply]:
        """Those that came since, waiting so many seconds for the first."""
        deadline = time.monotonic() + timeout
        while True:
            replies, self._failed = self._failed + self._pulled() + self._lost() + self._refused(), []
            if replies or time.monotonic() > deadline:
                return replies
            time.sleep(_LOOK_SECONDS)

    def forget(self) -> None:
        """The round is over: replies that are still to come are pulled, which erases them at the SuperLink, and dropped."""
        self._forgotten |= self._sent.keys()
        self._sent, self._failed = {}, []
        self._pulled()

    def _pulled(self) -> list[Reply]:
        replies = []
        for message in self._grid.pull_messages(self._sent.keys() | self._forgotten):
            asked = message.metadata.reply_to_message_id
            self._forgotten.discard(asked)
            if asked in self._sent:
                bank, _ = self._sent.pop(asked)
                replies.append(_reply(bank, message))
        return replies

    def _lost(self) -> list[Reply]:
        """Of banks whose SuperNode has begun anew: it does not know of the message, and will not be given it again."""
        began = {node.node_id: datetime.fromisoformat(node.last_activated_at).timestamp() for node in self._grid.get_nodes()}
        lost = {asked: bank for asked, (bank, sent) in self._sent.items() if began.get(self._nodes[bank], 0.0) > sent}
        for asked in lost:
            del self._sent[asked]
            self._forgotten.add(asked)
        return [Reply(bank, None, "its SuperNode was started again") for bank in lost.values()]

    def _refused(self) -> list[Reply]:
        """Of banks whose policy does not list the bundle, in the words in which they would refuse it in an invitation."""
        replies = []
        for asked, (bank, sent) in [*self._sent.items()]:
            if sha256 := take_refused_bundle(self._home, bank, sent):
                del self._sent[asked]
                self._forgotten.add(asked)
                refusal = letters.Refusal(invitation=letters.UNREAD, rule="bundles", asked=sha256, allowed="those that its policy lists")
                replies.append(Reply(bank, letters.seal(refusal), ""))
        return replies


def _reply(bank: str, message: Message) -> Reply:
    if message.has_error():
        return Reply(bank, None, message.error.reason or "its app has failed")
    try:
        return Reply(bank, unpacked(message.content), "")
    except KeyError:
        return Reply(bank, None, "its answer is not one of ours")


@dataclass(frozen=True)
class SuperLink:
    """Orders to the coordinator's SuperLink by its control route, which only this machine reaches. Each raises ProcessError."""

    home: Path
    """The coordinator's folder"""
    port: int

    @classmethod
    def launch(cls, children: Children, home: Path, roster: Roster, now: datetime) -> Self:
        """A new one, with the roster's banks as its only nodes. Raises FolderError too."""
        [port] = free_ports(1)
        prepare(_folder(home), now)
        children.start(superlink(_folder(home), port))
        made = cls(home, port)
        write(_folder(home) / "running.json", Running(port=port, nodes={bank.name: made.register(bank) for bank in roster.members}))
        return made

    def allow_runs(self, children: Children) -> None:
        """Start what starts ServerApps."""
        children.start(serverapps(_folder(self.home), self.home, self.port))

    def register(self, bank: Member) -> int:
        """What the SuperLink calls the bank from now on. It lets nobody in who was not registered."""
        key = load_ssh_public_key(bank.node.encode())
        assert isinstance(key, EllipticCurvePublicKey)  # member.py
        with self._control() as control:
            return control.RegisterNode(RegisterNodeRequest(public_key=public_key_to_bytes(key), name=bank.name)).node_id

    def let_in(self, newer: Roster, older: Roster) -> None:
        """Banks that have joined, and those with a new node key. Raises FolderError too."""
        new = [bank for bank in newer.members if bank.name not in older.names or bank.node != older.member(bank.name).node]
        nodes = {name: node for name, node in Running.at(self.home).nodes.items() if name in newer.names}
        write(_folder(self.home) / "running.json", Running(port=self.port, nodes=nodes | {bank.name: self.register(bank) for bank in new}))

    def start(self, name: str) -> int:
        """Flower's number of a ServerApp that works on the run of this name."""
        content = bundle.build()
        request = StartRunRequest(fab=Fab(hash_str=bundle.sha256(content), content=content))
        request.override_config["run"].string = name
        with self._control() as control:
            return control.StartRun(request).run_id

    def status(self, number: int) -> str:
        """As Flower says it: pending, starting, running, or finished, how and why: `finished: failed, ServerApp failed with ...`."""
        with self._control() as control:
            status = control.ListRuns(ListRunsRequest(run_id=number)).run_dict[number].status
        how = ", ".join(filter(None, [status.sub_status, status.details]))
        return f"{status.status}: {how}" if how else status.status

    @contextmanager
    def _control(self) -> Iterator[ControlHttpClient]:
        authority = (_folder(self.home) / "ca.pem").read_bytes()
        with without_proxies():
            client = ControlHttpClient.from_server_address(f"{LOOPBACK}:{self.port}", False, authority, interceptors=[])
        try:
            with client:
                yield client
        except httpx.HTTPStatusError as error:
            raise ProcessError(f"the SuperLink refuses: {error.response.text.strip()[:200]}", "look into its log") from error
        except httpx.HTTPError as error:
            raise ProcessError(f"the SuperLink does not answer: {error}", "consortium federation coordinator starts it") from error


def _folder(home: Path) -> Path:
    return home / "flower"
