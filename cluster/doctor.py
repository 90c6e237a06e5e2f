"""Is this machine, and the cluster it talks to, fit for training? Each check looks at one thing and says what to do about it.

What is found is judged by functions of values; `checks` gathers them. Nothing is changed but for a small file in the output directory,
written and removed again.
"""

import errno
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from cluster import probe
from cluster.errors import ClusterError
from cluster.submit import PACKAGES, Cluster, check_address
from trainers.errors import CheckpointError, ConfigError
from trainers.lease import EXPIRY_SECONDS
from trainers.storage import Store

DASHBOARD_PORT, GCS_PORT = 8265, 6379
_LEAST_FREE, _WANTED_FREE = 2**30, 20 * 2**30
_SKEW_NOTED = 5.0
_KNOCK_SECONDS = 3.0
_ALL_REDUCE_SECONDS = 60.0
_PROBE_SECONDS = 120.0
_ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Check:
    name: str
    status: Literal["ok", "warning", "problem"]
    """A problem prevents training"""
    found: str
    todo: str = ""


def checks(output: str, address: str | None) -> Iterator[Check]:
    """Every check in turn: of this machine, then of the cluster whose dashboard is at `address`. `output` is a directory or a URL.

    Raises ConfigError for an address that is no URL.
    """
    if address:
        check_address(address)
    python, packages = _wanted()
    yield check_python(platform.python_version(), python)
    yield check_packages({wanted.name: _installed(wanted.name) for wanted in packages}, packages)
    yield check_owners(_owners(), {name: _origin(name) for name in PACKAGES}, _ROOT)
    yield _gpus()
    yield _backends()
    yield from _output(output)
    yield check_token(os.environ, Path.home())
    yield check_telemetry(os.environ)
    yield check_all_reduce(*_measure_all_reduce())
    yield from _cluster(address, output) if address else [check_local_ports(_listens("127.0.0.1"))]


# Judgements


def check_python(version: str, wanted: SpecifierSet) -> Check:
    if version in wanted:
        return Check("python", "ok", version)
    return Check("python", "problem", version, f"install Python {wanted}")


def check_packages(installed: Mapping[str, str | None], wanted: Sequence[Requirement]) -> Check:
    """Every package against its range; None stands for one that is not there."""
    wrong = [need for need in wanted if (have := installed.get(need.name)) is None or not need.specifier.contains(have, prereleases=True)]
    if not wrong:
        return Check("packages", "ok", f"{len(wanted)} within their ranges")
    listed = "; ".join(f"{need.name} {installed.get(need.name) or 'missing'} (wanted {need.specifier})" for need in wrong)
    return Check("packages", "problem", listed, "pip install " + " ".join(f"'{need}'" for need in wrong))


def check_owners(owners: Mapping[str, Sequence[str]], origins: Mapping[str, Path | None], root: Path) -> Check:
    """Our import names are plain words: another distribution may bring one of them too."""
    others = sorted({f"{name} is also of {owner}" for name in PACKAGES for owner in owners.get(name, ()) if owner != "consortium"})
    elsewhere = [f"{name} is imported from {path}" for name, path in origins.items() if path is not None and path != root / name]
    if others or elsewhere:
        return Check("import names", "problem", "; ".join([*others, *elsewhere]), "install consortium in an environment of its own")
    return Check("import names", "ok", f"{', '.join(name for name, path in origins.items() if path)} are ours")


def check_gpus(cards: Sequence[str], driver: str, usable: int, cuda: str | None) -> Check:
    """`cards` and `driver` as nvidia-smi names them, `usable` those that torch can use, `cuda` the version torch was built for."""
    if cards and not usable:
        built = f"built for CUDA {cuda}" if cuda else "built without CUDA"
        todo = "update the driver, and look at CUDA_VISIBLE_DEVICES" if cuda else "install a torch built for CUDA"
        return Check("GPUs", "problem", f"{len(cards)} with driver {driver}, none usable by torch {built}", todo)
    if not usable:
        return Check("GPUs", "ok", "none: training runs on CPUs")
    hidden = f" of {len(cards)}" if len(cards) > usable else ""
    return Check("GPUs", "ok", f"{usable}{hidden} x {cards[0] if cards else 'unknown'}, driver {driver or 'unknown'}, CUDA {cuda}")


