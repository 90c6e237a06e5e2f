"""What a stranger gets from a federation that runs, and what a member gets who wants more: `python -m tests.federation.stranger`.

From another network namespace where this machine allows it: there the stranger has the coordinator's address, its CA certificate and, in
turn, nothing, a certificate of its own making, a bank's, and that of a bank which has left. Exit code 1 if anybody is let in who must not.
"""

import contextlib
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from http.client import HTTPException, HTTPSConnection
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import httpx
import psutil
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.proto.control_pb2 import ListNodesRequest, RegisterNodeRequest, StartRunRequest
from flwr.proto.fleet_pb2 import ActivateNodeRequest
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.interceptors import SuperExecAuthHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from federation.enrolment.authority import Authority, chain
from federation.enrolment.home import Home
from federation.enrolment.keys import Keys, pem
from federation.files import write_bytes
from federation.flower.processes import LOOPBACK, environment, free_ports
from federation.flower.traffic import Totals, totals
from tests.federation.system import COORDINATOR, System, system, table, until
from tests.helpers import REPOSITORY

HERE, THERE, NAMESPACE = "10.201.77.1", "10.201.77.2", "consortium-stranger"
FLEET = "/v1/fleet/pull-messages"
PATHS = (
    "/", "/docs", "/health", "/openapi.json", "/v1/control/list-nodes", "/v1/control/start-run", "/v1/control/register-node",
    "/v1/runtime/acquire-task", "/v1/fleet/../control/list-nodes", "/v1/fleet/%2e%2e/control/list-nodes",
    "/v1/fleet%2f..%2fcontrol/list-nodes", "//v1/control/list-nodes", "/v1/fleet/pull-messages/../../control/list-nodes",
    "/V1/FLEET/pull-messages", "/v1/fleet/pull-messages?x=1",
    "/v1/fleet/pull-messages;x=1", "/v1/fleet/", "https://localhost/v1/control/list-nodes",
)  # fmt: skip

_SUPERNODE_SECONDS = 30
_EARLIER = "2026-01-01T00:00:00+00:00"
MEMBERS = {("dogwood, a member", "fleet")}
"""Who is let in, and where to"""


@dataclass(frozen=True)
class Attempt:
    """One, and what came back."""

    who: str
    what: str
    came: str
    let_in: bool


def attempts(host: str, port: int, folder: Path, others: list[int]) -> Iterator[Attempt]:
    """All that is tried before the roster changes, on the gateway and on the other ports of the coordinator's machine."""
    nobody, forged = "no certificate", "a certificate of its own making"
    for name, call in _flower(host, port, folder).items():
        yield _tried(nobody, name, call)
    yield _tried(nobody, "flower-supernode", lambda: _supernode(host, port, folder))
    yield _tried(nobody, f"POST {FLEET}", lambda: _ask(_connection(host, port, folder, None), FLEET, {}))
    yield _tried(forged, f"POST {FLEET}", lambda: _ask(_connection(host, port, folder, _forge(folder / "stranger")), FLEET, {}))
    for other in others:
        yield _tried("anybody", f"port {other}", lambda: socket.create_connection((host, other), 3).close())  # noqa: B023
    alder, birch = _keys(folder, "alder"), _keys(folder, "birch")
    certificate = folder / "alder" / "keys" / "1"
    for method, path in product(("POST", "GET"), PATHS):
        ask = partial(_ask, method=method, path=path, headers=_signed(alder))
        yield _tried("alder", f"{method} {path}", lambda: ask(_connection(host, port, folder, certificate)))  # noqa: B023
    fleet = partial(_fleet, host, port, folder)
    yield _tried("alder", "fleet, with birch's node key", lambda: fleet("alder", _signed(birch)))
    yield _tried("alder", "fleet, with no signature", lambda: fleet("alder", _signed(alder) | {"flwr-signature": ""}))
    yield _tried("alder", "fleet, signed for another time", lambda: fleet("alder", _signed(alder) | {"flwr-timestamp": _EARLIER}))
    yield _tried("dogwood, a member", "fleet", lambda: fleet("dogwood", _signed(_keys(folder, "dogwood"))))


def after_leaving(host: str, port: int, folder: Path, others: list[int]) -> Iterator[Attempt]:
    headers = _signed(_keys(folder, "dogwood"))
    yield _tried("dogwood, which has left", "fleet", lambda: _fleet(host, port, folder, "dogwood", headers))


def _fleet(host: str, port: int, folder: Path, bank: str, headers: dict[str, str]) -> tuple[int, str]:
    """What a SuperNode says first, with the bank's certificate; it takes a node key to be let in."""
    said = ActivateNodeRequest(public_key=b64decode(headers["flwr-public-key"]), heartbeat_interval=30).SerializeToString()
    connection = _connection(host, port, folder, folder / bank / "keys" / "1")
    return _ask(connection, "/v1/fleet/activate-node", headers, body=said)


