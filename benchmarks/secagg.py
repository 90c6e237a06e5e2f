"""What secure aggregation costs: a bank and the server in sessions of ours, beside Flower's SecAgg+ and a plain sum.

    python benchmarks/secagg.py [--json OUT] [--repeats 3] [--cases 10x1000000 10x1000000-2 ...]
    python benchmarks/secagg.py --session 100 --drop 20 --elements 1000000

A case is BANKSxELEMENTS, or BANKSxELEMENTS-VANISHED with so many banks that give out shares and then never send a vector: of all dropouts
the ones that cost the server most. One bank in ten, at least one, may collude; the threshold is the least that allows. Of 3 banks none can
then vanish. Results are added to OUT as they come, and one that is there is not measured again. For each case the contenders take turns, in
another order every time, each in two fresh processes: one is a single bank, the other everybody else.

A bank's seconds are those it works, from the bytes it is sent to the bytes it answers; its memory is the most that its process ever held
(getrusage), Python and libraries included, which says little where vectors are small. The bank begins with an update of float32.
ours        Client and Server, in real sessions through all six exchanges: every bank is one, and the sum is checked. In the time are
            parsing, encoding, writing to disk with fsync (TMPDIR says where) and decoding of the sum.
Flower      `secaggplus_mod` and the stages of `SecAggPlusWorkflow` as installed, on its complete graph with our threshold; in the time are
            the functions alone, no protobuf and no network. Only the bank under measurement runs the mod. The others have keys of their own,
            but share one secret and send one vector, made before; of equal secrets the server rebuilds one, whose seconds count for each of
            them (extrapolated). What comes out is no sum, and Flower cannot tell. It sends no sum back either. Up to 10 million elements.
plain sum   a bank sends its float32 as they are; the server adds them up and sends the sum.

--session runs all banks of one session in this process, some vanishing in each exchange in turn, and compares the decoded sum with the
plain sum of the encoded vectors, which has to be the same to the last bit.
Ends with `consortium RATIO`: Flower's seconds of a bank over ours, the median, in the largest case that both ran.
"""

import argparse
import hashlib
import json
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))  # a checkout that is not installed
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")

CONTENDERS = ("ours", "Flower", "plain sum")
MOST_FLOWER = 10**7
"""Elements"""
PACKAGES = ("numpy", "cryptography", "flwr", "pycryptodome")
Ask = Callable[[bytes], bytes]
"""A bank, from what it is sent to what it answers; nothing if it has nothing to say"""


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
        from privacy.secagg.rules import least_threshold

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


# ours


def _identities(banks: int) -> list[Any]:
    """The same in every process; a benchmark has no secrets."""
    from privacy.secagg.identity import Identity

    return [Identity(f"bank{number}", hashlib.sha256(bytes([number])).digest()) for number in range(banks)]


def _roster(case: Case) -> Any:
    from privacy.secagg.identity import Roster

    return Roster(1, case.colluders, tuple((identity.name, identity.public) for identity in _identities(case.banks)))


def _header(case: Case) -> Any:
    """Of a session with 32 bits for a coordinate, under a fresh nonce."""
    from privacy.secagg.fixed_point import fit
    from privacy.secagg.messages import Header

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


def _client(case: Case, number: int, folder: Path, update: Any) -> Any:
    from privacy.secagg.client import Client
    from privacy.secagg.rules import Expected, Policy
    from privacy.secagg.vault import Vault

    identity = _identities(case.banks)[number]
    expected = Expected("benchmark", 1, bytes(32), bytes(32), case.elements)
    policy = Policy(least_members=case.threshold, most_clip=1.0, most_modulus_bits=32)
    return Client(identity, _roster(case), policy, expected, Vault(folder / identity.name, identity.name), update)


def _answer(client: Any, clock: Clock, data: bytes) -> list[Any]:
    """The pieces of a bank's answer; after the last message it has the sum decoded."""
    from privacy.secagg.messages import Message, Receipts

    with clock.running():
        answers = client.on(Message.from_bytes(data))
        if client.exchange > Receipts.exchange:
            client.total()
        return answers[0].pieces() if answers else []


def _local(client: Any, clock: Clock) -> Ask:
    return lambda data: b"".join(_answer(client, clock, data))


def _run(server: Any, banks: Mapping[str, Ask], vanish: Mapping[str, int]) -> float:
    """A session to its end; the server's seconds. `vanish` has the first exchange to which a bank does not answer any more."""
    from privacy.secagg.messages import Message

    clock, letters = Clock(), server.start()
    while letters:
        with clock.running():
            wires = {id(letter.message): letter.message.to_bytes() for letter in letters}
        exchange, following = server.exchange, []
        for bank, message in letters:
            answer = banks[bank](wires[id(message)]) if vanish.get(bank, 99) > exchange else b""
            if answer:
                with clock.running():
                    following = server.on(Message.from_bytes(answer))
        if not following and not server.over:
            with clock.running():
                following = server.close_exchange()
        letters = following
    with clock.running():
        server.total()
    return sum(clock.seconds)


