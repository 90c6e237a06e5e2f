"""Where, when and with what something was measured: every benchmark writes these beside its results."""

import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any


def facts(packages: Sequence[str]) -> dict[str, Any]:
    """Of this machine and this run; `packages` are those whose versions matter."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    here = Path(__file__).resolve().parent
    git = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=here, capture_output=True, text=True, check=False)
    torch = sys.modules.get("torch")  # not imported for this: what secagg.py measures begins with what this process holds
    return {
        "command": shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *map(_without_folder, sys.argv[1:])]),
        "cpu": next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor()),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch and torch.cuda.is_available() else None,
        "versions": {name: version(name) for name in packages} | {"python": platform.python_version()},
        "revision": git.stdout.strip(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "load": os.getloadavg(),
    }


def _without_folder(word: str) -> str:
    """Where somebody keeps files is nobody else's."""
    return Path(word).name if "/" in word else word
