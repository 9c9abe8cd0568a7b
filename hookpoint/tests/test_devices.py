"""Fears about rows on a GPU, tried without one: a library that gathers from memory of the host stands for it."""

from __future__ import annotations

import ctypes as c
import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import sonde
from sonde import devices, libsonde
from sonde.devices import Taps
from sonde.gather import Group
from sonde.names import Tap
from sonde.recorder import Entry
from sonde.rows import grid, rows_of
from sonde.step import Range


def gathered(taps: Taps) -> list[bytes]:
    """Read what the table of taps points to, as the kernel does."""
    words = list(taps.table)
    assert [w & 0xFFFFFFFF for w in words[2::3]] == list(range(len(taps.entries)))
    assert all(a % 16 == 0 for a in words[0::3])
    return [c.string_at(a, n) for a, n in zip(words[0::3], words[1::3], strict=True)]


def tapped(x: torch.Tensor, tap: Tap, dtype: str, shape: tuple[int, ...], batch: int, seq: int) -> tuple[Taps, int]:
    rows = rows_of(x, tap, grid(batch, seq, None), None)
    taps = Taps.of(0, x.device, False, [Entry(tap.hook, tap.layer, dtype, shape)], [rows])
    return taps, rows.address


RUNS = [[0, 6], [0, 2], [2, 3], [0, 1, 3, 2], [1, 1, 3, 1, 5, 1]]


@pytest.mark.parametrize("runs", RUNS)
@pytest.mark.parametrize("kind", ["plain", "columns", "token ids", "misaligned", "strided"])
def test_the_chosen_rows_are_gathered_whatever_the_tensor_looks_like(kind: str, runs: list[int]) -> None:
    x, tap, dtype, shape = torch.randn(2, 3, 8), Tap("h", 0, "m"), "f32", (8,)
    if kind == "columns":
        tap, shape = Tap("h", 0, "m", columns=(4, 8)), (4,)
    elif kind == "token ids":
        x, tap, dtype, shape = torch.randint(0, 1 << 31, (2, 3)), Tap("token_ids", -1, ""), "i32", ()
    elif kind == "misaligned":
        x = torch.randn(2 * 3 * 8 + 1)[1:].view(2, 3, 8)
    elif kind == "strided":
        x = torch.randn(2, 3, 16)[:, :, :8]
    taps, address = tapped(x, tap, dtype, shape, 2, 3)
    taps.choose(runs)
    copies = taps.point([x], [address])
    flat = (x[..., 4:8] if kind == "columns" else x).reshape(6, -1)
    rows = [r for first, n in zip(runs[::2], runs[1::2], strict=True) for r in range(first, first + n)]
    want = flat[rows].to(torch.int32) if kind == "token ids" else flat[rows]
    assert gathered(taps) == [want.contiguous().numpy().tobytes()]
    assert (copies == []) == (kind == "plain" and len(runs) == 2)


class Stream:
    """A stream that notes for which others it waits."""

    def __init__(self, handle: int) -> None:
        self.cuda_stream, self.waited = handle, []

    def wait_stream(self, other: Stream) -> None:
        self.waited.append(other.cuda_stream)


class Gpu:
    """The library's device calls, on memory of the host: what each armed gather took."""

    def __init__(self, library: c.CDLL) -> None:
        self._library, self.taken, self.unarmed = library, [], 0
        self.stream = Stream(1)
        self._armed: dict[int, int] = {}
        self._rings, self._planned, self._tapped = itertools.count(1), {}, {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._library, name)

    def sonde_device_open(self, _writer: Any, _options: Any, ring: Any) -> int:
        ring._obj.value = next(self._rings)
        return 0

    def sonde_device_plan(self, ring: Any, tokens: int, sampled: int) -> int:
        self._planned[ring.value] = tokens, sampled
        return 0

    def sonde_device_taps(self, ring: Any, taps: int, count: int) -> int:
        words = (c.c_uint64 * (3 * count)).from_address(taps)
        self._tapped[ring.value] = list(zip(words[0::3], words[1::3], strict=True))
        return 0

    def sonde_device_arm(self, ring: Any, bit: int, _stream: Any) -> int:
        self._armed[ring.value] = bit
        return self._library.sonde_step_abort(self.writer, bit)  # nothing is written into the span

    def sonde_device_gather(self, ring: Any, _stream: Any) -> int:
        self.launch(ring.value)
        return 0

    def launch(self, ring: int) -> None:
        if self._armed.pop(ring, None) is None:
            self.unarmed += 1
            return
        self.taken.append((self._planned[ring], [c.string_at(a, n) for a, n in self._tapped[ring]]))

    def sonde_device_close(self, _ring: Any, _timeout: int) -> int:
        return 0


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gpu]:
    fake = Gpu(libsonde.load())
    monkeypatch.setattr(Group, "on_host", property(lambda _: False))
    monkeypatch.setattr(devices, "_stream", lambda _: fake.stream)
    monkeypatch.setattr(devices.libsonde, "load", lambda: fake)
    yield fake


class Model(nn.Module):
    """One layer; with `late`, what it returns is overwritten after the tap."""

    def __init__(self, late: bool = False) -> None:
        super().__init__()
        self.a, self.late = nn.Linear(4, 4), late

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x)
        return y.add_(1) if self.late else y + 1


class Rows:
    def __init__(self) -> None:
        self.next: list[Range] = []

    def ranges(self, *_: object) -> list[Range]:
        return self.next

    def finished(self, *_: object) -> None:
        pass


