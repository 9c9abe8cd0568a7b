"""llama.cpp, through llama-cpp-python: what its graph computes is copied when `cb_eval` is called with it.

    capture = Capture(WriterSettings("data/sonde.sock", engine_instance="mine"), ["resid_post"])
    params = capture.prepare(llama_cpp.llama_context_default_params())
    context = llama_cpp.llama_init_from_model(model, params)
    capture.attach(model)
    capture.open(0, Request("first", prompt_tokens=5))  # the key is llama.cpp's seq_id
    capture.decode(context, batch)  # instead of llama_decode

llama.cpp computes a batch in parts of at most n_ubatch tokens, and where each sequence has a cache of its own
(kv_unified is false) it packs them by sequence. Whose the rows are is read off the batch, in the order in which
llama.cpp splits it, and held against the tokens and positions that each part is computed from.
"""

from __future__ import annotations

import ctypes as c
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

import llama_cpp

from sonde.adapters.contract import Counts, Part, Request, Sequences
from sonde.errors import CaptureError, UnknownHook
from sonde.libsonde import DTYPES, MAX_STEP_RANGES
from sonde.recorder import Entry, Recorder, WriterSettings
from sonde.step import Finish, Range, Unidentified

log = logging.getLogger("sonde")

#: The field's names, and those of the nodes of llama.cpp's graphs.
HOOKS = {"resid_mid": "ffn_inp", "resid_post": "l_out", "attn_out": "attn_out", "mlp_out": "ffn_out", "z": "kqv_out"}
TOKENS, POSITIONS = b"inp_tokens", b"inp_pos"
FLOAT = 0  # GGML_TYPE_F32

SILENT = (
    "hooks are attached and nothing arrives: a batch was computed, and cb_eval did not see all of it. Make the "
    "context from the parameters that `prepare` returned, of a model that is built like Llama"
)


class _Tensor(c.Structure):
    """The head of a ggml_tensor, as far as it is read here."""

    _fields_ = [
        ("type", c.c_int32), ("buffer", c.c_void_p), ("ne", c.c_int64 * 4), ("nb", c.c_size_t * 4),
        ("op", c.c_int32), ("op_params", c.c_int32 * 16), ("flags", c.c_int32), ("src", c.c_void_p * 10),
        ("view_src", c.c_void_p), ("view_offs", c.c_size_t), ("data", c.c_void_p), ("name", c.c_char * 64),
    ]  # fmt: skip


_NAME, _SECOND = _Tensor.name.offset, _Tensor.src.offset + c.sizeof(c.c_void_p)


@dataclass(frozen=True)
class Token:
    """One token of a llama_batch."""

    id: int
    position: int
    sequence: int
    output: bool


@dataclass
class _Batch:
    """What is computed now."""

    tokens: list[Token]
    order: list[list[int]]  # of each part that llama.cpp computes, the tokens of the batch
    part: int = 0
    ids: list[int] | None = None  # of the part that is computed, as the graph has them
    open: bool = False  # a step is
    count: int = 0
    runs: Any = None
    taken: set[int] = field(default_factory=set)  # entries of the open step
    lost: bool = False  # whose the rows are is not known any more


