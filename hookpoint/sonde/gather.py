"""Copies what was tapped in a forward into the ring, in one go at its end.

A tensor that the model has overwritten since the tap is never read: its rows count as aborted, and from the next
forward on that tap copies at once. What forwards of one kind have in common, the layouts and where each row goes, is
a plan that is made once; on the way of every step stand only checks that it still fits.
"""

from __future__ import annotations

import ctypes as c
import struct
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from sonde.devices import DeviceRings
from sonde.errors import CaptureError
from sonde.libsonde import DTYPES, MAX_STEP_RANGES
from sonde.names import TOKEN_IDS, Tap
from sonde.recorder import Entry, Recorder
from sonde.rows import FLOATS, Refused, Rows, rows_of
from sonde.step import Range
from sonde.taps import Forward

MAX_LAYOUTS = 64  # of one capture; each is another set of hooks or element types
MAX_PLANS = 256  # kept; then all are made anew

Problem = Callable[[str, str], None]
Columns = tuple[int, ...] | None


class _Runs:
    """Runs of source rows, in memory that the library reads."""

    def __init__(self) -> None:
        self._flat: list[int] = []
        self._memory = (c.c_uint32 * 16)()

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Give (first row, count) of each run."""
        return list(zip(self._flat[::2], self._flat[1::2], strict=True))

    def set(self, flat: list[int]) -> tuple[int, int]:
        """Take (first row, count) pairs; return where they are, and how many."""
        if flat != self._flat:
            if len(flat) > len(self._memory):
                self._memory = (c.c_uint32 * (2 * len(flat)))()
            struct.pack_into(f"<{len(flat)}I", self._memory, 0, *flat)
            self._flat = flat
        return c.addressof(self._memory), len(flat) // 2


@dataclass
class Group:
    """The entries of one layout of a step: those with the same rows, on the same device."""

    sampled: bool
    columns: Columns  #: that their tensors have; None: all
    device: torch.device
    stale: bool
    entries: list[Entry] = field(default_factory=list)
    rows: list[Rows] = field(default_factory=list)
    layout: int = -1
    runs: _Runs = field(default_factory=_Runs)


@dataclass
class _Plan:
    expect: list[tuple[int, torch.Size, torch.dtype, int]]  # of each tap: index, shape, dtype, bytes before the rows
    groups: list[Group]
    copies: np.ndarray  # of sonde_copy, one for each entry that the host copies, group by group
    lasting: bool  # addresses are all that changes


class Gatherer:
    """Writes the steps of one capture."""

    def __init__(
        self,
        recorder: Recorder,
        taps: Sequence[Tap],
        cast: str | None,
        shard: Callable[[Tap], tuple[int, int]] | None,
        problem: Problem,
    ) -> None:
        """shard: of a tap, (shard, how many). problem: takes what it is about, and a sentence."""
        self.taps = [*taps, Tap(TOKEN_IDS, -1, "")]
        self.early: set[int] = set()  # taps that must copy at once from now on
        self.overwritten = 0  # tensors that were not read because the model had overwritten them
        self._recorder, self._cast, self._shard, self._problem = recorder, cast, shard, problem
        self._devices = DeviceRings(recorder)
        self._layouts: dict[tuple[Entry, ...], int] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._plans: dict[object, _Plan] = {}

    def store(self, forward: Forward) -> bool:
        """Write a step with what was tapped; False: nothing was. The caller holds the recorder's lock.

        Raises CaptureError when the step as a whole is refused.
        """
        for index, e in forward.problems:
            self._problem(self.taps[index].name, repr(e))
        ids = forward.token_ids
        if ids is not None:
            forward.taken.append((-1, ids.to(torch.int32), None))
        sampled = any(r.sampled for r in forward.ranges)
        key = (forward.grid, len(forward.taken), sampled)
        plan = self._plans.get(key)
        addresses = None if plan is None else _fitting(plan, forward)
        if plan is None or addresses is None:
            plan = self._make(forward, sampled)
            if plan.lasting:
                if len(self._plans) >= MAX_PLANS:
                    self._plans.clear()
                self._plans[key] = plan
            addresses = [r.address for g in plan.groups for r in g.rows if g.device.type == "cpu"]
        if not plan.groups:
            return False
        self._write(plan, forward, addresses)
        for g in plan.groups:
            g.rows.clear()
        return True

    def close(self, timeout: float) -> None:
        """Give device rings back."""
        self._devices.close(timeout)

    # ---- a plan ----

    def _make(self, forward: Forward, sampled: bool) -> _Plan:
        plan = _Plan([], [], np.zeros((0, 8), np.uint64), True)
        seen: Counter[int] = Counter()
        groups: dict[object, Group] = {}
        for index, x, version in forward.taken:
            tap = self.taps[index]
            seen[index] += 1
            offset = -1
            if sampled or not tap.sampled:
                stale = version is not None and x._version != version
                if stale:
                    self.early.add(index)
                    self.overwritten += 1
                try:
                    rows = rows_of(x, tap, forward.grid, self._cast)
                    entry = self._entry(tap, seen[index], rows)
                    group_key = (stale, tap.sampled, rows.columns, x.device)
                    group = groups.setdefault(group_key, Group(tap.sampled, rows.columns, x.device, stale))
                    group.entries.append(entry)
                    group.rows.append(rows)
                    offset = rows.offset
                    plan.lasting &= rows.tensor is x and x.is_cpu and not stale
                except Exception as e:  # noqa: BLE001 (a tensor of any kind may come; the others are captured)
                    self._problem(tap.name, str(e) if isinstance(e, Refused) else repr(e))
            plan.expect.append((index, x.shape, x.dtype, offset))
        plan.groups = [g for g in groups.values() if self._define(g)]
        plan.copies = _copies(plan.groups)
        return plan

    def _entry(self, tap: Tap, use: int, rows: Rows) -> Entry:
        """Describe the rows of the use-th use of a module in a forward."""
        hook = tap.hook if use == 1 else f"{tap.hook}#{use}"
        known = self._shapes.setdefault(f"{hook} {tap.layer}", rows.shape)
        if known != rows.shape:
            raise Refused(f"{tap.path} gave rows of shape {rows.shape}, and of {known} before; that must not change")
        dtype = self._cast if self._cast is not None and rows.dtype in FLOATS else rows.dtype
        shard, count = (0, 1) if self._shard is None else self._shard(tap)
        return Entry(hook, tap.layer, dtype, rows.shape, tap.sampled, shard, count)

    def _define(self, group: Group) -> bool:
        """Find the number of a group's layout; False: it cannot be had."""
        key = tuple(group.entries)
        if key not in self._layouts:
            if len(self._layouts) >= MAX_LAYOUTS:
                text = f"forwards gave more than {MAX_LAYOUTS} different sets of tensors; new ones are not captured"
                self._problem("layouts", text)
                return False
            self._layouts[key] = self._recorder.define_layout(key)
        group.layout = self._layouts[key]
        return True

    # ---- a step ----

    def _write(self, plan: _Plan, forward: Forward, addresses: list[int]) -> None:
        ranges = forward.ranges
        if len(ranges) > MAX_STEP_RANGES:
            raise CaptureError(f"a forward computes {len(ranges)} runs of tokens; at most {MAX_STEP_RANGES}")
        masks = [0] * len(ranges)
        first = 0
        for bit, group in enumerate(plan.groups):
            flat = _select(group, forward, masks, bit)
            where, count = group.runs.set(flat)
            if group.device.type == "cpu":
                last = first + len(group.entries)
                plan.copies[first:last, 3] = where
                plan.copies[first:last, 5] = count
                first = last
        plan.copies[:, 0] = addresses
        recorder = self._recorder
        recorder.begin_step(list(zip(ranges, masks, strict=True)), [g.layout for g in plan.groups])
        open_ = set(range(len(plan.groups)))
        try:
            for bit, group in enumerate(plan.groups):
                if group.stale:
                    recorder.abort_layout(bit)
                elif group.device.type != "cpu":
                    open_.discard(bit)
                    self._devices.gather(bit, group, group.runs.pairs)
            recorder.copy(plan.copies.ctypes.data, len(plan.copies))
        except BaseException:
            for bit in open_:
                recorder.abort_layout(bit)
            raise
        finally:
            recorder.commit_step()


