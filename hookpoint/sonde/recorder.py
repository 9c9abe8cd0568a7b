"""The writer of a ring as Python sees it: requests, layouts, steps and amendments."""

from __future__ import annotations

import ctypes as c
import os
import struct
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sonde import libsonde
from sonde.errors import CaptureError
from sonde.native import MISFIT, functions
from sonde.step import Finish, Range, Verdict

MODES = {"best_effort": 0, "complete": 1}

# sonde_range: number, position, count, pass, phase, sampled, reserved, layout_mask.
_RANGE = struct.Struct("<QIIIBBHQ")


_forks = [0]  # between the first process and this one


def _count_fork() -> None:
    _forks[0] += 1


os.register_at_fork(after_in_child=_count_fork)


@dataclass(frozen=True)
class Entry:
    """One hook's part of a layout."""

    hook: str
    layer: int  #: -1: none
    dtype: str
    shape: tuple[int, ...]  #: of a row
    sampled: bool = False  #: only rows that are sampled from
    shard: int = 0
    shard_count: int = 1


@dataclass(frozen=True)
class Abort:
    """A detector asks to stop a sequence."""

    request: str
    sample: int
    number: int
    position: int  #: up to which the detector had seen


@dataclass
class _Open:
    request: str
    sample: int
    prompt: int
    length: int  #: tokens that were computed, or at least are known
    stopping: bool = False
    stoppable: bool = False


@dataclass(frozen=True)
class WriterSettings:
    """How a ring is made; sizes in bytes, times in milliseconds."""

    socket: str | None
    mode: str = "best_effort"
    data_bytes: int = 64 << 20  #: a power of two from 256 KiB
    engine_instance: str = ""
    rank: int = 0
    rank_count: int = 1
    stall_budget_ms: float = 50.0  #: longest wait of a step in mode complete
    on_abort: Callable[[Abort], object] | None = None
    on_log: Callable[[str], None] | None = None
    meta: Mapping[str, str | int] = field(default_factory=dict)  #: of the model: fields of sonde_model


