"""What secure aggregation costs: a bank and the server in sessions of ours, beside Flower's SecAgg+ and a plain sum.

    python benchmarks/secagg.py [--json OUT] [--repeats 3] [--cases 10x1000000 10x1000000-2 ...]
    python benchmarks/secagg.py --session 100 --drop 20 --elements 1000000

A case is BANKSxELEMENTS, or BANKSxELEMENTS-VANISHED with so many banks that give out shares and then never send a vector: the dropouts
that cost the server most. One bank in ten may collude, and at least one; the threshold is the least that this allows. Of 3 banks none can
then vanish. Results are added to OUT as they come, and one that is there is not measured again. In each case the contenders take turns, in
another order every time, each in two fresh processes: one is a single bank, the other everybody else.

A bank's seconds are those it works; its memory is the most that its process ever held (getrusage), Python and all libraries of ours
included, which is more than the vectors where these are small. It begins with an update of float32.

ours        Client and Server, in whole sessions with as many real banks; the sum is checked. In a bank's time are parsing, encoding,
            writing to disk with fsync (TMPDIR, up to 4 GB) and decoding of the sum.
Flower      `secaggplus_mod` and the stages of `SecAggPlusWorkflow` as installed, on the complete graph with our threshold, up to 10 million
            elements. In the time are the functions alone, without protobuf, network and disk. Only the bank that is measured runs the mod.
            The others have keys of their own, but share one secret and one vector, so the result is no sum; of secrets that are alike the
            server rebuilds one, and its seconds count for each (extrapolated). Flower sends no sum back.
plain sum   a bank sends its float32 as they are; the server adds up one vector as often as there are banks, and sends the sum.

--session runs all banks of one session in this process, some vanishing in each exchange in turn, and compares the decoded sum with the
plain sum of the encoded vectors, which has to be the same to the last bit.

Ends with `consortium RATIO`: Flower's seconds of a bank over ours, the median, in the case of most elements that both ran.
"""

import argparse
import functools
import hashlib
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
from facts import facts

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout that is not installed
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")

from privacy.secagg.client import Client
from privacy.secagg.codec import Buffer
from privacy.secagg.fixed_point import fit
from privacy.secagg.identity import Identity, Roster
from privacy.secagg.messages import Header, Masked, Message, Receipts
from privacy.secagg.rules import Expected, Policy, encoding, least_threshold
from privacy.secagg.server import Server
from privacy.secagg.vault import Vault
from privacy.stream import Stream

CONTENDERS = ("ours", "Flower", "plain sum")
MOST_FLOWER = 10**7
"""Elements"""
PACKAGES = ("numpy", "cryptography", "flwr", "pycryptodome")
NEVER = Receipts.exchange + 1
Vector = npt.NDArray[np.float32]
Ask = Callable[[bytes], bytes]
"""A bank, from what it is sent to what it answers; nothing if it has nothing to say"""
Pieces = Callable[[bytes], list[Buffer]]
"""The same, the answer in pieces"""