class Capture:
    """Captures one context. Every method but the answer to an abort is called on the thread that decodes."""

    def __init__(self, settings: WriterSettings, hooks: Sequence[str]) -> None:
        """settings: of the ring; abort and log callbacks are set here. hooks: names like resid_post, z.3, resid_*."""
        self._settings, self._patterns = settings, list(hooks)
        self._counts = Counts()
        self._call = llama_cpp.ggml_backend_sched_eval_callback(self._evaluate)
        self._get, self._host = _functions()
        self._params: Any = None
        self._batch: _Batch | None = None
        self._wanted: dict[bytes, int] = {}
        self._prompts: dict[int, int] = {}  # of each seq_id, tokens of the prompt
        self.sequences: Sequences
        self.recorder: Recorder

    def prepare(self, params: Any) -> Any:
        """Put the callback into the parameters of a context that is made next. Raises CaptureError."""
        if params.cb_eval:
            raise CaptureError("prepare a context: its cb_eval is taken, and llama.cpp calls one function alone")
        params.cb_eval, self._params = self._call, params
        return params

    def attach(self, model: Any) -> None:
        """Make the ring for a model, when its context is there. Raises CaptureError, and of it UnknownHook."""
        if self._params is None:
            raise CaptureError("attach to a model: call `prepare` first, and make the context from what it returns")
        kinds = (llama_cpp.llama_model_is_recurrent, llama_cpp.llama_model_is_hybrid, llama_cpp.llama_model_has_encoder,
                 llama_cpp.llama_model_n_swa)  # fmt: skip
        if any(kind(model) for kind in kinds):
            raise CaptureError("capture a model that is recurrent, has an encoder or a sliding window: llama.cpp "
                               "splits its batches otherwise; decoders with full attention are supported")  # fmt: skip
        self._layers, width = llama_cpp.llama_model_n_layer(model), llama_cpp.llama_model_n_embd(model)
        heads = llama_cpp.llama_model_n_head(model)
        size = _number(model, "attention.value_length") or width // heads
        self._entries = [Entry("token_ids", -1, "i32", ())]
        for hook, layer in choose(self._patterns, self._layers):
            self._wanted[f"{HOOKS[hook]}-{layer}".encode()] = len(self._entries)
            self._entries.append(Entry(hook, layer, "f32", (heads, size) if hook == "z" else (width,)))
        meta = {"engine": "llama.cpp", "engine_version": llama_cpp.__version__, "layers": self._layers,
                "d_model": width, **self._settings.meta}  # fmt: skip
        self.recorder = Recorder(replace(self._settings, meta=meta, on_log=log.warning,
                                         on_abort=lambda asked: self.sequences.abort(asked)))  # fmt: skip
        self.sequences = Sequences(self.recorder)
        self._layout = self.recorder.define_layout(self._entries)

    # ---- what the loop of the engine says ----

    def open(self, sequence: int, request: Request, cached: int = 0) -> None:
        """Begin a sequence under its seq_id; `cached`: tokens that llama_memory_seq_cp gave it. Raises CaptureError."""
        self.sequences.open(sequence, replace(request, engine_id=request.engine_id or str(sequence)), cached)
        self._prompts[sequence] = request.prompt_tokens

    def end(self, sequence: int, finish: Finish, generated: int | None) -> None:
        """End a sequence of which so many tokens were generated; again: nothing happens."""
        self._counts.guard(self.sequences.end, sequence, finish, generated)

    def stopping(self) -> list[int]:
        """List the seq_ids that a detector wants to stop: end them, and take them out of the memory of the context."""
        return self.sequences.stopping()  # type: ignore[return-value]

    def decode(self, context: Any, batch: Any) -> int:
        """Call llama_decode, and capture what it computes; give what it returns."""
        self._batch = None
        try:
            tokens = _read(batch)
            self._check(tokens)
            stream = self._params.n_seq_max > 1 and not self._params.kv_unified
            split = by_sequence if stream else in_order
            self._batch = _Batch(tokens, list(split(tokens, llama_cpp.llama_n_ubatch(context))))
        except Unidentified as e:
            self._lose(str(e))
        except Exception as e:  # noqa: BLE001 (whatever goes wrong in capture is not the engine's)
            self._counts.problem("capture", repr(e))
        out = int(llama_cpp.llama_decode(context, batch))
        self._counts.guard(self._decoded, out)
        return out

    def stats(self) -> dict[str, Any]:
        """Say what was captured and what was not."""
        n, ring = self._counts, self.recorder.stats()
        return {
            "epoch": self.recorder.epoch, "attached": bool(ring.attached), "forwards": n.forwards,
            "unidentified": n.unidentified, "silent": n.silent, "failures": n.failures,
            "captured_rows": ring.captured_rows, "dropped_rows": sum(ring.dropped_rows),
            "aborted_rows": ring.aborted_rows, "open": len(self.sequences), "problems": dict(n.problems),
        }  # fmt: skip

    def close(self, timeout: float = 10.0) -> None:
        """End what is open and wait, at most so many seconds, until the agent has everything."""
        if not self.recorder.closed:
            self.sequences.close()
        left = self.recorder.close(timeout)
        if left:
            log.warning("sonde: %s", left)

    # ---- what llama.cpp says ----

    def _evaluate(self, tensor: int, ask: bool, _data: object) -> bool:
        """Say whether a node is wanted, and take it when it is computed. False would end the computation."""
        batch = self._batch
        if batch is None or batch.lost or not batch.open and batch.part == len(batch.order):
            return not ask
        try:
            if not ask:
                self._take(batch, tensor)
                return True
            if not batch.open:
                self._look(batch, tensor)
            return batch.open and c.string_at(tensor + _NAME) in self._wanted
        except Unidentified as e:
            batch.lost = True
            self._lose(str(e))
        except Exception as e:  # noqa: BLE001 (nothing that goes wrong here may reach the engine)
            self._counts.problem("capture", str(e) if isinstance(e, CaptureError) else repr(e))
        self._abort(batch)
        return not ask

    def _look(self, batch: _Batch, tensor: int) -> None:
        """Look at what a node is computed from, until the tokens and the positions of a part were seen."""
        given = c.c_void_p.from_address(tensor + _SECOND).value
        if not given:
            return
        name = c.string_at(given + _NAME)
        if name == TOKENS:
            batch.ids = self._integers(given)
        elif name == POSITIONS and batch.ids is not None:
            ids, batch.ids = batch.ids, None
            self._begin(batch, ids, self._integers(given))

    def _begin(self, batch: _Batch, ids: list[int], positions: list[int]) -> None:
        """Name the rows of a part, and claim room for them."""
        mine = [batch.tokens[i] for i in batch.order[batch.part]] if batch.part < len(batch.order) else []
        if [(t.id, t.position) for t in mine] != list(zip(ids, positions, strict=False)):
            raise Unidentified(
                f"llama.cpp computes the tokens {ids[:8]} at {positions[:8]}; by the batch they would be "
                f"{[t.id for t in mine[:8]]} at {[t.position for t in mine[:8]]}"
            )
        batch.part += 1
        ranges = self.sequences.ranges(self._parts(mine))
        if len(ranges) > MAX_STEP_RANGES:
            raise CaptureError(f"a batch computes {len(ranges)} runs of tokens; at most {MAX_STEP_RANGES}")
        if not ranges:  # nothing of it lies in the window of a request
            return
        batch.count, batch.runs, batch.taken = len(mine), _runs(ranges), set()
        self.recorder.lock.acquire()
        try:
            self.recorder.forget_step()
            self.recorder.begin_step(ranges, [1] * len(ranges), self._layout.to_bytes(4, "little"))
        except BaseException:
            self.recorder.lock.release()
            raise
        batch.open = True
        tokens = (c.c_int32 * len(ids))(*ids)
        self._copy(batch, 0, c.addressof(tokens), 4)

    def _parts(self, tokens: Sequence[Token]) -> Iterator[Part]:
        """Give the runs of consecutive tokens of a sequence."""
        start = 0
        for i, t in enumerate(tokens):
            following = tokens[i + 1] if i + 1 < len(tokens) else None
            if following and (following.sequence, following.position) == (t.sequence, t.position + 1):
                continue
            yield Part(t.sequence, tokens[start].position, i + 1 - start, start, self._sampled(t))
            start = i + 1

    def _sampled(self, token: Token) -> bool:
        return token.position >= self._prompts.get(token.sequence, 0) - 1

    def _take(self, batch: _Batch, tensor: int) -> None:
        """Copy a node that was computed into the open step, and publish it when all are there."""
        index = self._wanted.get(c.string_at(tensor + _NAME))
        if index is None or not batch.open:
            return
        t, entry = _Tensor.from_address(tensor), self._entries[index]
        width = math.prod(entry.shape)
        if t.type != FLOAT or tuple(t.ne) != (width, batch.count, 1, 1) or t.nb[0] != 4 or t.nb[1] != 4 * width:
            raise CaptureError(f"capture {t.name.decode()}: it is of type {t.type} and shape {tuple(t.ne)}, and rows "
                               f"of {width} numbers of 32 bits for {batch.count} tokens were expected")  # fmt: skip
        address, _kept = self._address(tensor, t, 4 * width * batch.count)
        self._copy(batch, index, address, 4 * width)
        if len(batch.taken) == len(self._entries):
            self._publish(batch)
            self._counts.forwards += 1

    def _copy(self, batch: _Batch, index: int, address: int, size: int) -> None:
        if index in batch.taken:
            raise CaptureError(f"capture {self._entries[index].hook}: the graph computes two nodes of that name")
        runs = batch.runs
        # src, src_bytes, row_stride, runs, rows, run_count | row_count, layout_index | entry, src_dtype
        words = (c.c_uint64 * 8)(address, size * batch.count, size, c.addressof(runs), 0, len(runs) // 2, index << 32,
                                 DTYPES[self._entries[index].dtype])  # fmt: skip
        self.recorder.copy(c.addressof(words), 1)
        batch.taken.add(index)

    def _publish(self, batch: _Batch) -> None:
        batch.open = False
        try:
            self.recorder.commit_step()
        finally:
            self.recorder.lock.release()
            self.sequences.committed(self.recorder.last_step)

    def _abort(self, batch: _Batch) -> None:
        """Give up what is open; its rows count as aborted."""
        if batch.open:
            self._counts.guard(self.recorder.abort_layout, 0)
            self._counts.guard(self._publish, batch)

    def _decoded(self, out: int) -> None:
        batch, self._batch = self._batch, None
        if batch is None:
            return
        unseen = batch.open or batch.part < len(batch.order)
        self._abort(batch)
        if out == 0 and unseen and not batch.lost:
            self._counts.silent += 1
            if self._counts.silent == 1:
                log.error("sonde: %s", SILENT)

    def _integers(self, tensor: int) -> list[int]:
        t = _Tensor.from_address(tensor)
        address, _kept = self._address(tensor, t, 4 * t.ne[0])
        return (c.c_int32 * t.ne[0]).from_address(address)[:]

    def _address(self, tensor: int, t: _Tensor, size: int) -> tuple[int, object]:
        """Give where a tensor can be read, and what must be kept as long."""
        if self._host(t.buffer):
            return t.data or 0, None
        copy = c.create_string_buffer(size)
        self._get(tensor, copy, 0, size)
        return c.addressof(copy), copy

    # ---- what goes wrong ----

    def _check(self, tokens: Sequence[Token]) -> None:
        last = any(e.layer == self._layers - 1 for e in self._entries)
        if last and not all(t.output for t in tokens):
            raise Unidentified("the last layer gives the rows of outputs alone, and not every token of the batch is "
                               "one: set `logits` of all, or choose hooks of the layers before")  # fmt: skip

    def _lose(self, text: str) -> None:
        self._counts.unidentified += 1
        self._counts.problem("identity", text)


