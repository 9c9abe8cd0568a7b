"""Rings in device memory: tensors of a GPU are gathered there, and a thread of the library lifts them to the host."""

from __future__ import annotations

import ctypes as c
import struct
from typing import TYPE_CHECKING

import torch

from sonde import libsonde
from sonde.recorder import Entry, Recorder
from sonde.rows import TORCH, Rows

if TYPE_CHECKING:
    from sonde.gather import Group

RING_BYTES = 256 << 20  # of each layout, in device memory

_TAP = struct.Struct("<QQII")  # sonde_tap: rows, bytes, entry, reserved


class DeviceRings:
    """One ring for each layout that is captured on a GPU."""

    def __init__(self, recorder: Recorder, ring_bytes: int = RING_BYTES) -> None:
        """Open no ring yet."""
        self._recorder, self._ring_bytes = recorder, ring_bytes
        self._rings: dict[int, c.c_void_p] = {}

    def gather(self, bit: int, group: Group) -> None:
        """Arm the bit-th layout of the open step and gather its rows. Raises CaptureError: they are aborted then."""
        lib = libsonde.load()
        runs = list(zip(group.runs[::2], group.runs[1::2], strict=True))
        try:
            ring = self._ring(group.layout, group.device)
            tensors = [_chosen(r, e, runs) for r, e in zip(group.rows, group.entries, strict=True)]
        except BaseException:
            self._recorder.abort_layout(bit)
            raise
        stream = c.c_void_p(torch.cuda.current_stream(group.device).cuda_stream)
        libsonde.check(lib.sonde_device_arm(ring, bit, stream))
        count = sum(n for _, n in runs)
        libsonde.check(lib.sonde_device_plan(ring, 0 if group.sampled else count, count if group.sampled else 0))
        taps = b"".join(_TAP.pack(t.data_ptr(), t.numel() * t.element_size(), e, 0) for e, t in enumerate(tensors))
        libsonde.check(lib.sonde_device_taps(ring, taps, len(tensors)))
        libsonde.check(lib.sonde_device_gather(ring, stream))

    def close(self, timeout: float) -> None:
        """Wait for what is under way, at most timeout seconds for each ring, and give the rings back."""
        for ring in self._rings.values():
            libsonde.load().sonde_device_close(ring, int(timeout * 1e9))
        self._rings.clear()

    def _ring(self, layout: int, device: torch.device) -> c.c_void_p:
        if layout not in self._rings:
            options = libsonde.DeviceOptions(
                struct_bytes=c.sizeof(libsonde.DeviceOptions),
                cuda_device=-1 if device.index is None else device.index,
                ring_bytes=self._ring_bytes,
                layout=layout,
            )
            ring = c.c_void_p()
            libsonde.check(
                libsonde.load().sonde_device_open(self._recorder.handle, c.byref(options), c.byref(ring))
            )
            self._rings[layout] = ring
        return self._rings[layout]


def _chosen(rows: Rows, entry: Entry, runs: list[tuple[int, int]]) -> torch.Tensor:
    """Give the rows of runs one after the other, of the entry's type and at a multiple of 16 bytes."""
    x = rows.tensor.detach().reshape(rows.count, -1)
    width = 1
    for n in rows.shape:
        width *= n
    first = rows.offset // x.element_size()
    x = x[:, first : first + width]
    if len(runs) == 1:
        x = x[runs[0][0] : runs[0][0] + runs[0][1]]
    else:
        numbers = [r for start, n in runs for r in range(start, start + n)]
        x = x.index_select(0, torch.tensor(numbers, device=x.device))
    if x.dtype != TORCH[entry.dtype]:
        x = x.to(TORCH[entry.dtype])
    x = x.contiguous()
    return x if x.data_ptr() % 16 == 0 else x.clone()
