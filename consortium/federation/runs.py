"""`consortium federation coordinator | bank | run | resume | stop`: what runs, and what is ordered of it."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from consortium.federation.options import BANK, COORDINATOR, BankHome, CoordinatorHome

app = typer.Typer()
Name = Annotated[str, typer.Argument(help="Of the run: a-z, 0-9, . and -", metavar="RUN")]


@app.command()
def coordinator(
    home: CoordinatorHome = COORDINATOR,
    host: Annotated[str, typer.Option(help="Address to listen on for banks: 0.0.0.0 for all of this machine's.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="For banks; 0 for a free one.", min=0, max=65535)] = 9443,
) -> None:
    """Coordinator: start Flower and the gateway before it, and keep them running until Ctrl-C."""
    from federation.sides import coordinate

    _until_interrupted(lambda: coordinate(home.resolve(), host=host, port=port, tell=_tell))


@app.command()
def bank(config: Annotated[Path, typer.Argument(help="The bank's file.", metavar="BANK.yaml")], home: BankHome = BANK) -> None:
    """Bank: take part, by what BANK.yaml allows, until Ctrl-C. A run that goes on meanwhile loses this bank until it is there again."""
    from federation.sides import take_part

    _until_interrupted(lambda: take_part(home.resolve(), config.resolve(), tell=_tell))


@app.command()
def run(
    name: Name,
    base_model: Annotated[Path, typer.Option(help="Directory of the base model, for the adapter that the run starts from.", metavar="DIR")],
    home: CoordinatorHome = COORDINATOR,
    seed: Annotated[int, typer.Option(help="Of that adapter.", min=0)] = 0,
) -> None:
    """Coordinator: begin a run and show it to its end. Ctrl-C leaves it running."""
    from federation.enrolment.member import check_name
    from federation.sides import begin_run, check_running

    check_running(home.resolve())
    begin_run(home.resolve(), check_name(name), base_model, seed)
    _order(home.resolve(), name)


@app.command()
def resume(name: Name, home: CoordinatorHome = COORDINATOR) -> None:
    """Coordinator: go on with a run that was stopped, has failed or whose machine has died, at the round it was in, as a new attempt."""
    from federation.enrolment.member import check_name

    check_name(name)
    _order(home.resolve(), name)


@app.command()
def stop(name: Name, home: CoordinatorHome = COORDINATOR) -> None:
    """Coordinator: end a run after the exchange that goes on. It can be resumed."""
    from federation.dossier.report import run_of
    from federation.files import write_bytes

    write_bytes(run_of(home, name) / "stop", b"")
    print(f"{name} ends after the exchange that goes on; consortium federation resume {name} --home {home}")


@app.command()
def personalise(
    config: Annotated[Path, typer.Argument(help="The bank's file.", metavar="BANK.yaml")],
    adapter: Annotated[Path, typer.Argument(help="The federation's, as a run has left it.", metavar="ADAPTER")],
    output: Annotated[Path, typer.Argument(help="New directory.", metavar="OUTPUT")],
    federation: Annotated[Path, typer.Option("--for", help="The coordinator's federation.yaml, whose terms hold.", metavar="FILE")],
    steps: Annotated[int, typer.Option(help="Of training on the bank's rows.", min=1)] = 50,
    home: BankHome = BANK,
) -> None:
    """Bank: train the federation's adapter further on the bank's own rows. It is charged to the bank's ledger, and nothing leaves."""
    from federation.config import load_bank, load_federation
    from federation.drafts import training_of
    from federation.rounds.personal import personalise

    training = training_of(load_federation(federation))
    facts = personalise(training, load_bank(config), adapter.resolve(), output.resolve(), home.resolve() / "personal", steps)
    cost = f", epsilon {facts['epsilon']:g} at delta {facts['delta']:g}" if "epsilon" in facts else ""
    print(f"{output}: {facts['steps']} steps{cost}")


@app.command()
def demo(
    banks: Annotated[int, typer.Option(help="How many, from 4.")] = 4,
    output: Annotated[Path, typer.Option(help="Folder for all of it.", metavar="DIR")] = Path("demo-federation"),
) -> None:
    """All of it on this machine: data, keys, processes, TLS, private training, a bank that dies, dossiers. About 10 minutes."""
    from consortium.federation.demo import run_demo

    run_demo(output, banks)


def _order(home: Path, name: str) -> None:
    """Start it, and show it until it is over. Raises RunFailed."""
    from consortium.federation.status import follow
    from federation.errors import RunFailed
    from federation.sides import ordered

    with ordered(home, name) as flower:
        try:
            shown = follow(home, name, lambda: flower().startswith("finished"))
        except KeyboardInterrupt:
            print(f"{name} goes on; consortium federation status --home {home} shows it")
            return
    match shown["state"]:
        case "finished":
            print(f"result   {home / 'runs' / name / 'result'}\nreport   consortium federation report --home {home} --run {name}")
        case "stopped":
            print(f"stopped; consortium federation resume {name} --home {home}")
        case "failed":
            raise RunFailed(str(shown["message"]), f"consortium federation resume {name} --home {home} takes it up again")
        case _:
            raise RunFailed(
                f"the run's process has ended: {flower()}",
                f"consortium federation resume {name} goes on with it; what the process said is in {home / 'logs' / 'serverapps.log'}",
            )


def _until_interrupted(work: Callable[[], None]) -> None:
    try:
        work()
    except KeyboardInterrupt:
        _tell("ended")


def _tell(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)
