"""The results page, benchmarks/README.md, and its pictures: made of the dated files in benchmarks/results, so that it cannot drift.

    python benchmarks/results.py [--check]

Of several files of one benchmark the newest counts, the others are listed under it. What a file does not hold is "not recorded", what has
no file "not measured". --check writes nothing, and fails where what is there is not what the files give.

A file is named BENCHMARK-DATE.json or BENCHMARK-DATE-WORDS.json; claims.py reads it, pictures.py draws it, CHAPTERS say what it is about.
"""

import argparse
import json
import re
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))  # a checkout that is not installed

import claims  # noqa: E402
import pictures  # noqa: E402
from claims import Claim, Found, table  # noqa: E402

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGE = REPOSITORY / "benchmarks" / "README.md"
RESULTS = REPOSITORY / "benchmarks" / "results"
NOT_RECORDED = "not recorded"
VERDICTS = {None: "", True: "met", False: "**missed**"}


@dataclass(frozen=True)
class File:
    """A file of results."""

    path: Path
    stored: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> "File":
        stored = json.loads(path.read_text())
        return cls(path, stored if isinstance(stored, dict) else {"results": stored})  # plan_truth's first file is a bare list

    @property
    def benchmark(self) -> str:
        return re.split(r"-\d{4}-\d\d-\d\d", self.path.stem)[0]

    @property
    def date(self) -> str:
        """To the minute; where a file does not say it, the day in its name."""
        if "date" in self.stored:
            return f"{self.stored['date'][:16].replace('T', ' ')} UTC"
        return f"{self.path.stem.removeprefix(self.benchmark)[1:11]}, hour {NOT_RECORDED}"

    @property
    def link(self) -> str:
        return f"[{self.path.name}](results/{self.path.name})"


@dataclass(frozen=True)
class Benchmark:
    """A script of this folder, and how its files are read and drawn."""

    name: str
    read: Callable[[Mapping[str, Any]], Found]
    draw: "Callable[[Mapping[str, Any]], Figure] | None" = None
    caption: str = ""


@dataclass(frozen=True)
class Chapter:
    """A part of the page: of a benchmark, or of what is not measured, with its aims."""

    title: str
    about: str
    of: Benchmark | Sequence[Claim]


INTRODUCTION = """
Made by `make results` from the files in [results](results): change those, not this page. A ratio is taken within a round (or a step) of one
run, in which all take turns on the same machine. Given are the median and, in brackets, the least and the most of the rounds, or the
quartiles where steps are compared. Seconds of different runs are not to be compared. Nothing here is projected.
"""

