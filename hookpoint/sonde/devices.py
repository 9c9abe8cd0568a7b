"""Rings in device memory: tensors of a GPU are gathered there, and a thread of the library lifts them to the host."""

from __future__ import annotations

import ctypes as c
import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from sonde import libsonde
from sonde.dtypes import SIZES
from sonde.recorder import Entry, Recorder
from sonde.rows import TORCH, Rows

RING_BYTES = 256 << 20  # of each layout, in device memory

_ALIGNMENT = 16  # bytes, of what the library gathers


@dataclass
class Taps:
    """Where the rows of a layout's entries lie on a GPU."""

    layout: int
    device: torch.device
    sampled: bool
    entries: list[Entry]
    starts: list[int]  #: elements before the first row, of each entry
    counts: list[int]  #: rows of each entry's tensor
    plain: list[bool]  #: rows of the entry's type one behind the other, which need no copy if they are one run
    runs: list[int] = field(default_factory=list)  #: first row and count, of each run of rows
    table: Any = None  #: sonde_tap of each entry, as u64
    index: torch.Tensor | None = None  #: the rows, where they are several runs

    @classmethod
    def of(cls, layout: int, device: torch.device, sampled: bool, entries: list[Entry], rows: list[Rows]) -> Taps:
        """Describe tensors; they are not kept."""
        plain = [r.dtype == e.dtype and r.stride == _row_bytes(e) for e, r in zip(entries, rows, strict=True)]
        starts = [r.offset // r.tensor.element_size() for r in rows]
        out = cls(layout, device, sampled, entries, starts, [r.count for r in rows], plain)
        # rows, bytes, entry | reserved << 32
        out.table = (c.c_uint64 * (3 * len(entries)))(*(w for i in range(len(entries)) for w in (0, 0, i)))
        return out

    @property
    def count(self) -> int:
        """Count the rows that are gathered of each entry."""
        return sum(self.runs[1::2])

    def choose(self, runs: list[int]) -> None:
        """Say which rows are gathered."""
        if runs == self.runs:
            return
        self.runs, self.index = runs, None
        for i, e in enumerate(self.entries):
            self.table[3 * i + 1] = self.count * _row_bytes(e)
        if len(runs) > 2:
            numbers = [r for first, n in zip(runs[::2], runs[1::2], strict=True) for r in range(first, first + n)]
            self.index = torch.tensor(numbers, device=self.device)

    def point(self, tensors: Sequence[torch.Tensor], addresses: Sequence[int]) -> list[torch.Tensor]:
        """Say where the tensors are. Returns copies, which must live until the gather was launched."""
        first, copies = self.runs[0], []
        at = [a + first * _row_bytes(e) for a, e in zip(addresses, self.entries, strict=True)] if first else addresses
        words = memoryview(self.table).cast("B").cast("Q")
        words[0::3] = array("Q", at)
        if self.index is None and all(self.plain) and not any(a % _ALIGNMENT for a in at):
            return copies
        for i, x in enumerate(tensors):
            if self.index is not None or not self.plain[i] or at[i] % _ALIGNMENT:
                copies.append(self._copy(i, x))
                words[3 * i] = copies[-1].data_ptr()
        return copies

    def _copy(self, i: int, x: torch.Tensor) -> torch.Tensor:
        """Copy the chosen rows one behind the other, of the entry's type and at an aligned address."""
        entry, first = self.entries[i], self.starts[i]
        x = x.detach().reshape(self.counts[i], -1)[:, first : first + math.prod(entry.shape)]
        x = x[self.runs[0] : self.runs[0] + self.runs[1]] if self.index is None else x.index_select(0, self.index)
        x = x.to(TORCH[entry.dtype]).contiguous()
        return x if x.data_ptr() % _ALIGNMENT == 0 else x.clone()


class DeviceRings:
    """One ring for each layout that is captured on a GPU."""

    def __init__(self, recorder: Recorder, ring_bytes: int = RING_BYTES) -> None:
        """Open no ring yet."""
        self._recorder, self._ring_bytes = recorder, ring_bytes
        self._rings: dict[int, c.c_void_p] = {}
        self._streams: dict[int, torch.cuda.Stream] = {}  # on which each ring was armed last

    def open(self, taps: Taps) -> None:
        """Open the layout's ring. Raises CaptureError."""
        if taps.layout not in self._rings:
            options = libsonde.DeviceOptions(
                struct_bytes=c.sizeof(libsonde.DeviceOptions),
                cuda_device=-1 if taps.device.index is None else taps.device.index,
                ring_bytes=self._ring_bytes,
                layout=taps.layout,
            )
            ring = c.c_void_p()
            libsonde.check(libsonde.load().sonde_device_open(self._recorder.handle, c.byref(options), c.byref(ring)))
            self._rings[taps.layout] = ring

    def arm(self, bit: int, taps: Taps) -> None:
        """Give the bit-th layout of the open step to the next gather on the current stream.

        Raises CaptureError: its rows count as aborted then.
        """
        try:
            self.open(taps)
            stream, last = _stream(taps.device), self._streams.get(taps.layout)
            if last is not None and last.cuda_stream != stream.cuda_stream:
                stream.wait_stream(last)  # or the gather that was armed there might take this one's rows for its own
            self._streams[taps.layout] = stream
        except BaseException:
            self._recorder.abort_layout(bit)
            raise
        libsonde.check(libsonde.load().sonde_device_arm(self._rings[taps.layout], bit, _handle(stream)))

    def gather(
        self, taps: Taps, tensors: Sequence[torch.Tensor], addresses: Sequence[int], bit: int | None = None
    ) -> None:
        """Gather on the current stream. Raises CaptureError: rows of the layout that was to be armed are aborted then.

        addresses: of the first row of each tensor. bit: of the layout of the open step that is armed for it; None: the
        ring is open, and the stream may be recording.
        """
        try:
            copies = taps.point(tensors, addresses)
        except BaseException:
            if bit is not None:
                self._recorder.abort_layout(bit)
            raise
        if bit is not None:
            self.arm(bit, taps)
        lib, ring, count = libsonde.load(), self._rings[taps.layout], taps.count
        libsonde.check(lib.sonde_device_plan(ring, 0 if taps.sampled else count, count if taps.sampled else 0))
        libsonde.check(lib.sonde_device_taps(ring, c.addressof(taps.table), len(taps.entries)))
        libsonde.check(lib.sonde_device_gather(ring, _handle(_stream(taps.device))))
        del copies  # what follows on the stream may use their memory

    def stats(self) -> list[libsonde.DeviceStats]:
        """Read the counters of each ring. Raises CaptureError."""
        out = []
        for ring in self._rings.values():
            out.append(libsonde.DeviceStats())
            libsonde.check(libsonde.load().sonde_device_get_stats(ring, c.byref(out[-1])))
        return out

    def close(self, timeout: float) -> None:
        """Wait for what is under way, at most timeout seconds for each ring, and give the rings back."""
        for ring in self._rings.values():
            libsonde.load().sonde_device_close(ring, int(timeout * 1e9))
        self._rings.clear()


def _row_bytes(entry: Entry) -> int:
    return math.prod(entry.shape) * SIZES[entry.dtype]


def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.current_stream(device)


def _handle(stream: torch.cuda.Stream) -> c.c_void_p:
    return c.c_void_p(stream.cuda_stream)
