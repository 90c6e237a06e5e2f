"""What a file of results says: the figures the project claims, each with its aim, and a table in Markdown. One function a benchmark."""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

NOT_MEASURED = "not measured"
GB = 1e9
Stored = Mapping[str, Any]


@dataclass(frozen=True)
class Claim:
    """A figure; without an aim where none was set."""

    what: str
    found: str = NOT_MEASURED
    aim: str = ""
    met: bool | None = None


@dataclass(frozen=True)
class Found:
    """What a file of results says; `details` are Markdown."""

    claims: Sequence[Claim]
    details: str


def peers(stored: Stored) -> Found:
    """Of peers.py, case by case."""
    found = {case: _peers(CASES_OF_PEERS[case], part) for case, part in cases_of_peers(stored).items()}
    claims = [claim for each in found.values() for claim in each.claims]
    missing = [title for case, title in CASES_OF_PEERS.items() if case not in found and case != _CHOSEN]
    claims += [Claim(f"{title}: tokens/s, ours over the fastest peer", aim="at least 1.3") for title in missing]
    details = [f"**{CASES_OF_PEERS[case]}**: {each.details}" for case, each in found.items()]
    return Found(claims, "\n\n".join([stored.get("data", "") + ".", *details]))


_CHOSEN = "lora"
"""In older files: each contender on as many processes as is fastest for it"""
CASES_OF_PEERS = {
    _CHOSEN: "LoRA", "lora-1": "LoRA, one process", "lora-2": "LoRA, two processes",
    "qlora-1": "QLoRA, one process", "qlora-2": "QLoRA, two processes",
}  # fmt: skip


def cases_of_peers(stored: Stored) -> dict[str, Stored]:
    """Older files hold one case."""
    return dict(stored["cases"]) if "cases" in stored else {_CHOSEN: stored} if stored["results"] else {}


def _peers(case: str, stored: Stored) -> Found:
    """Ratios are those of a round; the aim is for the fastest peer as it comes."""
    found, names = stored["results"], [trainer(row) for row in stored["results"]]
    rounds = [list(each["speeds"].values()) if isinstance(each, dict) else each for each in stored["rounds"]]
    overall = [row["tokens_per_second_overall"] for row in found]
    fastest = max((place for place in range(1, len(found)) if found[place]["blockwise"]), key=overall.__getitem__)
    claims, rows = [], []
    for place, row in enumerate(found):
        ratios = [each[0] / each[place] for each in rounds]
        beside = ["", ""] if place == 0 else [_spread(ratios), f"{overall[0] / overall[place]:.2f}"]
        rows.append([names[place], f"{row['tokens_per_second']:,.0f}", f"{row['slowest']:,.0f} to {row['fastest']:,.0f}",
                     f"{100 * row['padding']:.1f} %", *beside, f"{row['workers']} x {row['threads']}", row["precision"]])  # fmt: skip
        what = f"{case}: tokens/s, ours over {names[place]}"
        if place == fastest:
            claims.append(_at_least(1.3, ratios, what))
        elif place > 0:
            claims.append(Claim(what, _spread(ratios)))
    header = ["", "tokens/s", "by round", "padding", "ours over it, by round", "over all", "processes x threads", "precision of products"]
    return Found(claims, f"{len(rounds)} rounds.\n\n{table(header, rows)}")


def trainer(row: Stored) -> str:
    """How a contender is called that ran in peers.py."""
    if row["name"] == "ours":
        return "ours"
    if row["name"] == "TRL packed":
        return "TRL SFTTrainer, packed"
    sampling = {"random": "drawn at random", "group_by_length": "grouped by length"}.get(row["sampling"], row["sampling"])
    return f"{'TRL SFTTrainer' if row['name'] == 'TRL' else row['name']}, {sampling}{'' if row['blockwise'] else ', our settings'}"


def loop_overhead(stored: Stored) -> Found:
    found = stored["results"]
    rows = [[row["workers"], row["stage"], f"{row['ours_ms']:.0f}", f"{row['bare_ms']:.0f}", _quartiles(row["ratios"]),
             _quartiles(row["cpu_ratios"]), f"{row['loss_difference']:.0e}", len(row["ratios"])] for row in found]  # fmt: skip
    header = ["workers", "ZeRO", "ours, ms", "bare, ms", "ours over bare", "processor time", "losses differ by", "steps"]
    medians = [statistics.median(row["ratios"]) for row in found]
    shown = f"{min(medians):.2f} to {max(medians):.2f}, by set-up"
    return Found([_at_most(1.03, medians, "time of a step, ours over a bare loop", shown)], table(header, rows))


