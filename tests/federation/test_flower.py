"""Messages through a real SuperLink and real SuperNodes, over TLS on loopback."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from flwr.app import Context, Message, MessageType, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from federation import bundle
from federation.flower.client import carry, packed, unpacked
from federation.flower.processes import holding
from federation.flower.traffic import note_refused_bundle
from federation.rounds import letters
from tests.federation.enrolment import make_federation
from tests.federation.flower_parts import Network, network

BANKS = ("alder", "birch")
ABSENT = "cedar"


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    """Banks answer with the reverse of what they are asked, but for `slow`."""
    made = make_federation(tmp_path_factory.mktemp("net"), (*BANKS, ABSENT))
    made.sign(made.propose())
    with network(made, dict.fromkeys(BANKS, _reversed)) as running:
        deadline = time.monotonic() + 60
        while running.transport.reachable() != set(BANKS):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        yield running


def _reversed(request: bytes) -> bytes:
    if request == b"slow":
        time.sleep(4)
    return request[::-1]


def test_what_a_bank_answers_comes_back_leg_after_leg(net: Network) -> None:
    for leg in range(3):
        content = bytes([leg]) * 500 + bytes(500)
        assert net.legs(content, *BANKS) == {bank: (bank, content[::-1], "") for bank in BANKS}


def test_a_message_of_several_chunks_comes_whole(net: Network) -> None:
    content = os.urandom(6_000_000)
    assert net.legs(content, "alder")["alder"].content == content[::-1]


def test_the_same_message_sent_again_is_answered_again(net: Network) -> None:
    assert net.legs(b"twice", "birch") == net.legs(b"twice", "birch")


def test_replies_to_a_round_that_is_over_are_dropped(net: Network) -> None:
    net.transport.send("alder", b"slow")
    net.transport.forget()
    replies = net.legs(b"the next round", "alder")
    assert replies["alder"].content == b"dnuor txen eht"
    assert net.banks["alder"].asked[-2:] == [b"slow", b"the next round"]
    assert net.transport.receive(0.0) == []


def test_a_bundle_that_a_banks_gateway_refused_is_a_refusal_of_the_bank(net: Network) -> None:
    home = net.banks["alder"].folder.parent / "coordinator"
    note_refused_bundle(home, "alder", "d" * 64)  # before the letter: of another run
    os.utime(home / "refused" / "alder", (0, 0))
    net.transport.send("alder", b"slow")
    assert net.transport.receive(0.0) == []
    note_refused_bundle(home, "alder", "e" * 64)
    [reply] = net.transport.receive(60)
    letter, _ = letters.reply(reply.content)
    assert isinstance(letter, letters.Refusal) and (letter.rule, letter.asked) == ("bundles", "e" * 64)
    net.transport.forget()


def test_a_bank_that_never_came_is_not_reachable_and_a_message_to_it_fails_at_once(net: Network) -> None:
    assert net.transport.reachable() == set(BANKS)
    began = time.monotonic()
    assert net.legs(b"hello", ABSENT)[ABSENT].content is None
    assert time.monotonic() - began < 5


def test_a_supernode_that_was_stopped_and_started_again_is_a_failed_leg_and_then_a_bank_again(net: Network) -> None:
    bank = net.banks["birch"]
    before = bank.children.pids["supernode"]
    net.transport.send("birch", b"slow")
    while b"slow" not in bank.asked:
        time.sleep(0.1)
    os.kill(before, signal.SIGTERM)
    [reply] = net.transport.receive(60)
    assert (reply.bank, reply.content) == ("birch", None)
    _restarted(net, "birch", before, within=60)
    assert net.legs(b"again", "birch")["birch"].content == b"niaga"


@pytest.mark.slow
def test_a_supernode_that_was_killed_is_a_failed_leg_within_75_seconds_and_comes_back(net: Network) -> None:
    before = net.banks["birch"].children.pids["supernode"]
    os.kill(before, signal.SIGKILL)
    began = time.monotonic()
    assert net.legs(b"hello", "birch", within=75)["birch"].content is None
    assert time.monotonic() - began < 75
    _restarted(net, "birch", before, within=75)
    assert net.legs(b"again", "birch")["birch"].content == b"niaga"


def _restarted(net: Network, bank: str, before: int, within: float) -> None:
    """Wait for it, as the bank's command does."""
    deadline = time.monotonic() + within
    while bank not in net.transport.reachable() or net.banks[bank].children.pids["supernode"] == before:
        assert time.monotonic() < deadline
        net.banks[bank].children.check()
        time.sleep(0.2)


