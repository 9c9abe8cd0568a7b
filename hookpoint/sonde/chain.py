"""Which rows of a chain were seen: duplicates are dropped, and holes become gaps.

A chain is (epoch, kind, tenant, hook, layer, shard). In it, the cursor (seq, row) only ever rises, and each message
says with `prev` what lies before its first row: nothing that the reader could have missed, when it saw everything
before.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

import numpy as np

Cursor = tuple[int, int]

#: Row of a `prev` cursor of an agent that attached anew: it does not know what the agent before it published last.
ATTACHED_ANEW = (1 << 32) - 1

#: Open gaps that a chain remembers; beyond, the oldest one is forgotten and rows that still come for it are dropped.
MAX_OPEN_GAPS = 64

#: Chains that are remembered; beyond, the one that was idle for longest is forgotten.
MAX_CHAINS = 65_536


@dataclass(frozen=True)
class Gap:
    """Rows of a chain that did not arrive: those from cursor `after` up to cursor `before`, both (seq, row).

    `certain` is False when the rows may never have existed: an agent that attached anew does not know what the one
    before it published last. The ledger in the lake names every row, and `sonde lake show REQUEST` what became of it.
    """

    tenant: str
    engine: str
    epoch: str
    hook: str
    layer: int
    shard: int
    after: Cursor
    before: Cursor
    certain: bool
    reason: str


@dataclass
class Chain:
    """State of one chain: everything below `mark` was seen or is in `gaps`, which are [from, to) and ascend."""

    mark: Cursor
    gaps: list[tuple[Cursor, Cursor]] = field(default_factory=list)

    def take(self, prev: Cursor, last: Cursor, seq: np.ndarray, row: np.ndarray) -> np.ndarray:
        """Note a message that covers [prev, last).

        seq, row: uint64 and uint32, shape (rows,), ascending. Returns bool, shape (rows,): the rows that are new.
        """
        if prev > self.mark:
            self.gaps = [*self.gaps, (self.mark, prev)][-MAX_OPEN_GAPS:]
            self.mark = prev
        new = _from(seq, row, self.mark)
        if self.gaps and prev < self.mark:
            for start, stop in self.gaps:
                new |= _from(seq, row, start) & ~_from(seq, row, stop)
            self.gaps = [piece for gap in self.gaps for piece in _without(gap, (prev, last))]
        self.mark = max(self.mark, last)
        return new


def _from(seq: np.ndarray, row: np.ndarray, at: Cursor) -> np.ndarray:
    return (seq > at[0]) | ((seq == at[0]) & (row >= at[1]))


def _without(gap: tuple[Cursor, Cursor], cover: tuple[Cursor, Cursor]) -> list[tuple[Cursor, Cursor]]:
    pieces = [(gap[0], min(gap[1], cover[0])), (max(gap[0], cover[1]), gap[1])]
    return [p for p in pieces if p[0] < p[1]]


class Chains:
    """The chains of one subscription."""

    def __init__(self, whole: bool) -> None:
        """whole: the reader asked for a chain's start, so that what is missing before its first message is a gap."""
        self.whole = whole
        self._chains: OrderedDict[tuple, Chain] = OrderedDict()

    def take(
        self, key: tuple, prev: Cursor, last: Cursor, seq: np.ndarray, row: np.ndarray
    ) -> tuple[tuple[Cursor, Cursor] | None, np.ndarray]:
        """Note a message. Returns the gap in front of it, if there is one, and which of its rows are new."""
        chain = self._chains.get(key)
        if chain is None:
            if len(self._chains) >= MAX_CHAINS:
                self._chains.popitem(last=False)
            chain = self._chains[key] = Chain((0, 0) if self.whole else prev)
        self._chains.move_to_end(key)
        gap = (chain.mark, prev) if prev > chain.mark else None
        return gap, chain.take(prev, last, seq, row)
