"""What the adapter of an engine tells Sonde. It needs numpy and libsonde, no torch.

An adapter says four things, and one thing is said to it:

1. `Sequences.open`: a sequence begins, that is one sample of one request, under the engine's own key for it;
2. `Sequences.ranges`: this is the packed batch that is computed next, as one `Part` for each sequence in it;
3. `Tensors.step`: these are the rows of the hooks, and where they lie in memory;
4. `Sequences.end`: a sequence ended, and why;
5. `Sequences.stopping`: these sequences a detector wants to stop, and the engine ends them.

Passes, phases, windows and the answers to aborts follow from these.
"""

from __future__ import annotations

import ctypes as c
import logging
import struct
import threading
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sonde.dtypes import SIZES
from sonde.errors import CaptureError
from sonde.identity import Book, Track
from sonde.libsonde import DTYPES, MAX_STEP_RANGES
from sonde.recorder import Abort, Entry, Recorder, pack
from sonde.stats import Problems
from sonde.step import Finish, Phase, Range, Unidentified, Verdict

MAX_LAYOUTS = 64  # different sets of hooks that one engine may capture

Key = Hashable

log = logging.getLogger("sonde")


@dataclass
class Counts:
    """What an adapter counts beside its ring, and how it says what went wrong."""

    forwards: int = 0  #: steps of the engine that were stored
    unidentified: int = 0  #: steps of which something was not stored: nobody could say whose tokens they compute
    silent: int = 0  #: steps that were computed past the hooks
    failures: int = 0
    problems: Problems = field(default_factory=Problems)

    def problem(self, about: str, text: str) -> None:
        """Count a problem, and report each sentence once."""
        self.failures += about != "identity"
        if new := self.problems.first(f"{about}: {text}"):
            log.warning("sonde: %s", new)

    def guard(self, call: Any, *args: Any) -> None:
        """Call something of the capture. Whatever goes wrong in it is not the engine's: it is counted."""
        try:
            call(*args)
        except Exception as e:  # noqa: BLE001
            self.problem("capture", str(e) if isinstance(e, CaptureError) else repr(e))


@dataclass(frozen=True)
class Request:
    """What is known of a sequence when its first token is computed."""

    id: str  #: as the client knows it
    prompt_tokens: int
    sample: int = 0  #: 0 … n-1 where a request has n samples
    engine_id: str = ""  #: as the engine knows it; an abort carries both
    max_tokens: int = 0  #: that may be generated; 0: not known
    tenant: str = "default"
    adapter: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    opt_in: bool = False
    trace_parent: str = ""
    window: tuple[int, int] | None = None  #: positions [start, stop) that are captured; None: all


@dataclass(frozen=True, slots=True)
class Part:
    """The consecutive tokens of one sequence in a packed batch."""

    key: Key
    position: int  #: absolute, of the first of them
    count: int
    row: int  #: of the first of them in the batch
    sampled: bool  #: the last of them is sampled from


@dataclass(frozen=True)
class Rows:
    """The rows of one hook in memory of the host: one for each token of the batch, or for each sampled one."""

    hook: str
    layer: int  #: -1: none
    dtype: str  #: as in sonde.dtypes
    shape: tuple[int, ...]  #: of a row
    address: int  #: of the first row; the memory stays as it is until `Tensors.step` returns
    count: int  #: of rows that lie there
    sampled: bool = False  #: row i is that of the i-th part that is sampled from, in the order of the parts
    stride: int = 0  #: bytes from row to row; 0: they lie one behind the other


@dataclass
class _Sequence:
    track: Track
    request: Request
    last: tuple[int, list[Range]] = (-1, [])  # step, and what it computed


