"""Certificates: who may connect, until when, and what a clock that is wrong says."""

import json
import ssl
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256

from federation.enrolment.authority import Authority, chain, check_certificate, load, vouched
from federation.enrolment.keys import Keys
from federation.enrolment.member import distinguished
from federation.enrolment.registry import Registry
from federation.errors import CertificateError, FolderError
from privacy.errors import ConsortiumError
from tests.federation.enrolment import BANKS, NOW, Federation

MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)


def _shown(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M} UTC"


def _shake_hands(coordinator: Path, bank: Path | None, host: str = "localhost") -> str:
    """Mutual TLS over memory, with the files as they lie; the name that the server is shown. Raises ssl.SSLError."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(coordinator / "server.pem", coordinator / "server.key")
    server.load_verify_locations(coordinator / "ca.pem")
    server.verify_mode = ssl.CERT_REQUIRED
    client = ssl.create_default_context(cafile=str(coordinator / "ca.pem"))
    for context in (server, client):  # as it is by default from Python 3.13 on
        context.verify_flags |= ssl.VERIFY_X509_STRICT
    if bank:
        client.load_cert_chain(bank / "certificate.pem", bank / "tls.pem")
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [client.wrap_bio(back, there, server_hostname=host), server.wrap_bio(there, back, server_side=True)]
    for _ in range(4):
        for end in ends:
            with suppress(ssl.SSLWantReadError):
                end.do_handshake()
    subject = dict(pair for part in ends[1].getpeercert()["subject"] for pair in part)  # type: ignore[index]
    return str(subject["commonName"])


def test_banks_and_coordinator_know_each_other_by_tls(made: Federation) -> None:
    coordinator, keys = made.folder / "coordinator", made.folder / "alder" / "keys" / "1"
    made.homes["alder"].accept(coordinator / "members" / "alder.pem", NOW)
    for host in ("localhost", "127.0.0.1"):
        assert _shake_hands(coordinator, keys, host) == "alder"
    with pytest.raises(ssl.SSLError, match="not valid for"):
        _shake_hands(coordinator, keys, "elsewhere")
    with pytest.raises(ssl.SSLError, match="did not return a certificate"):
        _shake_hands(coordinator, None)


def test_a_certificate_of_another_authority_opens_nothing(made: Federation, tmp_path: Path) -> None:
    Registry.create(tmp_path / "other", "orchard", ["localhost"], NOW)
    other = Registry(tmp_path / "other")
    request = made.homes["alder"].request()
    path = other.approve(request, made.told, NOW)
    with pytest.raises(CertificateError, match="was not issued by orchard authority"):
        check_certificate(load(path)[0], made.registry.authority.certificate, NOW)
    made.homes["alder"].accept(path, NOW)  # before a roster says which authority
    with pytest.raises(ssl.SSLError):
        _shake_hands(made.folder / "coordinator", made.folder / "alder" / "keys" / "1")
    made.sign(made.propose())
    with pytest.raises(CertificateError, match="not from the authority in version 1 of the roster"):
        made.homes["alder"].accept(path, NOW)


def test_a_server_s_certificate_is_no_bank_s(made: Federation) -> None:
    coordinator = made.folder / "coordinator"
    keys = made.folder / "alder" / "keys" / "1"
    (keys / "tls.pem").write_bytes((coordinator / "server.key").read_bytes())
    (keys / "certificate.pem").write_bytes((coordinator / "server.pem").read_bytes())
    with pytest.raises(ssl.SSLError, match="unsuitable certificate purpose"):
        _shake_hands(coordinator, keys)


def test_a_certificate_that_has_ended_says_what_the_clock_says(made: Federation) -> None:
    path = made.folder / "coordinator" / "members" / "alder.pem"
    made.homes["alder"].accept(path, NOW + 90 * DAY)
    with pytest.raises(CertificateError) as ended:
        made.homes["alder"].accept(path, NOW + 91 * DAY)
    assert ended.value.message == (
        f"the certificate of alder ended at {_shown(NOW + 90 * DAY)}, and this machine's clock says {_shown(NOW + 91 * DAY)}"
    )
    assert "consortium federation renew" in ended.value.hint


def test_clocks_may_be_minutes_apart_and_not_hours(made: Federation) -> None:
    path = made.folder / "coordinator" / "members" / "alder.pem"
    made.homes["alder"].accept(path, NOW - 9 * MINUTE)
    with pytest.raises(CertificateError) as early:
        made.homes["alder"].accept(path, NOW - 60 * MINUTE)
    begins, clock = _shown(NOW - 10 * MINUTE), _shown(NOW - 60 * MINUTE)
    assert early.value.message == f"the certificate of alder begins at {begins}, and this machine's clock says {clock}"


def test_an_authority_that_has_ended_issues_nothing(made: Federation) -> None:
    with pytest.raises(CertificateError, match="the certificate of orchard authority ended"):
        made.registry.renew(NOW + 5 * 366 * DAY)


def test_renewal_keeps_the_keys_and_the_roster(made: Federation) -> None:
    roster = made.sign(made.propose()).roster
    before = [load(made.folder / "coordinator" / "members" / f"{name}.pem")[0] for name in BANKS]
    server, *renewed = made.registry.renew(NOW + 60 * DAY)
    assert server.name == "server.pem"
    for old, path, name in zip(before, renewed, BANKS, strict=True):
        new = made.homes[name].accept(path, NOW + 100 * DAY)
        assert new.public_key() == old.public_key() and new.serial_number != old.serial_number
    assert made.propose().roster.members == roster.members


def test_every_certificate_is_in_the_list_of_what_was_issued(made: Federation) -> None:
    made.registry.renew(NOW + 60 * DAY)
    lines = [json.loads(line) for line in (made.folder / "coordinator" / "issued.jsonl").read_text().splitlines()]
    assert [line["name"] for line in lines] == ["coordinator", *BANKS] * 2
    assert len({line["serial"] for line in lines}) == len(lines) and len({line["key"] for line in lines}) == 5
    newest = load(made.folder / "coordinator" / "members" / "dogwood.pem")[0]
    assert lines[-1]["serial"] == f"{newest.serial_number:x}" and lines[-1]["ends"] == f"{NOW + 150 * DAY:%Y-%m-%dT%H:%M:%SZ}"


def test_a_bank_keeps_only_its_own_certificate(made: Federation) -> None:
    members = made.folder / "coordinator" / "members"
    with pytest.raises(CertificateError, match="for birch, and not for a key in"):
        made.homes["alder"].accept(members / "birch.pem", NOW)
    with pytest.raises(CertificateError, match="expected two certificates"):
        made.homes["alder"].accept(made.folder / "coordinator" / "ca.pem", NOW)
    with pytest.raises(CertificateError, match="not certificates in PEM"):
        made.homes["alder"].accept(made.folder / "coordinator" / "federation.yaml", NOW)
    assert not (made.folder / "alder" / "keys" / "1" / "certificate.pem").exists()


def test_after_a_rotation_each_key_has_its_certificate(made: Federation) -> None:
    made.sign(made.propose())
    path = made.folder / "coordinator" / "members" / "alder.pem"
    first = made.homes["alder"].accept(path, NOW)
    made.join("alder", rotate=True)
    second = made.homes["alder"].accept(path, NOW)
    kept = [load(made.folder / "alder" / "keys" / number / "certificate.pem")[0] for number in "12"]
    assert kept == [first, second]


def test_an_authority_that_banks_trust_vouches_for_identities() -> None:
    association, keys = Authority.create("association", NOW), Keys.create("alder")
    certificate = (
        x509.CertificateBuilder()
        .subject_name(distinguished("alder"))
        .issuer_name(association.certificate.subject)
        .public_key(keys.signing.public_key())
        .serial_number(1)
        .not_valid_before(NOW)
        .not_valid_after(NOW + 6 * 366 * DAY)
        .sign(association.key, SHA256())
    )
    assert vouched([certificate], association.certificate, NOW) == {"alder": keys.member.fingerprint}
    with pytest.raises(CertificateError, match="of alder begins"):
        vouched([certificate], association.certificate, NOW - MINUTE)
    with pytest.raises(CertificateError, match="of association authority ended"):
        vouched([certificate], association.certificate, NOW + 5 * 366 * DAY)
    with pytest.raises(CertificateError, match="was not issued by orchard authority"):
        vouched([certificate], Authority.create("orchard", NOW).certificate, NOW)


@pytest.mark.parametrize("hosts", [[], ["local host"], ["b\u00e4nk.example"], ['"']])
def test_a_host_that_is_none_leaves_no_folder(tmp_path: Path, hosts: list[str]) -> None:
    with pytest.raises(ConsortiumError, match="hosts"):
        Registry.create(tmp_path / "new", "orchard", hosts, NOW)
    assert not (tmp_path / "new").exists()


def test_a_coordinator_s_folder_is_never_written_over(made: Federation) -> None:
    before = (made.folder / "coordinator" / "ca.key").read_bytes()
    with pytest.raises(FolderError, match="is there already"):
        Registry.create(made.folder / "coordinator", "orchard", ["localhost"], NOW)
    assert (made.folder / "coordinator" / "ca.key").read_bytes() == before
    assert chain(made.registry.authority.certificate) == (made.folder / "coordinator" / "ca.pem").read_bytes()