def attached(gpu: Gpu, model: nn.Module) -> tuple[sonde.Capture, Rows, int]:
    rows = Rows()
    capture = sonde.attach(model, ["a"], socket=None, identity=rows)
    gpu.writer = capture.recorder.handle
    return capture, rows, capture.recorder.open_request("r")


@torch.no_grad()
def test_a_plan_that_is_used_again_takes_the_rows_of_each_forward(gpu: Gpu) -> None:
    model = Model()
    capture, rows, number = attached(gpu, model)
    for i, chosen in enumerate([(0, 6), (0, 6), (1, 2), (0, 6)]):
        x = torch.randn(6, 1, 4)
        rows.next = [Range(number, 10 * i, chosen[1], chosen[0])]
        model(x)
        want = model.a(x).reshape(6, 4)[chosen[0] : chosen[0] + chosen[1]]
        assert gpu.taken[-1] == ((chosen[1], 0), [want.contiguous().numpy().tobytes()])
    assert len(gpu.taken) == 4 and gpu.unarmed == 0 and capture.stats().problems == {}
    capture.detach(0)


@torch.no_grad()
def test_hooks_of_two_layouts_in_turn_keep_their_own_rows(gpu: Gpu) -> None:
    """What is sampled from has a layout of its own; its hook lies between two of the other."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    rows = Rows()
    capture = sonde.attach(model, ["0", "1", "2"], socket=None, identity=rows)
    gpu.writer, number = capture.recorder.handle, capture.recorder.open_request("r")
    capture._gatherer.taps[1] = replace(capture._gatherer.taps[1], sampled=True)
    for i in range(3):
        x = torch.randn(2, 1, 4)
        rows.next = [Range(number, 2 * i + r, 1, r, sampled=True) for r in range(2)]
        gpu.taken.clear()
        model(x)
        a = model[0](x)
        b = model[1](a)
        want = [y.contiguous().numpy().tobytes() for y in (a, b, model[2](b))]
        assert gpu.taken == [((2, 0), [want[0], want[2]]), ((0, 2), [want[1]])]
    assert capture.stats().problems == {}
    capture.detach(0)


@torch.no_grad()
def test_a_gather_on_another_stream_waits_for_the_one_before(gpu: Gpu) -> None:
    model = Model()
    capture, rows, number = attached(gpu, model)
    streams = [Stream(1), Stream(2)]
    for i, s in enumerate((0, 0, 1, 1, 0)):
        gpu.stream = streams[s]
        rows.next = [Range(number, i, 1, 0)]
        model(torch.randn(1, 1, 4))
    assert [s.waited for s in streams] == [[2], [1]] and len(gpu.taken) == 5
    capture.detach(0)


@torch.no_grad()
def test_a_failed_copy_leaves_nothing_armed(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model()
    capture, rows, number = attached(gpu, model)
    monkeypatch.setattr(Taps, "point", lambda *_: 1 / 0)
    rows.next = [Range(number, 0, 2, 0)]
    model(torch.randn(2, 1, 4))
    assert gpu.taken == [] and gpu._armed == {} and capture.stats().aborted_rows == 2
    assert capture.stats().failures == 1
    capture.detach(0)


@torch.no_grad()
def test_a_replay_is_armed_once_and_a_warm_up_never(gpu: Gpu) -> None:
    model = Model()
    capture, rows, number = attached(gpu, model)
    x = torch.randn(4, 1, 4)
    for launch in (False, True):  # a warm-up, and the recording
        with capture.recordings.one(launch) as recording:
            model(x)
    recorded = recording.check()
    assert gpu.taken == [] and gpu.unarmed == 1
    for busy in (4, 3):
        capture.arm(recorded, [Range(number, 10 * busy + r, 1, r) for r in range(busy)])
        gpu.launch(1)
        assert gpu.taken[-1][0] == (4, 0)  # the graph gathers padding, too
    capture.disable()
    capture.arm(recorded, [Range(number, 0, 1, 0)])
    gpu.launch(1)
    assert len(gpu.taken) == 2 and gpu.unarmed == 2
    capture.enable()
    capture.arm(recorded, [Range(number, 0, 1, 1)])  # a hole
    assert any("must be the first ones" in p for p in capture.stats().problems) and capture.stats().forwards == 2
    capture.detach(0)
    with pytest.raises(sonde.CaptureError, match="detached"):
        capture.arm(recorded, [])


@torch.no_grad()
def test_what_the_model_overwrites_is_copied_before_the_recording(gpu: Gpu) -> None:
    model = Model(late=True)
    capture, rows, number = attached(gpu, model)
    x = torch.randn(4, 1, 4)
    for launch in (False, False, True):
        with capture.recordings.one(launch) as recording:
            model(x)
    capture.arm(recording.check(), [Range(number, r, 1, r) for r in range(4)])
    assert capture.stats().overwritten == 1 and capture.stats().problems == {}
    capture.detach(0)


@torch.no_grad()
def test_a_call_without_one_forward_is_no_graph(gpu: Gpu) -> None:
    model = Model()
    capture, _, _ = attached(gpu, model)
    with capture.recordings.one(True) as recording:
        pass
    with pytest.raises(sonde.CaptureError, match="makes no forward"):
        recording.check()
    with capture.recordings.one(False):
        model(torch.randn(2, 1, 4))
    with capture.recordings.one(True) as recording:
        model(torch.randn(2, 1, 4))
        model(torch.randn(2, 1, 4))
    with pytest.raises(sonde.CaptureError, match="more than one forward"):
        recording.check()
    if not torch.cuda.is_available():
        with pytest.raises(sonde.CaptureError, match="no GPU"):
            capture.graph(lambda: None)
    capture.detach(0)
