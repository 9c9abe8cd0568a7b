"""Tensors that are put together: of the shards of several ranks, and of the hypotheses of a beam search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sonde.errors import AmbiguousRequest, LakeError, Missing

if TYPE_CHECKING:
    from sonde.lake import Tensor

LINEAGE = "sonde.lineage"


class Part(NamedTuple):
    """Positions [start, stop) of a sequence that another sample computed."""

    sample: int
    start: int
    stop: int
    epoch: str | None  #: None: several ranks computed it


def lineage(request: str, sample: int, events: Sequence[Mapping[str, Any]]) -> list[Part]:
    """Read the label of a sequence that consists of others. events: rows of table requests. Raises LakeError."""
    found: dict[tuple[str, int, int], str] = {}
    for e in events:
        labels = dict(e["labels"] or ())
        names = [LINEAGE, *(f"{LINEAGE}.{i}" for i in range(1, len(labels) + 1))]
        text = ",".join(labels[name] for name in names if name in labels)
        if text:
            found[e["epoch"], e["number"], e["rank"]] = text
    if len({text for text in found.values()}) > 1 or len({rank for _, _, rank in found}) < len(found):
        listed = ", ".join(f"{e}/{n}" for e, n, _ in sorted(found)[:8])
        raise AmbiguousRequest(
            f"request {request!r} sample {sample} was computed more than once; choose by epoch and number: {listed}"
        )
    epoch = next(iter(found))[0] if len(found) == 1 else None
    return [_part(p, epoch) for p in next(iter(found.values()), "").split(",") if p]


def _part(text: str, epoch: str | None) -> Part:
    try:
        sample, _, places = text.partition(":")
        start, _, stop = places.partition("-")
        part = Part(int(sample), int(start), int(stop), epoch)
        if not 0 <= part.start < part.stop:
            raise ValueError(text)
        return part
    except ValueError as e:
        raise LakeError(f"read the lineage of a sequence: {text[:80]!r} is not sample:start-stop") from e


def join_lineage(what: str, parts: Sequence[tuple[Part, Tensor]]) -> Tensor:
    """Put the parts of a sequence one behind the other, with what is missing of each."""
    missing: list[Missing] = []
    chosen = []
    for part, t in parts:
        inside = (t.positions >= part.start) & (t.positions < part.stop)
        chosen.append((t.positions[inside], t.passes[inside], t.values[inside]))
        for m in t.missing:
            start, stop = max(m.start, part.start), min(m.stop, part.stop)
            if start < stop:
                missing.append(Missing(start, stop, f"sample {part.sample}: {m.reason}"))
    positions, passes, values = (np.concatenate(column) for column in zip(*chosen, strict=True))
    if len({t.dtype for _, t in parts if len(t.positions)}) > 1:
        raise LakeError(f"{what}: its rows differ in dtype or shape")
    return replace(parts[0][1], positions=positions, passes=passes, values=values, missing=tuple(merged(missing)))


def join_shards(what: str, shards: Mapping[int, Tensor], counts: set[int]) -> Tensor:
    """Put shards together; positions that one of them lacks are missing. Raises LakeError."""
    if len(counts) > 1 or max(shards) >= max(counts):
        raise LakeError(f"{what}: its rows say that they are shards {sorted(shards)} of {sorted(counts)}")
    count, first = max(counts), shards[min(shards)]
    if any(t.dtype != first.dtype or t.values.dtype == object for t in shards.values()):
        raise LakeError(f"{what}: its shards differ in dtype, or are ragged; read them one by one with shard=")
    places = set.union(*(set(t.positions.tolist()) for t in shards.values()))
    why: dict[int, str] = {}
    for s in range(count):
        have = set(shards[s].positions.tolist()) if s in shards else set()
        reasons = {p: m.reason for m in shards[s].missing for p in range(m.start, m.stop)} if s in shards else {}
        for p in (places | set(reasons)) - have:
            why.setdefault(p, f"shard {s} of {count} has no row: {reasons.get(p, 'nothing of it is in the lake')}")
    whole = np.array(sorted(places - set(why)), np.int32)
    if len(shards) < count:
        return replace(first, positions=whole, passes=whole, values=first.values[:0], missing=tuple(_runs(why)))
    rows = [t.values[np.searchsorted(t.positions, whole)] for _, t in sorted(shards.items())]
    passes = [t.passes[np.searchsorted(t.positions, whole)] for _, t in sorted(shards.items())]
    if any((p != passes[0]).any() for p in passes):
        raise LakeError(f"{what}: its shards have different passes of a position; read them one by one with shard=")
    if len({(r.ndim, r.shape[1:-1]) for r in rows}) > 1 or min(r.ndim for r in rows) < 2:
        raise LakeError(f"{what}: its shards have shapes that do not fit; read them one by one with shard=")
    return replace(first, positions=whole, passes=passes[0], values=np.concatenate(rows, axis=-1),
                   missing=tuple(_runs(why)))  # fmt: skip


def _runs(why: Mapping[int, str]) -> list[Missing]:
    return merged([Missing(p, p + 1, why[p]) for p in sorted(why)])


def merged(missing: Sequence[Missing]) -> list[Missing]:
    """Merge neighbours that are missing for one reason."""
    out: list[Missing] = []
    for m in missing:
        if out and out[-1].stop == m.start and out[-1].reason == m.reason:
            out[-1] = out[-1]._replace(stop=m.stop)
        else:
            out.append(m)
    return out