def _our_bank(case: Case, folder: Path, update: Any, clock: Clock) -> Callable[[bytes], list[Any]]:
    return partial(_answer, _client(case, 0, folder, update), clock)


def _our_world(case: Case, folder: Path, update: Any, ask: Ask) -> tuple[float, str]:
    import numpy as np

    from privacy.secagg.server import Server

    header, roster = _header(case), _roster(case)
    banks = {roster.names[0]: ask}
    for number, name in enumerate(roster.names[1:], 1):
        banks[name] = _local(_client(case, number, folder, update), Clock())
    server, online = Server(header, roster), case.banks - case.vanished
    seconds = _run(server, banks, dict.fromkeys(roster.names[online:], 2))
    error = np.abs(server.total() - np.float32(online) * update).max()
    assert error <= online * (2.0**-header.fraction_bits + 2.0**-24), f"the sum is off by {error}"
    return seconds, ""


# Flower


def _flower_bank(case: Case, folder: Path, update: Any, clock: Clock) -> Callable[[bytes], list[bytes]]:
    from flwr.app import Context, Message, RecordDict
    from flwr.client.mod import secaggplus_mod
    from flwr.common.serde import message_from_proto, message_to_proto
    from flwr.proto.message_pb2 import Message as Proto

    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
    trained = _trained([update])

    def answer(data: bytes) -> list[bytes]:
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
        import numpy as np
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


def _flower_world(case: Case, folder: Path, update: Any, ask: Ask) -> tuple[float, str]:
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


def _plain_bank(case: Case, folder: Path, update: Any, clock: Clock) -> Callable[[bytes], list[bytes]]:
    import numpy as np

    def answer(data: bytes) -> list[bytes]:
        with clock.running():
            if data:
                np.frombuffer(data, np.float32)
                return []
            return [update.tobytes()]

    return answer


def _plain_world(case: Case, folder: Path, update: Any, ask: Ask) -> tuple[float, str]:
    import numpy as np

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


def _update(elements: int) -> Any:
    import numpy as np

    return np.random.default_rng(0).uniform(-1, 1, elements).astype(np.float32)


def _serve_bank(contender: str, case: Case, folder: Path, world: Connection) -> None:
    """The bank's process: messages lie in files, so that passing them on takes no memory."""
    clock = Clock()
    answer = BANKS[contender](case, folder, _update(case.elements), clock)
    while world.recv():
        pieces = answer((folder / "to").read_bytes())
        with (folder / "from").open("wb") as file:
            file.writelines(pieces)
        world.send(None)
    world.send(clock)


def _serve_world(contender: str, case: Case, folder: Path, bank: Connection, parent: Connection) -> None:
    """The process of everybody else; sends the parent what a Result needs."""
    sizes = {"sent": 0, "received": 0}

    def ask(data: bytes) -> bytes:
        (folder / "to").write_bytes(data)
        bank.send(True)
        bank.recv()
        answer = (folder / "from").read_bytes()
        sizes["received"] += len(data)
        sizes["sent"] += len(answer)
        return answer

    seconds, note = WORLDS[contender](case, folder, _update(case.elements), ask)
    bank.send(False)
    clock = bank.recv()
    parent.send({"bank_seconds": clock.seconds, "bank_peaks": clock.peaks, "server_seconds": seconds, "note": note, **sizes})


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
        result = Result(contender, case, repeat, load=os.getloadavg()[0], **ours.recv())
        for process in processes:
            process.join()
    return result


# the table


def _print(results: list[Result]) -> None:
    print(f"{'banks x elements':31} {'':9}  {'bank s':>8}  {'quartiles':>17}  {'server s':>8}  {'sent':>6}  {'received':>8}  {'peak MiB':>8}  of vector")
    print(f"{'':31} {'':9}  {'':8}  {'':17}  {'':8}  {'bytes an element':>16}")
    for case in dict.fromkeys(result.case for result in results):
        for contender in CONTENDERS:
            if runs := [result for result in results if (result.case, result.contender) == (case, contender)]:
                seconds, peak = [run.seconds for run in runs], max(run.bank_peaks[-1] for run in runs)
                low, middle, high = statistics.quantiles(seconds, n=4, method="inclusive") if len(runs) > 1 else seconds * 3
                extrapolated = "~" if "extrapolated" in runs[0].note else " "
                print(f"{case!s:31} {contender:9}  {middle:8.3f}  {low:7.3f} - {high:7.3f}  "
                      f"{statistics.median(run.server_seconds for run in runs):7.3f}{extrapolated}  {runs[0].sent / case.elements:6.2f}  "
                      f"{runs[0].received / case.elements:8.2f}  {peak / 2**20:8.0f}  {peak / (4 * case.elements):8.2f}x")  # fmt: skip
    print("~: of secrets that are alike one was rebuilt and its time counted for each")


