"""A bank's private keys, made where they stay: only `Keys.request` leaves, and nothing in it is secret.

    name              the bank's
    identity.pem      Ed25519, PKCS 8: signs rosters, requests and the messages of secure aggregation
    node, node.pub    EC P-384, OpenSSH: Flower's node authentication
    tls.pem           EC P-256, PKCS 8: the client's side of mutual TLS

Files 0600 in a folder 0700, without a passphrase, as a machine reads them at night: keep them on an encrypted disk.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
    load_ssh_private_key,
)

from federation.enrolment.member import Member, Request, check_name, distinguished, key_hash, ssh_line
from federation.errors import FolderError
from federation.files import check_private, translated, write_folder
from privacy.secagg.identity import Identity


@dataclass(frozen=True)
class Keys:
    """One bank's, of one rotation."""

    name: str
    signing: Ed25519PrivateKey
    node: ec.EllipticCurvePrivateKey
    tls: ec.EllipticCurvePrivateKey

    @classmethod
    def create(cls, name: str) -> Self:
        """FactsError for a name that will not do."""
        return cls(
            check_name(name), Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP256R1())
        )

    @classmethod
    def load(cls, folder: Path) -> Self:
        """FolderError where something is missing or damaged, or others may look into the folder."""
        check_private(folder)
        with translated(folder):
            name, signing, node, tls = ((folder / file).read_bytes() for file in ("name", "identity.pem", "node", "tls.pem"))
        try:
            keys = cls(name.decode().strip(), load_signing_key(signing), load_ssh_private_key(node, None), load_key(tls))  # type: ignore[arg-type]
            keys.member  # noqa: B018  # is each of its kind?
        except (ValueError, TypeError, AttributeError, UnsupportedAlgorithm) as error:
            raise FolderError(
                f"{folder}: keys that were damaged, or are not as `consortium federation keygen` makes them",
                "of a backup take keys/ alone: the rest of it would have forgotten what was given away",
            ) from error
        return keys

    def save(self, folder: Path) -> None:
        """FolderError if there is anything: keys are never written over."""
        files = {
            "name": f"{self.name}\n".encode(),
            "identity.pem": pem(self.signing),
            "node": self.node.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()),
            "node.pub": f"{ssh_line(self.node.public_key())} {self.name}\n".encode(),
            "tls.pem": pem(self.tls),
        }
        write_folder(folder, files)

    @cached_property
    def identity(self) -> Identity:
        return Identity(self.name, self.signing.private_bytes_raw())

    @cached_property
    def member(self) -> Member:
        """The public halves."""
        public = self.tls.public_key()
        return Member(name=self.name, identity=self.identity.public, node=ssh_line(self.node.public_key()), tls=key_hash(public))

    def request(self, predecessor: Identity | None = None) -> Request:
        """To be mailed; signed by the identity that these keys are to replace, if there is one."""
        member = self.member
        if predecessor:
            member = member.model_copy(update={"succeeds": predecessor.sign(member.succession)})
        csr = x509.CertificateSigningRequestBuilder().subject_name(distinguished(self.name)).sign(self.tls, SHA256())
        text = csr.public_bytes(Encoding.PEM).decode()
        return Request(member=member, csr=text, signature=self.identity.sign(Request.text(member, text)))


def pem(key: PrivateKeyTypes) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def load_signing_key(data: bytes) -> Ed25519PrivateKey:
    """ValueError for anything else."""
    if not isinstance(key := load_pem_private_key(data, None), Ed25519PrivateKey):
        raise ValueError("expected an Ed25519 key")
    return key


def load_key(data: bytes) -> ec.EllipticCurvePrivateKey:
    """ValueError for anything but an elliptic curve's."""
    if not isinstance(key := load_pem_private_key(data, None), ec.EllipticCurvePrivateKey):
        raise ValueError("expected a key on an elliptic curve")
    return key
