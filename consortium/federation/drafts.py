"""`consortium federation`: drafts of what people then decide, and the hashes that stand in them."""

from pathlib import Path
from typing import Annotated

import typer

from consortium.federation.options import COORDINATOR, CoordinatorHome

app = typer.Typer()
BaseModel = Annotated[Path, typer.Option(help="Directory of the base model, as Hugging Face lays it out.", metavar="DIR")]


@app.command("hash")
def hash_(directory: Annotated[Path, typer.Argument(help="Of a base model.", metavar="DIR")]) -> None:
    """The hash of a base model: the same wherever its files are the same."""
    from federation.base_model import base_model_hash

    print(base_model_hash(directory))


@app.command()
def bundle() -> None:
    """The hash of the Flower bundle that this installation makes, for a bank's policy. Each of the same version makes the same."""
    from federation.bundle import build, sha256

    print(sha256(build()))


@app.command("draft-training")
def draft_training(
    base_model: BaseModel,
    banks: Annotated[int, typer.Option(help="How many there will be.", min=1)],
    units: Annotated[int, typer.Option(help="Customers of the bank that has most, at most.", min=1)],
    home: CoordinatorHome = COORDINATOR,
    task: Annotated[str, typer.Option(help="classify, sft or pretrain.")] = "classify",
    labels: Annotated[Path | None, typer.Option(help="Names of the classes, one a line.", metavar="FILE")] = None,
) -> None:
    """Coordinator: add a draft of the `training` block to federation.yaml, for you to go through."""
    from federation import drafts
    from federation.base_model import base_model_hash
    from federation.config import check_federation, load_federation
    from federation.errors import FactsError
    from federation.files import translated, write_bytes

    path = home / "federation.yaml"
    federation = load_federation(path)
    if federation.training is not None:
        raise FactsError(f"{path}: has a training block already", "change it by hand, or take it out for another draft")
    names: list[str] = []
    if labels is not None:
        with translated(labels):
            names = [line.strip() for line in labels.read_text(encoding="utf-8").splitlines() if line.strip()]
    block = drafts.draft_training(
        task=task, labels=names, base_model=base_model, sha256=base_model_hash(base_model),
        banks=banks, colluders=federation.colluders, units=units,
    )  # fmt: skip
    with translated(path):
        text = path.read_text(encoding="utf-8") + block
    check_federation(drafts.parsed(text), source=str(path))
    write_bytes(path, text.encode())
    print(f"{path}: now has a training block: go through it, and send the file to the banks")


@app.command("draft-bank")
def draft_bank(
    output: Annotated[Path, typer.Argument(help="New file.", metavar="BANK.yaml")],
    federation: Annotated[Path, typer.Option("--for", help="The coordinator's federation.yaml.", metavar="FILE")],
    bank: Annotated[str, typer.Option(help="The bank's name in the roster.")],
    base_model: BaseModel,
    train: Annotated[Path, typer.Option(help="The bank's rows.", metavar="FILE")],
    units: Annotated[int, typer.Option(help="Customers there are at most, declared and public.", min=1)],
    unit: Annotated[str, typer.Option(help="The column that tells customers apart, or record.")] = "record",
    coordinator: Annotated[str | None, typer.Option(help="Where its gateway listens.", metavar="HOST:PORT")] = None,
) -> None:
    """Bank: draft a bank.yaml whose policy allows what the federation asks for and nothing else, for the officer to go through."""
    from federation import drafts
    from federation.base_model import base_model_hash
    from federation.bundle import build, sha256
    from federation.config import load_bank, load_federation
    from federation.errors import FactsError, FolderError
    from federation.files import write_bytes
    from trainers.data.formats import read_rows
    from trainers.errors import ConfigError

    asked = load_federation(federation)
    if not train.exists():
        raise FactsError(f"--train {train}: no such file", "the bank's rows, as data.train of a job has them")
    first = next(read_rows(train), None)
    if unit != "record" and first and first.values and unit not in first.values:
        raise FactsError(f"--unit {unit}: {train} has no such column", f"it has {', '.join(first.values)}; record: each row for itself")
    if output.exists():
        raise FolderError(f"{output}: is there already", "name a new file: nothing of yours is to be written over")
    if asked.training and (found := base_model_hash(base_model)) != asked.training.base_model.sha256:
        raise FactsError(
            f"{base_model} holds a model of hash {found[:16]}..., {asked.name} is for {asked.training.base_model.sha256[:16]}...",
            "is it the model, and the revision, that the coordinator has named?",
        )
    text = drafts.draft_bank(
        asked, bank=bank, base_model=base_model.resolve(), train=train.resolve(), unit=unit, units=units, bundle=sha256(build()),
        coordinator=coordinator or f"{asked.hosts[0]}:9443",
    )  # fmt: skip
    write_bytes(output, text.encode())
    try:
        load_bank(output)
    except ConfigError:
        output.unlink()
        raise
    print(f"{output}: the officer goes through its policy; then: consortium federation bank {output}")
