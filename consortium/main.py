"""The command line. Everything heavy is imported inside the commands, so that `--help` answers at once."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from consortium.federation import app as federation_app
from privacy.errors import ConsortiumError
from trainers.errors import ConfigError

app = typer.Typer(
    name="consortium",
    help="Fine-tune language models over Ray and DeepSpeed, on your own machines. With --debug an error comes with its traceback.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(help="Look at data before training on it.", no_args_is_help=True)
app.add_typer(data_app, name="data")
jobs_app = typer.Typer(help="Jobs on a Ray cluster.", no_args_is_help=True)
app.add_typer(jobs_app, name="jobs")
privacy_app = typer.Typer(help="What a private run promises, and what a population's budget allows.", no_args_is_help=True)
app.add_typer(privacy_app, name="privacy")
ledger_app = typer.Typer(help="Budgets of populations: granted by the compliance officer, spent by private runs.", no_args_is_help=True)
privacy_app.add_typer(ledger_app, name="ledger")
app.add_typer(federation_app, name="federation")

JobFile = Annotated[Path, typer.Argument(help="Job file (YAML).", metavar="JOB.yaml")]
RunDir = Annotated[Path, typer.Argument(help="Run directory.", metavar="RUN")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Set = Annotated[list[str], typer.Option("--set", help="Override a field: --set train.learning_rate=1e-4", metavar="FIELD=VALUE")]


@app.command()
def demo(output: Annotated[Path, typer.Option(help="Where data, model and runs go.")] = Path("demo")) -> None:
    """Run the main job on generated data: pretrain a small model, fine-tune an adapter on it, compare. No network, a few minutes."""
    from consortium.demo import run_demo

    run_demo(output)


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="New directory.", metavar="DIR")],
    private: Annotated[bool, typer.Option("--private", help="For differentially private training.")] = False,
) -> None:
    """Write a commented job file with sample data."""
    from consortium.init import write_starter

    write_starter(folder, private=private)


@app.command()
def train(
    job: JobFile,
    set_: Set = [],  # noqa: B006
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint of the run of this name.")] = False,
) -> None:
    """Run a training job."""
    from consortium.training import train_job

    train_job(job, set_, resume=resume)


@app.command()
def resume(
    run: RunDir,
    workers: Annotated[int | None, typer.Option(help="Another number of workers than before.", min=1)] = None,
) -> None:
    """Continue an interrupted run at the next unseen sample, on as many workers as you like."""
    from consortium.training import resume_run

    resume_run(run, workers=workers)


@app.command()
def plan(
    job: JobFile,
    gpus: Annotated[str, typer.Option(help="Numbers of GPUs to look at.", metavar="N,N")] = "1,2,4,8",
    gpu: Annotated[str, typer.Option(help="h200, h100, a100-80, l40s, rtx4090 or cpu.")] = "h100",
    price: Annotated[float | None, typer.Option(help="Of a GPU hour, in your currency.", min=0)] = None,
    project: Annotated[str | None, typer.Option(help="Numbers of GPUs beyond what was ever measured.", metavar="N,N")] = None,
    tokens: Annotated[float | None, typer.Option(help="Tokens of an epoch, where the data are not at hand.", min=1)] = None,
    page: Annotated[Path | None, typer.Option(help="Write it as a page too, with pictures.", metavar="PLAN.html", dir_okay=False)] = None,
    measured: Annotated[
        Path | None, typer.Option(help="Of `consortium bench`: its points beside the page's.", metavar="BENCH.json")
    ] = None,
    set_: Set = [],  # noqa: B006
    json_: Json = False,
) -> None:
    """Will it fit, how long, what does it cost: before anything is launched, without GPU or weights."""
    from consortium.plan import plan_job

    plan_job(job, set_, gpus=gpus, gpu=gpu, price=price, project=project, tokens=tokens, as_json=json_, page=page, benchmark=measured)


@app.command()
def tune(
    job: JobFile,
    space: Annotated[Path, typer.Option(help="YAML, as in train.learning_rate: {loguniform: [1e-5, 1e-3]}.", metavar="SPACE.yaml")],
    trials: Annotated[int, typer.Option(help="Points tried.", min=1)] = 16,
    concurrent: Annotated[int | None, typer.Option(help="Trials at a time; as many as the cluster has room for.", min=1)] = None,
    scheduler: Annotated[str, typer.Option(help="asha stops the worse trials early; random runs all to the end.")] = "asha",
    metric: Annotated[str | None, typer.Option(help="eval_loss, accuracy or macro_f1; else the job's checkpoint.best_by.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted search, or make it longer.")] = False,
    output: Annotated[Path | None, typer.Option(help="Folder of the search; else OUTPUT/NAME-tune.")] = None,
    set_: Set = [],  # noqa: B006
) -> None:
    """Search for better values of a job's fields."""
    from consortium.tune import tune_job

    tune_job(job, space, set_, trials=trials, concurrent=concurrent, scheduler=scheduler, metric=metric, resume=resume, output=output)


