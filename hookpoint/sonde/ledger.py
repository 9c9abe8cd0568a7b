"""Which positions of a tensor must be there, by the ledger of the lake, and why others are not."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from sonde.errors import LakeError, Missing

#: Columns of the table that are read.
COLUMNS = [
    "epoch", "fact", "number", "position", "count", "stride", "pass", "layout", "entries", "outcome", "reason",
    "capture_seq", "first_row", "hook", "layer", "detail",
]  # fmt: skip

#: Positions that one fact names at most.
MAX_POSITIONS = 1 << 24

_ORDER = {"expected": 0, "missing": 1, "dropped": 2}


@dataclass
class Ledger:
    """What the ledger says about one sequence, (epoch, number), at one hook, layer and shard."""

    number: int
    hook: str
    layer: int
    shard: int
    sampled: bool = False  # the hook has rows of sampled tokens only
    closed: bool = False  # the epoch ended
    wanted: dict[int, tuple[int, str, int, int]] = field(default_factory=dict)  # position: pass, reason, capture, row
    _rejected: set[tuple[int, int]] = field(default_factory=set)
    _entries: dict[int, set[int]] = field(default_factory=dict)
    _captures: dict[int, str] = field(default_factory=dict)
    _refused: list[dict[str, Any]] = field(default_factory=list)

    def read(self, facts: Iterable[dict[str, Any]]) -> None:
        """Take the facts of the epoch, in any order. Raises LakeError."""
        ranges = []
        for f in facts:
            kind = f["fact"]
            if kind == "layout":
                self._layout(f)
            elif kind == "closed":
                self.closed = True
            elif kind in ("aborted", "lost"):
                died = "lost when the engine died"
                self._captures[f["capture_seq"]] = "the engine's copy failed" if kind == "aborted" else died
            elif kind == "dead_letter" or kind in _ORDER and f["hook"]:
                if f["hook"] == self.hook and f["layer"] == self.layer:
                    self._refused.append(f)
            elif f["number"] == self.number and kind == "amend":
                if f["reason"] in ("rejected", "phantom"):
                    self._rejected.update((p, f["pass"]) for p in _positions(f))
            elif f["number"] == self.number and kind in _ORDER:
                ranges.append(f)
        for f in sorted(ranges, key=lambda f: _ORDER[f["fact"]]):  # a range is expected before it is explained
            self._take(f)

    def rejected(self, position: int, pass_: int) -> bool:
        """Report whether the engine took this pass of a position back."""
        return (position, pass_) in self._rejected

    def missing(self, have: set[int], cached: int) -> list[Missing]:
        """List runs of positions without a row. have: positions with one; cached: prompt tokens of the prefix cache."""
        why = {
            p: self._why(reason, capture, row) for p, (_, reason, capture, row) in self.wanted.items() if p not in have
        }
        first = min([*have, *self.wanted], default=None)
        if cached > 0 and not self.sampled and first == cached:
            why.update((p, "served from the prefix cache: never computed in this request") for p in range(cached))
        runs: list[Missing] = []
        for p in sorted(why):
            if runs and runs[-1].stop == p and runs[-1].reason == why[p]:
                runs[-1] = runs[-1]._replace(stop=p + 1)
            else:
                runs.append(Missing(p, p + 1, why[p]))
        return runs

    def _layout(self, f: dict[str, Any]) -> None:
        mine = set()
        try:
            for i, e in enumerate(json.loads(f["detail"])):
                if (e["hook"], e["layer"], e["shard"]) == (self.hook, self.layer, self.shard):
                    mine.add(i)
                    self.sampled = self.sampled or e.get("select") == "sampled"
        except (ValueError, KeyError, TypeError) as e:
            raise LakeError(f"read the ledger: layout {f['layout']} is not readable: {e!r:.100}") from e
        self._entries[f["layout"]] = mine

    def _take(self, f: dict[str, Any]) -> None:
        mine = self._entries.get(f["layout"], set())
        if not mine or f["entries"] and mine.isdisjoint(_entries(f["entries"])):
            return
        reason = ""
        if f["fact"] == "expected" and f["outcome"] == "dropped":
            reason = f"dropped by the ring: {f['reason']}"
        elif f["fact"] == "missing":
            reason = f"never reached the ring: {f['reason']}"
        elif f["fact"] == "dropped":
            reason = f"dropped by the agent: {f['reason']}"
        for k, p in enumerate(_positions(f)):
            old = self.wanted.get(p)
            if p < 0 or self.rejected(p, f["pass"]) or old and old[0] > f["pass"]:
                continue
            if f["fact"] == "missing" and old and old[0] == f["pass"] and old[1]:
                continue  # the expectation says more
            self.wanted[p] = (f["pass"], reason, f["capture_seq"], f["first_row"] + k * max(f["stride"], 1))

    def _why(self, reason: str, capture: int, row: int) -> str:
        for f in self._refused:
            stride, offset = max(f["stride"], 1), row - f["first_row"]
            if f["capture_seq"] == capture and 0 <= offset < f["count"] * stride and offset % stride == 0:
                what = "in a dead-letter directory" if f["fact"] == "dead_letter" else "dropped"
                return f"{what}: {f['reason']}" if f["reason"] else what
        if reason or capture in self._captures:
            return reason or self._captures[capture]
        if self.closed:
            return "not stored as a vector: only its figures are, or the ledger does not explain it (sonde lake verify)"
        return "on its way: captured, and not yet in the lake; or only its figures are stored"


def _positions(f: dict[str, Any]) -> range:
    if not 0 <= f["count"] <= MAX_POSITIONS:
        raise LakeError(f"read the ledger: a fact {f['fact']} names {f['count']} positions, at most {MAX_POSITIONS}")
    stride = max(f["stride"], 1)
    return range(f["position"], f["position"] + f["count"] * stride, stride)


def _entries(text: str) -> set[int]:
    """Read a set of layout entries like 0-3,7."""
    out: set[int] = set()
    try:
        for part in text.split(","):
            low, _, high = part.partition("-")
            first, last = int(low), int(high or low)
            if not 0 <= first <= last < 1 << 16:
                raise ValueError(part)
            out.update(range(first, last + 1))
    except ValueError as e:
        raise LakeError(f"read the ledger: entries {text[:80]!r} are no set like 0-3,7") from e
    return out
