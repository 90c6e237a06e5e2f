"""Reverse proxies with mutual TLS before Flower, on both sides: its own port also takes orders, from whoever reaches it, and stays on
loopback.

    SuperNode -> bank's gateway -> network -> coordinator's gateway -> SuperLink

The coordinator's gateway promises: what reaches the SuperLink from the network

- came over TLS 1.3 with a certificate that the federation's authority issued, for a key that is in the roster in force at that moment,
- is a POST to `/v1/fleet/` and one plain word after it, of known length: anything else is refused and never repaired,
- names the node key that the roster has for the bank whose certificate it is: no bank speaks as another,
- is within `Limits`, a bank's share for itself: one that floods, or is slow, is refused and the others are served.

The bank's gateway promises: the SuperNode, which trusts nobody else,

- hears only a coordinator whose certificate the roster's authority issued for the name that was asked for, and no redirect elsewhere,
- gets no bundle but those that the policy in bank.yaml lists at that moment, by the SHA-256 of the bytes that it would run. The SuperNode
  drops the message then, so the gateway itself tells the coordinator's, in a header of the next request.

Neither looks into messages: that is for signatures, secure aggregation and the bank's policy. Whoever is on the bank's own machine may
connect to its gateway; the SuperLink still asks for a signature by the node key. A coordinator that does not serve cannot be made to; a
stranger who only opens connections is for a firewall. Certificates of this side are read at the start: after `renew` or `accept`, start
again. What happened is in traffic.py's files, what a bank refused also in its record.

Flower 1.41 tries again after 502, 503 and 504, drops the message after 403, and ends after 401 or what it does not expect: so what may
pass is a 503.
"""

import argparse
import asyncio
import hashlib
import re
import ssl
import sys
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache, partial
from pathlib import Path

import httpx
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_public_key
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from federation.config import load_bank
from federation.enrolment.authority import Authority, chain, check_certificate, check_times, common_name, load
from federation.enrolment.home import Home
from federation.enrolment.keys import pem
from federation.enrolment.member import key_hash
from federation.enrolment.registry import Registry
from federation.errors import CertificateError, FolderError, NotTrusted
from federation.files import write_bytes
from federation.flower.serving import LONGEST_HEAD, client, listen, serve, server_tls
from federation.flower.traffic import Traffic, note_refused_bundle
from federation.policy import Refusal
from federation.rounds.record import Decision, note
from privacy.errors import ConsortiumError

_FLEET = re.compile(rb"/v1/fleet/[a-z]+(-[a-z]+)*")
_BUNDLE = "/v1/fleet/get-fab"
_PULL = "/v1/fleet/pull-messages"
_HELD_SECONDS = 5.0
_LOOK_SECONDS = 0.5
_NODE_KEY, _TIME, _REFUSED_BUNDLE = "flwr-public-key", "flwr-timestamp", "consortium-refused-bundle"
_AHEAD, _BEHIND = 5, 305
"""Seconds that a SuperNode's clock may be ahead of the SuperLink's, and behind: Flower's own limits, whose refusal does not say why"""
_LOOPBACK_DAYS = 1800


@dataclass(frozen=True)
class Limits:
    """Of what one bank may ask for. Flower cuts vectors into objects of 5 MiB, a bundle has 10 MiB at most, and a SuperNode moves two
    objects at once."""

    body: int = 16 * 2**20
    """Bytes of a request, and of an answer"""
    a_second: float = 100
    """Requests, for long; as many may come at once"""
    at_once: int = 16
    """Requests that are going on"""
    seconds: float = 60
    """For a request and its answer, in all"""


