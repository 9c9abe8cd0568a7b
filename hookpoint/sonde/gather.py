"""Copies what was tapped in a forward into the ring, in one go at its end.

A tensor that the model has overwritten since the tap is never read: its rows count as aborted, and from the next
forward on that tap copies at once. What forwards of one kind have in common, the layouts and where each row goes, is
a plan that is made once; on the way of every step stand only checks that it still fits.
"""

from __future__ import annotations

import ctypes as c
import struct
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from sonde.decoding import Decoded
from sonde.decoding import Rows as Going
from sonde.devices import DeviceRings, Taps
from sonde.errors import CaptureError
from sonde.libsonde import DTYPES, MAX_STEP_RANGES
from sonde.names import TOKEN_IDS, Tap
from sonde.native import Step
from sonde.recorder import Entry, Recorder, pack
from sonde.rows import FLOATS, Grid, Refused, Rows, rows_of
from sonde.step import Range
from sonde.taps import Forward

MAX_LAYOUTS = 64  # of one capture; each is another set of hooks or element types
MAX_PLANS = 256  # kept; then all are made anew

Problem = Callable[[str, str], None]
Columns = tuple[int, ...] | None


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
    first: int = 0  #: of its entries, among those of all groups
    sources: list[int] = field(default_factory=list)  #: of each entry, the place of its tensor among what was tapped
    runs: list[int] = field(default_factory=list)  #: first row and count, of each run of source rows
    memory: Any = None  #: the runs, where the library reads them
    taps: Taps | None = None  #: of what lies on a GPU

    @property
    def on_host(self) -> bool:
        """Say whether the host copies the rows."""
        return self.device.type == "cpu"


@dataclass
class _Plan:
    # Of each tap: index, class, shape, strides, dtype, device (-1: the host), bytes before the rows (-1: none).
    expect: list[tuple[int, type, torch.Size, tuple[int, ...], torch.dtype, int, int]]
    groups: list[Group]
    lasting: bool  # addresses and runs are all that changes
    order: list[int] | None = None  # of the captured taps, those of the groups one after the other; None: as they came
    layouts: bytes = b""
    copies: Any = None  # sonde_copy of each entry that the host copies, group by group, as u64
    whole: bool = False  # the host copies all groups: a step is one call
    going: Going | None = None  # rows of a loop of decoding, if the runs and their masks are those of its last step
    step: Step | None = None  # their next step, which takes what fits without a look at anything else

    def seal(self) -> None:
        """Make the parts that all steps share."""
        self.layouts = struct.pack(f"<{len(self.groups)}I", *(g.layout for g in self.groups))
        words = []
        sources = [i for g in self.groups for i in g.sources]
        ranks = {place: i for i, place in enumerate(sorted(sources))}
        order = [ranks[i] for i in sources]
        self.order = None if order == sorted(order) else order
        entries = 0
        for g in self.groups:
            g.first, entries = entries, entries + len(g.entries)
            if not g.on_host:
                g.taps = Taps.of(g.layout, g.device, g.sampled, g.entries, g.rows)
        for bit, g in enumerate(self.groups):
            for e, r in enumerate(g.rows if g.on_host else ()):
                # src, src_bytes, row_stride, runs, rows, run_count | row_count, layout_index | entry, src_dtype
                words += (0, r.readable, r.stride, 0, 0, 0, bit | e << 32, DTYPES[r.dtype])
        self.whole = all(g.on_host and not g.stale for g in self.groups)
        self.copies = (c.c_uint64 * len(words))(*words)
        self.count, self.where = len(words) // 8, c.addressof(self.copies)
        self._words = memoryview(self.copies).cast("B").cast("Q")

    def point(self, addresses: list[int]) -> list[int]:
        """Say where the rows of each entry are; give the addresses in the order of the groups."""
        if self.order is not None:
            addresses = [addresses[i] for i in self.order]
        if self.count == len(addresses) > 0:
            self._words[0::8] = array("Q", addresses)
        elif self.count:
            host = [a for g in self.groups if g.on_host for a in addresses[g.first : g.first + len(g.entries)]]
            self._words[0::8] = array("Q", host)
        return addresses

    def fresh(self) -> list[int]:
        """Do the same for the tensors that the plan was made of."""
        rows = sorted((i, r.address) for g in self.groups for i, r in zip(g.sources, g.rows, strict=True))
        return self.point([address for _, address in rows])

    def forget(self) -> None:
        """Let go of the tensors that the plan was made of."""
        for g in self.groups:
            g.rows.clear()

    def choose(self, group: Group, first: int, runs: list[int]) -> None:
        """Say which rows the entries of a group take; first: of its entries among all copies."""
        if runs == group.runs:
            return
        group.runs = runs
        if group.taps is not None and runs:
            group.taps.choose(runs)
        elif group.on_host:
            group.memory = (c.c_uint32 * len(runs))(*runs)
            for i in range(8 * first, 8 * (first + len(group.entries)), 8):
                self.copies[i + 3] = c.addressof(group.memory)
                self.copies[i + 5] = len(runs) // 2