@dataclass(frozen=True)
class Case:
    banks: int
    elements: int
    vanished: int = 0

    @classmethod
    def parse(cls, text: str) -> "Case":
        size, _, vanished = text.partition("-")
        return cls(*map(int, size.split("x")), int(vanished or 0))

    @property
    def colluders(self) -> int:
        return max(1, self.banks // 10)

    @property
    def threshold(self) -> int:
        return least_threshold(self.banks, self.colluders)

    def __str__(self) -> str:
        lost = f"{self.vanished} vanish" if self.vanished else "none can vanish" if self.threshold == self.banks else "none vanishes"
        return f"{self.banks} x {self.elements:,}, {lost}"


SIZES = [(3, 10**6), (10, 10**6), (30, 10**6), (100, 10**6), (3, 10**7), (10, 10**7), (3, 4 * 10**7), (10, 4 * 10**7)]
CASES = [Case(*size, vanished) for size in SIZES for vanished in sorted({0, size[0] // 5})]


@dataclass(frozen=True)
class Result:
    """Of one contender in one case."""

    contender: str
    case: Case
    repeat: int
    bank_seconds: list[float]
    """By exchange"""
    bank_peaks: list[int]
    """Bytes the process has held at most by the end of each exchange"""
    server_seconds: float
    sent: int
    """Bytes, by the bank"""
    received: int
    note: str
    """What was reused or extrapolated"""
    load: float

    @property
    def seconds(self) -> float:
        return sum(self.bank_seconds)


@dataclass
class Clock:
    seconds: list[float] = field(default_factory=list)
    peaks: list[int] = field(default_factory=list)

    @contextmanager
    def running(self) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds.append(time.perf_counter() - began)
        self.peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


class Counted:
    """A bank, and the bytes that came from it and went to it."""

    def __init__(self, ask: Ask) -> None:
        self.ask, self.sent, self.received = ask, 0, 0

    def __call__(self, data: bytes) -> bytes:
        answer = self.ask(data)
        self.sent += len(answer)
        self.received += len(data)
        return answer


# ours


@functools.cache
def _identities(banks: int) -> list[Identity]:
    """The same in every process; a benchmark has no secrets."""
    return [Identity(f"bank{number}", hashlib.sha256(bytes([number])).digest()) for number in range(banks)]


@functools.cache
def _roster(case: Case) -> Roster:
    return Roster(1, case.colluders, tuple((identity.name, identity.public) for identity in _identities(case.banks)))


def _header(case: Case) -> Header:
    """Of a session with 32 bits for a coordinate, under a fresh nonce."""
    return Header(
        *("benchmark", 1, 1, os.urandom(16), bytes(32), bytes(32), case.elements),
        clip=1.0,
        fraction_bits=fit(case.banks, 1.0, 32).fraction_bits,
        modulus_bits=32,
        least_members=case.threshold,
        threshold=case.threshold,
        roster=_roster(case).hash,
        deadline=0,
    )


def _client(case: Case, number: int, folder: Path, update: Vector) -> Client:
    identity = _identities(case.banks)[number]
    expected = Expected("benchmark", 1, bytes(32), bytes(32), case.elements)
    policy = Policy(least_members=case.threshold, most_clip=1.0, most_modulus_bits=32)
    return Client(identity, _roster(case), policy, expected, Vault(folder / identity.name, identity.name), update)


def _answer(client: Client, clock: Clock, data: bytes) -> list[Buffer]:
    """After the last message the bank has the sum decoded, and no answer."""
    with clock.running():
        answers = client.on(Message.from_bytes(data))
        if client.exchange == NEVER:
            client.total()
        return answers[0].pieces() if answers else []


def _local(client: Client, clock: Clock) -> Ask:
    return lambda data: b"".join(_answer(client, clock, data))


def _run(server: Server, banks: Mapping[str, Ask], until: Mapping[str, int]) -> float:
    """A session to its end; the server's seconds. `until` is the first exchange in which a bank does not answer any more."""
    clock, letters = Clock(), server.start()
    while letters:
        with clock.running():
            wires = {id(letter.message): letter.message.to_bytes() for letter in letters}
        exchange, following = server.exchange, []
        for bank, message in letters:
            if until[bank] > exchange and (answer := banks[bank](wires[id(message)])):
                with clock.running():
                    following = server.on(Message.from_bytes(answer))
        if not following and not server.over:
            with clock.running():
                following = server.close_exchange()
        letters = following
    with clock.running():
        server.total()
    return sum(clock.seconds)


def _our_bank(case: Case, folder: Path, update: Vector, clock: Clock) -> Pieces:
    return functools.partial(_answer, _client(case, 0, folder, update), clock)


def _our_world(case: Case, folder: Path, update: Vector, ask: Ask) -> tuple[float, str]:
    header, names, online = _header(case), _roster(case).names, case.banks - case.vanished
    banks = {name: _local(_client(case, number, folder, update), Clock()) for number, name in enumerate(names) if number > 0}
    server = Server(header, _roster(case))
    until = dict.fromkeys(names, NEVER) | dict.fromkeys(names[online:], Masked.exchange)
    seconds = _run(server, banks | {names[0]: ask}, until)
    error = np.abs(server.total() - np.float32(online) * update).max()
    assert error <= online * (2.0**-header.fraction_bits + 2.0**-24), f"the sum is off by {error}"
    return seconds, ""


# Flower


def _flower_bank(case: Case, folder: Path, update: Vector, clock: Clock) -> Pieces:
    from flwr.app import Context, Message, RecordDict
    from flwr.client.mod import secaggplus_mod
    from flwr.common.serde import message_from_proto, message_to_proto
    from flwr.proto.message_pb2 import Message as Proto

    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
    trained = _trained([update])

    def answer(data: bytes) -> list[Buffer]:
        message = message_from_proto(Proto.FromString(data))
        with clock.running():
            reply = secaggplus_mod(message, context, lambda message, context: Message(trained, reply_to=message))
        return [message_to_proto(reply).SerializeToString()]

    return answer


def _trained(arrays: list[Any]) -> Any:
    """What a Flower client answers after training."""
    from flwr.common import Code, FitRes, Status, ndarrays_to_parameters
    from flwr.compat.common.recorddict_compat import fitres_to_recorddict

    return fitres_to_recorddict(FitRes(Status(Code.OK, ""), ndarrays_to_parameters(arrays), 1000, {}), keep_input=False)


class _FlowerGrid:
    """Stands for Flower's network: passes messages to bank 1, which runs the mod, and answers for all others."""

    def __init__(self, case: Case, ask: Ask) -> None:
        from flwr.common import ndarray_to_bytes
        from flwr.common.secure_aggregation.crypto.shamir import create_shares
        from flwr.supercore.primitives.asymmetric import generate_key_pairs, private_key_to_bytes

        self.case, self.ask, self.seconds = case, ask, 0.0
        self.keys = {bank: (generate_key_pairs(), generate_key_pairs()) for bank in range(2, case.banks + 1)}
        self.seed_shares = create_shares(os.urandom(32), case.threshold, case.banks)
        self.key_shares = create_shares(private_key_to_bytes(self.keys[2][0][0]), case.threshold, case.banks)
        vector = np.random.default_rng(1).integers(2**32, size=case.elements)
        self.vector = [ndarray_to_bytes(np.array([2**22])), ndarray_to_bytes(vector)]
        self.of_bank_1: dict[int, bytes] = {}

    def send_and_receive(self, messages: list[Any], *, timeout: float | None = None) -> list[Any]:
        began = time.perf_counter()
        replies = [reply for message in messages if (reply := self._deliver(message))]
        self.seconds += time.perf_counter() - began
        return replies

    def _deliver(self, message: Any) -> Any:
        from flwr.app import ConfigRecord, Message, RecordDict
        from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS, Key, Stage
        from flwr.common.serde import message_from_proto, message_to_proto
        from flwr.proto.message_pb2 import Message as Proto

        bank, configs = message.metadata.dst_node_id, dict(message.content.config_records[RECORD_KEY_CONFIGS])
        if bank == 1:
            return message_from_proto(Proto.FromString(self.ask(message_to_proto(message).SerializeToString())))
        stage = configs.pop(Key.STAGE)
        if bank > self.case.banks - self.case.vanished and stage in (Stage.COLLECT_MASKED_VECTORS, Stage.UNMASK):
            return None
        content = _trained([]) if stage == Stage.COLLECT_MASKED_VECTORS else RecordDict()
        content.config_records[RECORD_KEY_CONFIGS] = ConfigRecord(self._reply(bank, stage, configs))
        return Message(content, reply_to=message)

    def _reply(self, bank: int, stage: str, configs: dict[str, Any]) -> dict[str, Any]:
        from flwr.common.secure_aggregation.crypto.symmetric_encryption import decrypt, encrypt
        from flwr.common.secure_aggregation.secaggplus_constants import Key, Stage
        from flwr.common.secure_aggregation.secaggplus_utils import share_keys_plaintext_concat, share_keys_plaintext_separate
        from flwr.supercore.primitives.asymmetric import public_key_to_bytes

        if stage == Stage.SETUP:
            (_, first), (_, second) = self.keys[bank]
            return {Key.PUBLIC_KEY_1: public_key_to_bytes(first), Key.PUBLIC_KEY_2: public_key_to_bytes(second)}
        if stage == Stage.SHARE_KEYS:
            self.bank_1_key = configs["1"][1]
            others = [int(other) for other in configs if int(other) != bank]
            sealed = encrypt(self._shared_with_1(bank), share_keys_plaintext_concat(bank, 1, self.seed_shares[0], self.key_shares[0]))
            return {Key.DESTINATION_LIST: others, Key.CIPHERTEXT_LIST: [sealed] * len(others)}
        if stage == Stage.COLLECT_MASKED_VECTORS:
            sealed = configs[Key.CIPHERTEXT_LIST][configs[Key.SOURCE_LIST].index(1)]
            self.of_bank_1[bank] = share_keys_plaintext_separate(decrypt(self._shared_with_1(bank), sealed))[2]
            return {Key.MASKED_PARAMETERS: self.vector}
        active, dead = configs[Key.ACTIVE_NODE_ID_LIST], configs[Key.DEAD_NODE_ID_LIST]
        seeds = [self.of_bank_1[bank] if owner == 1 else self.seed_shares[bank - 1] for owner in active]
        return {Key.NODE_ID_LIST: active + dead, Key.SHARE_LIST: seeds + [self.key_shares[bank - 1]] * len(dead)}

    def _shared_with_1(self, bank: int) -> bytes:
        from flwr.common.secure_aggregation.crypto.symmetric_encryption import generate_shared_key
        from flwr.supercore.primitives.asymmetric import bytes_to_public_key

        return generate_shared_key(self.keys[bank][1][0], bytes_to_public_key(self.bank_1_key))


class _Rebuild:
    """Flower's combine_shares, done once for equal shares; `saved` are the seconds it would have taken for the others."""

    def __init__(self, combine: Callable[[list[bytes]], bytes]) -> None:
        self.combine, self.saved = combine, 0.0
        self.known: dict[tuple[bytes, ...], tuple[bytes, float]] = {}

    def __call__(self, shares: list[bytes]) -> bytes:
        key = tuple(sorted(shares))
        if key in self.known:
            self.saved += self.known[key][1]
        else:
            began = time.perf_counter()
            self.known[key] = self.combine(shares), time.perf_counter() - began
        return self.known[key][0]


def _flower_world(case: Case, folder: Path, update: Vector, ask: Ask) -> tuple[float, str]:
    from flwr.app import ArrayRecord, ConfigRecord, RecordDict
    from flwr.common import FitIns, Parameters
    from flwr.server.workflow import SecAggPlusWorkflow
    from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD, Key
    from flwr.server.workflow.secure_aggregation import secaggplus_workflow as module
    from flwr.supercore.task_identity import TaskIdentity

    TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = 0
    grid, rebuild = _FlowerGrid(case, ask), _Rebuild(module.combine_shares)
    instructions = [(SimpleNamespace(node_id=bank), FitIns(Parameters([], "numpy.ndarray"), {})) for bank in range(1, case.banks + 1)]
    context: Any = SimpleNamespace(
        state=RecordDict({MAIN_CONFIGS_RECORD: ConfigRecord({Key.CURRENT_ROUND: 1}), MAIN_PARAMS_RECORD: ArrayRecord()}),
        strategy=SimpleNamespace(configure_fit=lambda *_: instructions, aggregate_fit=lambda *_: (None, {})),
        client_manager=SimpleNamespace(num_available=lambda: case.banks),
    )
    workflow, state = SecAggPlusWorkflow(1.0, case.threshold / case.banks), module.WorkflowState()
    stages = (workflow.setup_stage, workflow.share_keys_stage, workflow.collect_masked_vectors_stage, workflow.unmask_stage)
    with mock.patch.object(module, "combine_shares", rebuild):
        began = time.perf_counter()
        for stage in stages:
            assert stage(grid, context, state), stage.__name__
        seconds = time.perf_counter() - began - grid.seconds + rebuild.saved
    return seconds, f"one peer's secret and vector stand for all; {rebuild.saved:.2f} s of the server extrapolated"


# a plain sum


def _plain_bank(case: Case, folder: Path, update: Vector, clock: Clock) -> Pieces:
    def answer(data: bytes) -> list[Buffer]:
        with clock.running():
            return [] if data else [update.tobytes()]

    return answer


def _plain_world(case: Case, folder: Path, update: Vector, ask: Ask) -> tuple[float, str]:
    clock, vector = Clock(), ask(b"")
    with clock.running():
        total = np.zeros(case.elements, np.float32)
        for _ in range(case.banks - case.vanished):
            total += np.frombuffer(vector, np.float32)
        wire = total.tobytes()
    ask(wire)
    return sum(clock.seconds), "one vector stands for all"


# one measurement

BANKS = dict(zip(CONTENDERS, (_our_bank, _flower_bank, _plain_bank), strict=True))
WORLDS = dict(zip(CONTENDERS, (_our_world, _flower_world, _plain_world), strict=True))


def _update(elements: int) -> Vector:
    update = np.random.default_rng(0).random(elements, np.float32)
    update -= np.float32(0.5)
    return update


def _serve_bank(contender: str, case: Case, folder: Path, world: Connection) -> None:
    """The bank's process. Messages lie in files, so that passing them on takes no memory."""
    clock = Clock()
    answer = BANKS[contender](case, folder, _update(case.elements), clock)
    while world.recv():
        with (folder / "answer").open("wb") as file:
            file.writelines(answer((folder / "message").read_bytes()))
        world.send(None)
    world.send(clock)


def _serve_world(contender: str, case: Case, folder: Path, bank: Connection, parent: Connection) -> None:
    """The process of everybody else; sends the parent what a Result needs."""

    def ask(data: bytes) -> bytes:
        (folder / "message").write_bytes(data)
        bank.send(True)
        bank.recv()
        return (folder / "answer").read_bytes()

    counted = Counted(ask)
    seconds, note = WORLDS[contender](case, folder, _update(case.elements), counted)
    bank.send(False)
    clock = bank.recv()
    parent.send((clock.seconds, clock.peaks, seconds, counted.sent, counted.received, note))


def measure(contender: str, case: Case, repeat: int) -> Result:
    """In processes of their own. This one stays small: what a process held at most begins with what its parent held."""
    context = get_context("spawn")
    with tempfile.TemporaryDirectory() as name:
        (world, bank), (ours, theirs) = context.Pipe(), context.Pipe(duplex=False)
        processes = [
            context.Process(target=_serve_bank, args=(contender, case, Path(name), bank)),
            context.Process(target=_serve_world, args=(contender, case, Path(name), world, theirs)),
        ]
        for process in processes:
            process.start()
        for connection in (world, bank, theirs):
            connection.close()  # a process that dies is then noticed
        result = Result(contender, case, repeat, *ours.recv(), load=os.getloadavg()[0])
        for process in processes:
            process.join()
    return result


# the table


def _print(results: list[Result]) -> None:
    print(f"{'':41}  {'bank s':>8}  {'quartiles':>17}  {'server s':>8}  {'bytes an element':>16}  {'peak MiB':>8}  of vector")
    for case in dict.fromkeys(result.case for result in results):
        for contender in CONTENDERS:
            if runs := [result for result in results if (result.case, result.contender) == (case, contender)]:
                seconds, peak = [run.seconds for run in runs], max(run.bank_peaks[-1] for run in runs)
                low, middle, high = statistics.quantiles(seconds, n=4, method="inclusive") if len(runs) > 1 else seconds * 3
                server, mark = statistics.median(run.server_seconds for run in runs), "~" if "extrapolated" in runs[0].note else " "
                traffic = f"{runs[0].sent / case.elements:.2f} + {runs[0].received / case.elements:.2f}"
                print(f"{case!s:31} {contender:9}  {middle:8.3f}  {low:7.3f} - {high:7.3f}  {server:7.3f}{mark}  {traffic:>16}  "
                      f"{peak / 2**20:8.0f}  {peak / (4 * case.elements):8.2f}x")  # fmt: skip
    print("bytes: sent + received by a bank; ~: extrapolated, as secrets that are alike are rebuilt once and counted for each")


def _ratios(results: list[Result]) -> dict[Case, float]:
    """Flower's seconds of a bank over ours in the same round, the median, for each case that both ran."""
    ours = {(result.case, result.repeat): result.seconds for result in results if result.contender == "ours"}
    rounds: dict[Case, list[float]] = {}
    for result in results:
        if result.contender == "Flower" and (result.case, result.repeat) in ours:
            rounds.setdefault(result.case, []).append(result.seconds / ours[result.case, result.repeat])
    return {case: statistics.median(ratios) for case, ratios in rounds.items()}


def _print_aims(results: list[Result]) -> None:
    large, medium = Case(10, 4 * 10**7), Case(10, 10**7)
    if runs := [result for result in results if (result.contender, result.case) == ("ours", large)]:
        sent, peak = max(run.sent for run in runs) / large.elements, max(run.bank_peaks[-1] for run in runs) / (4 * large.elements)
        print(f"{large}: a bank sends {sent:.2f} bytes an element (aim: at most 4.1); its peak memory is {peak:.2f} vectors (at most 2.5)")
    if ratio := _ratios(results).get(medium):
        print(f"{medium}: a bank takes {ratio:.1f} times as long with Flower (aim: at least 5)")


def _benchmark(cases: list[Case], repeats: int, out: Path) -> None:
    stored = json.loads(out.read_text())["results"] if out.exists() else []
    results = [Result(**{**row, "case": Case(**row["case"])}) for row in stored]
    done = {(result.contender, result.case, result.repeat) for result in results}
    for case in cases:
        for repeat in range(repeats):
            turn = repeat % len(CONTENDERS)
            for contender in (*CONTENDERS[turn:], *CONTENDERS[:turn]):
                if (contender, case, repeat) not in done and not (contender == "Flower" and case.elements > MOST_FLOWER):
                    results.append(measure(contender, case, repeat))
                    out.write_text(json.dumps({**facts(PACKAGES), "results": [asdict(result) for result in results]}, indent=1))
                    print(f"{case}, {contender}: {results[-1].seconds:.3f} s", file=sys.stderr)
    _print(results)
    _print_aims(results)
    if ratios := _ratios(results):
        print(f"consortium {ratios[max(ratios, key=lambda case: (case.elements, case.banks, -case.vanished))]:.3f}")


# one whole session


def _session(case: Case) -> None:
    """Vectors are of whole units and so small that a float32 holds any sum of them: to be equal is to be equal to the last bit."""
    header, names, most = _header(case), _roster(case).names, 2**24 // case.banks
    form, random = encoding(header, _roster(case)), np.random.default_rng()
    updates = [(random.integers(-most, most, case.elements) * 2.0**-header.fraction_bits).astype(np.float32) for _ in names]
    gone = {name: number % Receipts.exchange for number, name in enumerate(names[case.banks - case.vanished :])}
    until = dict.fromkeys(names, NEVER) | gone
    clocks = {name: Clock() for name in names}
    with tempfile.TemporaryDirectory() as folder:
        clients = [_client(case, number, Path(folder), update) for number, update in enumerate(updates)]
        banks = {client.name: Counted(_local(client, clocks[client.name])) for client in clients}
        server, began = Server(header, _roster(case)), time.perf_counter()
        server_seconds = _run(server, banks, until)
        seconds = time.perf_counter() - began
        totals = [server.total(), *(client.total() for client in clients if client.exchange == NEVER)]
    expected, summed = np.zeros(case.elements, np.uint32), 0
    for name, update in zip(names, updates, strict=True):
        if until[name] > Masked.exchange:
            expected += form.encode(update, Stream())
            summed += 1
    exact = all(np.array_equal(total, form.decode(expected)) for total in totals)
    print(f"{case.banks} banks of which {case.colluders} may collude, threshold {case.threshold}, {case.elements:,} elements")
    print("answers, by exchange:", *(sum(last > exchange for last in until.values()) for exchange in range(Receipts.exchange)))
    print(f"the sum of {summed} vectors, as the server and {len(totals) - 1} banks have it: {'exact' if exact else 'WRONG'}")
    bank_seconds = [sum(clocks[name].seconds) for name in names if name not in gone]
    print(f"{seconds:.1f} s, one after another; a bank {statistics.median(bank_seconds):.2f} s, the slowest {max(bank_seconds):.2f} s; "
          f"the server {server_seconds:.2f} s")  # fmt: skip
    sent, received = (statistics.median(getattr(banks[name], what) for name in names if name not in gone) for what in ("sent", "received"))
    print(f"a bank sends {sent:,.0f} bytes, {sent / case.elements:.3f} an element, and receives {received:,.0f}")
    if not exact:
        raise SystemExit(1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=Case.parse, nargs="+", default=CASES, help="BANKSxELEMENTS[-VANISHED] (default: all)")
    parser.add_argument("--repeats", type=int, default=3, help="of each contender in each case (default 3)")
    parser.add_argument("--json", type=Path, default=Path("secagg.json"), help="results, added to")
    parser.add_argument("--session", type=int, metavar="BANKS", help="one whole session instead")
    parser.add_argument("--drop", type=int, default=0, help="of the session's banks")
    parser.add_argument("--elements", type=int, default=10**6, help="of the session's vectors")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    if arguments.session:
        _session(Case(arguments.session, arguments.elements, arguments.drop))
    else:
        _benchmark(arguments.cases, arguments.repeats, arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
