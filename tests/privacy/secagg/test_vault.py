"""What a bank has on disk: who may read it, what it remembers for ever, and what a crash at any moment does to it."""

import errno
import os
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from privacy import disk
from privacy.errors import Aborted, ProtocolError, Refused, VaultError
from privacy.secagg.client import Client
from privacy.secagg.messages import Inbox, Message, Online, Reveal, Views
from privacy.secagg.server import Server
from privacy.secagg.transcript import verify_transcripts
from privacy.secagg.vault import Vault
from tests.privacy.secagg.driver import POLICY, Federation, Session, copy_of, federation, scratch, wire

BANK = "bank1"


class Killed(BaseException):
    """The process ends here."""


def _run(made: Federation, **hooks: Callable[..., object]) -> Session:
    session = Session(Server(made.header, made.roster), made.clients(), **hooks)  # type: ignore[arg-type]
    np.testing.assert_array_equal(session.run(), made.sum(made.roster.names))
    return session


def test_a_bank_that_restarts_before_every_message_goes_on() -> None:
    with federation(4) as made:

        def restart(bank: str, message: Message) -> None:
            session.clients[bank] = made.client(bank)

        session = Session(Server(made.header, made.roster), made.clients(), {"bank3": 2}, before=restart)
        np.testing.assert_array_equal(session.run(), made.sum(["bank0", "bank1", "bank2"]))
        assert not session.refusals


def test_a_bank_that_was_restarted_after_masking_needs_its_update_no_more() -> None:
    with federation(3) as made:

        def restart(bank: str, message: Message) -> None:
            if bank == BANK and message.exchange > Inbox.exchange:
                made.updates[BANK], kept = None, made.updates[BANK]  # type: ignore[assignment]
                session.clients[BANK], made.updates[BANK] = made.client(BANK), kept

        session = Session(Server(made.header, made.roster), made.clients(), before=restart)
        np.testing.assert_array_equal(session.run(), made.sum(made.roster.names))


def test_a_resend_is_the_stored_bytes_also_after_a_restart() -> None:
    with federation(3) as made:
        sent: dict[str, list[bytes]] = {}

        def again(message: Message) -> Message:
            bank = getattr(message, "bank", "")
            if bank == BANK:
                sent.setdefault(type(message).__name__, []).append(message.to_bytes())
                sent[type(message).__name__] += [each.to_bytes() for each in session.clients[BANK].resend()]
                sent[type(message).__name__] += [each.to_bytes() for each in made.client(BANK).resend()]
                session.clients[BANK] = made.client(BANK)
            return message

        session = Session(Server(made.header, made.roster), made.clients(), to_server=again)
        session.run()
        assert len(sent) == 6 and all(len(copies) == 3 and len(set(copies)) == 1 for copies in sent.values())


def _run_killed_at(made: Federation, moment: int, monkeypatch: pytest.MonkeyPatch) -> tuple[bool, int]:
    """A session in which the bank dies as it is about to sync for the n-th time, and is started again. Did it; and how often it synced."""
    synced, sent = 0, dict[str, set[bytes]]()
    fsync = os.fsync

    def sync(descriptor: int) -> None:
        nonlocal synced
        synced += 1
        if synced == moment:
            raise Killed
        fsync(descriptor)

    def restart(bank: str, message: Message) -> None:
        """Tries the message first, in a process that may die; what it answered by then has gone out."""
        if bank != BANK:
            return
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", sync)
            try:
                session.clients[BANK].on(wire(message))
            except Killed:
                session.clients[BANK] = made.client(BANK)

    def answer(message: Message) -> Message:
        if getattr(message, "bank", "") == BANK:
            sent.setdefault(type(message).__name__, set()).add(message.to_bytes())
        return message

    session = Session(Server(made.header, made.roster), made.clients(), before=restart, to_server=answer)
    np.testing.assert_array_equal(session.run(), made.sum(made.roster.names))
    assert all(len(answers) == 1 for answers in sent.values()) and session.clients[BANK].exchange == 7
    assert _lines(made, BANK) == _lines(made, "bank0") and verify_transcripts([made.transcript(bank) for bank in made.roster.names]) is None
    return synced >= moment, synced