def _fitting(plan: _Plan, forward: Forward) -> list[int] | None:
    """Give the addresses of the rows if the plan fits what was tapped."""
    out = []
    for (index, x, version), (i, shape, dtype, offset) in zip(forward.taken, plan.expect, strict=True):
        if index != i or x.shape != shape or x.dtype is not dtype:
            return None
        if offset >= 0:
            if version is not None and x._version != version or not x.is_cpu or not x.is_contiguous():
                return None
            out.append(x.data_ptr() + offset)
    return out


def _copies(groups: Sequence[Group]) -> np.ndarray:
    """Make the array of sonde_copy for all entries that the host copies; addresses and runs come with each step."""
    out = []
    for bit, g in enumerate(groups):
        if g.device.type != "cpu":
            continue
        for e, r in enumerate(g.rows):
            readable = r.stride * r.count - r.offset
            # src, src_bytes, row_stride, runs, rows, run_count | row_count, layout_index | entry, src_dtype | reserved
            out.append((0, readable, r.stride, 0, 0, 0, bit | e << 32, DTYPES[r.dtype]))
    return np.array(out, np.uint64).reshape(len(out), 8)


def _select(group: Group, forward: Forward, masks: list[int], bit: int) -> list[int]:
    """Set the group's bit in the masks of its ranges, and give the runs of its source rows, merged."""
    flat: list[int] = []
    end = -1
    for i, r in enumerate(forward.ranges):
        if not group.sampled:
            first, count = r.first_row, r.count
        elif r.sampled:
            first, count = _sampled_row(r, group.columns, forward.grid.seq), 1
        else:
            continue
        if first < 0 or first + count > forward.grid.rows:
            continue
        masks[i] |= 1 << bit
        if first == end:
            flat[-1] += count
        else:
            flat += (first, count)
        end = first + count
    return flat


def _sampled_row(r: Range, columns: Columns, seq: int) -> int:
    """Find the row of a range's last token in a tensor that has only some columns; -1: it has not this one."""
    row = r.first_row + r.count - 1
    if columns is None:
        return row
    column = row % seq
    return row // seq * len(columns) + columns.index(column) if column in columns else -1