def test_a_run_that_cannot_begin_has_failed_and_says_why(net: Network) -> None:
    net.superlink.allow_runs(net.children)
    number = net.superlink.start("a run that nobody has prepared")
    deadline = time.monotonic() + 60
    while not (status := net.superlink.status(number)).startswith("finished"):
        assert time.monotonic() < deadline, status
        time.sleep(0.2)
    assert status.startswith("finished: failed, ServerApp failed with exception: ")
    assert "No module" not in status and "import" not in status


def test_the_superlink_has_nothing_on_disk_of_what_was_sent(net: Network) -> None:
    home = net.banks["alder"].folder.parent / "coordinator"
    kept = [path for path in home.rglob("*") if path.is_file() and b"the next round" in path.read_bytes()]
    assert (home / "logs" / "superlink.log").stat().st_size > 0 and kept == []


def test_a_bank_whose_process_does_not_run_says_so_at_once_and_keeps_no_request(tmp_path: Path) -> None:
    reply = _carried(tmp_path)
    assert reply.has_error() and "own process does not run" in reply.error.reason
    assert not (tmp_path / "inbox").exists()


def test_a_bank_whose_process_ends_while_it_is_asked_says_so(tmp_path: Path) -> None:
    ending = subprocess.Popen(
        [sys.executable, "-c", f"import time\nfrom pathlib import Path\nfrom federation.flower.processes import holding\n"
         f"with holding(Path({str(tmp_path)!r})): print(flush=True), time.sleep(1)"], stdout=subprocess.PIPE,
    )  # fmt: skip
    assert ending.stdout and ending.stdout.readline()
    assert "own process does not run" in _carried(tmp_path).error.reason
    assert (tmp_path / "inbox" / hashlib.sha256(b"hello").hexdigest()).read_bytes() == b"hello"
    ending.communicate()


def test_a_bank_with_other_code_says_so_and_asks_its_process_nothing(tmp_path: Path) -> None:
    with holding(tmp_path):
        reply = _carried(tmp_path, code="0" * 64)
    assert bundle.code()[:12] in reply.error.reason and "0" * 12 in reply.error.reason
    assert not (tmp_path / "inbox").exists()


def test_a_bank_that_cannot_write_says_so(tmp_path: Path) -> None:
    (tmp_path / "inbox").write_bytes(b"")
    with holding(tmp_path):
        assert "cannot keep messages: File exists" in _carried(tmp_path).error.reason


def _carried(spool: Path, code: str | None = None) -> Message:
    """What the ClientApp makes of a message, in this process."""
    if not hasattr(TaskIdentity, "_run_id") or TaskIdentity._run_id is None:
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1
    config = {"code": code or bundle.code(), "run": ""}
    return carry(Message(packed(b"hello"), 2, MessageType.TRAIN), Context(1, 2, {"spool": str(spool)}, RecordDict(), config))


@pytest.mark.parametrize("content", [b"", b"x", bytes(range(256))])
def test_what_is_packed_is_unpacked(content: bytes) -> None:
    assert unpacked(packed(content)) == content


def test_what_runs_for_every_message_imports_no_torch() -> None:
    code = "import sys, federation.flower.executor; print({'torch', 'transformers', 'deepspeed', 'ray'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
