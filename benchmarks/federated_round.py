"""What a federated round takes, training aside: ours beside a Flower app that sends as many messages of as many bytes and does nothing.

    python benchmarks/federated_round.py [--json OUT] [--repeats 2] [--cases 1000000 1000000-open ...]

A case is ELEMENTS of the vector that each of four banks sends, masked, or as it is with `-open`. Results are added to OUT as they come, and
one that is there is not measured again. Contenders take turns, in another order every time, each alone on the machine with processes of its
own, started for a run of three rounds. The first round is not counted: in it banks fetch the bundle. A round begins where the last ended.

ours     `consortium federation coordinator`, four times what `consortium federation bank` starts, but for the training job
         (federated_bank.py), and a run; nothing is left out between SuperLink and a bank's record. Seconds are those of the run's
         events.jsonl; what is in none of the exchanges is what the coordinator does between them.
Flower   `flower-superlink`, four times `flower-supernode` and `flwr run`, as they come, with TLS, without any gateway; flower_app is the
         app. The bytes of its messages are those that ours has sent and received in the same case, exchange by exchange.

Everything is on loopback and without a budget: a ledger's charge is in dp_overhead.py.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from claims import federated_round
from facts import facts
from safetensors.numpy import save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout that is not installed
os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).resolve().parent)}  # for federated_bank.py

from federation import bundle
from federation.base_model import base_model_hash
from federation.flower.commands import prepare
from federation.flower.processes import LOOPBACK, Children, Command, environment, free_ports
from federation.sides import ordered
from privacy.errors import ConsortiumError
from tests.federation.enrolment import BANKS, NOW, make_federation

CONTENDERS = ("ours", "Flower")
ROUNDS = 3
"""Of a run; the first is not counted"""
RANK = 16
PACKAGES = ("flwr", "numpy", "cryptography", "uvicorn", "httpx")
_MOST_SECONDS = 900.0


@dataclass(frozen=True)
class Case:
    elements: int
    masked: bool = True

    @classmethod
    def parse(cls, text: str) -> "Case":
        elements, _, how = text.partition("-")
        return cls(int(elements), how != "open")


CASES = [Case(elements, masked) for elements in (10**6, 10**7) for masked in (True, False)]


@dataclass(frozen=True)
class Leg:
    """A message to every bank and its answer."""

    exchange: str
    seconds: float
    down: int
    """Bytes to all banks, in all"""
    up: int


@dataclass(frozen=True)
class Round:
    seconds: float
    legs: list[Leg]


@dataclass(frozen=True)
class Result:
    """Of one contender in one case."""

    contender: str
    case: Case
    repeat: int
    rounds: list[Round]
    load: float


# ours


@cache
def _federation(folder: Path) -> Path:
    """A coordinator and banks with a roster in force, and a base model that nobody loads."""
    made = make_federation(folder)
    made.sign(made.propose())
    for name, home in made.homes.items():
        home.accept(folder / "coordinator" / "members" / f"{name}.pem", NOW)
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")
    return folder


def _write_terms(folder: Path, case: Case, port: int) -> None:
    model, adapter = base_model_hash(folder / "model"), {"rank": RANK, "alpha": RANK, "targets": "all-linear"}
    training = {
        "task": "sft", "base_model": {"name": "none", "sha256": model}, "adapter": adapter,
        "local": {"steps": 1, "batch": 1, "learning_rate": 0.1, "clip_norm": 1.0, "max_length": 8},
        "rounds": ROUNDS, "cohort": len(BANKS), "quorum": len(BANKS), "threshold": 3, "secure_aggregation": case.masked,
        "privacy": None, "encoding": {"clip": 4.0, "fraction_bits": 26}, "evaluation": "off",
    }  # fmt: skip
    policy = {
        "base_models": [model], "bundles": [bundle.sha256(bundle.build())], "aggregation": ["ffa"], "adapters": [adapter],
        "tasks": [{"task": "sft", "max_length": 8}],
        "least_members": 3, "least_in_sum": 1, "least_honest_in_sum": 0, "least_threshold": 3, "most_clip": 4.0, "most_rounds": ROUNDS,
        "most_attempts": 3 * ROUNDS, "most_epsilon_round": None, "most_epsilon": None, "evaluation": "off", "metrics": [], "hours": None,
    }  # fmt: skip
    federation = {"name": "orchard", "hosts": ["localhost"], "training": training}
    (folder / "coordinator" / "federation.yaml").write_text(yaml.safe_dump(federation))
    for name in BANKS:
        bank = {"bank": name, "base_model": "../model", "data": {"train": "none.jsonl"}, "unit": "record", "units": 1000,
                "population": "none", "ledger": "none.ledger", "coordinator": f"localhost:{port}", "policy": policy}  # fmt: skip
        (folder / name / "bank.yaml").write_text(yaml.safe_dump(bank))


def _ours(folder: Path, case: Case, _: list[Leg]) -> list[Round]:
    [port], home, run = free_ports(1), _federation(folder) / "coordinator", f"run-{time.time_ns()}"
    _write_terms(folder, case, port)
    made = home / "runs" / run
    made.mkdir(mode=0o700, parents=True)
    start = {
        "layer.lora_A.weight": np.ones((RANK, 64), np.float32),
        "layer.lora_B.weight": np.zeros((case.elements // RANK, RANK), np.float32),
    }
    save_file(start, made / "start.safetensors")
    with Children(folder / "logs") as children:
        coordinator = (sys.executable, "-m", "consortium", "federation", "coordinator", "--home", str(home), "--port", str(port))
        children.start(Command("coordinator", coordinator, port=port))
        for name in BANKS:
            bank = (sys.executable, "-m", "federated_bank", str(folder / name), str(folder / name / "bank.yaml"), "side")
            children.start(Command(name, bank))
        with ordered(home, run):
            _wait(children, lambda: _state(made) in ("finished", "failed"))
    events = [json.loads(line) for line in (made / "events.jsonl").read_text().splitlines()]
    return _rounds([each for each in events if each["event"] == "exchange"])


def _state(run: Path) -> str:
    path = run / "status.json"
    return str(json.loads(path.read_bytes())["state"]) if path.exists() else ""


def _rounds(exchanges: list[dict[str, Any]]) -> list[Round]:
    """Those that count, of a run in which each ends with a `close`."""
    ends = [place for place, each in enumerate(exchanges) if each["name"] == "close"]
    assert len(ends) == ROUNDS, "a round has failed: its events say why"
    return [
        Round(
            exchanges[end]["time"] - exchanges[before]["time"],
            [Leg(each["name"], each["seconds"], each["bytes_out"], each["bytes_in"]) for each in exchanges[before + 1 : end + 1]],
        )
        for before, end in pairwise(ends)
    ]


# Flower


def _flower(folder: Path, _: Case, legs: list[Leg]) -> list[Round]:
    (port, *nodes), out = free_ports(1 + len(BANKS)), folder / "rounds.json"
    prepare(folder, datetime.now(UTC))
    out.unlink(missing_ok=True)
    authority = str(folder / "ca.pem")
    with Children(folder / "logs") as children:
        tls = ("--ssl-ca-certfile", authority, "--ssl-certfile", str(folder / "server.pem"), "--ssl-keyfile", str(folder / "server.key"))
        superlink = ("flower-superlink", "--host", LOOPBACK, "--port", str(port), *tls)
        children.start(Command("superlink", superlink, {"FLWR_HOME": str(folder / "superlink")}, port))
        for name, node in zip(BANKS, nodes, strict=True):
            supernode = ("flower-supernode", "--superlink", f"{LOOPBACK}:{port}", "--root-certificates", authority, "--port", str(node))
            children.start(Command(name, supernode, {"FLWR_HOME": str(folder / name)}, node))
        _flwr_run(folder, port, [(leg.down // len(BANKS), leg.up // len(BANKS)) for leg in legs], out)
        _wait(children, out.exists)
        rounds = json.loads(out.read_text())
    return [
        Round(
            this["ended"] - before["ended"],
            [Leg(leg.exchange, seconds, leg.down, leg.up) for leg, seconds in zip(legs, this["seconds"], strict=True)],
        )
        for before, this in pairwise(rounds)
    ]


def _flwr_run(folder: Path, port: int, legs: list[tuple[int, int]], out: Path) -> None:
    own = folder / "flwr"
    own.mkdir(exist_ok=True)
    (own / "config.toml").write_text(
        f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "{LOOPBACK}:{port}"\nroot-certificates = "{folder / "ca.pem"}"\n'
    )
    asked = f'legs="{" ".join(f"{down}:{up}" for down, up in legs)}" nodes={len(BANKS)} rounds={ROUNDS} out="{out}"'
    app = Path(__file__).with_name("flower_app")
    subprocess.run(["flwr", "run", str(app), "here", "--run-config", asked], env=environment() | {"FLWR_HOME": str(own)}, check=True,
                   stdout=subprocess.DEVNULL)  # fmt: skip


# measuring


def _wait(children: Children, ready: Callable[[], bool]) -> None:
    until = time.monotonic() + _MOST_SECONDS
    while not ready():
        children.check()
        if time.monotonic() > until:
            raise SystemExit(f"the run has not ended after {_MOST_SECONDS:.0f} s")
        time.sleep(0.5)


MEASURES = dict(zip(CONTENDERS, (_ours, _flower), strict=True))


def _benchmark(cases: list[Case], repeats: int, out: Path) -> None:
    stored = json.loads(out.read_text())["results"] if out.exists() else []
    done = {(row["contender"], Case(**row["case"]), row["repeat"]) for row in stored}
    with tempfile.TemporaryDirectory() as name:
        for repeat in range(repeats):
            for case in cases:
                for contender in CONTENDERS if repeat % 2 == 0 else CONTENDERS[::-1]:
                    if (contender, case, repeat) in done:
                        continue
                    folder = Path(name) / contender
                    folder.mkdir(exist_ok=True)
                    rounds = MEASURES[contender](folder, case, _legs(stored, case))
                    stored.append(asdict(Result(contender, case, repeat, rounds, os.getloadavg()[0])))
                    out.write_text(json.dumps({**facts(PACKAGES), "results": stored}, indent=1))
                    how, seconds = "masked" if case.masked else "open", ", ".join(f"{each.seconds:.1f}" for each in rounds)
                    print(f"{case.elements:,} {how}, {contender}: {seconds} s", file=sys.stderr)
    found = federated_round({"results": stored})
    print(found.details, "", *(f"{claim.what}: {claim.found}" for claim in found.claims), sep="\n")


def _legs(stored: list[dict[str, Any]], case: Case) -> list[Leg]:
    """Of a round of ours, if one was measured: the first contender is ours."""
    ours = [row for row in stored if row["contender"] == "ours" and Case(**row["case"]) == case]
    return [Leg(**leg) for leg in ours[0]["rounds"][0]["legs"]] if ours else []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=Case.parse, nargs="+", default=CASES, help="ELEMENTS[-open] (default: all)")
    parser.add_argument("--repeats", type=int, default=2, help="of each contender in each case (default 2)")
    parser.add_argument("--json", type=Path, default=Path("federated_round.json"), help="results, added to")
    arguments = parser.parse_args()
    try:
        _benchmark(arguments.cases, arguments.repeats, arguments.json)
    except ConsortiumError as error:
        print(f"error: {error}\n  hint: {error.hint}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
