"""The coordinator's certificate authority for mutual TLS (X.509, RFC 5280).

It says who may connect, and no more: that a key in the roster is a bank's own is confirmed by the banks among themselves, and no
certificate can make up for it. So nothing is revoked: a bank that has left the roster is refused by that, and its certificate soon ends.
"""

import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal, Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from federation.enrolment.member import Request, distinguished, key_hash
from federation.errors import CertificateError
from federation.files import Digest, Facts, translated
from privacy.secagg.identity import fingerprint

_YEARS = timedelta(days=5 * 365)
"""Of the authority's own certificate"""
_CLOCKS_APART = timedelta(minutes=10)
"""By how much a certificate begins before it was issued"""


class Issued(Facts):
    """A line of the list of what was issued."""

    serial: str
    name: str
    use: Literal["server", "client"]
    key: Digest
    begins: datetime
    ends: datetime


@dataclass(frozen=True)
class Authority:
    """Its certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def create(cls, federation: str, now: datetime) -> Self:
        key, name = ec.generate_private_key(ec.SECP256R1()), distinguished(f"{federation} authority")
        usage = _usage(digital_signature=False, certificates=True)
        builder = (
            _begun(name, name, key.public_key(), now, _YEARS)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
        )
        return cls(builder.sign(key, SHA256()), key)

    @property
    def hash(self) -> bytes:
        """Of its public key, as the roster names it."""
        return key_hash(self.key.public_key())

    def certify_server(self, key: ec.EllipticCurvePublicKey, hosts: Sequence[str], now: datetime, days: int) -> x509.Certificate:
        """For the coordinator's machine under these names and addresses."""
        names = x509.SubjectAlternativeName([_host(host) for host in hosts])
        builder = self._leaf("coordinator", key, ExtendedKeyUsageOID.SERVER_AUTH, now, days)
        return builder.add_extension(names, critical=False).sign(self.key, SHA256())

    def certify_client(self, request: Request, now: datetime, days: int) -> x509.Certificate:
        """For a bank, under its name."""
        return self._leaf(request.member.name, request.tls_key, ExtendedKeyUsageOID.CLIENT_AUTH, now, days).sign(self.key, SHA256())

    def _leaf(
        self, name: str, key: ec.EllipticCurvePublicKey, use: x509.ObjectIdentifier, now: datetime, days: int
    ) -> x509.CertificateBuilder:
        check_times(self.certificate, now)
        return (
            _begun(distinguished(name), self.certificate.subject, key, now, timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(digital_signature=True, certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([use]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
        )


def check_certificate(certificate: x509.Certificate, authority: x509.Certificate, now: datetime) -> None:
    """CertificateError unless the authority has issued it and both hold at this time."""
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature) as error:
        raise CertificateError(
            f"the certificate of {common_name(certificate)} was not issued by {common_name(authority)}", "ask the coordinator for another"
        ) from error
    check_times(certificate, now)
    check_times(authority, now)


def vouched(certificates: Sequence[x509.Certificate], authority: x509.Certificate, now: datetime) -> dict[str, str]:
    """Names and fingerprints of banks, read off certificates of their identities by an authority that this side trusts."""
    for certificate in certificates:
        check_certificate(certificate, authority, now)
    keys = {common_name(certificate): certificate.public_key() for certificate in certificates}
    return {name: fingerprint(key.public_bytes_raw()) for name, key in keys.items() if isinstance(key, Ed25519PublicKey)}


def check_times(certificate: x509.Certificate, now: datetime) -> None:
    """CertificateError before it begins and after it has ended, by this clock."""
    begins, ends, whose = certificate.not_valid_before_utc, certificate.not_valid_after_utc, common_name(certificate)
    if now < begins:
        raise CertificateError(
            f"the certificate of {whose} begins at {_shown(begins)}, and this machine's clock says {_shown(now)}",
            "is the clock right? It should be set by the network (chrony, ntpd)",
        )
    if now > ends:
        raise CertificateError(
            f"the certificate of {whose} ended at {_shown(ends)}, and this machine's clock says {_shown(now)}",
            "the coordinator makes another by `consortium federation renew`; or is the clock wrong?",
        )


def note(path: Path, certificate: x509.Certificate, use: Literal["server", "client"]) -> None:
    """A line at the end of the list, on disk when this returns. Raises FolderError."""
    line = Issued(
        serial=f"{certificate.serial_number:x}", name=common_name(certificate), use=use, key=key_hash(certificate.public_key()),
        begins=certificate.not_valid_before_utc, ends=certificate.not_valid_after_utc,
    )  # fmt: skip
    with translated(path), open(os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600), "w") as file:
        file.write(line.model_dump_json() + "\n")
        file.flush()
        os.fsync(file.fileno())


def common_name(certificate: x509.Certificate) -> str:
    """Of its subject, empty if it has none."""
    return "".join(str(name.value) for name in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[:1])


def load(path: Path) -> list[x509.Certificate]:
    """Certificates in PEM, one after another. Raises FolderError or CertificateError."""
    with translated(path):
        data = path.read_bytes()
    try:
        return x509.load_pem_x509_certificates(data)
    except ValueError as error:
        raise CertificateError(f"{path}: not certificates in PEM", "as `approve` and `renew` write them") from error


def chain(*certificates: x509.Certificate) -> bytes:
    """PEM, one after another."""
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)


def _begun(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, lasting: timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCKS_APART)
        .not_valid_after(now + lasting)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, digital_signature: bool, certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(digital_signature, False, False, False, False, certificates, certificates, False, False)


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _shown(time: datetime) -> str:
    return time.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")