def choose(patterns: Iterable[str], layers: int) -> list[tuple[str, int]]:
    """Find hooks and layers by names like resid_post, z.3, resid_*. Raises UnknownHook."""
    known = [(hook, layer) for hook in HOOKS for layer in range(layers)]
    out: dict[tuple[str, int], None] = {}
    for pattern in patterns:
        fits = [k for k in known if fnmatchcase(k[0], pattern) or fnmatchcase(f"{k[0]}.{k[1]}", pattern)]
        if not fits:
            raise UnknownHook(f"choose hooks by {pattern!r}: there is nothing of that name; there is "
                              f"{', '.join(HOOKS)}, each with a layer from .0 to .{layers - 1} or without")  # fmt: skip
        out |= dict.fromkeys(fits)
    return list(out)


def in_order(tokens: Sequence[Token], most: int) -> Iterator[list[int]]:
    """Split a batch as llama.cpp does for a cache that all sequences share: as it stands."""
    for start in range(0, len(tokens), most):
        yield list(range(start, min(start + most, len(tokens))))


def by_sequence(tokens: Sequence[Token], most: int) -> Iterator[list[int]]:
    """Split a batch as llama.cpp does for a cache of each sequence: as many tokens of each one in a part."""
    left: dict[int, list[int]] = {}
    for i, t in enumerate(tokens):
        left.setdefault(t.sequence, []).append(i)
    waiting = list(range(len(tokens)))
    while waiting:
        chosen: list[int] = []
        for i in waiting:  # those alone whose numbers follow on each other
            mine = tokens[i].sequence
            if mine not in chosen and (not chosen or mine == chosen[-1] + 1):
                chosen.append(mine)
                if len(chosen) > most:
                    break
        count = min(max(most // len(chosen), 1), *(len(left[s]) for s in chosen), len(tokens))
        part = [i for s in chosen for i in left[s][:count]]
        for s in chosen:
            del left[s][:count]
        gone = set(part)
        waiting = [i for i in waiting if i not in gone]
        yield part


def _read(batch: Any) -> list[Token]:
    """Read a llama_batch. Raises Unidentified."""
    if batch.n_tokens and not (batch.token and batch.pos and batch.n_seq_id and batch.seq_id and batch.logits):
        raise Unidentified("the batch says no tokens, or not where they belong: fill token, pos, seq_id and logits")
    out = []
    for i in range(batch.n_tokens):
        if batch.n_seq_id[i] != 1:
            raise Unidentified("the batch has a token of several sequences: compute it for one, and copy it to the "
                               "others by llama_memory_seq_cp")  # fmt: skip
        out.append(Token(batch.token[i], batch.pos[i], batch.seq_id[i][0], bool(batch.logits[i])))
    return out


def _runs(ranges: Sequence[Range]) -> c.Array[c.c_uint32]:
    """Give the first row and the count of the ranges, those together that lie one behind the other."""
    out: list[int] = []
    for r in ranges:
        if out and out[-2] + out[-1] == r.first_row:
            out[-1] += r.count
        else:
            out += (r.first_row, r.count)
    return (c.c_uint32 * len(out))(*out)


def _functions() -> tuple[Any, Any]:
    """Find what reads tensors: ggml_backend_tensor_get, and whether a buffer is memory of the host."""
    from llama_cpp import _ggml

    library = _ggml.libggml
    get, host = library.ggml_backend_tensor_get, library.ggml_backend_buffer_is_host
    get.argtypes, get.restype = [c.c_void_p, c.c_void_p, c.c_size_t, c.c_size_t], None
    host.argtypes, host.restype = [c.c_void_p], c.c_bool
    return get, host


def _number(model: Any, name: str) -> int:
    """Read a number of the model's description; 0: it has none."""
    meta: Mapping[str, str] = _texts(model)
    found = meta.get(f"{meta.get('general.architecture', '')}.{name}", "0")
    return int(found) if found.isdecimal() else 0


def _texts(model: Any) -> dict[str, str]:
    out, text = {}, c.create_string_buffer(256)
    for i in range(llama_cpp.llama_model_meta_count(model)):
        llama_cpp.llama_model_meta_key_by_index(model, i, text, 256)
        key = text.value.decode(errors="replace")
        llama_cpp.llama_model_meta_val_str_by_index(model, i, text, 256)
        out[key] = text.value.decode(errors="replace")
    return out