CHAPTERS = (
    Chapter(
        "Training beside other trainers",
        """Real tokens a second against Hugging Face's Trainer and TRL on the same tokens and labels: a Llama of 6 layers, LoRA of rank 16,
        float32, 64 examples a step, each peer in the fastest of its set-ups. "Our settings" are what our worker sets of torch and malloc on
        a CPU, given to the fastest peer. What is grouped by length is drawn in another order than ours, which is drawn at random.
        In earlier runs without a number of processes each ran on as many as was fastest for it.""",
        Benchmark("peers", claims.peers, pictures.peers, "Real tokens a second: the median round, and from the slowest to the fastest"),
    ),
    Chapter(
        "The loop's own cost",
        """`train_step` on DeepSpeed against a bare PyTorch loop that does the same work on the same batches, steps in alternation.""",
        Benchmark("loop_overhead", claims.loop_overhead),
    ),
    Chapter(
        "Scaling",
        """Tokens a second by number of workers, each with the same number of tokens a step: `consortium bench` on a small Llama and
        this machine's processors. `consortium bench JOB.yaml --workers 1,2,4,8` measures yours, and projects what they do not have.
        Workers on GPUs are not measured.""",
        Benchmark("scaling", claims.scaling, pictures.scaling, "Tokens a second and a worker's peak memory by number of workers"),
    ),
    Chapter(
        "Memory against its prediction",
        """What `consortium plan` predicts against torch's own tracker on whole models of 1 and 8 billion weights (tensors), and against
        the resident size of real DeepSpeed processes (process). An error above 0 is a prediction above what is there.""",
        Benchmark("plan_truth", claims.plan_truth, pictures.plan_truth, "Predicted against measured memory"),
    ),
    Chapter(
        "The private step",
        """Our private step and Opacus' against our ordinary step: the same model and batch, one thread, a step each in turn.""",
        Benchmark(
            "dp_overhead", claims.dp_overhead, pictures.dp_overhead, "Time of a step over that of our ordinary one: median, quartiles"
        ),
    ),
    Chapter(
        "What privacy costs in accuracy",
        """BANKING77, a MiniLM encoder, LoRA of rank 16; the unit is a record, delta is 1e-5. No peer stands beside it, and no aim was
        set.""",
        Benchmark("dp_utility", claims.dp_utility, pictures.dp_utility, "Test accuracy by epsilon; what is missing is not measured"),
    ),
    Chapter(
        "Secure aggregation",
        """A bank and the server in whole sessions of ours, beside the functions of Flower's SecAgg+, and a plain sum. Ours parses,
        hashes and writes twice to disk with fsync; Flower's does not. Peak memory is that of the process, Python included, and so many
        vectors where those are small.""",
        Benchmark("secagg", claims.secagg, pictures.secagg, "Seconds by number of banks, a million numbers each, none vanishes"),
    ),
    Chapter(
        "A federated round",
        """Seconds and bytes of a round over real processes, four banks, training aside, beside a Flower app of as many legs and bytes
        that does nothing: Flower's own commands as they come, over TLS. Ours has two gateways on the way, and writes what it has
        received to disk before it goes on. Of a leg most is waiting: a SuperNode asks for messages every 3 seconds, and our gateways
        let it wait for one instead. Both sides share the processors of one machine.""",
        Benchmark("federated_round", claims.federated_round, pictures.federated_round, "Seconds of a round by exchange: medians"),
    ),
    Chapter(
        "Federated accuracy",
        """BANKING77 among five banks (Dirichlet 0.5), beside each bank alone, pooled data, and Flower's plain FedAvg on the same
        partition with as many local steps. Without privacy ours has momentum at the server, and but for fedsvd keeps each bank's moments
        of Adam from round to round; Flower's, as in its examples, has neither. At epsilon 8 only the pooler is adapted, with a small
        alpha, beside the new head; all linear layers otherwise.""",
        Benchmark(
            "federated_utility", claims.federated_utility, pictures.federated_utility, "Test accuracy by round; dashed without rounds"
        ),
    ),
    Chapter(
        "One GPU",
        """An H200; the Llama-3.1-8B shape with LoRA of rank 16 on all linear layers, bf16, rows packed to 4,096 tokens, no activation
        checkpointing; beside it TRL and the plain Trainer on the same tokens. At 790 TFLOP/s the limit is 23,588 tokens/s; the best
        that is published, on an H100, is 12,473. A GPU is needed for it.""",
        Benchmark("gpu", claims.gpu),
    ),
)

