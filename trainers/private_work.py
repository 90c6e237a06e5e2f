"""Which worker computes which units of a private step, in which passes. A unit's records stay together: on one worker, in one group."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from privacy.gradients import Segment
from trainers.data.batches import Batch, collate
from trainers.data.packing import MicroBatch, place
from trainers.data.prepare import Prepared, Sample
from trainers.loop import Run


@dataclass(frozen=True)
class Units:
    """Who is in the rows: `records[u]` are the examples of unit u. Which units there are is private."""

    records: list[np.ndarray]

    @staticmethod
    def of(data: Prepared, *, max_records: int | None) -> "Units":
        """The first `max_records` examples of each unit, in the order of the files: a choice that no other unit has a part in."""
        order = np.argsort(data.units, kind="stable")
        borders = np.flatnonzero(np.diff(data.units[order])) + 1
        return Units([records[:max_records] for records in np.split(order, borders)] if len(order) else [])

    def __len__(self) -> int:
        return len(self.records)


@dataclass
class PrivatePass:
    """One forward pass of this worker, and which of its tokens are whose."""

    batch: Batch
    segments: list[Segment]


@dataclass
class Group:
    """Units whose gradients are open together, over as many passes as their records take."""

    units: list[int]
    passes: list[PrivatePass]


@dataclass
class PrivateWork:
    """What this worker does in a step."""

    drawn: np.ndarray
    """All units of the step, over all workers"""
    targets: int
    """Of all its records, over all workers"""
    groups: list[Group]


def private_work(run: Run, units: Units, drawn: np.ndarray) -> PrivateWork:
    """This worker's passes over the units drawn; every worker has as many, if with dummies."""
    shares = _share(drawn, units, run.train.lengths, run.world.size)
    plans = [_plan_groups(share, run, units) for share in shares]
    most = max(sum(len(passes) for _, passes in plan) for plan in plans)
    groups = [_group(mine, passes, run, units) for mine, passes in plans[run.world.rank]]
    dummies = most - sum(len(group.passes) for group in groups)
    if dummies and len(run.train):
        groups.append(Group([], [_dummy(run) for _ in range(dummies)]))
    targets = sum(int(run.train.targets[units.records[unit]].sum()) for unit in drawn)
    return PrivateWork(drawn, targets, groups)


def _share(drawn: np.ndarray, units: Units, lengths: np.ndarray, workers: int) -> list[list[int]]:
    """Whole units to workers, the longest first to whoever has least."""
    tokens = {int(unit): int(lengths[units.records[unit]].sum()) for unit in drawn}
    shares: list[list[int]] = [[] for _ in range(workers)]
    loads = [0] * workers
    for unit in sorted(tokens, key=lambda unit: (-tokens[unit], unit)):
        least = loads.index(min(loads))
        shares[least].append(unit)
        loads[least] += tokens[unit]
    return shares


def _plan_groups(share: Sequence[int], run: Run, units: Units) -> list[tuple[list[int], list[MicroBatch]]]:
    """A worker's units in groups that may be open together, each with its passes: places in the list of the group's records."""
    plans, tokens, at_once = [], run.config.train.micro_batch_tokens, run.config.train.units_at_once
    assert isinstance(tokens, int) and isinstance(at_once, int)
    for start in range(0, len(share), at_once):
        together = list(share[start : start + at_once])
        records = np.concatenate([units.records[unit] for unit in together])
        placement = place(
            run.train.lengths[records],
            workers=1,
            micro_batch_tokens=tokens,
            layout=run.layout,
            hidden_size=run.hidden_size,
        )
        plans.append((together, [micro for micro in placement.micro_batches[0] if micro.rows]))
    return plans


def _group(together: list[int], passes: list[MicroBatch], run: Run, units: Units) -> Group:
    records = [(row, int(example)) for row, unit in enumerate(together) for example in units.records[unit]]
    weights = [1.0 / len(units.records[unit]) for unit in together]
    return Group(together, [_pass(run, micro, records, weights) for micro in passes])


def _pass(run: Run, micro: MicroBatch, records: Sequence[tuple[int, int]], weights: Sequence[float]) -> PrivatePass:
    samples: Iterator[Sample] = iter(run.train.samples([records[number][1] for row in micro.rows for number in row]))
    rows = [[next(samples) for _ in row] for row in micro.rows]
    batch = collate(rows, layout=run.layout, classify=run.classify, pad_id=run.pad_id, widths=micro.widths)
    segments, begin, width = [], 0, batch.input_ids.shape[1]
    for row, padded in zip(micro.rows, micro.widths, strict=True):
        start = begin
        for number in row:
            unit, example = records[number]
            end = start + int(run.train.lengths[example])
            row_of_batch, behind = divmod(start, width)
            weight = weights[unit] / int(run.train.targets[example])
            segments.append(Segment(unit, row_of_batch, behind, behind + end - start, weight))
            start = end
        begin += padded
    return PrivatePass(batch, segments)


def _dummy(run: Run) -> PrivatePass:
    """A pass that teaches nothing: it is there for the collective calls of the others."""
    sample = run.train.samples([int(np.argmin(run.train.lengths))])
    return PrivatePass(collate([sample], layout=run.layout, classify=run.classify, pad_id=run.pad_id, weight=0.0), [])


def without_unit(work: PrivateWork, unit: int) -> PrivateWork:
    return replace(work, groups=[_group_without(group, unit) for group in work.groups])


def _group_without(group: Group, unit: int) -> Group:
    if unit not in group.units:
        return group
    place = group.units.index(unit)
    return Group(group.units, [_pass_without(part, place) for part in group.passes])


def _pass_without(part: PrivatePass, place: int) -> PrivatePass:
    ids = part.batch.input_ids.clone()
    for segment in part.segments:
        if segment.unit == place:
            ids[segment.row, segment.start : segment.end] = 0
    batch = replace(part.batch, input_ids=ids)
    return PrivatePass(batch, [segment for segment in part.segments if segment.unit != place])
