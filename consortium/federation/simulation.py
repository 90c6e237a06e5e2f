"""`consortium federation simulate`: a federation on one machine or one cluster, before there are banks."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from federation.simulation import Spending

app = typer.Typer()


@app.command()
def simulate(
    federation: Annotated[Path, typer.Argument(help="With a training block.", metavar="federation.yaml")],
    banks: Annotated[int, typer.Option(help="How many.", min=2, max=100)],
    data: Annotated[Path, typer.Option(help="Rows that are dealt to the banks.", metavar="FILE")],
    base_model: Annotated[Path, typer.Option(help="Directory of the base model.", metavar="DIR")],
    partition: Annotated[str, typer.Option(help="iid, dirichlet:ALPHA (over classes) or by:COLUMN.")] = "iid",
    unit: Annotated[str, typer.Option(help="The column that tells customers apart, or record. None is at two banks.")] = "record",
    test: Annotated[Path | None, typer.Option(help="Public rows, for the accuracy of every round's model.", metavar="FILE")] = None,
    workers: Annotated[
        int | None,
        typer.Option(help="Ray workers, a CPU each, that train for all banks; 0 for this process.", min=0, show_default="CPUs here"),
    ] = None,
    address: Annotated[str | None, typer.Option(help="Of a Ray cluster; else Ray is started on this machine.", metavar="RAY")] = None,
    output: Annotated[Path, typer.Option(help="New directory, with all that banks and coordinator would have.", metavar="DIR")] = Path(
        "simulation"
    ),
    seed: Annotated[int, typer.Option(help="Of the partition and of the adapter that the run starts from.", min=0)] = 0,
) -> None:
    """A whole run with the banks' and the coordinator's own code, the banks' rows dealt from one file: what will it reach, and cost?"""
    from consortium.federation.status import follow
    from federation import simulation
    from federation.config import load_federation
    from federation.errors import FactsError, RunFailed
    from federation.partition import Partition, split

    if test is not None and not test.is_file():
        raise FactsError(f"--test {test}: no such file", "public rows, in the form of --data")
    config, changes = simulation.fitted(load_federation(federation), banks)
    for line in changes:
        print(line)
    how, column = Partition.parse(partition), None if unit == "record" else unit
    assert config.training is not None
    shares = split(data, how, banks, task=config.training.task, unit=column, seed=seed)
    _tell(f"enrolling {banks} banks in {output}")
    simulation.enrol(output, config, base_model, shares, unit=column, test=test, seed=seed)
    workers = min(banks, os.cpu_count() or 1) if workers is None else workers
    with simulation.trainings(workers, address, output) as take:
        with ThreadPoolExecutor(1) as aside:
            going = aside.submit(simulation.run, output, take, workers)
            try:
                follow(output / "coordinator", simulation.RUN, going.done)
            except KeyboardInterrupt:
                _tell("ending after the exchange that goes on")
                (output / "coordinator" / "runs" / simulation.RUN / "stop").touch()
                raise
            try:
                going.result()
            except RunFailed as error:
                raise RunFailed(error.message, "mend what stands in the way, and simulate again into a new --output") from error
        reached = simulation.accuracies(output, take, test) if test else {}
    _show(reached, simulation.spendings(output))
    print(f"adapter  {output / 'coordinator' / 'runs' / simulation.RUN / 'result'}")


def _show(reached: "Mapping[int, float]", spendings: "Sequence[Spending]") -> None:
    from rich.table import Table

    from consortium.tables import print_whole
    from privacy.statement import rounded_up

    if reached:
        table = Table("after round", "accuracy", box=None, padding=(0, 2))
        for round, accuracy in reached.items():
            table.add_row(str(round), f"{accuracy:.3f}")
        print_whole(table)
    table = Table("bank", "rows", "units", "epsilon", box=None, padding=(0, 2))
    for each in spendings:
        epsilon = "none: not private" if each.epsilon is None else f"{rounded_up(each.epsilon, 3):.3f}"
        table.add_row(each.bank, str(each.rows), str(each.units), epsilon)
    print_whole(table)


def _tell(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)