ELSEWHERE = """
The project's README tells of single runs too, for which no file is kept here: `make demo`, `consortium train examples/banking77.yaml`, a
worker killed, a node lost. Each such run has date, machine and versions in its own report. That losses are those of an uninterrupted run,
and of a plain loop, the tests assert each time.
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if something would change")
    check = parser.parse_args().check
    made = make([File.read(path) for path in sorted(RESULTS.glob("*.json"))])
    there = {path: path.read_text() for path in [PAGE, *RESULTS.glob("*.svg")] if path.exists()}
    changed = [path for path in sorted(made.keys() | there.keys()) if made.get(path) != there.get(path)]
    for path in changed:
        if check:
            print(f"{path.relative_to(REPOSITORY)} is not what the files of results give: run make results", file=sys.stderr)
        elif path in made:
            path.write_text(made[path])
        else:
            path.unlink()
    return 1 if check and changed else 0


def make(files: Sequence[File]) -> dict[Path, str]:
    """The page and its pictures, by where they belong."""
    known = {chapter.of.name for chapter in CHAPTERS if isinstance(chapter.of, Benchmark)}
    if unknown := [file.path.name for file in files if file.benchmark not in known]:
        raise SystemExit(f"no chapter of benchmarks/results.py is about {', '.join(unknown)}")
    made: dict[Path, str] = {}
    summary: list[list[str]] = []
    bodies: list[str] = []
    for chapter in CHAPTERS:
        body = [f"## {chapter.title}", _fill(chapter.about)]
        stated: Sequence[Claim]
        if isinstance(chapter.of, Benchmark):
            name = chapter.of.name
            mine = sorted(
                (file for file in files if file.benchmark == name), key=lambda file: (file.date[:10], file.stored.get("date", ""))
            )
            found = chapter.of.read(mine[-1].stored if mine else {"results": []})
            stated = found.claims
        else:
            mine, stated = [], chapter.of
        if mine:
            shown = _picture(chapter.of, mine[-1], made)
            body += [_provenance(mine[-1]), *shown, found.details, *(_earlier(file, chapter.of) for file in mine[-2::-1])]
        else:
            body.append(f"**{claims.NOT_MEASURED.capitalize()}.**")
        title = f"[{chapter.title}](#{_anchor(chapter.title)})"
        for claim in stated:
            summary.append([title, claim.what, claim.found, claim.aim, VERDICTS[claim.met]])
            title = ""
        bodies += body
    start = ["# Results", _fill(INTRODUCTION), table(["", "figure", "found", "aim", ""], summary)]
    made[PAGE] = "\n\n".join([*start, *bodies, "## Without a file", _fill(ELSEWHERE)]) + "\n"
    return made


def _picture(benchmark: Benchmark, file: File, made: dict[Path, str]) -> list[str]:
    """Its line in the page, if it has one; the picture itself goes to `made`."""
    if benchmark.draw is None:
        return []
    path = RESULTS / f"{benchmark.name}.svg"
    made[path] = pictures.svg(benchmark.draw(file.stored))
    return [f"![{benchmark.caption}](results/{path.name})\n\n*{benchmark.caption}.*"]


def _provenance(file: File) -> str:
    stored = file.stored
    command = f"`{stored['command']}`" if "command" in stored else f"`python benchmarks/{file.benchmark}.py`, options {NOT_RECORDED}"
    versions = ", ".join(f"{name} {version}" for name, version in stored.get("versions", {}).items()) or NOT_RECORDED
    cpu, cores = stored.get("cpu", f"CPU {NOT_RECORDED}"), stored.get("cores", f"number {NOT_RECORDED}")
    gpu = (stored["gpu"] or "none") if "gpu" in stored else NOT_RECORDED
    return "\n".join([
        f"- Command: {command}",
        f"- Date: {file.date}; revision: {stored.get('revision', NOT_RECORDED)}; results: {file.link}",
        f"- Machine: {cpu}; cores: {cores}; GPU: {gpu}",
        f"- Versions: {versions}",
    ])  # fmt: skip


def _earlier(file: File, benchmark: Benchmark) -> str:
    """A line for a file that is not the newest."""
    data = f" ({file.stored['data']})" if "data" in file.stored else ""
    measured = [claim for claim in benchmark.read(file.stored).claims if claim.found != claims.NOT_MEASURED]
    figures = "; ".join(f"{claim.what}: {claim.found}" for claim in measured)
    return f"Before that: {file.link}, {file.date}{data}. {figures}."


def _fill(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), 140, break_long_words=False, break_on_hyphens=False)


def _anchor(title: str) -> str:
    """As GitHub makes it."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


if __name__ == "__main__":
    sys.exit(main())