def _tried(who: str, what: str, call: Callable[[], object]) -> Attempt:
    try:
        came = call()
    except (OSError, HTTPException, httpx.HTTPError) as error:
        return Attempt(who, what, f"{type(error).__name__}: {error}"[:150], False)
    status = came[0] if isinstance(came, tuple) else 200
    return Attempt(who, what, " ".join(map(str, came)) if isinstance(came, tuple) else f"let in: {came}", status < 400)


def _connection(host: str, port: int, folder: Path, certificate: Path | None) -> HTTPSConnection:
    context = ssl.create_default_context(cafile=folder / COORDINATOR / "ca.pem")
    if certificate:
        context.load_cert_chain(certificate / "certificate.pem", certificate / "tls.pem")
    return HTTPSConnection(host, port, context=context, timeout=20)


def _ask(connection: HTTPSConnection, path: str, headers: dict[str, str], method: str = "POST", body: bytes = b"") -> tuple[int, str]:
    with contextlib.closing(connection):
        connection.putrequest(method, path, skip_accept_encoding=True)
        for name, value in (headers | {"content-length": str(len(body)), "content-type": "application/protobuf"}).items():
            connection.putheader(name, value)
        connection.endheaders(body)
        answer = connection.getresponse()
        said = answer.read()
        return answer.status, said.decode(errors="replace").strip()[:100] if answer.status >= 400 else f"and {len(said)} bytes"


def _signed(keys: Keys) -> dict[str, str]:
    """As Flower's own code signs a request now."""
    request = httpx.Request("POST", "https://localhost")
    NodeAuthHttpInterceptor(keys.node, keys.node.public_key()).intercept(SimpleNamespace(request=request), lambda context: None)  # type: ignore[arg-type, return-value]
    return {name: value for name, value in request.headers.items() if name.startswith("flwr-")}


def _keys(folder: Path, bank: str) -> Keys:
    return Home(folder / bank).keys[-1]


def _forge(folder: Path) -> Path:
    """A certificate for alder, by an authority of the stranger's."""
    if not folder.exists():
        now, keys = datetime.now(UTC), Keys.create("alder")
        authority = Authority.create("orchard", now)
        write_bytes(folder / "certificate.pem", chain(authority.certify_client(keys.request(None), now, 30), authority.certificate))
        write_bytes(folder / "tls.pem", pem(keys.tls))
    return folder


def _flower(host: str, port: int, folder: Path) -> dict[str, Callable[[], object]]:
    """What Flower's own clients do, with the CA certificate that they are given."""
    authority, key = (folder / COORDINATOR / "ca.pem").read_bytes(), ec.generate_private_key(ec.SECP384R1()).public_key()

    def control(call: Callable[[ControlHttpClient], object]) -> Callable[[], object]:
        def work() -> object:
            with ControlHttpClient.from_server_address(f"{host}:{port}", False, authority, interceptors=[]) as client:
                return call(client)

        return work

    def acquire() -> object:
        secret = SuperExecAuthHttpInterceptor(master_secret=b"guessed", protected_methods=frozenset({"/flwr.proto.Runtime/AcquireTask"}))
        with RuntimeHttpClient.from_server_address(f"{host}:{port}", False, authority, interceptors=[secret]) as client:
            return client.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP]))

    return {
        "flwr: register a node": control(lambda client: client.RegisterNode(RegisterNodeRequest(public_key=public_key_to_bytes(key)))),
        "flwr: list nodes": control(lambda client: client.ListNodes(ListNodesRequest())),
        "flwr: start a run": control(lambda client: client.StartRun(StartRunRequest())),
        "flwr: acquire a runtime task": acquire,
    }