@app.command()
def suggest(
    job: JobFile,
    gpu: Annotated[str | None, typer.Option(help="h200, h100, a100-80, l40s, rtx4090, ... or cpu; else what this machine has.")] = None,
    set_: Set = [],  # noqa: B006
    json_: Json = False,
) -> None:
    """Propose learning rate, batch, epochs, rank, quantisation and length for a job, with reasons."""
    from consortium.suggest import suggest_values

    suggest_values(job, set_, gpu, as_json=json_)


@app.command()
def evaluate(
    target: Annotated[Path, typer.Argument(help="Run directory, adapter, model directory.", metavar="RUN|MODEL")],
    data: Annotated[Path, typer.Option(help="Rows to evaluate on.")],
    by: Annotated[str | None, typer.Option(help="Column: every metric for each of its values, and the gap.")] = None,
    label: Annotated[str | None, typer.Option(help="Column with the expected label of a written answer.")] = None,
    terms: Annotated[str | None, typer.Option(help="Column with the domain terms an answer should use.")] = None,
    generate: Annotated[bool, typer.Option(help="Write answers and score them (BLEU, ROUGE, exact match).")] = False,
    review: Annotated[Path | None, typer.Option(help="Write a sheet for expert marking (CSV).")] = None,
    base: Annotated[bool, typer.Option("--base", help="The model before training: the adapter left out.")] = False,
    limit: Annotated[int | None, typer.Option(help="First rows only.", min=1)] = None,
    json_: Json = False,
) -> None:
    """Score a model beyond its loss."""
    _demand(target, "a run, an adapter or a model directory")
    _demand(data, "JSONL, CSV, Parquet or a dataset directory")
    from consortium.evaluation import evaluate_model

    evaluate_model(target, data, by=by, label=label, terms=terms, generate=generate, review=review, base=base, limit=limit, as_json=json_)


@app.command()
def predict(
    run: RunDir,
    input_: Annotated[str, typer.Option("--input", help="Text lines or JSONL; - is standard input.", metavar="FILE|-")] = "-",
    abstain_below: Annotated[float, typer.Option(help="Abstain when the confidence is lower.", min=0, max=1)] = 0.0,
) -> None:
    """Answer each input line with a confidence, as JSON lines. Of a line that is too long `unread_tokens` says by how much."""
    _demand(run, "a run, an adapter or a model directory")
    from consortium.evaluation import predict_lines

    predict_lines(run, input_, abstain_below=abstain_below)


@app.command()
def export(
    run: RunDir,
    output: Annotated[Path, typer.Option(help="New directory for the model.")],
    merge: Annotated[bool, typer.Option("--merge", help="Fold the adapter into the weights.")] = False,
) -> None:
    """Write the trained model for use elsewhere."""
    _demand(run, "a run directory: OUTPUT/NAME of a job")
    from consortium.evaluation import export_model

    export_model(run, output, merge=merge)


