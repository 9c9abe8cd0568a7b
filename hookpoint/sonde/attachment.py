"""Attaching to a model: the public calls, and what happens around each forward of the root."""

from __future__ import annotations

import atexit
import contextlib
import itertools
import logging
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from sonde import compiled, libsonde
from sonde.arguments import check_naming, check_options
from sonde.calls import Calls
from sonde.decoding import Decoded
from sonde.errors import AlreadyAttached, CaptureError, LakeError
from sonde.gather import Gatherer, Recorded
from sonde.graphs import Graph, Recordings
from sonde.huggingface import HuggingFace, supports
from sonde.identity import Naming
from sonde.lake import Lake, open_lake
from sonde.libsonde import REASONS
from sonde.names import Catalogue, Tap
from sonde.recorder import Abort, Recorder, WriterSettings
from sonde.rows import grids, positional
from sonde.stats import Counts, Stats
from sonde.step import Identity, Range, Unidentified
from sonde.taps import Forward, InputHook, OutputHook, RootHook, RootPreHook, Shortcuts, Trunk

log = logging.getLogger("sonde")

SOCKET = "/run/sonde/ring.sock"
CLOSE_TIMEOUT = 10.0  # seconds that detach waits for the agent

_captures: weakref.WeakSet[Capture] = weakref.WeakSet()  # those that are attached
_instances = itertools.count()


