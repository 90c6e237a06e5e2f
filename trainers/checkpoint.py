"""Checkpoints that any number of workers can write and any other number can read.

Each rank writes the fragments it holds of every trainable parameter: float32 master and Adam's two moments, as flat stretches named by
parameter and start. A reader takes from all files the stretches that overlap its own, so neither the number of workers nor the ZeRO stage
has to be the same. Frozen weights are never written. Files are safetensors; nothing is unpickled.

The manifest is the only authority: it is written last, by renaming the folder into place, and a folder whose files are not as it says is
not a checkpoint. Randomness needs no saving: every draw is a function of the seed, the step and the rank.
"""

import hashlib
import json
import shutil
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from privacy import disk
from trainers.engine import FIRST_MOMENT, MASTER, SECOND_MOMENT, Engine
from trainers.errors import CheckpointError
from trainers.storage import Store
from trainers.world import World

_KINDS = (MASTER, FIRST_MOMENT, SECOND_MOMENT)
MANIFEST = "manifest.json"
STORED = "checkpoints"
"""Their folder in a store"""


@dataclass
class Progress:
    """Where a run stands, besides its tensors."""

    step: int = 0
    best_step: int | None = None
    best_value: float | None = None
    """Of the metric the best is chosen by; negative where more is better, so that less is better always"""
    evaluations_without_gain: int = 0


@dataclass(frozen=True)
class Manifest:
    progress: Progress
    workers: int
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Name to size in bytes and SHA-256."""


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint on disk."""

    path: Path
    manifest: Manifest

    @property
    def step(self) -> int:
        return self.manifest.progress.step


def save(folder: Path, engine: Engine, progress: Progress, world: World, store: Store | None = None) -> int:
    """Write the checkpoint of `progress.step` under `folder`, or to `store` by way of it; its size in bytes. All ranks call it.

    Raises CheckpointError on every rank when one cannot write; what was there before is untouched.
    """
    final = folder / f"step-{progress.step:08d}"
    partial = folder / f".{final.name}.partial"
    world.on_main(lambda: _make_empty(partial))
    partial.mkdir(parents=True, exist_ok=True, mode=0o700)  # on other machines, where there is a store
    name = f"rank-{world.rank:05d}.safetensors"
    entry, error = {}, None
    try:
        save_file(dict(_fragments(engine)), partial / name)
        (partial / name).chmod(0o600)
        disk.sync(partial / name)
        entry = describe(partial / name)
        if store is not None:
            store.put(partial / name, f"{STORED}/{final.name}/{name}")
    except (OSError, SafetensorError) as cause:
        error = CheckpointError(f"cannot write checkpoint {final}: {cause}", "free space on the disk, then: consortium resume RUN")
    try:
        world.agree(error)
        entries: list[dict[str, Any]] = world.gather(entry)
        files = {f"rank-{rank:05d}.safetensors": found for rank, found in enumerate(entries)}
        world.on_main(lambda: _commit(partial, final, Manifest(progress, world.size, files), store))
        return sum(found["bytes"] for found in files.values())
    except OSError as cause:
        if isinstance(cause, CheckpointError):
            raise
        raise CheckpointError(f"cannot write checkpoint {final}: {cause}", "the checkpoints before it are intact") from cause
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _fragments(engine: Engine) -> Iterator[tuple[str, torch.Tensor]]:
    for fragment in engine.fragments():
        for kind in _KINDS:
            yield f"{kind}|{fragment.start}|{fragment.name}", engine.state(fragment, kind).detach().cpu().clone()


def _make_empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, mode=0o700)


def _commit(partial: Path, final: Path, manifest: Manifest, store: Store | None) -> None:
    (partial / MANIFEST).write_text(json.dumps(asdict(manifest), indent=1))
    if store is not None:
        store.put(partial / MANIFEST, f"{STORED}/{final.name}/{MANIFEST}")
        return
    disk.sync(partial / MANIFEST)
    disk.sync(partial)
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    disk.sync(final.parent)


@torch.no_grad()
def restore(checkpoint: Checkpoint, engine: Engine) -> None:
    """Put masters, moments and weights of a checkpoint into the engine, whatever the number of workers. All ranks call it."""
    engine.begin_at(checkpoint.step)
    with _Shards(checkpoint) as shards:
        for fragment in engine.fragments():
            for kind in _KINDS:
                shards.read(kind, fragment.name, fragment.start, engine.state(fragment, kind))
    engine.masters_to_parameters()