def _supernode(host: str, port: int, folder: Path) -> object:
    """flower-supernode itself, with a key of the stranger's. It never gives up; whether it was let in, the gateway's record says."""
    place = folder / "stranger-node"
    Keys.create("stranger").save(place)
    command = (
        "flower-supernode", "--superlink", f"{host}:{port}", "--root-certificates", str(folder / COORDINATOR / "ca.pem"),
        "--auth-supernode-private-key", str(place / "node"), "--port", str(free_ports(1)[0]),
    )  # fmt: skip
    env = environment() | {"FLWR_HOME": str(place / "home")}
    with (place / "log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log, env=env, start_new_session=True) as process:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_SUPERNODE_SECONDS)
        os.killpg(process.pid, signal.SIGKILL)
    raise ConnectionError(f"after {_SUPERNODE_SECONDS} s: {(place / 'log').read_text().strip().splitlines()[-1]}")


@contextmanager
def _another_namespace() -> Iterator[tuple[str, ...]]:
    """What to put before a command so that it runs in another network namespace, which reaches this one at HERE; nothing where this
    machine does not allow it."""
    link = "consortium0"
    commands = (
        f"netns add {NAMESPACE}", f"link add {link} type veth peer name {link}p", f"link set {link}p netns {NAMESPACE}",
        f"addr add {HERE}/30 dev {link}", f"link set {link} up", f"-n {NAMESPACE} addr add {THERE}/30 dev {link}p",
        f"-n {NAMESPACE} link set {link}p up", f"-n {NAMESPACE} link set lo up",
    )  # fmt: skip
    try:
        allowed = all(subprocess.run(["ip", *command.split()], capture_output=True).returncode == 0 for command in commands)
        yield ("ip", "netns", "exec", NAMESPACE) if allowed else ()
    except FileNotFoundError:
        yield ()
    finally:
        with contextlib.suppress(FileNotFoundError):
            subprocess.run(["ip", "netns", "del", NAMESPACE], capture_output=True)
            subprocess.run(["ip", "link", "del", link], capture_output=True)


def _listening(made: System, side: str) -> dict[int, tuple[str, str]]:
    """Address and program, by port, of all processes of a side."""
    process = psutil.Process(made.running[side].pid)
    found = {}
    for each in (process, *process.children(recursive=True)):
        for connection in each.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN:
                found[connection.laddr.port] = (connection.laddr.ip, " ".join(each.cmdline()[1:4])[-70:])
    return found


@dataclass(frozen=True)
class Port:
    """That a process of a side listens on."""

    side: str
    port: int
    address: str
    process: str
    is_gateway: bool
    """The coordinator's, for banks"""


@dataclass(frozen=True)
class Siege:
    """What was tried, and from where."""

    from_elsewhere: bool
    """From another network namespace"""
    ports: list[Port]
    attempts: list[Attempt]
    noted: dict[str, int]
    """What the coordinator's gateway has on record of those whom it could not tell who they are: why, and the answer's status"""

    @property
    def faults(self) -> list[str]:
        """Who was let in and must not be, or the other way round; ports that others can reach."""
        open_ports = [f"{port} is open to others" for port in self.ports if port.address != LOOPBACK and not port.is_gateway]
        here = [] if self.from_elsewhere else [each for each in self.attempts if each.what.startswith("port ")]
        let_in = {(each.who, each.what) for each in self.attempts if each.let_in and each not in here}
        answered = [f"somebody without a name was answered with {status}" for status in self.noted.values() if 0 < status < 400]
        return open_ports + answered + [f"{who}, {what}: not as it should be" for who, what in let_in ^ MEMBERS]


def besiege(folder: Path) -> Siege:
    with _another_namespace() as prefix, system(folder, HERE if prefix else LOOPBACK) as made:
        made.start(COORDINATOR, "alder")
        until(lambda: (made.home / "traffic.json").exists() and totals(made.home).get("alder", Totals()).requests > 5, "alder is connected")
        ports = [port for side in made.running for port in _listening(made, side)]

        def tried(when: str) -> list[Attempt]:
            others = [port.port for port in ports if not port.is_gateway]
            command = (*prefix, sys.executable, "-m", "tests.federation.stranger", when, made.host, made.port, folder, *others)
            done = subprocess.run([*map(str, command)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, check=True)
            return [Attempt(**row) for row in map(json.loads, done.stdout.splitlines())]

        first = tried("attempts")
        made.world.made.sign(made.world.made.propose("dogwood"))
        until(lambda: "version 2 of the roster is in force" in made.said(COORDINATOR), "the roster without dogwood is in force")
        found = [*first, *tried("after_leaving")]
        assert made.stop("alder") == made.stop(COORDINATOR) == 0
        rows = map(json.loads, (made.home / "gateway.jsonl").read_text().splitlines())
        return Siege(bool(prefix), ports, found, {row.get("why", ""): row["status"] for row in rows if not row["bank"]})


def _listening(made: System, side: str) -> Iterator[Port]:
    process = psutil.Process(made.running[side].pid)
    for each in (process, *process.children(recursive=True)):
        for connection in each.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN:
                address, port = connection.laddr
                yield Port(side, port, address, Path(each.cmdline()[1]).name.replace("-m", each.cmdline()[2]), port == made.port)


def main(when: str = "", host: str = "", port: str = "", folder: str = "", *others: str) -> None:
    if when:
        tried = attempts if when == "attempts" else after_leaving
        for each in tried(host, int(port), Path(folder), [*map(int, others)]):
            print(json.dumps(asdict(each)), flush=True)
        return
    with tempfile.TemporaryDirectory() as scratch:
        siege = besiege(Path(scratch) / "federation")
    print(table(("side", "listens", "process"), [(port.side, f"{port.address}:{port.port}", port.process) for port in siege.ports]))
    print("\nfrom another network namespace" if siege.from_elsewhere else "\nfrom this network namespace: another is not allowed here")
    print(table(("who", "what", "", "what came back"),
                [(each.who, each.what, "let in" if each.let_in else "refused", each.came) for each in siege.attempts]))  # fmt: skip
    print("\nrefused without a name, by the gateway's record:", *siege.noted, "", sep="\n")
    print("\n".join(siege.faults) or "nobody was let in but members, to the fleet")
    sys.exit(bool(siege.faults))


if __name__ == "__main__":
    main(*sys.argv[1:])