class _Refused(Exception):
    """An answer of the gateway's own."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class _Share:
    """Of one bank: its requests that are going on, and those that it may still begin, which grow with time (a token bucket)."""

    def __init__(self, limits: Limits) -> None:
        self._limits, self._left, self._at, self._going_on = limits, limits.a_second, time.monotonic(), 0

    @contextmanager
    def turn(self) -> Iterator[None]:
        now, most = time.monotonic(), self._limits.a_second
        self._left, self._at = min(most, self._left + (now - self._at) * most), now
        if self._left < 1:
            raise _Refused(503, f"more than {most:g} requests a second")
        if self._going_on >= self._limits.at_once:
            raise _Refused(503, f"more than {self._limits.at_once} requests at once")
        self._left -= 1
        self._going_on += 1
        try:
            yield
        finally:
            self._going_on -= 1


class _Gateway:
    """What both sides have in common, as an ASGI application.

    `admit` says which bank a request is from, `approve` looks at an answer in which there is a bundle; either refuses by raising. `told`
    is told which bank has refused which bundle.
    """

    def __init__(
        self,
        onwards: httpx.AsyncClient,
        admit: Callable[[Request], str],
        approve: Callable[[bytes], None],
        told: Callable[[str, str], None],
        limits: Limits,
        traffic: Traffic,
    ) -> None:
        self.onwards, self._admit, self._approve, self._told = onwards, admit, approve, told
        self._limits, self.traffic = limits, traffic
        self._shares: dict[str, _Share] = {}
        self._pulling: dict[str, Request] = {}
        """The last request for messages, by bank"""
        self.refused_bundle = ""
        """Of which the other side has not heard yet"""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request, bank, received, why = Request(scope, receive), "", 0, ""
        response: Response | None = None
        try:
            async with asyncio.timeout(self._limits.seconds):
                bank = self._admit(request)
                with self._shares.setdefault(bank, _Share(self._limits)).turn():
                    path, received = _checked(request, self._limits.body)
                    if refused := request.headers.get(_REFUSED_BUNDLE):
                        await asyncio.to_thread(self._told, bank, refused)
                    if path == _PULL and received <= LONGEST_HEAD:
                        response = await self._pull(bank, request)
                        await response(scope, receive, send)
                    else:
                        async with self._asked(request, path, request.stream()) as answer:
                            response = await self._response(path, answer)
                            await response(scope, receive, send)
        except (_Refused, ConsortiumError, httpx.HTTPError, ClientDisconnect, TimeoutError) as error:
            status, why = self._explained(error)
            if response is None:
                response = PlainTextResponse(why, status)
                await response(scope, receive, send)
        if response.status_code >= 400:
            why = why or bytes(response.body).decode(errors="replace")
        self.traffic.note(
            bank=bank, method=request.method, path=_raw(scope), status=response.status_code,
            received=received, sent=int(response.headers["content-length"]), why=why,
        )  # fmt: skip

    async def _pull(self, bank: str, request: Request) -> Response:
        """Messages for a SuperNode. While there are none the answer is held back, for a SuperNode that was told so sleeps for 3 seconds;
        but not for one that has gone, or has asked anew since: what comes would be lost."""
        body, until = await request.body(), time.monotonic() + _HELD_SECONDS
        self._pulling[bank] = request
        while True:
            self._admit(request)
            async with self._asked(request, _PULL, body) as answer:
                response = await self._response(_PULL, answer)
            if response.status_code != 200 or response.body or time.monotonic() > until:
                return response
            await asyncio.sleep(_LOOK_SECONDS)
            if self._pulling[bank] is not request or await request.is_disconnected():
                return response

    @asynccontextmanager
    async def _asked(self, request: Request, path: str, body: bytes | AsyncIterator[bytes]) -> AsyncIterator[httpx.Response]:
        headers, refused = _passed_on(request.headers), self.refused_bundle
        if refused:
            headers[_REFUSED_BUNDLE] = refused
        async with self.onwards.stream("POST", path, headers=headers, content=body) as answer:
            if refused == self.refused_bundle and answer.status_code < 400:
                self.refused_bundle = ""
            yield answer

    async def _response(self, path: str, answer: httpx.Response) -> Response:
        """What is passed back: without the headers that send a client elsewhere, and once it has been looked at."""
        if 300 <= answer.status_code < 400:
            raise _Refused(502, "an answer that leads elsewhere")
        if _length(answer.headers, self._limits.body) is None:
            raise _Refused(502, f"an answer of more than {self._limits.body} bytes, or of no known length")
        headers = {name: answer.headers[name] for name in ("content-type", "content-length") if name in answer.headers}
        if answer.status_code < 400 and path not in (_BUNDLE, _PULL):
            return StreamingResponse(answer.aiter_raw(), answer.status_code, headers)
        content = b"".join([piece async for piece in answer.aiter_raw()])
        if answer.status_code < 400 and path == _BUNDLE:
            await asyncio.to_thread(self._approve, content)
        return Response(content, answer.status_code, headers)

    def _explained(self, error: Exception) -> tuple[int, str]:
        """Status and text."""
        match error:
            case _Refused():
                return error.status, str(error)
            case ConsortiumError():  # of this side: it may be mended
                return 503, error.message
            case httpx.TimeoutException() | TimeoutError():
                return 504, f"no answer from {self.onwards.base_url.netloc.decode()} in time"
            case ClientDisconnect():
                return 400, "left before its request was whole"
            case _:
                return 502, f"{self.onwards.base_url.netloc.decode()} cannot be reached: {error}"


def _checked(request: Request, most: int) -> tuple[str, int]:
    """Path and length of a request that may be passed on."""
    raw: bytes = request.scope["raw_path"]
    if not _FLEET.fullmatch(raw) or request.scope["query_string"]:
        raise _Refused(403, "only /v1/fleet/ is forwarded")
    if request.method != "POST":
        raise _Refused(405, f"expected POST, not {request.method}")
    if sum(len(name) + len(value) for name, value in request.headers.raw) > LONGEST_HEAD:  # which came in one piece, or it were not here
        raise _Refused(431, f"expected headers of at most {LONGEST_HEAD} bytes")
    if "transfer-encoding" in request.headers:
        raise _Refused(411, "expected a request of known length")
    if (length := _length(request.headers, most)) is None:
        raise _Refused(413, f"expected at most {most} bytes, and their number in content-length")
    return raw.decode("ascii"), length


def _length(headers: Mapping[str, str], most: int) -> int | None:
    """What content-length says: the HTTP libraries hold bodies to it. None if it is missing or too large."""
    text = headers.get("content-length", "")
    return length if text.isascii() and text.isdigit() and (length := int(text)) <= most else None


def _passed_on(headers: Mapping[str, str]) -> dict[str, str]:
    """Those that Flower reads. An answer that was packed could be read in two ways."""
    names = ("accept", "content-type", "content-length")
    return {name: value for name, value in headers.items() if name in names or name.startswith("flwr-")} | {"accept-encoding": "identity"}


def _raw(scope: Scope) -> str:
    raw: bytes = scope["raw_path"] + (b"?" + scope["query_string"] if scope["query_string"] else b"")
    return raw.decode("ascii", "backslashreplace")


def _now() -> datetime:
    return datetime.now(UTC)


# The coordinator's side


def serve_coordinator(
    folder: Path,
    superlink: str,
    superlink_ca: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    limits: Limits = Limits(),
    ready: Callable[[int], None],
) -> None:
    """Serve banks until SIGTERM, before the SuperLink at HOST:PORT; `ready` is told the port, one that was free for 0, once it is open.

    `folder` is the registry's: a roster that changes there counts at once. Raises CertificateError, FolderError, or FactsError.
    """
    registry, traffic = Registry(folder), Traffic(folder)
    _, authority = _pair(folder / "server.pem")
    if (roster := registry.in_force) and roster.authority != key_hash(authority.public_key()):
        raise CertificateError(
            f"{folder / 'server.pem'}: not from the authority in version {roster.version} of the roster",
            "consortium federation renew makes another",
        )
    tls = server_tls(folder / "server.pem", folder / "server.key", traffic.note_handshake, authority)
    onwards = client(superlink, load(superlink_ca)[0])
    gateway = _Gateway(onwards, partial(_member, folder), lambda content: None, partial(note_refused_bundle, folder), limits, traffic)
    _serve(gateway, tls, host, port, ready)


def _member(folder: Path, request: Request) -> str:
    """Whose certificate it is, if it is in the roster now and the request names its node."""
    certificate: x509.Certificate = request.state.certificate
    check_times(certificate, _now())  # connections may outlast it
    stamp = tuple((path.name, path.stat().st_mtime_ns, path.stat().st_ino) for path in sorted(folder.glob("roster-*.json")))
    if (found := _members(folder, stamp).get(key_hash(certificate.public_key()))) is None:
        raise _Refused(403, f"{common_name(certificate)}: the key of its certificate is not in the roster in force")
    name, node = found
    if request.headers.getlist(_NODE_KEY) != [node]:
        raise _Refused(403, f"{name}: not the node key that it has in the roster")
    _check_clock(name, request.headers.get(_TIME, ""), _now())
    return name


def _check_clock(name: str, timestamp: str, now: datetime) -> None:
    try:
        behind = (now - datetime.fromisoformat(timestamp)).total_seconds()
    except (ValueError, TypeError) as error:
        raise _Refused(401, f"{name}: a request without the time") from error
    if not -_AHEAD < behind < _BEHIND:
        side = "behind" if behind > 0 else "ahead of"
        raise _Refused(401, f"{name}: its clock is {abs(behind):.0f} s {side} the coordinator's: set both by a time server")


@lru_cache(maxsize=1)
def _members(folder: Path, stamp: tuple[tuple[str, int, int], ...]) -> dict[bytes, tuple[str, str]]:
    """Name and node key, as Flower's header has it, by hash of the TLS key; read again when the stamp is another."""
    roster = Registry(folder).in_force
    return {member.tls: (member.name, _node_key(member.node)) for member in roster.members} if roster else {}