class Recorder:
    """Owns the ring of one model. Every method may be called from any thread; steps are made one at a time."""

    def __init__(self, settings: WriterSettings) -> None:
        """Make the ring; an agent may come later. Raises CaptureError."""
        self._lib = libsonde.load()
        self.lock = threading.RLock()
        self._handle = c.c_void_p()
        self._open: dict[int, _Open] = {}
        self._next, self._local, self.counter = 1, threading.local(), c.c_uint64()
        native = functions()
        self._run = native.run if native is not None else None
        self._settings, self._closed, self._forks = settings, False, _forks[0]
        self.stops = 0  #: sequences that a detector asked to stop
        self.stoppable = settings.on_abort is not None  #: someone ends a sequence for which `stopping` is true
        self._callbacks = (libsonde.ABORT_FN(self._on_abort), libsonde.LOG_FN(self._on_log))
        options = libsonde.WriterOptions(
            struct_bytes=c.sizeof(libsonde.WriterOptions),
            mode=MODES[settings.mode],
            socket=_text(settings.socket, "socket") if settings.socket else None,
            engine_instance=_text(settings.engine_instance, "engine_instance"),
            rank=settings.rank,
            rank_count=settings.rank_count,
            data_bytes=settings.data_bytes,
            step_stall_budget_ns=int(settings.stall_budget_ms * 1e6),
            on_abort=self._callbacks[0],
            on_log=self._callbacks[1],
        )
        libsonde.check(self._lib.sonde_writer_open(c.byref(options), c.byref(self._handle)))
        #: Identifies this ring, as the dataset writes it: 16 hexadecimal digits.
        self.epoch = f"{self._lib.sonde_writer_epoch(self._handle):016x}"
        try:
            self._announce(settings.meta)
        except CaptureError:
            self.close(0)
            raise

    # ---- requests ----

    def open_request(
        self,
        external_id: str,
        *,
        sample: int = 0,
        tenant: str = "default",
        adapter: str = "",
        labels: Mapping[str, str] | None = None,
        engine_id: str = "",
        prompt_tokens: int = 0,
        max_tokens: int = 0,
        opt_in: bool = False,
        trace_parent: str = "",
    ) -> int:
        """Open a sequence, that is one sample of one request, and return its number. Raises CaptureError."""
        pairs = list((labels or {}).items())
        array = (libsonde.Label * len(pairs))(*((_text(k, "label"), _text(v, f"label {k}")) for k, v in pairs))
        with self.lock:
            number = self._next
            request = libsonde.Request(
                number=number,
                external_id=_text(external_id, "request id"),
                engine_id=_text(engine_id, "engine id"),
                tenant=_text(tenant, "tenant"),
                adapter=_text(adapter, "adapter"),
                trace_parent=_text(trace_parent, "trace parent"),
                sample=sample,
                prompt_tokens=prompt_tokens,
                max_tokens=max_tokens,
                opt_in=int(opt_in),
                labels=array,
                label_count=len(pairs),
            )
            libsonde.check(self._lib.sonde_open_request(self._usable(), c.byref(request)))
            self._next += 1
            self._open[number] = _Open(external_id, sample, prompt_tokens, prompt_tokens)
        return number

    def end_request(
        self,
        number: int,
        *,
        prompt_tokens: int,
        generated_tokens: int,
        cached_tokens: int = 0,
        passes: int = 1,
        finish: Finish = Finish.STOP,
    ) -> None:
        """End a sequence that is open. Raises CaptureError."""
        end = libsonde.RequestEnd(
            number=number,
            prompt_tokens=prompt_tokens,
            generated_tokens=generated_tokens,
            cached_tokens=cached_tokens,
            passes=passes,
            finish=int(finish),
        )
        with self.lock:
            libsonde.check(self._lib.sonde_end_request(self._usable(), c.byref(end)))
            self._open.pop(number, None)

    def amend(self, step: int, ranges: Sequence[tuple[int, int, int, int, Verdict]]) -> None:
        """Say what became of tokens of a step: (number, position, count, pass, verdict). Raises CaptureError."""
        array = (libsonde.AmendRange * len(ranges))(*((n, p, k, a, int(v)) for n, p, k, a, v in ranges))
        with self.lock:
            libsonde.check(self._lib.sonde_amend(self._usable(), step, array, len(ranges)))

    def open_numbers(self) -> list[int]:
        """List the sequences that are open."""
        with self.lock:
            return list(self._open)

    def stopping(self, number: int) -> bool:
        """Say whether a detector asked to stop an open sequence. Who acts on it says so by `will_stop`."""
        found = self._open.get(number)
        return found is not None and found.stopping

    def will_stop(self, number: int) -> None:
        """Promise that an open sequence ends soon after `stopping` says so; aborts of others are answered `unknown`."""
        found = self._open.get(number)
        if found is not None:
            found.stoppable = True

    @property
    def last_step(self) -> int:
        """Number of the step that holds this thread's last forward; -1: nothing of it was stored."""
        return getattr(self._local, "step", -1)

    def forget_step(self) -> None:
        """Begin a forward of this thread of which nothing is stored yet."""
        self._local.step = -1

    # ---- steps; the caller holds `lock` from begin_step to commit_step ----

    def define_layout(self, entries: Sequence[Entry]) -> int:
        """Announce what a capture holds and return its number. Raises CaptureError."""
        array = (libsonde.LayoutEntry * len(entries))()
        for into, e in zip(array, entries, strict=True):
            into.hook, into.layer, into.dtype = _text(e.hook, "hook"), e.layer, libsonde.DTYPES[e.dtype]
            into.select, into.dims = int(e.sampled), len(e.shape)
            into.shape[: len(e.shape)] = e.shape
            into.shard, into.shard_count = e.shard, e.shard_count
        number = c.c_uint32()
        with self.lock:
            libsonde.check(self._lib.sonde_define_layout(self._usable(), array, len(entries), c.byref(number)))
        return number.value

    def begin_step(self, ranges: Sequence[Range], masks: Sequence[int], layouts: bytes) -> None:
        """Claim room for the rows of ranges. Raises CaptureError.

        masks: of each range, the bits of the layouts that have its rows. layouts: their numbers, as u32.
        """
        if self.stoppable:
            self._note_lengths(ranges)
        status = self._lib.sonde_begin_step(
            self._usable(), pack(ranges, masks), len(ranges), layouts, len(layouts) // 4, None, 0, self.counter
        )
        if status:
            libsonde.check(status)

    def run_step(self, ranges: Sequence[Range], packed: bytes, layouts: bytes, copies: int, count: int) -> None:
        """Make a whole step of rows in memory of the host: claim, copy, publish. Raises CaptureError.

        packed: a sonde_range for each range; see `pack`. copies: where `count` sonde_copy are.
        """
        if self.stoppable:
            self._note_lengths(ranges)
        status = self._lib.sonde_step_run(
            self._usable(), packed, len(ranges), layouts, len(layouts) // 4, copies, count, self.counter
        )
        if status:
            libsonde.check(status)
        self._local.step = self.counter.value

    def repeat_step(self, ranges: Sequence[Range], taken: list[Any], address: int) -> bool:
        """Make a step as one before it, of what was tapped now. False: that does not fit. Raises CaptureError.

        address: of the words of a `Step`, whose ranges say the same as `ranges`.
        """
        if self.stoppable:
            self._note_lengths(ranges)
        self._usable()
        status = self._run(taken, address)  # type: ignore[misc] # without it there are no such words
        if status:
            if status == MISFIT:
                return False
            libsonde.check(status)
        self._local.step = self.counter.value
        return True

    def copy(self, copies: int, count: int) -> None:
        """Copy rows into the open step, as `count` sonde_copy at an address say. Raises CaptureError: nothing was."""
        status = self._lib.sonde_step_copy(self._handle, copies, count)
        if status:
            libsonde.check(status)

    def abort_layout(self, index: int) -> None:
        """Say that the copy into the index-th layout of the open step failed."""
        libsonde.check(self._lib.sonde_step_abort(self._handle, index))

    def commit_step(self) -> None:
        """Publish the open step. Raises CaptureError."""
        status = self._lib.sonde_commit_step(self._handle)
        if status:
            libsonde.check(status)
        self._local.step = self.counter.value

    def _note_lengths(self, ranges: Sequence[Range]) -> None:
        for r in ranges:
            known = self._open.get(r.number)
            if known is not None and known.length < r.position + r.count:
                known.length = r.position + r.count

    # ---- the rest ----

    @property
    def handle(self) -> c.c_void_p:
        """The writer, for the calls of device rings."""
        return self._usable()

    @property
    def closed(self) -> bool:
        """True once the ring was given back."""
        return self._closed

    @property
    def forked(self) -> bool:
        """True in a child of the process that made the ring: nothing can be recorded there."""
        return _forks[0] != self._forks

    def wait_attached(self, timeout: float) -> None:
        """Wait until an agent has the ring. timeout is in seconds. Raises CaptureError."""
        libsonde.check(self._lib.sonde_writer_wait_attached(self._usable(), int(timeout * 1e9)))

    def stats(self) -> libsonde.Stats:
        """Read the counters of the ring. Raises CaptureError."""
        out = libsonde.Stats()
        libsonde.check(self._lib.sonde_writer_stats(self._usable(), c.byref(out)))
        return out

    def close(self, timeout: float) -> str:
        """End what is open, wait at most timeout seconds until the agent has everything, and free the ring.

        Returns what the library says when the agent did not take everything, "" otherwise. Again: nothing happens.
        """
        with self.lock:
            if self._closed:
                return ""
            self._closed = True
            for number, o in [] if self.forked else list(self._open.items()):
                end = libsonde.RequestEnd(number=number, prompt_tokens=o.prompt, passes=1, finish=Finish.DISCONNECT)
                self._lib.sonde_end_request(self._handle, c.byref(end))
            self._open.clear()
        status = self._lib.sonde_writer_close(self._handle, int(timeout * 1e9))
        text = self._lib.sonde_last_error().decode("utf-8", "replace") if status else ""
        self._lib.sonde_writer_free(self._handle)
        return text

    def _usable(self) -> c.c_void_p:
        if self._closed:
            raise CaptureError("the capture was detached; attach again to go on")
        return self._handle

    def _announce(self, meta: Mapping[str, str | int]) -> None:
        model = libsonde.Model()
        for name, value in meta.items():
            number = name in ("layers", "d_model", "vocab")
            setattr(model, name, value if number else _text(value, f"model's {name}"))
        libsonde.check(self._lib.sonde_set_model(self._handle, c.byref(model)))

    def _on_abort(self, _user: object, request: object, final_length: object) -> int:
        """Answer an abort, on the library's thread. No exception may leave it."""
        try:
            asked = request[0]  # type: ignore[index]
            found = self._open.get(asked.number)
            if found is None:
                return libsonde.ABORT_FINISHED if asked.number < self._next else libsonde.ABORT_UNKNOWN
            if not (self.stoppable or found.stoppable):
                return libsonde.ABORT_UNKNOWN
            found.stopping = True
            self.stops += 1
            final_length[0] = found.length + 1  # type: ignore[index] # the next token was sampled by now
            if self._settings.on_abort is not None:
                self._settings.on_abort(Abort(found.request, found.sample, asked.number, asked.position))
            return libsonde.ABORT_STOPPED
        except Exception as e:  # it would end in a C frame
            self._say(f"the on_abort callback failed: {e!r}")
            return libsonde.ABORT_UNKNOWN

    def _on_log(self, _user: object, level: int, text: bytes) -> None:
        if level > 0:
            self._say(text.decode("utf-8", "replace"))

    def _say(self, text: str) -> None:
        if self._settings.on_log is not None:
            self._settings.on_log(text)


def pack(ranges: Sequence[Range], masks: Sequence[int]) -> bytes:
    """Make a sonde_range of each range. masks: the bits of the layouts that have its rows."""
    one = _RANGE.pack
    return b"".join(
        [one(r.number, r.position, r.count, r.pass_, r.phase, r.sampled, 0, m)
         for r, m in zip(ranges, masks, strict=True)]
    )  # fmt: skip


def _text(value: str, what: str) -> bytes:
    """Encode a text for the library. Raises CaptureError for what it would cut or refuse."""
    if not isinstance(value, str):
        raise CaptureError(f"use {what} {value!r}: it must be a text")
    try:
        out = value.encode()
    except UnicodeEncodeError:  # half of a character, as os.fsdecode leaves it: no reader of the dataset takes it
        raise CaptureError(f"use {what} {value[:40]!r}: it has no UTF-8 form") from None
    if len(out) > libsonde.MAX_TEXT or b"\0" in out:
        raise CaptureError(f"use {what} {value[:40]!r}: {len(out)} bytes; at most {libsonde.MAX_TEXT}, and none NUL")
    return out