def scaling(stored: Stored) -> Found:
    """Of scaling.py: points of `consortium bench`."""
    points = [point for point in stored["results"] if point["status"] == "measured"]
    claims, rows = [], []
    for point in points:
        series = f"{point['method']}, ZeRO {point['stage']}"
        if point["workers"] > 1:
            claims.append(Claim(f"efficiency of {point['workers']} workers, {series}", f"{100 * point['efficiency']:.0f} %"))
        rows.append([series, point["workers"], f"{point['tokens_per_second']:,.0f}", f"{100 * point['efficiency']:.0f} %",
                     f"{1000 * point['step_seconds']['median']:.0f}", f"{100 * point['communication_share']:.1f} %",
                     *(f"{point[f'{kind}_memory_bytes'] / 2**30:.2f}" for kind in ("peak", "predicted"))])  # fmt: skip
    header = ["", "workers", "tokens/s", "efficiency", "ms a step", "communication", "peak of a worker, GiB", "predicted, GiB"]
    return Found(claims or [Claim("tokens/s of 2 workers over that of one")], table(header, rows))


def dp_overhead(stored: Stored) -> Found:
    ordinary, *others = stored["results"]
    claims = []
    for row in others:
        what, shown = f"time of a step over our ordinary one: {step(row)}", _quartiles(row["ratios"])
        ours = row["variant"] == "private"
        claims.append(_at_most(1.1, [statistics.median(row["ratios"])], what, shown) if ours else Claim(what, shown))
    rows = [[step(row), f"{statistics.median(row['milliseconds']):.0f}", "" if row is ordinary else _quartiles(row["ratios"]),
             f"{row['flops'] / ordinary['flops']:.2f}", f"{row['memory'] / 2**20:.0f}"] for row in stored["results"]]  # fmt: skip
    header = ["", "ms", "over ordinary", "FLOPs over ordinary", "MiB that a step takes"]
    made = f"{stored['units']} units of {stored['length']} tokens, {len(ordinary['ratios'])} steps each."
    ledger = f"A charge to the ledger takes {stored['ledger_ms']:.1f} ms, and is in none of them."
    return Found(claims, f"{made} {ledger}\n\n{table(header, rows)}")


def step(row: Stored) -> str:
    """How a variant is called that ran in dp_overhead.py."""
    return {"ordinary": "ours, ordinary", "private": "ours, private", "opacus-hooks": "Opacus, hooks",
            "opacus-ghost": "Opacus, ghost clipping"}[row["variant"]]  # fmt: skip


def dp_utility(stored: Stored) -> Found:
    claims, rows = [], []
    for epsilon in (None, 8, 4, 2, 1):
        runs = [row for row in stored["results"] if row["epsilon"] == epsilon]
        shown: dict[str, Any] = runs[0] | runs[0]["recipe"] if runs else {}
        name = f"epsilon {epsilon}" if epsilon else "without privacy"
        accuracy = f"{_spread([100 * row['accuracy'] for row in runs], 1)} %" if runs else NOT_MEASURED
        claims.append(Claim(f"test accuracy, {name}", accuracy))
        kept = ("stated_epsilon", "noise_multiplier", "steps", "global_batch_size", "epochs")
        rows.append([name, accuracy, len(runs), *(shown.get(key, "") for key in kept)])
    header = ["", "test accuracy", "runs", "epsilon stated", "noise multiplier", "steps", "records a step", "epochs"]
    return Found(claims, table(header, rows))