def _node_key(line: str) -> str:
    key = load_ssh_public_key(line.encode()).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return b64encode(key).decode()


# The bank's side


def serve_bank(
    home: Path, config: Path, coordinator: str, *, port: int = 0, limits: Limits = Limits(), ready: Callable[[int], None]
) -> None:
    """Serve the bank's SuperNode on loopback until SIGTERM, before the coordinator's gateway at HOST:PORT; `ready` as above.

    The SuperNode's `--root-certificates` is `home`/loopback/ca.pem. `config` is bank.yaml, whose policy counts as it is at each bundle.
    Raises NotTrusted, CertificateError, ConfigError, FolderError, or FactsError.
    """
    from federation.flower.client import fab_of  # Flower, which the coordinator's side does without

    if (roster := Home(home).in_force) is None:
        raise NotTrusted(f"{home}: no roster is in force", "sign one: consortium federation sign-roster")
    name, (chained, key) = Home(home).keys_in(roster).name, Home(home).tls_files(roster)
    certificate, authority = _pair(chained)
    if key_hash(authority.public_key()) != roster.authority:
        raise CertificateError(f"{chained}: not from the authority in version {roster.version} of the roster", "ask for another")
    load_bank(config)

    def admit(request: Request) -> str:
        check_times(certificate, _now())
        return name

    def approve(content: bytes) -> None:
        try:
            asked = hashlib.sha256(fab_of(content)).hexdigest()
        except ValueError as error:
            asked = str(error)
        if asked not in (listed := load_bank(config).policy.bundles):
            note(home / "record.jsonl", Decision(name, "", 0, 0, {"bundle": asked}, "bundles", "", None))
            gateway.refused_bundle = asked
            raise _Refused(403, str(Refusal("bundles", asked, " or ".join(listed) or "none")))

    traffic = Traffic(home)
    tls = server_tls(*_certify_loopback(home / "loopback", _now()), traffic.note_handshake)
    gateway = _Gateway(client(coordinator, authority, chained, key), admit, approve, lambda *_: None, limits, traffic)
    _serve(gateway, tls, "127.0.0.1", port, ready)