@dataclass(frozen=True)
class Recorded:
    """What a CUDA graph gathers at each replay."""

    plan: _Plan
    grid: Grid


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
        self.devices = DeviceRings(recorder)
        self._layouts: dict[tuple[Entry, ...], int] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._plans: dict[object, _Plan] = {}

    def store(self, forward: Forward) -> bool:
        """Write a step with what was tapped; False: nothing was. The caller holds the recorder's lock.

        Raises CaptureError when the step as a whole is refused.
        """
        for index, e in forward.problems:
            self._problem(self.taps[index].name, repr(e))
        ranges = forward.ranges
        decoded = type(ranges) is Decoded
        if decoded:
            plan = ranges.rows.plan
            if plan is not None and plan.going is ranges.rows and ranges.current and ranges.rows.grid is forward.grid:
                if self._recorder.repeat_step(ranges, forward.taken, plan.step.address):
                    return True
                plan.going = None
        sampled = decoded or any([r.sampled for r in ranges])
        key = (forward.grid, len(forward.taken), sampled)
        plan = self._plans.get(key)
        addresses = None if plan is None else _fitting(plan, forward)
        if plan is None or addresses is None:
            plan = self._make(forward, sampled)
            if plan.lasting:
                if len(self._plans) >= MAX_PLANS:
                    self._plans.clear()
                self._plans[key] = plan
            addresses = None
        if not plan.groups:
            return False
        self._write(plan, forward, plan.point(addresses) if addresses is not None else plan.fresh())
        plan.forget()
        return True

    def record(self, forward: Forward, launch: bool) -> Recorded:
        """Gather all rows of what was tapped, outside of any step. Raises CaptureError.

        launch: the current stream is recording, and rings are open. Otherwise they are opened, and what the model
        overwrites is found.
        """
        plan = self._make(forward, True)
        addresses = plan.fresh()
        for group in plan.groups:
            if group.taps is None:
                raise CaptureError(f"{group.entries[0].hook} lies in memory of the host; a CUDA graph cannot copy it")
            group.taps.choose([0, min(group.taps.counts)])
            if not launch:
                self.devices.open(group.taps)
            elif group.stale:
                raise CaptureError(f"{group.entries[0].hook} is overwritten by the model in some calls only")
            else:
                self._gather(group, forward, addresses, None)
        plan.forget()
        return Recorded(plan, forward.grid)

    def arm(self, recorded: Recorded, ranges: Sequence[Range]) -> bool:
        """Write the step of a replay that is launched next on the current stream. Raises CaptureError."""
        groups, masks = recorded.plan.groups, [0] * len(ranges)
        forward = Forward(ranges, recorded.grid)
        armed = []
        for bit, group in enumerate(groups):
            runs = _select(group, forward, masks, bit)
            if runs and (len(runs) > 2 or runs[0]):
                raise CaptureError(f"the rows of a replay are {runs}; they must be the first ones, without holes")
            armed.append(bool(runs))
        self._recorder.begin_step(ranges, masks, recorded.plan.layouts)
        closing = {bit for bit, any_rows in enumerate(armed) if any_rows}
        try:
            for bit in sorted(closing):
                closing.discard(bit)
                self.devices.arm(bit, groups[bit].taps)
        finally:
            for bit in closing:
                self._recorder.abort_layout(bit)
            self._recorder.commit_step()
        return True

    def close(self, timeout: float) -> None:
        """Give device rings back."""
        self.devices.close(timeout)

    # ---- a plan ----

    def _make(self, forward: Forward, sampled: bool) -> _Plan:
        plan = _Plan([], [], True)
        seen: Counter[int] = Counter()
        groups: dict[object, Group] = {}
        for place, (index, x, version) in enumerate(forward.taken):
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
                    group.sources.append(place)
                    offset = rows.offset
                    plan.lasting &= rows.tensor is x and not stale
                except Exception as e:  # noqa: BLE001 (a tensor of any kind may come; the others are captured)
                    self._problem(tap.name, str(e) if isinstance(e, Refused) else repr(e))
            plan.expect.append((index, type(x), x.shape, _strides(x), x.dtype, x.get_device(), offset))
        plan.groups = [g for g in groups.values() if self._define(g)]
        kept = {i for g in plan.groups for i in g.sources}
        plan.expect = [e if i in kept else (*e[:-1], -1) for i, e in enumerate(plan.expect)]
        plan.seal()
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
        ranges, groups = forward.ranges, plan.groups
        if len(ranges) > MAX_STEP_RANGES:
            raise CaptureError(f"a forward computes {len(ranges)} runs of tokens; at most {MAX_STEP_RANGES}")
        masks = [0] * len(ranges)
        first = 0
        plan.going = None
        for bit, group in enumerate(groups):
            plan.choose(group, first, _select(group, forward, masks, bit))
            first += len(group.entries) if group.on_host else 0
        recorder = self._recorder
        if plan.whole:
            recorder.run_step(ranges, pack(ranges, masks), plan.layouts, plan.where, plan.count)
            if type(ranges) is Decoded and plan.order is None and plan.lasting:
                self._go_on(plan, ranges.rows, forward, masks)
            return
        recorder.begin_step(ranges, masks, plan.layouts)
        closing = set(range(len(groups)))  # layouts that must be aborted if something goes wrong
        try:
            for bit, group in enumerate(groups):
                if group.stale:
                    recorder.abort_layout(bit)
                elif group.taps is not None:
                    closing.discard(bit)
                    if group.runs:
                        self._gather(group, forward, addresses, bit)
            recorder.copy(plan.where, plan.count)
        except BaseException:
            for bit in closing:
                recorder.abort_layout(bit)
            raise
        finally:
            recorder.commit_step()

    def _go_on(self, plan: _Plan, rows: Going, forward: Forward, masks: list[int]) -> None:
        """Prepare the next step of a loop of decoding, of which this was one."""
        rows.mask(masks)
        step = Step(self._recorder.handle.value, plan.layouts, (plan.where, plan.count), self._recorder.counter)
        if step.describe(forward.taken, [e[-1] for e in plan.expect], (rows.address, len(masks))):
            plan.step, plan.going, rows.plan = step, rows, plan

    def _gather(self, group: Group, forward: Forward, addresses: list[int], bit: int | None) -> None:
        tensors = [r.tensor for r in group.rows] or [forward.taken[i][1] for i in group.sources]
        self.devices.gather(group.taps, tensors, addresses[group.first : group.first + len(group.entries)], bit)


