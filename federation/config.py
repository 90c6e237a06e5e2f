"""federation.yaml, by the coordinator's hand."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from cluster.job import read_yaml
from federation.member import Name
from trainers.config import Part, validate

_HINT = "`consortium federation init DIR` writes one"

Host = Annotated[str, Field(pattern=r"^[A-Za-z0-9.:-]+$", description="names or addresses of a machine, as in fed.example.com")]


class FederationConfig(Part):
    name: Name
    hosts: list[Host] = Field(min_length=1)
    """Names and addresses under which banks reach the coordinator; in its certificate."""
    colluders: int = Field(1, ge=0)
    """c: how many banks may tell the coordinator all they know without another's update coming to light. It takes c + 2 banks at least."""
    certificate_days: int = Field(90, ge=1, le=825)
    """How long certificates hold; `consortium federation renew` makes new ones for the same keys."""


def load_federation(path: Path) -> FederationConfig:
    """Raises ConfigError."""
    return check_federation(read_yaml(path, _HINT), source=str(path))


def check_federation(values: Mapping[str, Any], *, source: str) -> FederationConfig:
    """Raises ConfigError."""
    return validate(FederationConfig, values, source=source, hint=_HINT)