@app.command()
def bench(
    target: Annotated[list[str], typer.Argument(help="Job file, or two results to compare.", metavar="JOB.yaml | compare A.json B.json")],
    workers: Annotated[str | None, typer.Option(help="Numbers of workers, by default the job's.", metavar="1,2,4,8")] = None,
    method: Annotated[str | None, typer.Option(help="Of lora, full, nf4, int8.", metavar="lora,full")] = None,
    zero: Annotated[str | None, typer.Option(help="ZeRO stages.", metavar="1,2,3")] = None,
    seq: Annotated[str | None, typer.Option(help="Lengths of the rows, in tokens.", metavar="512,2048")] = None,
    steps: Annotated[int, typer.Option(help="Timed steps a point.", min=1)] = 20,
    price: Annotated[float | None, typer.Option(help="Of a worker (a GPU) for an hour, in any currency.", min=0)] = None,
    project: Annotated[str | None, typer.Option(help="More workers than can be had: projected, not measured.", metavar="64,512")] = None,
    set_: Set = [],  # noqa: B006
    output: Annotated[Path | None, typer.Option(help="New directory for JSON, page and picture.", metavar="DIR")] = None,
) -> None:
    """Measure speed, scaling and memory of a job on generated rows, without data or weights to download; or compare two results."""
    match target:
        case ["compare", first, second]:
            from consortium.bench import compare_benches

            compare_benches(Path(first), Path(second))
        case [job] if job != "compare":
            from consortium.bench import run_bench

            run_bench(Path(job), set_, workers=workers, methods=method, stages=zero, lengths=seq, projected=project, steps=steps,
                      price=price, output=output)  # fmt: skip
        case _:
            raise ConfigError(f"bench {' '.join(target)}: expected one job file, or compare A.json B.json")


Address = Annotated[str | None, typer.Option(help="The head's dashboard.", metavar="http://HEAD:8265")]
JobId = Annotated[str, typer.Argument(help="As `consortium jobs list` shows it.", metavar="ID")]


@app.command()
def submit(
    job: JobFile,
    address: Address = None,
    set_: Set = [],  # noqa: B006
    package: Annotated[bool, typer.Option(help="Send this program along, or rely on what the nodes have installed.")] = True,
    wait: Annotated[bool, typer.Option("--wait", help="Follow the log and end with the job's own exit code.")] = False,
    shared: Annotated[list[Path], typer.Option(help="A folder that all nodes have too: data in it are not sent.", metavar="DIR")] = [],  # noqa: B006
) -> None:
    """Run a job on a Ray cluster. Submitted again under the same name it goes on where it was."""
    from consortium.jobs import submit_job

    submit_job(job, set_, address, package=package, wait=wait, shared=shared)


@app.command(hidden=True)
def submitted() -> None:
    """What a submitted job starts on the cluster."""
    from consortium.jobs import run_submitted

    run_submitted()


@app.command()
def doctor(
    address: Address = None,
    output: Annotated[str, typer.Option(help="Where runs go.", metavar="DIR|URL")] = "runs",
    json_: Json = False,
) -> None:
    """Look at this machine, and at a cluster, for what would prevent training."""
    from consortium.doctor import examine

    examine(output, address, as_json=json_)


@app.command("render-k8s")
def render_k8s(
    job: JobFile,
    image: Annotated[str, typer.Option(help="With consortium in it.")],
    storage_claim: Annotated[str, typer.Option(help="Claim that all pods mount.", metavar="PVC")],
    namespace: Annotated[str, typer.Option(help="Kubernetes namespace.")] = "default",
    mount: Annotated[str, typer.Option(help="Where the pods see the storage: model, data and output lie under it.")] = "/shared",
    per_pod: Annotated[int, typer.Option(help="Workers in a pod: as many as a node has GPUs.", min=1)] = 8,
    autoscale: Annotated[int | None, typer.Option(help="Let the cluster grow to so many worker pods.", metavar="MAX", min=1)] = None,
    output: Annotated[Path, typer.Option(help="Directory for the manifests.", metavar="DIR")] = Path("k8s"),
    set_: Set = [],  # noqa: B006
) -> None:
    """Write KubeRay manifests for a job. They are rendered and checked for structure, never applied."""
    from cluster.k8s import Site
    from consortium.k8s import render_manifests

    render_manifests(job, set_, Site(image, storage_claim, namespace, mount, per_pod, autoscale), output)


@jobs_app.command("list")
def jobs_list(address: Address = None, json_: Json = False) -> None:
    """Jobs submitted to a cluster, newest first."""
    from consortium.jobs import list_jobs

    list_jobs(address, as_json=json_)


@jobs_app.command("status")
def jobs_status(id: JobId, address: Address = None, json_: Json = False) -> None:
    """How a job stands."""
    from consortium.jobs import show_status

    show_status(id, address, as_json=json_)