def _strides(x: torch.Tensor) -> tuple[int, ...]:
    return x.stride() if x.layout == torch.strided else ()


def _fitting(plan: _Plan, forward: Forward) -> list[int] | None:
    """Give the addresses of the rows if the plan fits what was tapped."""
    out = []
    for (index, x, version), (i, kind, shape, strides, dtype, device, offset) in zip(
        forward.taken, plan.expect, strict=True
    ):
        if index != i or type(x) is not kind or x.dtype is not dtype or x.shape != shape:
            return None
        if offset >= 0:
            if x.stride() != strides or x.get_device() != device or version is not None and x._version != version:
                return None
            out.append(x.data_ptr() + offset)
    return out


def _select(group: Group, forward: Forward, masks: list[int], bit: int) -> list[int]:
    """Set the group's bit in the masks of its ranges, and give the runs of its source rows, merged."""
    runs: list[int] = []
    end, flag, rows = -1, 1 << bit, forward.grid.rows
    sampled, columns, seq = group.sampled, group.columns, forward.grid.seq
    for i, r in enumerate(forward.ranges):
        first, count = r.first_row, r.count
        if sampled:
            if not r.sampled:
                continue
            first, count = first + count - 1, 1
            if columns is not None:
                if first % seq not in columns:
                    continue
                first = first // seq * len(columns) + columns.index(first % seq)
        if first < 0 or first + count > rows:
            raise CaptureError(f"range {r} lies outside of the {rows} rows of the forward")
        masks[i] |= flag
        if first == end:
            runs[-1] += count
        else:
            runs += (first, count)
        end = first + count
    return runs
