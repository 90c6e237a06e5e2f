"""TLS and HTTP as gateways speak them: TLS 1.3 that trusts one authority, HTTP/1.1 on connections that nobody can hold for nothing."""

import asyncio
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from cryptography import x509
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from federation.enrolment.authority import chain
from federation.errors import CertificateError, FactsError

_IDLE_SECONDS = 30
"""After which a connection is closed on which no request has begun"""
_KEPT_SECONDS = 4
"""For which a connection onwards is kept. SuperNodes ask every 3 seconds, a SuperLink closes after 5"""
_CONNECT_SECONDS = 10
_LAST_SECONDS = 1
"""For requests that are going on when the gateway is to end"""
_CONNECTIONS = 64
"""With one certificate"""
LONGEST_HEAD = 16 * 2**10
"""Bytes of a request before its body"""


def server_tls(certificate: Path, key: Path, tell: Callable[[str], None], clients: x509.Certificate | None = None) -> ssl.SSLContext:
    """That of a server, which tells why a connection came to nothing. Where an authority for `clients` is given, only those with a
    certificate of it are let in. Raises CertificateError."""
    context = _tls(ssl.PROTOCOL_TLS_SERVER, clients, certificate, key)
    context.sslobject_class = _telling(tell)
    if clients:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def client(address: str, authority: x509.Certificate, certificate: Path | None = None, key: Path | None = None) -> httpx.AsyncClient:
    """For the one server at HOST:PORT, whose certificate is the authority's, past any proxy. Raises CertificateError."""
    context = _tls(ssl.PROTOCOL_TLS_CLIENT, authority, certificate, key)
    kept = httpx.Limits(max_connections=None, keepalive_expiry=_KEPT_SECONDS)
    timeout = httpx.Timeout(None, connect=_CONNECT_SECONDS)
    return httpx.AsyncClient(base_url=f"https://{address}", verify=context, trust_env=False, limits=kept, timeout=timeout)


def _tls(protocol: int, trusted: x509.Certificate | None, certificate: Path | None, key: Path | None) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    if trusted:
        context.load_verify_locations(cadata=chain(trusted).decode())
    if certificate:
        try:
            context.load_cert_chain(certificate, key)
        except OSError as error:  # ssl.SSLError among them
            raise CertificateError(f"{certificate}: not for the key in {key} ({error})", "was one of them replaced?") from error
    return context


def _telling(tell: Callable[[str], None]) -> type[ssl.SSLObject]:
    """A server's side that says why a connection came to nothing: asyncio drops it without a word."""

    class Telling(ssl.SSLObject):
        def do_handshake(self) -> None:
            try:
                super().do_handshake()
            except ssl.SSLWantReadError:
                raise
            except ssl.SSLError as error:
                tell(getattr(error, "verify_message", None) or error.reason or str(error))
                raise

    return Telling


class _Connection(H11Protocol):
    """A TLS connection, whose peer's certificate is in its requests' `state`; closed if it is one too many, or nothing comes of it."""

    certificate: x509.Certificate | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if shown := transport.get_extra_info("ssl_object").getpeercert(binary_form=True):
            self.certificate = x509.load_der_x509_certificate(shown)
        self.app_state = {"certificate": self.certificate}
        if sum(isinstance(each, _Connection) and each.certificate == self.certificate for each in self.connections) > _CONNECTIONS:
            transport.abort()
        self.loop.call_later(_IDLE_SECONDS, self._look, None)

    def _look(self, last: Any) -> None:
        """Close it if no request has begun since the last look, however many bytes of one have come, and none is going on."""
        if self.cycle is last and (last is None or last.response_complete):
            self.transport.abort()
        elif not self.transport.is_closing():
            self.loop.call_later(_IDLE_SECONDS, self._look, self.cycle)

    def shutdown(self) -> None:
        super().shutdown()
        self.loop.call_later(_LAST_SECONDS, self.transport.abort)  # clients do not hurry to say goodbye, as TLS has it


class _Server(uvicorn.Server):
    """Tells when it is up, and ends without ending the process."""

    def __init__(self, config: uvicorn.Config, up: Callable[[], None]) -> None:
        super().__init__(config)
        self._up = up

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._up()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        with super().capture_signals():
            yield
            self._captured_signals.clear()  # or they would be raised again


def listen(host: str, port: int) -> socket.socket:
    """Raises FactsError."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise FactsError(f"{host}, port {port}: {error.strerror}", "is something else listening there?") from error


async def serve(app: ASGIApp, listening: socket.socket, tls: ssl.SSLContext, up: Callable[[], None]) -> None:
    """Until SIGTERM or SIGINT."""
    config = uvicorn.Config(
        app, http=_Connection, ws="none", lifespan="off", interface="asgi3", log_config=None, log_level="error", access_log=False,
        proxy_headers=False, server_header=False, date_header=False, timeout_keep_alive=_IDLE_SECONDS,
        h11_max_incomplete_event_size=LONGEST_HEAD, ssl_context_factory=lambda config, default: tls,
    )  # fmt: skip
    await _Server(config, up).serve([listening])