class Capture:
    """A model whose activations are captured. Made by `attach`; every method may be called from any thread."""

    def __init__(
        self,
        model: nn.Module,
        taps: list[Tap],
        settings: WriterSettings,
        naming: Naming,
        identity: Identity | Callable[[Recorder], Identity] | None,
        token_ids: bool,
        cast: str | None,
        shard: Callable[[Tap], tuple[int, int]] | None,
    ) -> None:
        """Use `attach`."""
        self._model, self.taps, self._token_ids = weakref.ref(model), tuple(taps), token_ids
        self._naming, self._local = naming, threading.local()
        self._counts, self._lock = Counts(), threading.Lock()
        self._enabled, self._detached = True, False
        self._last_stats: Stats | None = None
        self._parameters = positional(model)
        self._grid = grids(model, self._parameters)
        self.recorder = Recorder(replace(settings, on_log=_log_to(weakref.ref(self))))
        weakref.finalize(self, self.recorder.close, 0.0)  # of a model that was dropped without detach
        try:
            self.identity = self._identify(model, identity)
            self._gatherer = Gatherer(self.recorder, taps, cast, shard, self.report)
            self._trunk, self.recordings = Trunk(), Recordings()
            self._handle = compiled.register(self)
            self._hooks: list[InputHook | OutputHook] = []
            self._handles: list[Any] = []
            self._hook(model)
        except BaseException:
            self.recorder.close(0)
            raise

    # ---- for users ----

    @property
    def model(self) -> nn.Module | None:
        """The root; None: it is gone."""
        return self._model()

    def enable(self) -> None:
        """Capture from the next forward on."""
        self._enabled = True

    def disable(self) -> None:
        """Capture nothing from the next forward on. The hooks stay, so that compiled code stays valid."""
        self._enabled = False

    @property
    def enabled(self) -> bool:
        """Say whether forwards are captured."""
        return self._enabled and not self._detached

    @contextlib.contextmanager
    def request(self, *ids: str | None, **naming: Any) -> Iterator[None]:
        """Name the rows of the calls inside the block, on this thread: one id for each prompt of the batch.

        tenant, adapter, labels, opt_in and trace_parent may be given, too; what is not given is that of `attach`.
        """
        before = getattr(self._local, "naming", None)
        self._local.naming = check_naming(replace(before or self._naming, requests=list(ids) or None, **naming))
        try:
            yield
        finally:
            self._local.naming = before

    @property
    def naming(self) -> Naming:
        """What the requests of this thread's calls are called."""
        return getattr(self._local, "naming", None) or self._naming

    def graph(self, call: Callable[[], Any], pool: Any = None) -> Graph:
        """Record a call of the model, which makes one forward on a GPU, as a CUDA graph whose replays are captured.

        The call is made three times. pool: of memory, as `torch.cuda.graph` takes it. Raises CaptureError.
        """
        return Graph(self, call, pool)

    @property
    def epoch(self) -> str:
        """Identifies this capture in the dataset."""
        return self.recorder.epoch

    def wait_attached(self, timeout: float = 10.0) -> None:
        """Wait until an agent has the ring, at most timeout seconds. Raises CaptureError."""
        self.recorder.wait_attached(timeout)

    def stats(self) -> Stats:
        """Say what was captured and what was not. After detach: as it was then."""
        return self._last_stats or self._read_stats()

    def _read_stats(self) -> Stats:
        ring = libsonde.Stats() if self.recorder.forked else self.recorder.stats()
        dropped = {reason: n for reason, n in zip(REASONS, ring.dropped_rows, strict=True) if n}
        with self._lock:
            n = self._counts
            return Stats(
                bool(ring.attached), n.forwards, n.unidentified, n.raised, n.failures, self._gatherer.overwritten,
                ring.captured_rows, dropped, ring.aborted_rows, dict(n.problems),
            )  # fmt: skip

    def detach(self, timeout: float = CLOSE_TIMEOUT) -> None:
        """Leave the model as it was, and wait at most timeout seconds until the agent has everything.

        What the agent did not take in time is lost; that is logged, and no error. Again: nothing happens.
        """
        with self._lock:
            if self._detached:
                return
            self._detached = True
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        shortcuts = self._shortcuts()
        if shortcuts is not None:
            shortcuts.close()  # of a forward under way, whose end is not told any more
        compiled.forget(self._handle)
        _captures.discard(self)
        if not self.recorder.forked:
            self._finish(timeout)
        left = self.recorder.close(timeout)
        if left and timeout > 0 and not self.recorder.forked:
            log.warning("%s", left)

    def _finish(self, timeout: float) -> None:
        self._guarded("identity", getattr(self.identity, "detach", lambda: None))
        with self.recorder.lock:  # a forward of another thread has ended its step
            self._guarded("close", self._gatherer.close, timeout)
            self._guarded("close", self._keep_stats)

    def _keep_stats(self) -> None:
        self._last_stats = self._read_stats()

    def stored(self, lake: str | os.PathLike[str], timeout: float = 60.0) -> Lake:
        """Wait until a dataset holds everything of this capture, which must be detached, and open it there.

        timeout is in seconds. Raises CaptureError.
        """
        if not self._detached:
            raise CaptureError("wait for the dataset: the capture goes on; detach it first")
        end = time.monotonic() + timeout
        while True:
            with contextlib.suppress(LakeError):
                found = open_lake(lake)
                facts = found.table("ledger", columns=["fact"], epoch=self.epoch)
                if facts.num_rows and "closed" in facts["fact"].to_pylist():
                    return found
            if time.monotonic() > end:
                raise CaptureError(
                    f"wait for the dataset: {lake} does not hold the end of epoch {self.epoch} after {timeout:g} s; "
                    "does `sonde run` materialize into it, and did its agent have this ring?"
                )
            time.sleep(0.1)

    def __enter__(self) -> Capture:
        """Capture until the end of the block."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Detach, also when the block raised."""
        self.detach()

    # ---- around a forward ----

    def begin(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Begin a forward of the root. Nothing that goes wrong here reaches the model."""
        current = self._trunk.current
        current.forward = None
        recording = self.recordings.current
        idle = self._detached or not self._enabled and recording is None
        if idle or module is not self._model() or torch._C._is_tracing():
            return
        try:
            if self.recorder.forked:
                raise Unidentified("this process was forked from the one that attached; attach again in it")
            if recording is None and torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
                raise Unidentified("a CUDA graph is recorded; only those of `Capture.graph` are captured")
            ranges = self.identity.ranges(module, args, kwargs) if recording is None else ()
            if type(ranges) is Decoded:  # all but the grid was found out at the step before
                rows, kept = ranges.rows, kwargs.get("logits_to_keep")
                if rows.grid is None or rows.kept is not kept or isinstance(kept, torch.Tensor):
                    rows.grid, rows.kept = self._grid(args, kwargs), kept
                forward = Forward(ranges, rows.grid)
            elif ranges or recording is not None:
                forward = Forward(ranges, self._grid(args, kwargs))
            else:
                return
            if self._token_ids:
                self._note_ids(forward, args, kwargs)
            forward.before, forward.recording = sys.exc_info()[1], recording
            current.forward = forward
        except Exception as e:  # noqa: BLE001 (whatever goes wrong in capture is not the model's)
            with self._lock:
                self._counts.unidentified += 1
            self._report(e)

    def end(self, module: Any, output: Any) -> None:
        """End a forward of the root: store what was tapped."""
        sink, sunk = self._trunk.sink, self._trunk.sunk
        if sink:  # its taps were compiled, and the root itself was not
            taken = list(zip(sunk, sink, strict=True))
            sink.clear()
            sunk.clear()
            self._end(module, output, taken)
        else:
            self._end(module, output, ())

    def _end(self, module: Any, output: Any, taken: Sequence[tuple[int, torch.Tensor]]) -> None:
        current = self._trunk.current
        forward, current.forward = current.forward, None
        if forward is None or self._detached:
            return
        if sys.exc_info()[1] is not forward.before:
            with self._lock:
                self._counts.raised += 1
            return
        if taken:
            forward.taken += ((i, x, None) for i, x in taken)
        if forward.recording is not None:
            forward.recording.take(self.record, forward)
            return
        recorder = self.recorder
        recorder.forget_step()
        try:  # on the way of every token, so without a call for each line of it
            with recorder.lock:
                self._counts.forwards += self._gatherer.store(forward)
                if self._gatherer.early:
                    self._note_early()
        except Exception as e:  # noqa: BLE001 (whatever goes wrong in capture is not the model's)
            self._failed("store", e)
        self._guarded("identity", self.identity.finished, module, output)

    def begin_compiled(self, kwargs: dict[str, Any]) -> None:
        """Begin a forward from a compiled graph."""
        self.begin(self._model(), (), kwargs)

    def end_compiled(self, taken: Sequence[tuple[int, torch.Tensor]]) -> None:
        """End a forward from a compiled graph, which clears the sink itself."""
        self._end(self._model(), None, taken)

    def _note_early(self) -> None:
        for index in self._gatherer.early:
            self._hooks[index].early = True

    def record(self, forward: Forward, launch: bool) -> Recorded:
        """Gather what a forward tapped outside of any step. For `Graph`. Raises CaptureError."""
        with self.recorder.lock:
            recorded = self._gatherer.record(forward, launch)
            self._note_early()
            return recorded

    def arm(self, recorded: Recorded, ranges: Sequence[Range]) -> None:
        """Begin the replay of a graph that is launched next on the current stream. For `Graph`. Raises CaptureError."""
        if self._detached:
            raise CaptureError("replay a graph whose capture was detached: attach again and record it anew")
        if self._enabled and ranges:
            self._guarded("replay", self._arm, recorded, ranges)

    def _arm(self, recorded: Recorded, ranges: Sequence[Range]) -> None:
        with self.recorder.lock:
            self._counts.forwards += self._gatherer.arm(recorded, ranges)

    def _guarded(self, about: str, call: Callable[..., object], *args: Any) -> None:
        try:
            call(*args)
        except Exception as e:  # noqa: BLE001 (whatever goes wrong in capture is not the model's)
            self._failed(about, e)

    def _failed(self, about: str, e: Exception) -> None:
        self.report(about, str(e) if isinstance(e, CaptureError) else repr(e))

    def _report(self, e: Exception) -> None:
        if isinstance(e, Unidentified):
            self.report("identity", f"nothing of a forward was stored: {e}", failure=False)
        else:
            self.report("identity", repr(e))

    def report(self, about: str, text: str, failure: bool = True) -> None:
        """Count a problem, and report each sentence once."""
        with self._lock:
            self._counts.failures += failure
            new = self._counts.problems.first(f"{about}: {text}")
        if new:
            log.warning("capture: %s", new)

    # ---- making ----

    def _identify(self, model: nn.Module, identity: Any) -> Identity:
        if identity is not None:
            made = hasattr(identity, "ranges") and not isinstance(identity, type)
            return identity if made else identity(self.recorder)
        if supports(model):
            return HuggingFace(model, self.recorder, lambda: self.naming, self._report)
        return Calls(self.recorder, lambda: self.naming, self._grid)

    def _hook(self, model: nn.Module) -> None:
        modules, shortcuts = dict(model.named_modules()), Shortcuts()
        self._shortcuts = weakref.ref(shortcuts)  # they keep what the modules have alive, and the model keeps them
        try:
            for i, tap in enumerate(self.taps):
                module = modules[tap.path]
                if tap.site == "input":
                    hook: InputHook | OutputHook = InputHook(self._trunk, i, tap)
                    self._handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
                else:
                    hook = OutputHook(self._trunk, i, tap)
                    self._handles.append(module.register_forward_hook(hook))
                self._hooks.append(hook)
                if isinstance(hook, OutputHook) and module is not model:
                    shortcuts.add(module, hook, self._handles[-1].id)
            first = next(itertools.chain(model.parameters(), model.buffers()), None)
            token = torch.zeros(1, dtype=torch.int32, device=None if first is None else first.device)
            traced = compiled.Traced(self._handle, self._parameters, token, self._trunk.sink, self._trunk.sunk)
            self._handles.append(
                model.register_forward_pre_hook(RootPreHook(self.begin, traced.begin, shortcuts), with_kwargs=True)
            )
            end = RootHook(self.end, traced.end, shortcuts)
            self._handles.append(model.register_forward_hook(end, always_call=True))
        except BaseException:
            for handle in self._handles:
                handle.remove()
            raise

    def _note_ids(self, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = kwargs.get("input_ids")
        if ids is None and args and self._parameters[:1] == ["input_ids"]:
            ids = args[0]
        if isinstance(ids, torch.Tensor):
            forward.taken.append((-1, ids, None if ids.is_inference() else ids._version))


def _log_to(capture: weakref.ref[Capture]) -> Callable[[str], None]:
    """Report what the library says, without keeping the capture alive."""

    def say(text: str) -> None:
        found = capture()
        if found is not None:
            found.report("ring", text, failure=False)

    return say


def attach(
    model: nn.Module,
    hooks: Sequence[str] = ("resid_post",),
    *,
    socket: str | None = SOCKET,
    requests: Sequence[str] | None = None,
    labels: Mapping[str, str] | Sequence[Mapping[str, str]] | None = None,
    tenant: str = "default",
    adapter: str = "",
    opt_in: bool | Sequence[bool] = False,
    trace_parent: str = "",
    model_name: str = "",
    identity: Identity | Callable[[Recorder], Identity] | None = None,
    token_ids: bool = True,
    mode: str = "best_effort",
    dtype: str | None = None,
    data_bytes: int = 64 << 20,
    engine: str = "",
    rank: int = 0,
    rank_count: int = 1,
    shard: Callable[[Tap], tuple[int, int]] | None = None,
    on_abort: Callable[[Abort], object] | None = None,
) -> Capture:
    """Capture hooks of a model from its next forward on, until `detach`.

    hooks: names or patterns as `sonde.hooks(model)` lists them. socket: of the agent, which may come later. requests:
    an id for each prompt of a call (random ones otherwise); labels and opt_in may have one entry for each, too.
    identity: says whose tokens a forward computes; Sonde knows it for models of transformers, and otherwise each row of
    a batch is a request. mode: "best_effort" drops what the ring has no room for, "complete" first waits at most 50 ms.
    dtype: "f32", "f16" or "bf16" casts what is floating. data_bytes: of the ring, a power of two from 256 KiB. shard:
    of a tap, (shard, how many), under tensor parallelism. on_abort: called on another thread when a detector asks to
    stop a sequence; give it only if you then stop it.

    Raises CaptureError, and of it UnknownHook, AlreadyAttached and LibraryMissing.
    """
    check_options(model, mode, dtype, data_bytes, identity)
    naming = check_naming(Naming(requests, tenant, adapter, labels or {}, opt_in, trace_parent))
    _check_attached(model)
    taps = Catalogue(model).choose(hooks)
    settings = WriterSettings(
        socket=os.fspath(socket) if isinstance(socket, os.PathLike) else socket or None,
        mode=mode,
        data_bytes=data_bytes,
        engine_instance=engine or f"python-{os.getpid()}-{next(_instances)}",
        rank=rank,
        rank_count=rank_count,
        on_abort=on_abort,
        meta=_describe(model, model_name),
    )
    capture = Capture(model, taps, settings, naming, identity, token_ids, dtype, shard)
    _captures.add(capture)
    if compiled.forget_compiled_code():
        log.warning("capture: what torch.compile made before knows nothing of the new hooks and is compiled again")
    return capture


def capture(model: nn.Module, hooks: Sequence[str] = ("resid_post",), **options: Any) -> Capture:
    """Attach for the length of a `with` block; see `attach` for the options."""
    return attach(model, hooks, **options)


def _describe(model: nn.Module, name: str) -> dict[str, str | int]:
    config = Catalogue(model).config
    number = {k: getattr(config, v, 0) for k, v in (("layers", "num_hidden_layers"), ("d_model", "hidden_size"),
                                                    ("vocab", "vocab_size"))}  # fmt: skip
    return {
        "name": name or getattr(config, "name_or_path", "") or type(model).__name__,
        "engine": "torch",
        "engine_version": str(torch.__version__),
        **{k: v for k, v in number.items() if isinstance(v, int)},
    }


def _check_attached(model: nn.Module) -> None:
    """Refuse what is attached already."""
    for capture in list(_captures):
        other = capture.model
        if other is None:
            continue
        if any(m is other for m in model.modules()) or any(m is model for m in other.modules()):
            raise AlreadyAttached(
                f"attach to {type(model).__name__}: {type(other).__name__} has the capture of epoch {capture.epoch} "
                "already; detach that first, and name all hooks at once"
            )


@atexit.register
def _close_all() -> None:
    """Detach what is still attached: callbacks of the library must not come into an interpreter that ends."""
    for capture in list(_captures):
        capture.detach(1.0)