def _lines(made: Federation, bank: str) -> int:
    return len(made.transcript(bank).read_text().splitlines())


def test_a_bank_killed_at_any_moment_goes_on_and_never_answers_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    moment, killed = 0, True
    while killed:
        moment += 1
        with federation(3) as made:
            killed, synced = _run_killed_at(made, moment, monkeypatch)
    assert moment == synced + 1 > 30


def test_what_a_killed_process_had_not_synced_is_synced_before_the_next_one_relies_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the power might fail after an answer has been sent again, and the disk not know of it."""
    with federation(3) as made:
        client, synced = made.client(BANK), list[str]()

        def die(folder: Path) -> None:
            if (folder / "0").exists():
                raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(disk, "sync", die)
            with pytest.raises(Killed):
                client.on(made.header)
        monkeypatch.setattr(disk, "sync", lambda folder: synced.append(folder.name))
        assert made.client(BANK).exchange == 1 and synced[:4] == ["live", "ended", "used", BANK]


def test_a_bank_has_one_client_at_a_time() -> None:
    with federation(3) as made:
        old = made.client(BANK)
        twin = Client(made.identities[1], made.roster, POLICY, old._expected, made.vaults[BANK])
        twin.on(made.header)
        before = copy_of(made.folder / BANK)
        with pytest.raises(VaultError, match=r"bank1, session \w{8}, exchange 0: .*the session has gone on without this client"):
            old.on(made.next_header())
        made.client(BANK)
        with pytest.raises(VaultError, match="the session has gone on without this client"):
            twin.on(made.header)
        assert copy_of(made.folder / BANK) == before


def test_a_transcript_lacks_nothing_after_the_disk_was_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """A view is stored but not noted, and never leaves; the others' views are enough to go on with."""

    def fill(descriptor: int) -> None:
        if "transcript" in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.ENOSPC, "No space left on device")

    def lose(bank: str, message: Message) -> Message | None:
        if bank == BANK and isinstance(message, Online):
            with monkeypatch.context() as patch:
                patch.setattr(os, "fsync", fill)
                with pytest.raises(VaultError, match="No space left"):
                    clients[BANK].on(message)
            return None
        if bank == "bank0" and isinstance(message, Views):
            clients[BANK].on(message)
        return message

    with federation(4) as made:
        clients = made.clients()
        Session(Server(made.header, made.roster), clients, to_bank=lose).run()
        noted = made.transcript(BANK).read_text()
        assert '"what": "online"' in noted and '"what": "reveal of bank1"' in noted


def test_secrets_are_erased_when_the_shares_have_left_and_all_else_with_the_session() -> None:
    with federation(3) as made:
        folder, held = made.folder / BANK / "live", dict[int, set[str]]()
        session = _run(
            made, before=lambda bank, m: held.setdefault(m.exchange, {path.name for path in folder.iterdir()}) if bank == BANK else None
        )
        assert held[Reveal.exchange] == {"secrets", "share", "0", "1", "2", "3"} and held[5] == {"0", "1", "2", "3", "4"}
        session.clients[BANK].end()
        assert not list(folder.iterdir()) and (folder.parent / "ended" / made.header.session.hex()).read_bytes() == b""
        np.testing.assert_array_equal(session.clients["bank0"].total(), session.server.total())


def test_a_crash_while_a_session_is_ended_leaves_nothing_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with federation(3) as made:
        client = made.client(BANK)
        client.on(made.header)

        def die(path: Path, missing_ok: bool = False) -> None:
            raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", die)
            with pytest.raises(Killed):
                client.end()
        assert made.client(BANK).exchange == 0
        assert not list((made.folder / BANK / "live").iterdir())
        with pytest.raises(ProtocolError, match="this session is over"):
            made.client(BANK).on(made.header)


def test_an_ended_session_is_never_taken_up_again() -> None:
    with federation(3) as made:
        session = _run(made)
        session.clients[BANK].end()
        for client in (lambda: session.clients[BANK], lambda: made.client(BANK)):
            with pytest.raises(ProtocolError, match="this session is over"):
                client().on(made.header)