def check_backends(gloo: bool, nccl: bool, gpus: int) -> Check:
    there = [name for name, has in (("gloo", gloo), ("nccl", nccl)) if has]
    if not gloo or (gpus and not nccl):
        return Check("communication", "problem", ", ".join(there) or "none", "install a torch with gloo" + (" and nccl" if gpus else ""))
    return Check("communication", "ok", ", ".join(there))


def check_clock(name: str, skew: float | None) -> Check:
    """`skew` in seconds; a live run is known by how old its heartbeat is, by the clocks of two machines."""
    if skew is None:
        return Check(name, "warning", "not known", "compare the clocks by hand")
    found = f"{abs(skew):.1f} s apart" if abs(skew) >= 0.05 else "the same"
    if abs(skew) < _SKEW_NOTED:
        return Check(name, "ok", found)
    todo = "set the clocks by NTP" + ("" if abs(skew) < EXPIRY_SECONDS else ": a live run would be taken for dead")
    return Check(name, "warning" if abs(skew) < EXPIRY_SECONDS else "problem", found, todo)


def check_disk(path: Path, free: int) -> Check:
    """Free bytes of the folder that runs go to, or would be made in."""
    found = f"{free / 2**30:.1f} GiB free in {path}"
    if free >= _WANTED_FREE:
        return Check("disk", "ok", found)
    return Check(
        "disk", "problem" if free < _LEAST_FREE else "warning", found, "checkpoints of a large model need more: free some, or set output"
    )


def check_token(environment: Mapping[str, str], home: Path) -> Check:
    """Ray's token where Ray looks for it, and who else can read it."""
    if environment.get("RAY_AUTH_MODE") == "disabled":
        return Check("Ray token", "warning", "RAY_AUTH_MODE=disabled: anyone who reaches Ray runs code here", "unset RAY_AUTH_MODE")
    if environment.get("RAY_AUTH_TOKEN"):
        return Check("Ray token", "ok", "in RAY_AUTH_TOKEN")
    given = environment.get("RAY_AUTH_TOKEN_PATH")
    path = Path(given) if given else home / ".ray" / "auth_token"
    if not path.is_file():
        if given:
            return Check("Ray token", "problem", f"RAY_AUTH_TOKEN_PATH: no file {path}", "put the cluster's token there")
        return Check("Ray token", "ok", "none yet: Ray makes one when it is started here")
    if not path.stat().st_size:
        return Check("Ray token", "problem", f"{path} is empty", "ray get-auth-token --generate")
    if path.stat().st_mode & 0o077:
        return Check("Ray token", "warning", f"{path} can be read by others (mode {path.stat().st_mode & 0o777:o})", f"chmod 600 {path}")
    return Check("Ray token", "ok", f"in {path}, mode {path.stat().st_mode & 0o777:o}")