class Sequences:
    """The sequences that an engine computes. Every method may be called from any thread."""

    def __init__(self, recorder: Recorder) -> None:
        """recorder: made with `on_abort=` if the engine ends what `stopping` names; give it `Sequences.abort`."""
        self._book, self._open = Book(recorder), {}  # type: Book, dict[Key, _Sequence]
        self._keys: dict[int, Key] = {}  # of the open numbers
        self._stopping: set[int] = set()
        self._going: list[_Sequence] = []  # of the ranges that were named last
        self._lock = threading.RLock()

    def __contains__(self, key: Key) -> bool:
        """Say whether a sequence is open."""
        return key in self._open

    def __len__(self) -> int:
        """Count the open sequences."""
        return len(self._open)

    def requests(self) -> list[Request]:
        """List what is known of the open sequences."""
        with self._lock:
            return [found.request for found in self._open.values()]

    def open(self, key: Key, request: Request, cached: int = 0) -> None:
        """Begin a sequence, the first `cached` tokens of which are never computed: a prefix cache has them.

        Raises CaptureError for texts that cannot be stored; it is not open then.
        """
        with self._lock:
            if key in self._open:
                raise CaptureError(f"open {key!r}: it is open already; an engine's keys are unique while they are open")
            name = {
                "external_id": request.id, "engine_id": request.engine_id, "tenant": request.tenant,
                "adapter": request.adapter, "labels": dict(request.labels), "opt_in": request.opt_in,
                "trace_parent": request.trace_parent,
            }  # fmt: skip
            track = self._book.open(name, request.sample, request.prompt_tokens, cached, request.max_tokens)
            self._open[key] = _Sequence(track, request)
            self._keys[track.number] = key

    def ranges(self, parts: Iterable[Part]) -> list[Range]:
        """Name the rows of a packed batch that is computed next. Raises Unidentified: nothing of it may be stored."""
        out: list[Range] = []
        with self._lock:
            self._going = []
            for part in parts:
                found = self._open.get(part.key)
                if found is None:
                    raise Unidentified(f"the batch computes sequence {part.key!r}, which was never opened")
                mine, window = _named(found.track, part), found.request.window
                if window is not None:
                    mine = _clip(mine, *window)
                found.last = (-1, mine)
                self._going.append(found)
                out += mine
        return out

    def committed(self, step: int) -> None:
        """Say which step of the ring has the ranges that were named last; -1: none, they were not stored."""
        with self._lock:
            for found in self._going:
                found.last = (step, found.last[1])
            self._going = []

    def end(self, key: Key, finish: Finish, generated: int | None) -> None:
        """End a sequence of which so many tokens were generated; again: nothing happens.

        What the last batch computed behind its end, as asynchronous schedulers do, is taken back. generated: None when
        nobody knows; nothing is taken back then, and the tokens that were computed are counted.
        """
        with self._lock:
            found = self._open.pop(key, None)
            if found is None:
                return
            track = found.track
            stopped = track.number in self._stopping
            self._keys.pop(track.number, None)
            self._stopping.discard(track.number)
            if generated is None:
                generated = max(track.length - track.prompt, 0)
            else:
                step, last = found.last
                behind = _clip(last, track.prompt + max(generated, 1) - 1, 1 << 31)
                self._book.reject(step, ((r.number, r.position, r.count, r.pass_) for r in behind), Verdict.PHANTOM)
            self._book.end(track, Finish.DETECTOR if stopped and finish != Finish.ERROR else finish, generated)

    def abort(self, asked: Abort) -> None:
        """Note that a detector asks to stop a sequence. Called on the library's thread."""
        with self._lock:
            if asked.number in self._keys:
                self._stopping.add(asked.number)

    def stopping(self) -> list[Key]:
        """List the open sequences that are to be stopped, until they end."""
        if not self._stopping:
            return []
        with self._lock:
            return [self._keys[number] for number in self._stopping]

    def close(self, finish: Finish = Finish.DISCONNECT) -> None:
        """End what is open."""
        with self._lock:
            for key in list(self._open):
                self.end(key, finish, None)


def _named(track: Track, part: Part) -> list[Range]:
    """Split a part into prompt and answer, and by how often each position was computed. Raises Unidentified."""
    prompt = min(max(track.prompt - part.position, 0), part.count)
    sampled = 1 if part.sampled else 0
    out = []
    if prompt:
        last = sampled if prompt == part.count else 0
        out += track.take(part.position, prompt, part.row, Phase.PREFILL, Phase.RECOMPUTE, last)
    if prompt < part.count:
        row, place = part.row + prompt, part.position + prompt
        out += track.take(place, part.count - prompt, row, Phase.DECODE, Phase.RECOMPUTE, sampled)
    return out