def test_a_live_session_does_not_go_on_with_a_bank_that_is_at_another_round() -> None:
    """A bank that was restarted with the update of a later round must not mask it in the session of an earlier one."""
    with federation(3) as made:

        def restart(bank: str, message: Message) -> None:
            if bank == BANK and isinstance(message, Inbox):
                session.clients[BANK] = made.client(BANK, round=2)

        session = Session(Server(made.header, made.roster), made.clients(), before=restart)
        session.run()
        assert "the header's round is 1, expected 2" in str(session.refusals) and session.clients[BANK].exchange == 2


def test_a_live_session_has_to_be_ended_before_the_next() -> None:
    with federation(3) as made:
        made.client(BANK).on(made.header)
        client = made.client(BANK)
        with pytest.raises(ProtocolError, match="out of order"):
            client.on(made.next_header())
        client.end()
        client.on(made.header)


def test_an_update_that_was_masked_is_never_masked_in_another_session() -> None:
    """The coordinator loses the round and starts it again with one bank less: two sums of the same updates would differ by that bank's."""
    with federation(4) as made:
        for client in _run(made).clients.values():
            client.end()
        made.next_header()
        session = Session(Server(made.header, made.roster), made.clients(), {"bank3": 0})
        with pytest.raises(Aborted, match="0 banks are left"):
            session.run()
        assert [type(each) for each in session.refusals] == [Refused] * 3
        assert all("masked in another session" in each.message and "fresh update" in each.hint for each in session.refusals)
        for client in session.clients.values():
            client.end()
        made.updates = made.fresh_updates()
        made.next_header()
        _run(made)


def test_an_update_whose_session_ended_before_it_was_masked_may_be_used() -> None:
    with federation(3) as made:
        session = Session(Server(made.header, made.roster), made.clients(), {"bank0": 1, "bank2": 1})
        with pytest.raises(Aborted, match="1 banks are left"):
            session.run()
        for client in session.clients.values():
            client.end()
        made.next_header()
        _run(made)


def test_files_are_for_the_bank_alone() -> None:
    with federation(3) as made:
        session = _run(made)
        session.clients["bank0"].end()
        for path in [made.folder / BANK, *made.folder.glob("bank*/**/*")]:
            mode = stat.S_IMODE(path.stat().st_mode)
            assert mode == (0o700 if path.is_dir() else 0o600), path


def test_a_vault_that_others_may_look_into_is_refused() -> None:
    with scratch() as folder:
        Vault(folder / "vault", BANK).close()
        (folder / "vault").chmod(0o750)
        with pytest.raises(VaultError, match="others than its owner") as caught:
            Vault(folder / "vault", BANK)
        assert caught.value.hint == f"chmod 700 {folder}/vault"


def test_a_vault_is_one_processs_and_one_banks() -> None:
    with scratch() as folder:
        with Vault(folder / "vault", BANK), pytest.raises(VaultError, match="another process has it open"):
            Vault(folder / "vault", BANK)
        with pytest.raises(VaultError, match="the transcript of bank1, not of bank2"):
            Vault(folder / "vault", "bank2")
        Vault(folder / "vault", BANK).close()


def test_a_vault_where_none_can_be_is_an_error_with_a_hint() -> None:
    with scratch() as folder:
        (folder / "file").touch()
        with pytest.raises(VaultError, match="file") as caught:
            Vault(folder / "file" / "vault", BANK)
        assert "local disk" in caught.value.hint


def test_a_damaged_step_ends_the_session() -> None:
    with federation(3) as made:
        made.client(BANK).on(made.header)
        path = made.folder / BANK / "live" / "0"
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(VaultError, match="cut short"):
            made.client(BANK)


def test_a_bank_never_goes_back_to_an_older_roster() -> None:
    with federation(3) as made:
        old = made.roster
        made.client(BANK)
        made.roster = replace(old, version=2)
        made.client(BANK)
        for roster, words in (
            (old, "version 1, but this bank has seen version 2"),
            (replace(old, version=2, colluders=1), "which is another"),
        ):
            made.roster = roster
            with pytest.raises(Refused, match=words):
                made.client(BANK)