def federated_utility(stored: Stored) -> Found:
    """Compared are runs of the first seed, which alone all have; in points of accuracy."""
    runs: dict[tuple[str, float | None], list[Stored]] = {}
    for row in stored["results"]:
        runs.setdefault((row["what"], row["epsilon"]), []).append(row)
    first = {case: 100 * rows[0]["accuracy"] for case, rows in runs.items()}
    best = {
        epsilon: max((first[case] for case in first if case[0] in _METHODS and case[1] == epsilon), default=None) for epsilon in (None, 8)
    }

    def apart(what: str, epsilon: float | None, other: str, aim: str, least: float) -> Claim:
        ours, theirs = best[epsilon], first.get((other, None))
        if ours is None or theirs is None:
            return Claim(what, aim=aim)
        return Claim(what, f"{ours - theirs:+.1f} points ({ours:.1f} %, {theirs:.1f} %)", aim, ours - theirs >= least)

    claims = [
        apart("test accuracy without privacy beside pooled data", None, "pooled", "within 2 points", -2),
        apart("at epsilon 8 beside the best bank alone, without privacy", 8, "alone", "above it", 0),
        apart("without privacy beside Flower's FedAvg", None, "flower", "at least Flower's", 0),
    ]
    names = {"alone": "each bank alone, the best of them", "pooled": "pooled data", "flower": "Flower's FedAvg"}
    table_rows = []
    for (what, epsilon), rows in runs.items():
        recipe, accuracy = rows[0]["recipe"], _spread([100 * row["accuracy"] for row in rows], 1)
        kept = (recipe.get(name, "") for name in ("rounds", "steps", "batch", "learning_rate", "alpha"))
        table_rows.append([names.get(what, what), epsilon or "none", f"{accuracy} %", len(rows), *kept, round(rows[0]["seconds"] / 60)])
    header = ["", "epsilon", "test accuracy", "runs", "rounds", "steps a round", "rows a step", "learning rate", "alpha", "minutes"]
    rest = f"\n\nOf {_CASES} cases {len(runs)} are measured." if len(runs) < _CASES else ""
    return Found(claims, table(header, table_rows) + rest)


_METHODS = ("ffa", "fedsvd", "fedavg")
_CASES = 2 * len(_METHODS) + len(("alone", "pooled", "flower"))


def gpu(stored: Stored) -> Found:
    """Of gpu.py: medians of steps."""
    there = {row["case"]: row for row in stored["results"] if "failed" not in row}
    step = {case: statistics.median(row["step_seconds"]) for case, row in there.items()}
    speed = {case: row["tokens_per_step"] / step[case] for case, row in there.items()}

    def tokens(what: str, case: str, least: int | None = None) -> Claim:
        aim = f"at least {least:,}" if least else ""
        if case not in speed:
            return Claim(what, aim=aim)
        return Claim(what, f"{speed[case]:,.0f}", aim, speed[case] >= least if least else None)

    peers = [speed[name] for name in ("Trainer", "TRL") if name in speed]
    beside = f"{speed['lora'] / max(peers):.2f}" if peers and "lora" in speed else NOT_MEASURED
    short = [step["dense"] / step["short"]] if {"short", "dense"} <= step.keys() else []
    private = [step["private"] / step["lora"]] if {"private", "lora"} <= step.keys() else []
    errors = [100 * (row["predicted_bytes"] / row["peak_memory_bytes"] - 1) for row in there.values() if row.get("predicted_bytes")]
    claims = [
        tokens("8B, LoRA: tokens/s", "lora", 14_000),
        Claim("8B, LoRA: tokens/s over the faster of TRL and Trainer", beside),
        Claim("8B, LoRA, documents of 512 tokens: tokens/s over those with a mask", f"{short[0]:.2f}" if short else NOT_MEASURED),
        tokens("8B, nf4: tokens/s", "nf4"),
        tokens("3B, full fine-tuning: tokens/s", "full"),
        _at_most(1.05, private, "8B, private LoRA: time of a step over the ordinary one"),
        Claim("peak memory, prediction over truth", f"{min(errors):+.1f} to {max(errors):+.1f} %" if errors else NOT_MEASURED),
    ]
    rows = [[case, f"{speed[case]:,.0f}", f"{1000 * step[case]:.0f}", row["rows"], f"{row['peak_memory_bytes'] / GB:.2f}",
             f"{row['predicted_bytes'] / GB:.2f}" if row.get("predicted_bytes") else ""] for case, row in there.items()]  # fmt: skip
    rows += [[row["case"], f"failed: {row['failed']}", "", row["rows"], "", ""] for row in stored["results"] if "failed" in row]
    return Found(claims, table(["", "tokens/s", "ms a step", "rows a step", "peak, GB", "predicted, GB"], rows))


