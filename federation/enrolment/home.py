"""A bank's own folder: what it has made, confirmed, signed and received.

    keys/1  keys/2 ...   see keys.py: one folder for each rotation, and in it certificate.pem for its TLS key. Those that are in
                         no roster any more may be deleted
    known.json           fingerprints of peers, as its people have confirmed them
    signed.json          version and hash of the newest roster it has signed
    roster.json          the roster in force: all have signed it
    gateway.jsonl ...    see flower/traffic.py; and loopback/, the gateway's certificate for this machine: see flower/gateway.py

Files 0600 in folders 0700. Restored from a backup it has forgotten what it has signed: never do.
"""

from datetime import datetime
from pathlib import Path

from cryptography import x509

from federation.enrolment.authority import chain, check_certificate, common_name, load
from federation.enrolment.keys import Keys
from federation.enrolment.member import Known, Member, Request, key_hash
from federation.enrolment.roster import Roster, Seen, SignedRoster, check_follows, strangers
from federation.errors import CertificateError, FolderError, NotTrusted
from federation.files import check_private, read, write, write_bytes


class Home:
    """Every method may raise FolderError, and FactsError for a file that was damaged."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        if folder.exists():
            check_private(folder)

    @property
    def keys(self) -> list[Keys]:
        """Oldest first."""
        if not self._key_folders:
            raise FolderError(f"{self._folder}: no keys", f"consortium federation keygen NAME --home {self._folder}")
        return [Keys.load(folder) for folder in self._key_folders]

    @property
    def _key_folders(self) -> list[Path]:
        return sorted((self._folder / "keys").glob("[0-9]*"), key=lambda folder: int(folder.name))

    def make_keys(self, name: str, *, rotate: bool) -> Keys:
        """The first, or others to replace them. FactsError for a name that will not do."""
        if (self._folder / "federation.yaml").exists():
            raise FolderError(f"{self._folder}: a coordinator's folder", "a bank has a folder of its own: name another with --home")
        made, folders = Keys.create(name), self._key_folders
        if folders and not rotate:
            raise FolderError(f"{self._folder}: has keys already", "--rotate makes others beside them, to replace them in the next roster")
        if rotate and (before := self.keys[-1].name) != name:
            raise FolderError(f"{self._folder}: keys of {before}, not of {name}", "a bank keeps its name; another needs another folder")
        made.save(self._folder / "keys" / str(int(folders[-1].name) + 1 if folders else 1))
        return made

    def request(self) -> Request:
        """For the newest keys, signed by those of the roster in force where these are others."""
        current = self.in_force and self.keys_in(self.in_force)
        newest = self.keys[-1]
        return newest.request(current.identity if current and current.member != newest.member else None)

    def keys_in(self, roster: Roster) -> Keys:
        """Those that the bank's line in the roster speaks of. NotTrusted if it has none, or others."""
        line = roster.member(self.keys[-1].name)
        for keys in self.keys:
            if keys.member == line.keys:
                return keys
        raise NotTrusted(
            f"version {roster.version} of the roster has other keys for {line.name} than those in {self._folder / 'keys'}",
            "send the coordinator a fresh request; if it insists, tell the other banks",
        )

    def tls_files(self, roster: Roster) -> tuple[Path, Path]:
        """Certificates and key that the bank connects with. NotTrusted as above, CertificateError if none was accepted."""
        own = self.keys_in(roster).member
        folder = next(folder for folder, keys in zip(self._key_folders, self.keys, strict=True) if keys.member == own)
        if not (path := folder / "certificate.pem").exists():
            raise CertificateError(f"{folder}: no certificate", "consortium federation accept takes the one that the coordinator sent")
        return path, folder / "tls.pem"

    @property
    def known(self) -> Known:
        return Known.of(self._folder)

    @property
    def in_force(self) -> Roster | None:
        """What all have signed, this bank among them."""
        if not (path := self._folder / "roster.json").exists():
            return None
        signed = read(SignedRoster, path)
        signed.check_complete()
        return signed.roster

    @property
    def roster_in_force(self) -> Roster:
        """The same; NotTrusted where there is none yet."""
        if (roster := self.in_force) is None:
            raise NotTrusted(
                f"{self._folder}: no roster that all have signed", "consortium federation sign-roster ROSTER, and again when all have"
            )
        return roster

    def unconfirmed(self, proposal: SignedRoster, known: Known) -> list[Member]:
        """Peers whose fingerprints have to be confirmed before it can be signed. NotTrusted where it must not be, whatever is confirmed."""
        roster, old, own = proposal.roster, self.in_force, self.keys_in(proposal.roster)
        if old and old.hash != roster.hash:
            check_follows(roster, old)
        if own.name in proposal.signatures:  # looked at when this bank signed it, if not everybody had then
            return []
        if (path := self._folder / "signed.json").exists():
            read(Seen, path).check(roster)
        return [*strangers(roster, old, own.name, known)]

    def sign(self, proposal: SignedRoster, known: Known) -> SignedRoster:
        """With this bank's signature; in force here if that makes it complete. NotTrusted as above, and for peers who are not known."""
        if missing := self.unconfirmed(proposal, known):
            raise NotTrusted(
                f"no fingerprint was confirmed for {', '.join(member.name for member in missing)}",
                "ask each by telephone, and not the coordinator; who cannot be reached may not exist",
            )
        roster, own = proposal.roster, self.keys_in(proposal.roster)
        if own.name not in proposal.signatures:
            known.adding({member.name: member.fingerprint for member in roster.members}).keep(self._folder)
            write(self._folder / "signed.json", Seen(version=roster.version, hash=roster.hash))
        signed = proposal.adding({own.name: own.identity.sign(roster.hash)})
        if not signed.missing:
            write(self._folder / "roster.json", signed)
        return signed

    def accept(self, path: Path, now: datetime) -> x509.Certificate:
        """Keep a TLS certificate that the coordinator sent, beside its key; CertificateError where it does not hold."""
        if len(sent := load(path)) != 2:
            raise CertificateError(f"{path}: expected two certificates, the bank's and the authority's", "as `approve` writes them")
        certificate, authority = sent
        check_certificate(certificate, authority, now)
        if (roster := self.in_force) and key_hash(authority.public_key()) != roster.authority:
            raise CertificateError(f"{path}: not from the authority in version {roster.version} of the roster", "who has sent it?")
        for folder, keys in zip(self._key_folders, self.keys, strict=True):
            if (keys.name, keys.member.tls) == (common_name(certificate), key_hash(certificate.public_key())):
                write_bytes(folder / "certificate.pem", chain(*sent))
                return certificate
        raise CertificateError(f"{path}: for {common_name(certificate)}, and not for a key in {self._folder}", "is it another bank's?")