def check_telemetry(environment: Mapping[str, str]) -> Check:
    """What would be sent elsewhere. Ray's statistics are switched off by our commands, unless the environment asks for them."""
    yes = ("1", "true", "yes", "on")
    on = {name for name, value in environment.items() if value.lower() in yes}
    sending = ["Ray's usage statistics"] if "RAY_USAGE_STATS_ENABLED" in on else []
    if not on & {"HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "DISABLE_TELEMETRY", "DO_NOT_TRACK"}:
        sending.append("the Hugging Face hub's")
    if not sending:
        return Check("telemetry", "ok", "off")
    return Check("telemetry", "warning", f"on: {', '.join(sending)}", "export RAY_USAGE_STATS_ENABLED=0 HF_HUB_OFFLINE=1")


def check_all_reduce(backend: str, measured: Sequence[Sequence[float]], error: str) -> Check:
    """`measured` as [bytes, seconds] between two processes."""
    if error:
        return Check("all-reduce", "problem", f"two processes over {backend}: {error}",
                     "is a firewall between them? GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME names the interface")  # fmt: skip
    speeds = ", ".join(f"{_size(size)} {size / seconds / 1e9:.2f} GB/s" for size, seconds in measured)
    return Check("all-reduce", "ok", f"two processes over {backend}: {speeds}")


def check_local_ports(listening: Mapping[int, bool]) -> Check:
    open_ports = [str(port) for port, answers in listening.items() if answers]
    if not open_ports:
        return Check("Ray here", "ok", "no head runs on this machine: Ray is started for each run")
    return Check("Ray here", "ok", f"something listens on {', '.join(open_ports)}: a head, for cluster.address: auto")


def check_head_ports(host: str, listening: Mapping[int, bool]) -> Check:
    """The dashboard's port is needed to submit a job, the other to join the cluster or to launch from here."""
    closed = [port for port, answers in listening.items() if not answers]
    if not closed:
        return Check("ports", "ok", f"{' and '.join(map(str, listening))} of {host} answer")
    status: Literal["warning", "problem"] = "warning" if closed == [GCS_PORT] else "problem"
    todo = "jobs can be submitted; to join the cluster from here, open it" if status == "warning" else "is the head running? open the port"
    return Check("ports", status, f"{', '.join(map(str, closed))} of {host} do not answer", todo)


def check_shared(output: str, nodes: Sequence[Mapping[str, Any]], *, writable: bool) -> Check:
    """Of a folder of the head: whether it may write there, and whether the other nodes see what it writes."""
    if not writable:
        return Check("shared storage", "problem", f"{output} cannot be written by the head", "set output to a path that all nodes mount")
    blind = [node["node"] for node in nodes if not node["sees"]]
    if blind:
        return Check(
            "shared storage", "problem", f"{output} is not seen by {', '.join(blind)}", "set output to a path that all nodes mount"
        )
    return Check("shared storage", "ok", f"{output} is seen by {len(nodes)} node{'s' if len(nodes) != 1 else ''}")


# What there is


def _wanted() -> tuple[SpecifierSet, list[Requirement]]:
    """Versions asked for: by the pyproject.toml beside the code, or by what is installed."""
    pyproject = _ROOT / "pyproject.toml"
    if pyproject.is_file():
        project = tomllib.loads(pyproject.read_text())["project"]
        return SpecifierSet(project["requires-python"]), [Requirement(text) for text in project["dependencies"]]
    metadata = importlib.metadata.metadata("consortium")
    needs = [Requirement(text) for text in importlib.metadata.requires("consortium") or ()]
    return SpecifierSet(metadata["Requires-Python"]), [need for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _owners() -> Mapping[str, list[str]]:
    return importlib.metadata.packages_distributions()


def _origin(name: str) -> Path | None:
    spec = importlib.util.find_spec(name)
    return Path(spec.origin).resolve().parent if spec is not None and spec.origin else None


def _gpus() -> Check:
    import torch

    try:
        query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        lines = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.strip().splitlines()
    except (OSError, subprocess.SubprocessError):
        lines = []
    cards = [line.rpartition(",")[0].strip() for line in lines]
    driver = lines[0].rpartition(",")[2].strip() if lines else ""
    return check_gpus(cards, driver, torch.cuda.device_count() if torch.cuda.is_available() else 0, torch.version.cuda)


def _backends() -> Check:
    import torch
    import torch.distributed as dist

    return check_backends(dist.is_gloo_available(), dist.is_nccl_available(), torch.cuda.device_count())


def _output(output: str) -> Iterator[Check]:
    if _is_url(output):
        yield _store(output)
        return
    folder = Path(output)
    try:
        with _marker(folder) as path:
            skew = path.stat().st_mtime - time.time()
    except OSError as error:
        yield Check("output", "problem", f"{output}: {error.strerror or error}", "name a directory you may write to: --output DIR")
        return
    yield check_clock("clock of the storage", skew)
    yield check_disk(_existing(folder), shutil.disk_usage(_existing(folder)).free)


def _is_url(output: str) -> bool:
    return "://" in output


def _store(url: str) -> Check:
    """Whether this machine may write to a store, and take it back."""
    name = f".doctor-{uuid.uuid4().hex}"
    try:
        store = Store(url)
        with tempfile.NamedTemporaryFile() as file:
            store.put(Path(file.name), name)
        store.remove(name)
    except (CheckpointError, ConfigError) as error:
        return Check("output", "problem", str(error), error.hint)
    return Check("output", "ok", f"{url} can be written")


@contextmanager
def _marker(output: Path) -> Iterator[Path]:
    """A small file in the directory, or in the nearest one above it that there is."""
    path = _existing(output) / f".doctor-{uuid.uuid4().hex}"
    path.write_text("")
    try:
        yield path
    finally:
        path.unlink()


def _existing(path: Path) -> Path:
    found = next(place for place in (path.resolve(), *path.resolve().parents) if place.exists())
    if not found.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "a file is in the way", str(found))
    return found


def _measure_all_reduce() -> tuple[str, list[list[float]], str]:
    """The backend, [bytes, seconds] by size, and what went wrong if anything did."""
    import torch

    backend = "nccl" if torch.cuda.device_count() > 1 else "gloo"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "cluster.allreduce"]
        processes = [
            subprocess.Popen([*command, str(rank), f"{folder}/store", backend], env=environment, text=True, stdout=-1, stderr=-1)
            for rank in range(2)
        ]
        try:
            said = [process.communicate(timeout=_ALL_REDUCE_SECONDS) for process in processes]
        except subprocess.TimeoutExpired:
            return backend, [], f"no answer within {_ALL_REDUCE_SECONDS:.0f} s"
        finally:
            for process in processes:
                process.kill()
                process.wait()
    failed = [errors for process, (_, errors) in zip(processes, said, strict=True) if process.returncode]
    if failed:
        return backend, [], (failed[0].strip().splitlines() or ["the process ended"])[-1][:200]
    return backend, json.loads(said[0][0].strip().splitlines()[-1]), ""