def plan_truth(stored: Stored) -> Found:
    claims = []
    for kind, what in (("tensors", "tensors of whole models"), ("process", "DeepSpeed processes on CPUs"), ("gpu", "a GPU's allocator")):
        if errors := [abs(row["error"]) for row in stored["results"] if row["kind"] == kind]:
            for name, error, limit in (("median", statistics.median(errors), 10), ("worst", max(errors), 20)):
                claims.append(_at_most(limit, [error], f"error of the prediction, {what}: {name} of {len(errors)}", f"{error:.1f} %", " %"))
    rows = [[row["kind"], row["what"], f"{row['predicted'] / GB:.2f}", f"{row['truth'] / GB:.2f}", f"{row['error']:+.1f} %"]
            for row in stored["results"]]  # fmt: skip
    shown = table(["kind", "", "predicted, GB", "measured, GB", "error"], rows)
    return Found(claims, f"<details><summary>All {len(rows)} rows</summary>\n\n{shown}\n\n</details>")


def secagg(stored: Stored) -> Found:
    """The aims were set for 40 million numbers; up to 10 million Flower's was tried, so that one is looked at there."""
    cases: dict[tuple[int, int, int], dict[str, list[Stored]]] = {}
    for row in stored["results"]:
        case = row["case"]["banks"], row["case"]["elements"] // 10**6, row["case"]["vanished"]
        cases.setdefault(case, {}).setdefault(row["contender"], []).append(row)
    large, medium, many = (cases.get(case, {}) for case in ((10, 40, 0), (10, 10, 0), (100, 1, 0)))
    claims = [
        _at_most(4.1, _sent(large.get("ours", [])), "bytes a number that a bank sends, 10 banks, 40 million"),
        _at_most(2.5, _peaks(large.get("ours", [])), "a bank's peak memory over its vector, 10 banks, 40 million"),
        _at_least(
            5, _ratios(medium, _bank_seconds), "seconds of a bank, Flower's over ours, 10 banks, 10 million (40 million: not measured)"
        ),
        Claim("the same, 100 banks, 1 million", _spread(_ratios(many, _bank_seconds))),
        Claim(
            "seconds of the server, Flower's (in part extrapolated) over ours, 100 banks, 1 million",
            _spread(_ratios(many, _server_seconds)),
        ),
    ]
    names = ("ours", "Flower", "plain sum")
    rows = []
    for (banks, millions, vanished), runs in cases.items():
        seconds = [_median(runs.get(name), value) for value in (_bank_seconds, _server_seconds) for name in names]
        shares = [f"{max(share(runs[name])):.2f}" if name in runs else "" for share in (_sent, _peaks) for name in names[:2]]
        ratio = _spread(_ratios(runs, _bank_seconds))
        rows.append([banks, millions, vanished, *seconds[:3], ratio, *seconds[3:], *shares])
    header = ["banks", "million numbers", "vanish", "bank, s: ours", "Flower", "plain sum", "Flower over ours", "server, s: ours", "Flower",
              "plain sum", "sent, bytes a number: ours", "Flower", "peak over vector: ours", "Flower"]  # fmt: skip
    note = "Seconds of Flower's server are extrapolated in part: secrets that are alike are rebuilt once and counted for each."
    return Found(claims, f"{note}\n\n{table(header, rows)}")


EXCHANGES = ("keys", "shares", "update", "view", "reveal", "receipt", "receipts", "close")
BETWEEN = "between"
"""What is in none of them"""
ROUND_CASES = [{"elements": elements, "masked": masked} for masked in (True, False) for elements in (10**6, 10**7)]


