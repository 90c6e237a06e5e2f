"""A bank's keys on its disk, and the request that leaves."""

import json
import os
import shutil
import stat
from base64 import b64encode
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_ssh_private_key, load_ssh_public_key

from federation.enrolment.home import Home
from federation.enrolment.keys import Keys
from federation.enrolment.member import Request, ssh_line
from federation.errors import FactsError, FolderError
from federation.files import read, write
from tests.federation.enrolment import Federation


def test_only_the_owner_may_read_what_is_made(made: Federation) -> None:
    made.sign(made.propose())
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in made.folder.rglob("*")}
    wrong = {path: oct(mode) for path, mode in modes.items() if mode != (0o700 if path.is_dir() else 0o600)}
    assert not wrong and len(modes) > 40


def test_keys_are_loaded_as_they_were_made(tmp_path: Path) -> None:
    keys = Keys.create("alder")
    keys.save(tmp_path / "keys")
    assert Keys.load(tmp_path / "keys").member == keys.member


def test_keys_are_never_written_over(tmp_path: Path) -> None:
    home = Home(tmp_path / "alder")
    first = home.make_keys("alder", rotate=False)
    with pytest.raises(FolderError, match="has keys already") as refused:
        home.make_keys("alder", rotate=False)
    assert refused.value.exit_code == 2 and "--rotate" in refused.value.hint
    with pytest.raises(FolderError, match="Directory not empty"):
        Keys.create("alder").save(tmp_path / "alder" / "keys" / "1")
    second = home.make_keys("alder", rotate=True)
    assert [keys.member for keys in home.keys] == [first.member, second.member]
    shutil.rmtree(tmp_path / "alder" / "keys" / "1")
    third = home.make_keys("alder", rotate=True)
    assert [keys.member for keys in home.keys] == [second.member, third.member]
    with pytest.raises(FolderError, match="keys of alder, not of birch"):
        home.make_keys("birch", rotate=True)


def test_a_crash_leaves_all_keys_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    syncs = iter(range(3))

    def sync(descriptor: int) -> None:
        if next(syncs, None) is None:
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", sync)
        with pytest.raises(FolderError, match="No space left"):
            Home(tmp_path / "alder").make_keys("alder", rotate=False)
    assert not [*(tmp_path / "alder" / "keys").iterdir()]
    with pytest.raises(FolderError, match="no keys"):
        _ = Home(tmp_path / "alder").keys
    Home(tmp_path / "alder").make_keys("alder", rotate=False)


def test_a_folder_that_others_may_look_into_is_refused(tmp_path: Path) -> None:
    Home(tmp_path / "alder").make_keys("alder", rotate=False)
    for folder in (tmp_path / "alder" / "keys" / "1", tmp_path / "alder"):
        folder.chmod(0o750)
        with pytest.raises(FolderError, match="others than its owner") as refused:
            _ = Home(tmp_path / "alder").keys
        assert refused.value.hint == f"chmod 700 {folder}"


@pytest.mark.parametrize("file", ["name", "identity.pem", "node", "tls.pem"])
def test_damaged_keys_are_an_error_that_shows_nothing_of_them(tmp_path: Path, file: str) -> None:
    Keys.create("alder").save(tmp_path / "keys")
    path = tmp_path / "keys" / file
    whole = path.read_text()
    path.write_text("#" + whole[: len(whole) // 2])
    with pytest.raises(FolderError) as found:
        Keys.load(tmp_path / "keys")
    assert "backup" in found.value.hint and whole.splitlines()[-1 if file == "name" else 1] not in str(found.value)
    path.unlink()
    with pytest.raises(FolderError, match="No such file"):
        Keys.load(tmp_path / "keys")


def test_keys_in_each_others_places_are_refused(tmp_path: Path) -> None:
    Keys.create("alder").save(folder := tmp_path / "keys")
    (folder / "identity.pem").write_bytes((folder / "tls.pem").read_bytes())
    with pytest.raises(FolderError, match="keys that were damaged"):
        Keys.load(folder)


def test_the_node_key_is_what_flower_takes(tmp_path: Path) -> None:
    """An elliptic curve's, private in OpenSSH's format; registered by the public line."""
    Keys.create("alder").save(tmp_path / "keys")
    private = load_ssh_private_key((tmp_path / "keys" / "node").read_bytes(), None)
    line = (tmp_path / "keys" / "node.pub").read_bytes()
    public = load_ssh_public_key(line)
    assert isinstance(private, ec.EllipticCurvePrivateKey) and isinstance(public, ec.EllipticCurvePublicKey)
    assert private.public_key() == public and public.curve.name == "secp384r1" and line.split()[2] == b"alder"


def test_a_request_comes_through_the_mail(tmp_path: Path) -> None:
    keys = Keys.create("alder")
    write(tmp_path / "request.json", keys.request())
    assert read(Request, tmp_path / "request.json").member == keys.member


def test_a_tampered_request_is_refused(tmp_path: Path) -> None:
    path, other = tmp_path / "request.json", Keys.create("alder").request()
    write(path, Keys.create("alder").request())
    values = json.loads(path.read_text())
    member = values["member"]
    changes = {
        "name": "birch", "identity": other.member.identity.hex(), "node": other.member.node, "tls": other.member.tls.hex(),
        "succeeds": "00" * 64,
    }  # fmt: skip
    tampered = [values | {"member": member | {field: value}} for field, value in changes.items()]
    tampered += [values | {"csr": other.csr}, values | {"signature": other.signature.hex()}]
    for each in tampered:
        path.write_text(json.dumps(each))
        with pytest.raises(FactsError, match="not signed by the key in it"):
            read(Request, path)


def test_a_request_is_of_one_hand() -> None:
    """Its signer cannot claim another's TLS key, or hand in what is no key."""
    keys, other = Keys.create("alder"), Keys.create("birch").request()

    def claim(csr: str, **changes: object) -> Request:
        member = keys.member.model_copy(update=changes)
        return Request(member=member, csr=csr, signature=keys.identity.sign(Request.text(member, csr)))

    with pytest.raises(ValueError, match="not for the TLS key of the request"):
        claim(other.csr)
    stolen = bytearray(x509.load_pem_x509_csr(other.csr.encode()).public_bytes(Encoding.DER))
    stolen[-1] ^= 1  # of its signature
    text = f"-----BEGIN CERTIFICATE REQUEST-----\n{b64encode(stolen).decode()}\n-----END CERTIFICATE REQUEST-----\n"
    with pytest.raises(ValueError, match="and signed by it"):
        claim(text, tls=other.member.tls)
    with pytest.raises(ValueError, match="not a certificate request in PEM"):
        claim("-----BEGIN")
    values = json.loads(keys.request().model_dump_json())
    for node in ("ssh-rsa AAAA", f"{keys.member.node} comment", ssh_line(ec.generate_private_key(ec.SECP256R1()).public_key())):
        values["member"]["node"] = node
        with pytest.raises(ValueError, match="a node key that is not"):
            Request.model_validate_json(json.dumps(values))