class _Shards:
    """The files of a checkpoint, open, with an index of the stretches in them."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._path = checkpoint.path
        self._files = [safe_open(checkpoint.path / name, framework="pt") for name in checkpoint.manifest.files]
        self._index: dict[tuple[str, str], list[tuple[int, str, Any]]] = defaultdict(list)
        for file in self._files:
            for key in file.keys():  # noqa: SIM118 (no dict)
                kind, start, name = key.split("|", 2)
                self._index[kind, name].append((int(start), key, file))

    def __enter__(self) -> "_Shards":
        return self

    def __exit__(self, *_: object) -> None:
        self._files.clear()
        self._index.clear()

    def read(self, kind: str, name: str, start: int, into: torch.Tensor) -> None:
        """Fill `into` with the stretch of the parameter that begins at `start`, from as many files as hold parts of it."""
        end, filled = start + into.numel(), 0
        for held_from, key, file in self._index[kind, name]:
            stretch = file.get_slice(key)
            held_to = held_from + stretch.get_shape()[0]
            low, high = max(start, held_from), min(end, held_to)
            if low < high:
                into[low - start : high - start].copy_(stretch[low - held_from : high - held_from])
                filled += high - low
        if filled != into.numel():
            raise CheckpointError(
                f"{self._path}: {name} has {filled} of {into.numel()} values wanted",
                "the job trains other parameters than the one that wrote this checkpoint: give the run another name",
            )


def newest(folder: Path, world: World, *, step: int | None = None, store: Store | None = None) -> Checkpoint | None:
    """The newest checkpoint (or that of `step`) whose files are as they were written, fetched from the store if there is one.

    One that is not whole is passed over for the one before. All ranks call it.
    """
    for found in reversed(world.on_main(lambda: find(folder, store))):
        candidate = replace(found, path=folder / found.path.name)  # where this machine has it
        if step not in (None, candidate.step):
            continue
        problem = None
        if world.is_main if store is None else world.local_rank == 0:
            try:
                if store is not None:
                    for name in candidate.manifest.files:
                        store.get(f"{STORED}/{candidate.path.name}/{name}", candidate.path / name)
                verify(candidate)
            except OSError as error:
                problem = str(error)
        problems = [text for text in world.gather(problem) if text]
        if not problems:
            return candidate
        if world.is_main:
            print(f"warning: {problems[0]}", file=sys.stderr)
    return None


def find(folder: Path, store: Store | None = None) -> list[Checkpoint]:
    """The whole checkpoints under a folder, or in a store, oldest first. Torn ones, not as their manifest says, are passed over."""
    if store is None:
        places = {path: {file.name: file.stat().st_size for file in path.iterdir()} for path in folder.glob("step-*")}
    else:
        places = _stored(folder, store)
    found = [checkpoint for path, sizes in places.items() if (checkpoint := _read(path, sizes))]
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def _stored(folder: Path, store: Store) -> dict[Path, dict[str, int]]:
    """The sizes of the files of each checkpoint in a store, whose manifests are fetched."""
    places: dict[Path, dict[str, int]] = defaultdict(dict)
    for name, size in store.sizes(STORED).items():
        checkpoint, _, file = name.partition("/")
        places[folder / checkpoint][file] = size
    for path, sizes in places.items():
        if MANIFEST in sizes:
            store.get(f"{STORED}/{path.name}/{MANIFEST}", path / MANIFEST)
    return places


def _read(path: Path, sizes: Mapping[str, int]) -> Checkpoint | None:
    try:
        values = json.loads((path / MANIFEST).read_text())
        manifest = Manifest(Progress(**values["progress"]), values["workers"], values["files"])
        whole = all(sizes.get(name) == entry["bytes"] for name, entry in manifest.files.items())
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Checkpoint(path, manifest) if whole and manifest.files else None


def verify(checkpoint: Checkpoint) -> None:
    """Raise CheckpointError unless every file has the SHA-256 its manifest states."""
    for name, entry in checkpoint.manifest.files.items():
        if describe(checkpoint.path / name)["sha256"] != entry["sha256"]:
            raise CheckpointError(
                f"{checkpoint.path / name}: its bytes are not those that were written",
                "remove this checkpoint to go back to the one before",
            )


def prune(folder: Path, *, keep: int, best_step: int | None, store: Store | None = None) -> None:
    """Remove all but the newest `keep` checkpoints and the best one, and what was left half written."""
    checkpoints = find(folder, store)
    for checkpoint in checkpoints[:-keep]:
        if checkpoint.step != best_step:
            shutil.rmtree(checkpoint.path, ignore_errors=True)
            if store is not None:
                store.remove(f"{STORED}/{checkpoint.path.name}")
    for torn in folder.glob(".step-*.partial"):
        shutil.rmtree(torn, ignore_errors=True)


def describe(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file."""
    with path.open("rb") as stream:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}