@jobs_app.command("logs")
def jobs_logs(
    id: JobId, address: Address = None, follow: Annotated[bool, typer.Option("-f", "--follow", help="Until the job is over.")] = False
) -> None:
    """What a job has printed."""
    from consortium.jobs import show_logs

    show_logs(id, address, follow=follow)


@jobs_app.command("stop")
def jobs_stop(id: JobId, address: Address = None) -> None:
    """End a job. Its checkpoints stay: submitted again it goes on."""
    from consortium.jobs import stop_job

    stop_job(id, address)


KindList = Annotated[str | None, typer.Option(help="Of EMAIL, PHONE, IBAN, CARD, ...; else all.", metavar="KIND,...")]
Names = Annotated[str | None, typer.Option(help="Plug-in that finds names: an entry point or module:function.", metavar="PLUG-IN")]


@data_app.command("audit")
def data_audit(
    file: Annotated[Path, typer.Argument(help="JSONL, CSV, Parquet or dataset directory.", metavar="FILE")],
    job: Annotated[Path | None, typer.Option(help="Job file: its validation rows, or its split, are looked for in FILE.")] = None,
    against: Annotated[Path | None, typer.Option(help="Rows that FILE must not hold.", metavar="TEST.jsonl")] = None,
    label: Annotated[str | None, typer.Option(help="Column of the classes.", metavar="COLUMN")] = None,
    names: Names = None,
    fail_on: Annotated[str | None, typer.Option(help="Exit code 1 when found: kinds, DUPLICATES, LEAKAGE.", metavar="KIND,...")] = None,
    json_: Json = False,
) -> None:
    """Personal and account data, secrets, duplicates, leakage from the test rows, and the balance of classes. Values are shown masked."""
    from consortium.pii import audit_data

    audit_data(file, job, against, label=label, names=names, fail_on=fail_on, as_json=json_)


@data_app.command("redact")
def data_redact(
    file: Annotated[Path, typer.Argument(help="JSONL, CSV or Parquet.", metavar="FILE")],
    output: Annotated[Path, typer.Argument(help="New file of the same format.", metavar="OUT")],
    key: Annotated[Path, typer.Option(help="The data set's key; made where there is none.", metavar="KEYFILE")],
    kinds: KindList = None,
    names: Names = None,
) -> None:
    """Replace what `data audit` finds by pseudonyms such as [IBAN:3f9a2c], the same for the same value under one key."""
    from consortium.pii import redact_data

    redact_data(file, output, key, kinds=kinds, names=names)


@data_app.command("inspect")
def data_inspect(
    file: Annotated[Path, typer.Argument(help="JSONL, CSV, Parquet or dataset directory.", metavar="FILE")],
    job: Annotated[Path | None, typer.Option(help="Job file whose data and model blocks apply.")] = None,
    model: Annotated[str | None, typer.Option(help="Directory or hub id of the tokenizer, without a job file.")] = None,
    task: Annotated[str | None, typer.Option(help="sft, pretrain or classify, without a job file; else sft.")] = None,
    shown: Annotated[int, typer.Option(help="Examples shown in colour.", min=0)] = 3,
) -> None:
    """Row counts, lengths, bad rows, and what is learnt, in colour."""
    from consortium.training import inspect_data

    inspect_data(file, job, model, task, shown=shown)


LedgerFile = Annotated[Path, typer.Option("--ledger", help="The ledger.", metavar="FILE")]
Population = Annotated[str, typer.Argument(help="Whose rows: a name for a set of customers.", metavar="POPULATION")]


@privacy_app.command("plan")
def privacy_plan(
    units: Annotated[int, typer.Option(help="Customers (or records, whatever is protected) in the data: a declared number.", min=1)],
    batch: Annotated[int, typer.Option(help="Units a step is expected to see.", min=1)],
    epsilon: Annotated[float | None, typer.Option(help="To be kept; or --noise.")] = None,
    noise: Annotated[float | None, typer.Option(help="Noise multiplier; or --epsilon.")] = None,
    delta: Annotated[float | None, typer.Option(help="Below 1 / units; one is suggested.")] = None,
    epochs: Annotated[float | None, typer.Option(help="How often each unit is expected to be seen; or --steps.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps; or --epochs.", min=1)] = None,
    spare_steps: Annotated[int, typer.Option(help="Steps that failures may cause to be taken again: reserved too.", min=0)] = 0,
    ledger: Annotated[Path | None, typer.Option(help="Ask this ledger, with --population.", metavar="FILE")] = None,
    population: Annotated[str | None, typer.Option(help="Whose budget.")] = None,
    json_: Json = False,
) -> None:
    """Noise, steps and epsilon by batch size, and whether a budget allows them."""
    from consortium.privacy_plan import plan_privacy

    plan_privacy(units, batch, epsilon=epsilon, noise=noise, delta=delta, epochs=epochs, steps=steps, spare_steps=spare_steps,
                 ledger=ledger, population=population, as_json=json_)  # fmt: skip


