"""The coordinator's folder: whom it has approved, the certificates it has issued, the rosters it has proposed.

    federation.yaml            by hand: see config.py
    identity.pem               Ed25519: the coordinator's own key
    ca.key  ca.pem             the certificate authority
    server.key  server.pem     of the machine that banks connect to
    issued.jsonl               every certificate that was issued
    known.json                 fingerprints, as its people have confirmed them
    members/NAME.json  .pem    a bank's request, as it was approved, and the certificate that goes back to it
    roster-1.json  ...         each version with the signatures that have come in
    gateway.jsonl  ...         see flower/traffic.py

Files 0600 in a folder 0700.
"""

import json
from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from federation.config import FederationConfig, check_federation, load_federation
from federation.enrolment.authority import Authority, chain, load, note
from federation.enrolment.keys import load_key, load_signing_key, pem
from federation.enrolment.member import Known, Request, check_distinct
from federation.enrolment.roster import NO_ROSTER, Roster, SignedRoster
from federation.errors import FactsError, FolderError, Fork, NotTrusted
from federation.files import check_private, read, translated, write, write_bytes, write_folder

STARTER = """\
# A federation, as its coordinator runs it. Banks do not take its word: what counts is the roster that all of them have signed.

name: {name}
hosts: {hosts}   # names and addresses under which banks reach this machine; after a change: consortium federation renew
colluders: 1                    # banks that may tell the coordinator all they know; it takes two more than that
certificate_days: 90            # consortium federation renew makes new certificates for the same keys
"""


class Registry:
    """Every method may raise FolderError, and FactsError or ConfigError for a file that was damaged."""

    def __init__(self, folder: Path) -> None:
        check_private(folder)
        if not (folder / "federation.yaml").exists():
            raise FolderError(f"{folder}: no coordinator's folder: it has no federation.yaml", "consortium federation init makes one")
        self._folder = folder

    @classmethod
    def create(cls, folder: Path, name: str, hosts: list[str], now: datetime) -> "Registry":
        """In a new folder or an empty one."""
        hint = "as in consortium federation init coordinator --name cards --host fed.example.com"
        config = check_federation({"name": name, "hosts": hosts}, source="federation init", hint=hint)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise FolderError(f"{folder}: is there already", "name a new directory: nothing of yours is to be written over")
        authority = Authority.create(config.name, now)
        files = {
            "federation.yaml": STARTER.format(name=name, hosts=json.dumps(hosts)).encode(),
            "identity.pem": pem(Ed25519PrivateKey.generate()),
            "ca.key": pem(authority.key),
            "ca.pem": chain(authority.certificate),
            "server.key": pem(ec.generate_private_key(ec.SECP256R1())),
        }
        write_folder(folder, files)
        made = cls(folder)
        made.renew(now)
        return made

    @cached_property
    def config(self) -> FederationConfig:
        return load_federation(self._folder / "federation.yaml")

    @cached_property
    def authority(self) -> Authority:
        return Authority(load(self._folder / "ca.pem")[0], load_key(self._bytes("ca.key")))

    @property
    def identity(self) -> Ed25519PrivateKey:
        return load_signing_key(self._bytes("identity.pem"))

    @property
    def known(self) -> Known:
        return Known.of(self._folder)

    @property
    def approved(self) -> dict[str, Request]:
        """By name, in their order."""
        return {path.stem: read(Request, path) for path in sorted((self._folder / "members").glob("*.json"))}

    @property
    def rosters(self) -> list[SignedRoster]:
        """Oldest first."""
        paths = self._folder.glob("roster-*.json")
        return sorted((read(SignedRoster, path) for path in paths), key=lambda signed: signed.roster.version)

    @property
    def in_force(self) -> Roster | None:
        return next((signed.roster for signed in reversed(self.rosters) if not signed.missing), None)

    def is_confirmed(self, request: Request, known: Known) -> bool:
        """Whether the key is known to be the bank's. NotTrusted where another one is."""
        old, member = self.in_force, request.member
        if old and member.name in old.names:
            member.check_succeeds(old.member(member.name).identity)
            return True
        return known.check(member)

    def approve(self, request: Request, known: Known, now: datetime) -> Path:
        """Keep the request, and issue a certificate: the file for the bank. NotTrusted for a key that nobody has confirmed."""
        member = request.member
        check_distinct((*self.approved, member.name))
        if not self.is_confirmed(request, known):
            raise NotTrusted(f"no fingerprint was confirmed for {member.name}", "ask the bank by telephone")
        self.known.adding({member.name: member.fingerprint}).keep(self._folder)
        path = self._certify(request, now)
        write(self._folder / "members" / f"{member.name}.json", request)
        return path

    def renew(self, now: datetime) -> list[Path]:
        """Fresh certificates for the keys there are: the server's, and those of all approved banks."""
        key, days = load_key(self._bytes("server.key")).public_key(), self.config.certificate_days
        certificate = self.authority.certify_server(key, self.config.hosts, now, days)
        note(self._folder / "issued.jsonl", certificate, "server")
        write_bytes(path := self._folder / "server.pem", chain(certificate, self.authority.certificate))
        return [path, *(self._certify(request, now) for request in self.approved.values())]

    def _certify(self, request: Request, now: datetime) -> Path:
        certificate = self.authority.certify_client(request, now, self.config.certificate_days)
        note(self._folder / "issued.jsonl", certificate, "client")
        write_bytes(path := self._folder / "members" / f"{request.member.name}.pem", chain(certificate, self.authority.certificate))
        return path

    def propose(self, without: Sequence[str] = ()) -> tuple[Path, Roster]:
        """The next version: all who are approved but for those who are to leave. Nobody has signed it yet."""
        approved, old, earlier = self.approved, self.in_force, self.rosters
        if strangers := [name for name in without if name not in approved]:
            raise FactsError(f"{strangers[0]} is not among those approved: {', '.join(approved)}", "is it spelt as its request has it?")
        roster = Roster(
            federation=self.config.name,
            version=earlier[-1].roster.version + 1 if earlier else 1,
            previous=old.hash if old else NO_ROSTER,
            colluders=self.config.colluders,
            coordinator=self.identity.public_key().public_bytes_raw(),
            authority=self.authority.hash,
            members=tuple(request.member for name, request in approved.items() if name not in without),
        )
        write(path := self._path(roster.version), SignedRoster(roster=roster))
        for name in without:  # or they would be in the version after it
            (self._folder / "members" / f"{name}.json").unlink()
        return path, roster

    def gather(self, copies: Iterable[Path]) -> SignedRoster:
        """Take over the signatures that have come back; the last copy's roster, as it is now. Fork where one is not as proposed."""
        for copy in copies:
            come = read(SignedRoster, copy)
            if not (path := self._path(come.roster.version)).exists():
                raise FolderError(
                    f"{copy}: version {come.roster.version} of the roster was not proposed from {self._folder}",
                    "is --home the coordinator's folder?",
                )
            ours = read(SignedRoster, path)
            if ours.roster != come.roster:
                raise Fork(
                    f"{copy}: not version {come.roster.version} as it was proposed here", "it was changed on its way: find out by whom"
                )
            write(path, ours := ours.adding(come.signatures))
        return ours

    def _path(self, version: int) -> Path:
        return self._folder / f"roster-{version}.json"

    def _bytes(self, name: str) -> bytes:
        with translated(path := self._folder / name):
            return path.read_bytes()
