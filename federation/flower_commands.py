"""Flower's processes on either side, as commands. All of them listen on loopback only, and each has a FLWR_HOME of its own.

    ca.pem  server.pem  server.key    TLS between them, made at every start; the authority's key is not kept
    secret                            without it nobody is given a task (Flower's SuperExec authentication)
    node.toml                         a bank's: what its ClientApp is told
    superlink/  supernode/  superexec/

Files 0600 in a folder 0700. Flower polls: SuperNodes every 3 s, which cannot be set, SuperExecs as often as is set here.
"""

import json
import secrets
from datetime import datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from federation.authority import Authority, chain
from federation.files import write_bytes
from federation.keys import pem
from federation.processes import LOOPBACK, Command

HOME = "CONSORTIUM_COORDINATOR"
"""The environment variable that names the coordinator's folder to a ServerApp"""
_POLL = {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2"}
_DAYS = 5 * 365


def prepare(folder: Path, now: datetime) -> None:
    """New certificates and a new secret in the folder of Flower's processes. Raises FolderError."""
    authority, key = Authority.create("local", now), ec.generate_private_key(ec.SECP256R1())
    files = {
        "ca.pem": chain(authority.certificate),
        "server.pem": chain(authority.certify_server(key.public_key(), [LOOPBACK], now, _DAYS)),
        "server.key": pem(key),
        "secret": secrets.token_hex(32).encode(),
    }
    for name, content in files.items():
        write_bytes(folder / name, content)


def coordinator(folder: Path, home: Path, port: int) -> tuple[Command, Command]:
    """The SuperLink and what starts its ServerApps, which work on the coordinator's `home`."""
    superlink = (
        "flower-superlink", "--host", LOOPBACK, "--port", str(port), "--enable-supernode-auth", *_serving(folder)
    )  # fmt: skip
    return Command("superlink", superlink, _environment(folder, "superlink"), port=port), _superexec(folder, port, {HOME: str(home)})


def bank(folder: Path, port: int, gateway: int, authority: Path, key: Path, spool: Path) -> tuple[Command, Command]:
    """The SuperNode and what starts its ClientApps.

    It reaches the coordinator by the bank's own gateway on a port of loopback; `authority` has issued the gateway's certificate, and
    `key` is the node key.
    """
    write_bytes(folder / "node.toml", f"spool = {json.dumps(str(spool))}\n".encode())
    supernode = (
        "flower-supernode", "--superlink", f"{LOOPBACK}:{gateway}", "--root-certificates", str(authority), "--auth-supernode-private-key",
        str(key), "--host", LOOPBACK, "--port", str(port), "--node-config", str(folder / "node.toml"), *_serving(folder),
    )  # fmt: skip
    return Command("supernode", supernode, _environment(folder, "supernode"), port=port, again=True), _superexec(folder, port, {})


def _serving(folder: Path) -> tuple[str, ...]:
    return (
        "--ssl-ca-certfile", str(folder / "ca.pem"), "--ssl-certfile", str(folder / "server.pem"),
        "--ssl-keyfile", str(folder / "server.key"), "--isolation", "process", "--superexec-auth-secret-file", str(folder / "secret"),
    )  # fmt: skip


def _superexec(folder: Path, port: int, environment: dict[str, str]) -> Command:
    arguments = (
        "flower-superexec", "--runtime-api-address", f"{LOOPBACK}:{port}", "--root-certificates", str(folder / "ca.pem"),
        "--superexec-auth-secret-file", str(folder / "secret"),
    )  # fmt: skip
    return Command("superexec", arguments, _environment(folder, "superexec") | _POLL | environment)


def _environment(folder: Path, name: str) -> dict[str, str]:
    return {"FLWR_HOME": str(folder / name)}