@privacy_app.command("audit")
def privacy_audit(
    run: RunDir,
    twin: Annotated[bool, typer.Option("--twin", help="Attack the same job trained without privacy too: has the attack power?")] = False,
    json_: Json = False,
) -> None:
    """Attack a finished private run by its canaries: a lower bound on the epsilon it really has."""
    _demand(run, "a run directory: OUTPUT/NAME of a job")
    from consortium.audit import audit_run

    audit_run(run, twin=twin, as_json=json_)


@ledger_app.command("create")
def ledger_create(ledger: LedgerFile) -> None:
    """Start a ledger, on a disk of the machine whose jobs it is to govern."""
    from consortium.ledger import create_ledger

    create_ledger(ledger)


@ledger_app.command("grant")
def ledger_grant(
    population: Population,
    epsilon: Annotated[float, typer.Option(help="For all that is ever released of the population's rows.")],
    delta: Annotated[float, typer.Option(help="Below 1 / units of any file.")],
    ledger: LedgerFile,
    by: Annotated[str, typer.Option(help="Who grants it.")] = "",
    replace: Annotated[bool, typer.Option("--replace", help="Instead of the budget it has; what was spent stays spent.")] = False,
) -> None:
    """Give a population its budget."""
    from consortium.ledger import grant_budget

    grant_budget(ledger, population, epsilon, delta, by, replace=replace)


@ledger_app.command("attach")
def ledger_attach(
    population: Population,
    file: Annotated[Path, typer.Argument(help="Training data; known by its content.", metavar="FILE")],
    units: Annotated[int, typer.Option(help="Units in it: a declared number.", min=1)],
    ledger: LedgerFile,
) -> None:
    """Declare whose rows a training file holds. A file that was changed has to be attached again."""
    from consortium.ledger import attach_file

    attach_file(ledger, population, file, units)


@ledger_app.command("close")
def ledger_close(
    reservation: Annotated[str, typer.Argument(help="As `ledger show` lists it.", metavar="RESERVATION")], ledger: LedgerFile
) -> None:
    """End the reservation of a run that will not go on: steps it never took are given back."""
    from consortium.ledger import close_reservation

    close_reservation(ledger, reservation)


@ledger_app.command("show")
def ledger_show(
    ledger: LedgerFile,
    population: Annotated[str | None, typer.Argument(help="Else all.", metavar="POPULATION")] = None,
    json_: Json = False,
) -> None:
    """Budgets, what is spent of them, files, reservations, and the head of the chain."""
    from consortium.ledger import show_ledger

    show_ledger(ledger, population, as_json=json_)


@ledger_app.command("verify")
def ledger_verify(
    ledger: LedgerFile,
    head: Annotated[str | None, typer.Option(help="Hash of a head noted before, to be found again.", metavar="HASH")] = None,
) -> None:
    """Calculate the chain of rows again. What was cut off its end shows only by a noted head."""
    from consortium.ledger import verify_ledger

    verify_ledger(ledger, head)


def _demand(path: Path, expected: str) -> None:
    """A wrong path is told at once, before torch is loaded."""
    if not path.exists():
        raise ConfigError(f"{path}: no such file or directory", f"expected {expected}")


def main() -> None:
    """Entry point: one line and a hint for what the user can mend, a traceback only with --debug."""
    debug = "--debug" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    try:
        app()
    except ConsortiumError as error:
        if debug:
            raise
        print(f"error: {error}" + (f"\n  hint: {error.hint}" if error.hint else ""), file=sys.stderr)
        sys.exit(error.exit_code)