def _listens(host: str, dashboard: int = DASHBOARD_PORT) -> dict[int, bool]:
    return {port: _answers(host, port) for port in (dashboard, GCS_PORT)}


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=_KNOCK_SECONDS).close()
    except OSError:
        return False
    return True


def _cluster(address: str, output: str) -> Iterator[Check]:
    """Of the cluster at a dashboard: ports, versions and token, clocks, and whether its nodes see the output, if that is a directory."""
    url = urlparse(address)
    host, port = url.hostname or address, url.port or DASHBOARD_PORT
    listening = _listens(host, port)
    yield check_head_ports(host, listening)
    if not listening[port]:
        return
    try:
        cluster = Cluster(address)
        yield Check("cluster", "ok", f"{cluster.address} lets us in, and runs our version of Ray")
        yield check_clock("clock of the head", _skew_of_head(address))
        seen = _probe(cluster, "/" if _is_url(output) else str(Path(output).resolve()))
    except (ClusterError, OSError) as error:
        hint = getattr(error, "hint", "") or "consortium jobs list looks closer"
        yield Check("cluster", "problem", str(error), hint)
        return
    yield check_clock("clocks of the nodes", max((node["skew"] for node in seen["nodes"]), key=abs))
    if not _is_url(output):
        yield check_shared(seen["folder"], seen["nodes"], writable=seen["writable"])


def _skew_of_head(address: str, now: Callable[[], float] = time.time) -> float | None:
    """Of the dashboard's clock against ours, by the date of an answer: good to a second."""
    try:
        with urllib.request.urlopen(f"{address.rstrip('/')}/api/version", timeout=_KNOCK_SECONDS) as answer:
            date = answer.headers.get("Date")
    except urllib.error.HTTPError as error:  # without the token it still tells the time
        date = error.headers.get("Date")
    except OSError:
        return None
    return None if date is None else parsedate_to_datetime(date).timestamp() + 0.5 - now()


def _probe(cluster: Cluster, output: str) -> dict[str, Any]:
    said = cluster.run_script(Path(probe.__file__).read_text(), output, seconds=_PROBE_SECONDS)
    answer = next((line for line in said.splitlines() if line.startswith(probe.MARK)), None)
    if answer is None:
        raise ClusterError("the cluster's nodes did not answer", "consortium jobs list shows what became of the job")
    return dict(json.loads(answer.removeprefix(probe.MARK)))


def _size(count: float) -> str:
    return f"{count / 2**20:.0f} MiB" if count >= 2**20 else f"{count / 2**10:.0f} KiB"