def _clip(ranges: Sequence[Range], start: int, stop: int) -> list[Range]:
    """Give what of ranges lies in the positions [start, stop)."""
    out = []
    for r in ranges:
        low, high = max(r.position, start), min(r.position + r.count, stop)
        if low < high:
            sampled = r.sampled and high == r.position + r.count
            row = r.first_row + low - r.position
            out.append(Range(r.number, low, high - low, row, r.pass_, r.phase, sampled))
    return out


class Tensors:
    """Writes steps whose rows lie in memory of the host. One thread at a time."""

    def __init__(self, recorder: Recorder) -> None:
        """recorder: of the sequences."""
        self._recorder = recorder
        self._layouts: dict[tuple[Entry, ...], int] = {}

    def step(self, ranges: Sequence[Range], tensors: Sequence[Rows], sampled: Sequence[int] = ()) -> int:
        """Store the rows of named ranges; give the number of the step, for `Sequences.committed`.

        sampled: of each row of the hooks with sampled rows, the row of the batch that it belongs to. Raises
        CaptureError: nothing was stored, or the rows count as aborted.
        """
        if len(ranges) > MAX_STEP_RANGES:
            raise CaptureError(f"a batch computes {len(ranges)} runs of tokens; at most {MAX_STEP_RANGES}")
        groups = [g for g in ([t for t in tensors if not t.sampled], [t for t in tensors if t.sampled]) if g]
        masks = [0] * len(ranges)
        layouts, words, kept = [], [], []  # type: list[int], list[int], list[object]
        for bit, group in enumerate(groups):
            layouts.append(self._layout(group))
            place = {row: i for i, row in enumerate(sampled)}.get if group[0].sampled else None
            runs = _runs(ranges, masks, bit, place)
            kept.append(runs)
            for i, t in enumerate(group):
                size = SIZES[t.dtype] * _product(t.shape)
                stride = t.stride or size
                readable = stride * (t.count - 1) + size if t.count else 0
                # src, src_bytes, row_stride, runs, rows, run_count | row_count, layout_index | entry, src_dtype
                words += (t.address, readable, stride, c.addressof(runs), 0, len(runs) // 2, bit | i << 32,
                          DTYPES[t.dtype])  # fmt: skip
        copies = (c.c_uint64 * len(words))(*words)
        with self._recorder.lock:
            self._recorder.forget_step()
            packed = struct.pack(f"<{len(layouts)}I", *layouts)
            self._recorder.run_step(ranges, pack(ranges, masks), packed, c.addressof(copies), len(words) // 8)
            return self._recorder.last_step

    def _layout(self, group: Sequence[Rows]) -> int:
        entries = tuple(Entry(t.hook, t.layer, t.dtype, t.shape, t.sampled) for t in group)
        if entries not in self._layouts:
            if len(self._layouts) >= MAX_LAYOUTS:
                raise CaptureError(f"capture another set of hooks: an engine has at most {MAX_LAYOUTS}")
            self._layouts[entries] = self._recorder.define_layout(entries)
        return self._layouts[entries]


def _runs(
    ranges: Sequence[Range], masks: list[int], bit: int, place: Callable[[int], int | None] | None
) -> c.Array[c.c_uint32]:
    """Set the bit in the masks of the ranges with rows, and give the runs of these: first row and count of each.

    place: of the batch row that is sampled from, the row of the tensor.
    """
    out: list[int] = []
    for i, r in enumerate(ranges):
        first, count = r.first_row, r.count
        if place is not None:
            if not r.sampled:
                continue
            found = place(first + count - 1)
            if found is None:
                raise CaptureError(f"row {first + count - 1} of the batch is sampled from, and no sampled row is its")
            first, count = found, 1
        masks[i] |= 1 << bit
        if out and out[-2] + out[-1] == first:
            out[-1] += count
        else:
            out += (first, count)
    return (c.c_uint32 * len(out))(*out)


def _product(shape: Sequence[int]) -> int:
    out = 1
    for n in shape:
        out *= n
    return out
