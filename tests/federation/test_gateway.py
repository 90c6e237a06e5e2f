"""Gateways: real processes and certificates on loopback, and behind them a server that keeps what has reached it."""

import asyncio
import hashlib
import http.client
import json
import shutil
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import uvicorn
from flwr.proto.fab_pb2 import Fab, GetFabResponse
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from federation.enrolment.authority import chain
from federation.enrolment.home import Home
from federation.enrolment.registry import Registry
from federation.flower.traffic import take_refused_bundle, totals
from federation.rounds.record import decisions
from tests.federation.enrolment import BANKS, NOW, Federation
from tests.federation.test_config import BANK
from tests.helpers import REPOSITORY

FLEET, PULL = "/v1/fleet/confirm-message-received", "/v1/fleet/pull-messages"
LISTED, OTHER = b"a bundle that was looked at", b"and one that was not"
LIMITED = """
import sys
from pathlib import Path
from federation.flower import serving
from federation.flower.gateway import Limits, serve_coordinator
serving._IDLE_SECONDS = 0.3
folder, upstream, ca = sys.argv[1:]
limits = Limits(body=1000, a_second=5, at_once=2, seconds=1.5)
serve_coordinator(Path(folder), upstream, Path(ca), limits=limits, ready=lambda port: print(port, flush=True))
"""


@dataclass
class Upstream:
    """In the SuperLink's place."""

    port: int = 0
    bundle: bytes = LISTED
    begun: int = 0
    """Requests of which at least the head has come"""
    reached: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    """Path, headers and body of each request"""
    message: bytes = b""
    """For whoever pulls first"""

    async def answer(self, request: Request) -> Response:
        self.begun += 1
        self.reached.append((request.url.path, dict(request.headers), body := await request.body()))
        match request.url.path:
            case "/v1/fleet/get-fab":
                fab = Fab(hash_str=hashlib.sha256(LISTED).hexdigest(), content=self.bundle)
                return Response(GetFabResponse(fab=fab).SerializeToString())
            case "/v1/fleet/redirected":
                return RedirectResponse("http://127.0.0.1:1/v1/fleet/get-fab")
            case "/v1/fleet/endless":
                return Response(b"0", headers={"content-length": str(2**30)})
            case "/v1/fleet/pull-messages":
                message, self.message = self.message, b""
                return Response(message)
            case "/v1/fleet/slow":
                await asyncio.sleep(2)
        return Response(body[::-1], headers={"connection": "keep-alive", "x-more": "1"})


@contextmanager
def _serving(upstream: Upstream, coordinator: Path) -> Iterator[None]:
    app = Starlette(routes=[Route("/{path:path}", upstream.answer, methods=["GET", "POST"])])
    files = {"ssl_certfile": coordinator / "server.pem", "ssl_keyfile": coordinator / "server.key"}
    server = uvicorn.Server(uvicorn.Config(app, port=0, ws="none", log_config=None, **files))  # type: ignore[arg-type]
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    upstream.port = server.servers[0].sockets[0].getsockname()[1]
    yield
    server.should_exit = True
    thread.join()