def _ratios(results: list[Result]) -> dict[Case, float]:
    """Of the cases both ran: Flower's seconds of a bank over ours in the same round, the median."""
    seconds = {(result.contender, result.case, result.repeat): result.seconds for result in results}
    cases = dict.fromkeys(result.case for result in results if result.contender == "Flower")
    return {
        case: statistics.median(
            seconds["Flower", case, repeat] / ours for (who, of, repeat), ours in seconds.items() if (who, of) == ("ours", case)
        )
        for case in cases
    }


def _print_aims(results: list[Result]) -> None:
    largest = [result for result in results if result.contender == "ours" and result.case == Case(10, 4 * 10**7)]
    elements, ratio = 4 * 10**7, _ratios(results).get(Case(10, 10**7))
    sent = f"{max(result.sent for result in largest) / elements:.2f}" if largest else "not measured"
    peak = f"{max(result.bank_peaks[-1] for result in largest) / (4 * elements):.2f}" if largest else "not measured"
    print(f"bytes an element that a bank sends, 10 x 40,000,000: {sent} (aim: at most 4.1; Flower 8)")
    print(f"a bank's peak memory over its vector, 10 x 40,000,000: {peak} (aim: at most 2.5)")
    print(f"Flower's seconds of a bank over ours, 10 x 10,000,000: {'not measured' if ratio is None else f'{ratio:.1f}'} (aim: at least 5)")


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
                    out.write_text(json.dumps({**_facts(), "results": [asdict(result) for result in results]}, indent=1))
                    print(f"{case}, {contender}: {results[-1].seconds:.3f} s", file=sys.stderr)
    _print(results)
    _print_aims(results)
    if ratios := _ratios(results):
        print(f"consortium {ratios[max(ratios, key=lambda case: case.banks * case.elements)]:.3f}")


def _facts() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return {
        "cpu": next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor()),
        "cores": os.cpu_count(),
        "versions": {name: version(name) for name in PACKAGES} | {"python": platform.python_version()},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


# one whole session


def _session(case: Case) -> None:
    """Every bank has a vector of its own, made of whole units and so small that no float32 is rounded on the way."""
    import numpy as np

    from privacy.secagg.messages import Receipts
    from privacy.secagg.rules import encoding
    from privacy.secagg.server import Server
    from privacy.stream import Stream

    header, roster, random = _header(case), _roster(case), np.random.default_rng()
    form, most = encoding(header, roster), 2**24 // case.banks
    units = 2.0**-header.fraction_bits
    updates = [(random.integers(-most, most, case.elements) * units).astype(np.float32) for _ in roster.names]
    vanish = {bank: number % Receipts.exchange for number, bank in enumerate(roster.names[case.banks - case.vanished :])}
    clocks = {bank: Clock() for bank in roster.names}
    sizes = dict.fromkeys(roster.names, (0, 0))

    def counted(bank: str, ask: Ask, data: bytes) -> bytes:
        answer = ask(data)
        sizes[bank] = sizes[bank][0] + len(answer), sizes[bank][1] + len(data)
        return answer

    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        clients = {bank: _client(case, number, Path(name), updates[number]) for number, bank in enumerate(roster.names)}
        server = Server(header, roster)
        banks = {bank: partial(counted, bank, _local(client, clocks[bank])) for bank, client in clients.items()}
        server_seconds = _run(server, banks, vanish)
        expected = np.zeros(case.elements, np.uint32)
        for bank, update in zip(roster.names, updates, strict=True):
            if vanish.get(bank, 99) > 2:
                expected += form.encode(update, Stream())
        totals = [server.total(), *(client.total() for client in clients.values() if client.exchange > Receipts.exchange)]
    exact = all(np.array_equal(total, form.decode(expected)) for total in totals)
    stayed = [bank for bank in roster.names if bank not in vanish]
    seconds = [sum(clocks[bank].seconds) for bank in stayed]
    print(f"{case.banks} banks, {case.colluders} may collude, threshold {case.threshold}, {case.elements:,} elements")
    for exchange in range(Receipts.exchange):
        gone = sum(1 for first in vanish.values() if first <= exchange)
        print(f"  exchange {exchange}: {case.banks - gone} banks answered")
    print(f"the sum of {sum(vanish.get(bank, 99) > 2 for bank in roster.names)} vectors, with the server and {len(totals) - 1} banks: "
          f"{'exact' if exact else 'WRONG'}")  # fmt: skip
    print(f"{time.perf_counter() - began:.1f} s for all, one after another; a bank {statistics.median(seconds):.2f} s (most {max(seconds):.2f}), "
          f"the server {server_seconds:.2f} s")  # fmt: skip
    sent, received = sizes[stayed[0]]
    print(f"a bank that stays sends {sent:,} bytes ({sent / case.elements:.3f} an element) and receives {received:,}")
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