def federated_round(stored: Stored) -> Found:
    """Ratios are those of a turn, by the median of its rounds; the aim is for masked rounds."""
    claims, cases, times = [], [], []
    for case in ROUND_CASES:
        turns = {name: _turns(stored, case, name) for name in ("ours", "Flower")}
        ratios = [ours / turns["Flower"][repeat] for repeat, ours in turns["ours"].items() if repeat in turns["Flower"]]
        what = f"seconds of a round over those of the Flower app, {case_name(case)}"
        aim = "at most 1.3" if case["masked"] else ""
        claims.append(Claim(what, _spread(ratios), aim, statistics.median(ratios) <= 1.3 if ratios and aim else None))
        found = {name: rounds(stored, case, name) for name in turns}
        if not found["ours"]:
            continue
        legs = found["ours"][0]["legs"]
        moved = [f"{sum(leg[way] for leg in legs) / 1e6:.1f}" for way in ("down", "up")]
        seconds = [_spread([each["seconds"] for each in found[name]], 1) for name in found]
        cases.append([case_name(case), len(legs), *moved, *seconds, _spread(ratios)])
        for name in found:
            split = by_exchange(found[name])
            times.append([f"{case_name(case)}: {name}", *(f"{split[each]:.1f}" if each in split else "" for each in (*EXCHANGES, BETWEEN))])
    shown = table(["", "messages to a bank", "MB to the banks", "MB from them", "ours, s", "Flower, s", "ours over Flower"], cases)
    return Found(claims, f"{shown}\n\nSeconds by exchange, medians:\n\n{table(['', *EXCHANGES, BETWEEN], times)}")


def case_name(case: Stored) -> str:
    """How a case of federated_round.py is called."""
    return f"{case['elements'] // 10**6} million numbers, {'masked' if case['masked'] else 'not masked'}"


def rounds(stored: Stored, case: Stored, contender: str) -> list[Stored]:
    """All that were measured."""
    return [each for row in stored["results"] if (row["case"], row["contender"]) == (case, contender) for each in row["rounds"]]


def by_exchange(found: Sequence[Stored]) -> dict[str, float]:
    """Seconds, the median of rounds; nothing of none."""
    split: dict[str, list[float]] = {}
    for each in found:
        for leg in each["legs"]:
            split.setdefault(leg["exchange"], []).append(leg["seconds"])
        split.setdefault(BETWEEN, []).append(each["seconds"] - sum(leg["seconds"] for leg in each["legs"]))
    return {name: statistics.median(seconds) for name, seconds in split.items()}


def _turns(stored: Stored, case: Stored, contender: str) -> dict[int, float]:
    """Seconds of a round, the median of each turn."""
    return {row["repeat"]: statistics.median(each["seconds"] for each in row["rounds"])
            for row in stored["results"] if (row["case"], row["contender"]) == (case, contender)}  # fmt: skip


def _bank_seconds(row: Stored) -> float:
    return sum(row["bank_seconds"])


def _server_seconds(row: Stored) -> float:
    return float(row["server_seconds"])


def _sent(runs: Sequence[Stored]) -> list[float]:
    return [row["sent"] / row["case"]["elements"] for row in runs]


def _peaks(runs: Sequence[Stored]) -> list[float]:
    return [row["bank_peaks"][-1] / (4 * row["case"]["elements"]) for row in runs]


def _ratios(runs: Mapping[str, Sequence[Stored]], value: Callable[[Stored], float]) -> list[float]:
    """Flower's over ours, of the same round."""
    ours = {row["repeat"]: value(row) for row in runs.get("ours", [])}
    return [value(row) / ours[row["repeat"]] for row in runs.get("Flower", []) if row["repeat"] in ours]


def _median(runs: Sequence[Stored] | None, value: Callable[[Stored], float]) -> str:
    return f"{statistics.median(map(value, runs)):.3f}" if runs else ""


def _at_most(limit: float, values: Sequence[float], what: str, shown: str = "", unit: str = "") -> Claim:
    """Of the greatest value."""
    aim = f"at most {limit}{unit}"
    return Claim(what, shown or f"{max(values):.2f}", aim, max(values) <= limit) if values else Claim(what, aim=aim)


def _at_least(limit: float, ratios: Sequence[float], what: str) -> Claim:
    """Of the median."""
    return Claim(what, _spread(ratios), f"at least {limit}", statistics.median(ratios) >= limit if ratios else None)


def _spread(values: Sequence[float], digits: int = 2) -> str:
    """Of rounds or runs: the median, and from the least to the most."""
    if not values:
        return NOT_MEASURED
    middle, low, high = (f"{value:.{digits}f}" for value in (statistics.median(values), min(values), max(values)))
    return f"{middle} ({low} to {high})" if len(values) > 1 else middle


def _quartiles(ratios: Sequence[float]) -> str:
    """Of steps: the median, and the quartiles."""
    low, middle, high = statistics.quantiles(ratios, n=4)
    return f"{middle:.3f} ({low:.3f} to {high:.3f})"


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