@contextmanager
def _gateway(*command: object) -> Iterator[int]:
    """Its port, while it runs."""
    with subprocess.Popen([sys.executable, *map(str, command)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            yield int(process.stdout.readline())
        finally:
            process.terminate()
        assert process.wait(10) == 0


def _not_started(*command: object) -> str:
    """What a gateway says that does not start."""
    done = subprocess.run(
        [sys.executable, "-m", "federation.flower.gateway", *map(str, command)], cwd=REPOSITORY, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    return done.stderr


@dataclass
class World:
    """A federation whose roster is in force, and its gateways: the coordinator's, and alder's before it."""

    federation: Federation
    upstream: Upstream
    port: int = 0
    bank: int = 0
    opened: list[http.client.HTTPSConnection] = field(default_factory=list)

    @property
    def coordinator(self) -> Path:
        return self.federation.folder / "coordinator"

    @property
    def ca(self) -> Path:
        return self.coordinator / "ca.pem"

    @property
    def refused(self) -> str:
        """Why the last request came to nothing, by the coordinator's gateway's own account."""
        return str(json.loads((self.coordinator / "gateway.jsonl").read_text().splitlines()[-1]).get("why"))

    def keys(self, bank: str) -> Path:
        return self.federation.folder / bank / "keys" / "1"

    def headers(self, bank: str) -> dict[str, str]:
        """As Flower's own code makes them."""
        key, request = self.federation.homes[bank].keys[-1].node, httpx.Request("POST", "https://localhost")
        NodeAuthHttpInterceptor(key, key.public_key()).intercept(SimpleNamespace(request=request), lambda context: None)  # type: ignore[arg-type, return-value]
        return {name: value for name, value in request.headers.items() if name.startswith("flwr-")}

    def connect(self, bank: str = "alder", *, port: int = 0, keys: Path | None = None) -> http.client.HTTPSConnection:
        """To the coordinator's gateway, with what the bank connects with."""
        context = ssl.create_default_context(cafile=self.ca)
        if bank:
            folder = keys or self.keys(bank)
            context.load_cert_chain(folder / "certificate.pem", folder / "tls.pem")
        self.opened.append(http.client.HTTPSConnection("localhost", port or self.port, context=context, timeout=30))
        return self.opened[-1]

    def ask(
        self, connection: http.client.HTTPSConnection, target: str = FLEET, *, method: str = "POST", bank: str = "alder", body: bytes = b""
    ) -> tuple[int, str]:
        """Status and text."""
        headers = {"content-length": str(len(body)), "te": "trailers", "cookie": "a=b"}
        _begin(connection, self.headers(bank) | headers, body, target=target, method=method)
        answer = connection.getresponse()
        return answer.status, answer.read().decode(errors="replace")

    def ask_bank(self, path: str, body: bytes = b"") -> httpx.Response:
        """What alder's SuperNode gets from its own gateway."""
        context = ssl.create_default_context(cafile=self.federation.folder / "alder" / "loopback" / "ca.pem")
        headers = self.headers("alder")
        return httpx.post(f"https://127.0.0.1:{self.bank}{path}", content=body, headers=headers, verify=context, trust_env=False)


@pytest.fixture(scope="module")
def world(enrolled: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = shutil.copytree(enrolled, tmp_path_factory.mktemp("gateways") / "federation")
    federation = Federation(folder, Registry(folder / "coordinator"), {name: Home(folder / name) for name in BANKS})
    federation.sign(federation.propose())
    federation.join("elder")  # approved, and in no roster yet
    for name, home in federation.homes.items():
        home.accept(folder / "coordinator" / "members" / f"{name}.pem", NOW)
    _allow(folder, LISTED)
    world, gateway = World(federation, Upstream()), ("-m", "federation.flower.gateway")
    with (
        _serving(world.upstream, world.coordinator),
        _gateway(*gateway, "coordinator", world.coordinator, f"localhost:{world.upstream.port}", world.ca) as world.port,
        _gateway(*gateway, "bank", folder / "alder", folder / "bank.yaml", f"localhost:{world.port}") as world.bank,
    ):
        yield world


@pytest.fixture(autouse=True)
def _each_begins_anew(world: World) -> Iterator[None]:
    world.upstream.reached.clear()
    world.upstream.begun, world.upstream.bundle, world.upstream.message = 0, LISTED, b""
    yield
    while world.opened:
        world.opened.pop().close()


def _begin(
    connection: http.client.HTTPSConnection, headers: dict[str, str], body: bytes = b"", *, target: str = FLEET, method: str = "POST"
) -> None:
    """A request with these headers and no others."""
    connection.putrequest(method, target, skip_accept_encoding=True)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders(body)


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _allow(folder: Path, bundle: bytes) -> None:
    """In alder's policy."""
    (folder / "bank.yaml").write_text(BANK.replace("b" * 64, hashlib.sha256(bundle).hexdigest()))


def test_a_message_goes_through_both_gateways_as_it_is(world: World) -> None:
    body = bytes(range(256)) * 20480  # as Flower's objects, 5 MiB
    answer = world.ask_bank("/v1/fleet/push-object", body)
    assert (answer.status_code, answer.content) == (200, body[::-1])
    [(path, headers, reached)] = world.upstream.reached
    assert (path, reached) == ("/v1/fleet/push-object", body)
    assert headers["flwr-public-key"] == world.headers("alder")["flwr-public-key"] and "flwr-signature" in headers
    assert "x-more" not in answer.headers


def test_who_pulls_is_told_of_a_message_that_comes_meanwhile(world: World) -> None:
    coming = threading.Timer(1.0, setattr, (world.upstream, "message", b"a message"))
    coming.start()
    assert world.ask_bank(PULL).content == b"a message"
    assert len({body for _, _, body in world.upstream.reached}) == 1 < len(world.upstream.reached)


def test_who_pulls_is_told_after_seconds_that_there_is_nothing(world: World) -> None:
    began = time.monotonic()
    assert world.ask(world.connect(), PULL) == (200, "")
    assert 4 < time.monotonic() - began < 20


def test_of_two_pulls_of_a_bank_the_later_gets_the_message(world: World) -> None:
    former, later = world.connect(), world.connect()
    for number, connection in enumerate((former, later)):
        _begin(connection, world.headers("alder") | {"content-length": "0"}, target=PULL)
        _until(lambda before=number: world.upstream.begun > before)  # type: ignore[misc]
    assert former.getresponse().read() == b""
    world.upstream.message = b"a message"
    assert later.getresponse().read() == b"a message"


def test_a_pull_takes_no_message_for_a_node_that_has_left(world: World) -> None:
    left = world.connect()
    _begin(left, world.headers("alder") | {"content-length": "0"}, target=PULL)
    _until(lambda: world.upstream.begun > 0)
    left.close()
    time.sleep(0.2)
    world.upstream.message = b"a message"
    time.sleep(1.5)
    assert world.upstream.message == b"a message"
    assert world.ask(world.connect(), PULL) == (200, "a message")


def test_only_headers_that_flower_reads_go_on(world: World) -> None:
    assert world.ask(world.connect())[0] == 200
    [(_, headers, _)] = world.upstream.reached
    own = {"host", "accept", "accept-encoding", "connection", "user-agent"}
    assert set(headers) - own == {"content-length", "flwr-public-key", "flwr-signature", "flwr-timestamp"}


def test_without_a_certificate_there_is_no_connection(world: World) -> None:
    with pytest.raises((ssl.SSLError, ConnectionError)):
        world.ask(world.connect(""))
    assert world.refused == "handshake: PEER_DID_NOT_RETURN_A_CERTIFICATE"
    assert not world.upstream.reached


def test_a_certificate_of_another_authority_opens_nothing(world: World, tmp_path: Path) -> None:
    other = Registry.create(tmp_path / "other", "orchard", ["localhost"], NOW)
    path = other.approve(world.federation.homes["alder"].request(), world.federation.told, NOW)
    keys = shutil.copytree(world.keys("alder"), tmp_path / "keys")
    shutil.copy(path, keys / "certificate.pem")
    with pytest.raises((ssl.SSLError, ConnectionError)):
        world.ask(world.connect(keys=keys))
    assert world.refused.startswith("handshake: ") and "certificate" in world.refused
    assert not world.upstream.reached


def test_an_expired_certificate_is_named_on_both_sides(world: World, tmp_path: Path) -> None:
    home, authority = world.federation.homes["birch"], world.federation.registry.authority
    ended = authority.certify_client(home.request(), NOW - timedelta(minutes=5), days=0)
    folder = shutil.copytree(world.federation.folder / "birch", tmp_path / "birch")
    (folder / "keys" / "1" / "certificate.pem").write_bytes(chain(ended, authority.certificate))
    with pytest.raises((ssl.SSLError, ConnectionError)):
        world.ask(world.connect(keys=folder / "keys" / "1"))
    assert world.refused == "handshake: certificate has expired"
    said = _not_started("bank", folder, world.federation.folder / "bank.yaml", "localhost:1")
    assert said.startswith("error: the certificate of birch ended at ") and "federation renew" in said


def test_a_coordinator_without_a_certificate_that_holds_does_not_start(world: World, tmp_path: Path) -> None:
    folder, authority = shutil.copytree(world.coordinator, tmp_path / "coordinator"), world.federation.registry.authority
    key = authority.key.public_key()
    ended = authority.certify_server(key, ["localhost"], NOW - timedelta(minutes=5), days=0)
    (folder / "server.pem").write_bytes(chain(ended, authority.certificate))
    assert "the certificate of coordinator ended at " in _not_started("coordinator", folder, "localhost:1", world.ca)
    fresh = authority.certify_server(key, ["localhost"], NOW, days=1)
    (folder / "server.pem").write_bytes(chain(fresh, authority.certificate))
    assert "server.pem: not for the key in " in _not_started("coordinator", folder, "localhost:1", world.ca)


def test_a_key_that_is_in_no_roster_is_refused_by_name(world: World) -> None:
    status, text = world.ask(world.connect("elder"), bank="elder")
    assert (status, text) == (403, "elder: the key of its certificate is not in the roster in force")
    assert world.refused == text
    assert not world.upstream.reached


def test_a_bank_that_leaves_the_roster_is_refused_from_then_on(world: World) -> None:
    connection = world.connect("dogwood")
    assert world.ask(connection, bank="dogwood")[0] == 200
    world.federation.sign(world.federation.propose("dogwood"))
    assert world.ask(connection, bank="dogwood")[0] == 403
    assert world.ask(world.connect("cedar"), bank="cedar")[0] == 200
    assert len(world.upstream.reached) == 2


def test_no_bank_speaks_with_another_s_node_key(world: World) -> None:
    text = "alder: not the node key that it has in the roster"
    assert world.ask(world.connect("alder"), bank="birch") == (403, text)
    connection = world.connect("alder")
    _begin(connection, {"content-length": "0"})
    assert connection.getresponse().status == 403
    connection = world.connect("alder")
    connection.putrequest("POST", FLEET)
    for bank in ("birch", "alder"):
        connection.putheader("flwr-public-key", world.headers(bank)["flwr-public-key"])
    connection.endheaders()
    assert connection.getresponse().status == 403
    assert not world.upstream.reached


@pytest.mark.parametrize(
    "target",
    [
        "/v1/control/start-run",
        "/v1/runtime/acquire-task",
        "/health",
        "/docs",
        "/openapi.json",
        "/",
        "/v1/fleet",
        "/v1/fleet/",
        "/v1/fleet/../control/start-run",
        "/v1/fleet/x/../../control/start-run",
        "/v1/fleet/%2e%2e/control/start-run",
        "/v1/fleet/%2e%2e%2fcontrol%2fstart-run",
        "/v1/fleet/%252e%252e/control/start-run",
        "/v1/fleet/..%5ccontrol",
        "/v1/fleet/..\\control\\start-run",
        "/v1/fleet/..;/control/start-run",
        "/v1/fleet/;/pull-messages",
        "/v1/fleet//pull-messages",
        "//v1/fleet/pull-messages",
        "/v1//fleet/pull-messages",
        "/./v1/fleet/pull-messages",
        "/V1/Fleet/pull-messages",
        "/v1/fleet/Pull-Messages",
        "/v1/fleet/pull-messages/",
        "/v1/fleet/pull%2dmessages",
        "/v1%2ffleet/pull-messages",
        "/v1/fleet/pull-messages%00",
        "/v1/fleet/pull-messages%0d%0ax:y",
        "/v1/fleet/pull-messages?run=1",
        "/v1/fleet/pull-messages#control",
        "/v1/fleet/.",
        "https://localhost/v1/fleet/pull-messages",
        "https://elsewhere/v1/control/start-run",
        "localhost:443",
        "*",
    ],
)
def test_nothing_but_the_plain_fleet_goes_on(world: World, target: str) -> None:
    assert world.ask(world.connect(), target) == (403, "only /v1/fleet/ is forwarded")
    assert not world.upstream.reached


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "CONNECT", "TRACE", "post"])
def test_the_fleet_takes_only_post(world: World, method: str) -> None:
    assert world.ask(world.connect(), method=method)[0] == 405
    assert not world.upstream.reached


@pytest.mark.parametrize(
    ("headers", "statuses"),
    [
        ({"content-length": str(2**24 + 1)}, [413]),
        ({}, [413]),
        ({"content-length": "9" * 19}, [413]),
        ({"content-length": "9" * 5000}, [400]),
        ({"content-length": "-1"}, [400]),
        ({"transfer-encoding": "chunked"}, [411]),
        ({"content-length": "5", "transfer-encoding": "chunked"}, [411]),
        ({"content-length": "0", "x": "y" * 20_000}, [400, 431]),  # in several pieces, or in one
    ],
)
def test_a_request_has_a_length_and_not_too_great_a_one(world: World, headers: dict[str, str], statuses: list[int]) -> None:
    connection = world.connect()
    _begin(connection, world.headers("alder") | headers)
    assert connection.getresponse().status in statuses
    assert not world.upstream.reached


def test_a_bank_that_floods_or_is_slow_takes_nothing_from_another(world: World) -> None:
    with _gateway("-c", LIMITED, world.coordinator, f"localhost:{world.upstream.port}", world.ca) as port:
        slow = [world.connect(port=port) for _ in range(2)]
        for connection in slow:
            _begin(connection, world.headers("alder") | {"content-length": "10"}, b"half")
        _until(lambda: world.upstream.begun == 2)
        assert world.ask(world.connect(port=port)) == (503, "more than 2 requests at once")
        assert world.ask(world.connect("birch", port=port), bank="birch")[0] == 200
        assert [connection.getresponse().status for connection in slow] == [504, 504]
        flooding = world.connect("birch", port=port)
        assert (503, "more than 5 requests a second") in [world.ask(flooding, bank="birch") for _ in range(20)]
        assert world.ask(world.connect("cedar", port=port), bank="cedar", body=bytes(1001))[0] == 413
        assert world.ask(world.connect("cedar", port=port), "/v1/fleet/slow", bank="cedar")[0] == 504


def test_a_bank_that_leaves_in_the_middle_leaves_a_line(world: World) -> None:
    connection = world.connect()
    _begin(connection, world.headers("alder") | {"content-length": "10"}, b"half")
    connection.close()
    _until(lambda: world.refused == "left before its request was whole")


def test_connections_on_which_nothing_is_asked_are_closed(world: World) -> None:
    with _gateway("-c", LIMITED, world.coordinator, f"localhost:{world.upstream.port}", world.ca) as port:
        silent, dripping = world.connect(port=port), world.connect(port=port)
        silent.connect()
        dripping.connect()
        with suppress(ConnectionError, ssl.SSLError):
            for letter in "POST /v1":
                dripping.sock.send(letter.encode())
                time.sleep(0.1)
        for connection in (silent, dripping):
            with suppress(ConnectionError, ssl.SSLError):
                assert connection.sock.recv(1) == b""


def test_a_bank_holds_only_so_many_connections(world: World) -> None:
    held = [world.connect() for _ in range(65)]
    for connection in held:
        connection.connect()
    with pytest.raises((ssl.SSLError, ConnectionError)):
        world.ask(held[-1])
    assert world.ask(held[0])[0] == 200
    assert world.ask(world.connect("birch"), bank="birch")[0] == 200


def test_a_bundle_that_the_policy_lists_passes_and_no_other(world: World) -> None:
    folder, path = world.federation.folder, "/v1/fleet/get-fab"
    answer = world.ask_bank(path)
    assert (answer.status_code, GetFabResponse.FromString(answer.content).fab.content) == (200, LISTED)
    world.upstream.bundle = OTHER  # though it is said to have the hash of the other
    asked, allowed = (hashlib.sha256(bundle).hexdigest() for bundle in (OTHER, LISTED))
    answer = world.ask_bank(path)
    assert (answer.status_code, answer.text) == (403, f"bundles: asked {asked}, allowed {allowed}")
    [noted] = decisions(folder / "alder" / "record.jsonl")
    assert (noted.bank, noted.rule, noted.asked, noted.released) == ("alder", "bundles", {"bundle": asked}, "")
    assert take_refused_bundle(world.coordinator, "alder", 0.0) is None
    assert world.ask_bank(FLEET).status_code == 200  # with which the bank's gateway tells the coordinator's, once
    assert take_refused_bundle(world.coordinator, "alder", 0.0) == asked
    assert world.ask_bank(FLEET).status_code == 200
    assert take_refused_bundle(world.coordinator, "alder", 0.0) is None
    _allow(folder, OTHER)
    assert world.ask_bank(path).status_code == 200
    _allow(folder, LISTED)
    assert world.ask_bank(path).status_code == 403


def test_a_policy_that_cannot_be_read_lets_no_bundle_pass(world: World) -> None:
    path = world.federation.folder / "bank.yaml"
    path.write_text("policy: {}")
    answer = world.ask_bank("/v1/fleet/get-fab")
    _allow(world.federation.folder, LISTED)
    assert answer.status_code == 503 and "policy" in answer.text


def test_a_coordinator_leads_a_supernode_nowhere_else(world: World) -> None:
    answer = world.ask_bank("/v1/fleet/redirected")
    assert (answer.status_code, answer.text) == (502, "an answer that leads elsewhere")
    assert "location" not in answer.headers
    assert world.ask_bank("/v1/fleet/endless").status_code == 502


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ("localhost:1", "All connection attempts failed"),
        ("127.1:{0.port}", "not valid for '127.1'"),  # the same machine by a name that is not in its certificate
        ("localhost:{0.bank}", "self-signed certificate in certificate chain"),  # another authority's
    ],
)
def test_a_supernode_is_told_why_the_coordinator_is_not_reached(world: World, tmp_path: Path, host: str, reason: str) -> None:
    folder, address = shutil.copytree(world.federation.folder / "birch", tmp_path / "birch"), host.format(world)
    with _gateway("-m", "federation.flower.gateway", "bank", folder, world.federation.folder / "bank.yaml", address) as port:
        context = ssl.create_default_context(cafile=folder / "loopback" / "ca.pem")
        answer = httpx.post(f"https://localhost:{port}{FLEET}", verify=context, trust_env=False)
    assert answer.status_code == 502 and answer.text.startswith(f"{address} cannot be reached: ") and reason in answer.text
    [line] = (folder / "gateway.jsonl").read_text().splitlines()
    assert json.loads(line)["why"] == answer.text
    assert totals(folder)["birch"].refused == 1


def test_every_request_has_a_line_and_a_bank_its_totals(world: World) -> None:
    status, text = world.ask(world.connect("cedar"), bank="cedar", body=b"12345")
    assert (status, text) == (200, "54321")
    written = {"bank": "cedar", "method": "POST", "path": FLEET, "status": 200, "received": 5, "sent": 5}
    until = time.monotonic() + 10
    while not any(line | written == line and line["time"] for line in _lines(world)):  # it is written after the answer
        assert time.monotonic() < until
        time.sleep(0.05)
    assert (world.coordinator / "gateway.jsonl").stat().st_mode & 0o777 == 0o600


def _lines(world: World) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (world.coordinator / "gateway.jsonl").read_text().splitlines()]
