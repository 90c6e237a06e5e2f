"""Whose folder a command works on."""

from pathlib import Path
from typing import Annotated

import typer

BankHome = Annotated[Path, typer.Option("--home", help="The bank's folder.", metavar="DIR")]
CoordinatorHome = Annotated[Path, typer.Option("--home", help="The coordinator's folder.", metavar="DIR")]
BANK, COORDINATOR = Path("bank"), Path("coordinator")