def _certify_loopback(folder: Path, now: datetime) -> tuple[Path, Path]:
    """Certificate and key for localhost by an authority of its own, `ca.pem`, whose key nobody has kept; what is there is kept while it
    holds, for the SuperNode reads it once."""
    files = folder / "server.pem", folder / "server.key"
    with suppress(FolderError, CertificateError):
        check_times(load(files[0])[0], now)
        return files
    authority, key = Authority.create("loopback", now), ec.generate_private_key(ec.SECP256R1())
    certificate = authority.certify_server(key.public_key(), ["localhost", "127.0.0.1"], now, _LOOPBACK_DAYS)
    write_bytes(folder / "ca.pem", chain(authority.certificate))
    write_bytes(files[1], pem(key))
    write_bytes(files[0], chain(certificate, authority.certificate))
    return files


def _pair(path: Path) -> tuple[x509.Certificate, x509.Certificate]:
    """A certificate, and its authority's, both holding now."""
    if len(found := load(path)) != 2:
        raise CertificateError(f"{path}: expected two certificates, one's own and the authority's", "as `approve` and `renew` write them")
    certificate, authority = found
    check_certificate(certificate, authority, _now())
    return certificate, authority


def _serve(gateway: _Gateway, tls: ssl.SSLContext, host: str, port: int, ready: Callable[[int], None]) -> None:
    listening = listen(host, port)

    async def run() -> None:
        async with gateway.onwards:
            await serve(gateway, listening, tls, lambda: ready(listening.getsockname()[1]))
        gateway.traffic.write()

    asyncio.run(run())


def main() -> None:
    """`python -m federation.flower.gateway`: one of the two, which says its port in a line when it is up."""
    parser = argparse.ArgumentParser(prog="python -m federation.flower.gateway", description="A gateway in front of Flower.")
    sides = parser.add_subparsers(required=True)
    side = sides.add_parser("coordinator", help="between banks and the SuperLink")
    side.set_defaults(serve=serve_coordinator)
    side.add_argument("folder", type=Path, help="the coordinator's")
    side.add_argument("superlink", help="HOST:PORT")
    side.add_argument("superlink_ca", type=Path, help="certificate that its own is verified by")
    side.add_argument("--host", default="127.0.0.1", help="address to listen on")
    side.add_argument("--port", type=int, default=0)
    side = sides.add_parser("bank", help="between the bank's SuperNode and the coordinator's gateway")
    side.set_defaults(serve=serve_bank)
    side.add_argument("home", type=Path, help="the bank's folder")
    side.add_argument("config", type=Path, help="bank.yaml")
    side.add_argument("coordinator", help="HOST:PORT")
    side.add_argument("--port", type=int, default=0)
    arguments = vars(parser.parse_args())
    try:
        arguments.pop("serve")(**arguments, ready=lambda port: print(port, flush=True))
    except ConsortiumError as error:
        print(f"error: {error}" + (f"\n  hint: {error.hint}" if error.hint else ""), file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
