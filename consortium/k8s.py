"""`consortium render-k8s`: manifests for KubeRay."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from cluster.job import load_job
from cluster.k8s import Site, plan_deployment, render
from trainers.errors import ConfigError

console = Console(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)


def render_manifests(path: Path, overrides: Sequence[str], site: Site, output: Path) -> None:
    """Write the manifests of a job to a directory."""
    deployment = plan_deployment(load_job(path, overrides), site)
    try:
        output.mkdir(parents=True, exist_ok=True)
        for name, text in render(deployment).items():
            (output / name).write_text(text)
            console.print(f"  written: {output / name}")
    except OSError as error:
        raise ConfigError(f"{output}: {error.strerror or error}", "name a directory you may write to") from error
    console.print(f"  never applied to a Kubernetes here: read them first. Then: kubectl apply -f {output}/configmap.yaml "
                  f"-f {output}/networkpolicy.yaml -f {output}/rayjob.yaml")  # fmt: skip
