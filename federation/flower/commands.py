"""Flower's processes on either side, as commands. All of them listen on loopback only, and each has a FLWR_HOME of its own.

    ca.pem  server.pem  server.key    TLS between them, made at every start; the authority's key is not kept
    secret                            without it nobody is given a task (Flower's SuperExec authentication)
    node.toml                         a bank's: what its ClientApp is told
    superlink/  serverapps/           a coordinator's
    supernode/  clientapps/           a bank's

Files 0600 in a folder 0700.
"""

import json
import secrets
import sys
from datetime import datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from federation.enrolment.authority import Authority, chain
from federation.enrolment.keys import pem
from federation.files import write_bytes
from federation.flower.processes import LOOPBACK, Command

HOME = "CONSORTIUM_COORDINATOR"
"""The environment variable that names the coordinator's folder to a ServerApp"""
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


def superlink(folder: Path, port: int) -> Command:
    """The coordinator's, without a database on disk."""
    arguments = ("flower-superlink", "--host", LOOPBACK, "--port", str(port), "--enable-supernode-auth", *_serving(folder))
    return Command("superlink", arguments, _home(folder, "superlink"), port)


def serverapps(folder: Path, home: Path, port: int) -> Command:
    """What starts ServerApps, by the SuperLink's port; they work on the coordinator's `home`."""
    arguments = (
        "flower-superexec", "--runtime-api-address", f"{LOOPBACK}:{port}", "--root-certificates", str(folder / "ca.pem"),
        "--superexec-auth-secret-file", str(folder / "secret"),
    )  # fmt: skip
    return Command("serverapps", arguments, _home(folder, "serverapps") | {HOME: str(home)})


def supernode(folder: Path, port: int, gateway: int, authority: Path, key: Path, spool: Path) -> Command:
    """A bank's, which reaches the coordinator by the bank's own gateway.

    `port` is its own and `gateway` the gateway's, both on loopback; `authority` has issued the gateway's certificate; `key` is the node's.
    It ends when the SuperLink does not let it in: when that has begun anew, or holds one that was killed to be there still, for a minute
    at most.
    """
    write_bytes(folder / "node.toml", f"spool = {json.dumps(str(spool))}\n".encode())
    arguments = (
        "flower-supernode", "--superlink", f"{LOOPBACK}:{gateway}", "--root-certificates", str(authority), "--auth-supernode-private-key",
        str(key), "--host", LOOPBACK, "--port", str(port), "--node-config", str(folder / "node.toml"), *_serving(folder),
    )  # fmt: skip
    return Command("supernode", arguments, _home(folder, "supernode"), port, again=True)


def clientapps(folder: Path, port: int) -> Command:
    """What starts ClientApps, by the SuperNode's port."""
    return Command("clientapps", (sys.executable, "-m", "federation.flower.executor", str(folder), str(port)), _home(folder, "clientapps"))


def _serving(folder: Path) -> tuple[str, ...]:
    return (
        "--ssl-ca-certfile", str(folder / "ca.pem"), "--ssl-certfile", str(folder / "server.pem"),
        "--ssl-keyfile", str(folder / "server.key"), "--isolation", "process", "--superexec-auth-secret-file", str(folder / "secret"),
    )  # fmt: skip


def _home(folder: Path, name: str) -> dict[str, str]:
    return {"FLWR_HOME": str(folder / name)}
