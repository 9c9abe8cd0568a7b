"""llama.cpp with a loop that serves several sequences at once, as a subject of the suite."""

from __future__ import annotations

import ctypes as c
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import llama_cpp
import llama_tiny
import numpy as np
from pipeline import Pipeline, rows_of, wait_closed
from suite import Answer, Hook, Job, Plain, Row, digest

from sonde.adapters.contract import Request
from sonde.adapters.llamacpp import HOOKS, Capture
from sonde.recorder import WriterSettings
from sonde.step import Finish

SLOTS, BATCH, PART = 8, 64, 12  # sequences at once, tokens of a batch and of what llama.cpp computes at once
NAMES = {f"{node}-{i}".encode(): (hook, i) for hook, node in HOOKS.items() for i in range(llama_tiny.LAYERS)}


class Witness:
    """A plain callback, as a user would write it, that calls the one of the capture, too."""

    def __init__(self, capture: Capture | None) -> None:
        """capture: its callback is put into this one."""
        self.plain = Plain()
        self.places: list[tuple[int, int]] = []
        self._tokens: list[int] = []
        self._next: Callable[..., bool] | None = None
        self.call = llama_cpp.ggml_backend_sched_eval_callback(self._hear)
        if capture is not None:
            self._next, capture._call = capture._evaluate, self.call

    def _hear(self, tensor: int, ask: bool, data: object) -> bool:
        name = c.string_at(tensor + 256)
        if ask:
            given = c.c_void_p.from_address(tensor + 160).value
            known = c.string_at(given + 256) if given else b""
            if known == b"inp_tokens":
                self._tokens = _array(given, c.c_int32).tolist()
            elif known == b"inp_pos" and self._tokens:
                self.places = list(zip(self._tokens, _array(given, c.c_int32).tolist(), strict=True))
                self.plain.computed.update(self.places)
                self._tokens = []
        elif name in NAMES:
            rows = _array(tensor, c.c_float).reshape(len(self.places), -1)
            for row, place in zip(rows, self.places, strict=True):
                self.plain.note(NAMES[name], digest(row.tobytes()), place)
        other = self._next(tensor, ask, data) if self._next is not None else not ask
        return other or name in NAMES


def _array(tensor: int | None, kind: Any) -> np.ndarray:
    assert tensor is not None
    n = int(np.prod((c.c_int64 * 4).from_address(tensor + 16)[:]))
    data = c.c_void_p.from_address(tensor + 248).value
    return np.ctypeslib.as_array((kind * n).from_address(data)).copy()


class Model:
    """A model and its context."""

    def __init__(self, path: Path, prepare: Callable[[Any], Any], unified: bool, part: int = PART) -> None:
        """prepare: changes the parameters of the context."""
        llama_cpp.llama_backend_init()
        llama_cpp.llama_log_set(_QUIET, None)
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = 2048, BATCH, part, SLOTS
        params.n_threads = params.n_threads_batch = 1
        params.type_k = params.type_v = params.flash_attn_type = 0
        params.kv_unified = unified
        self.context = llama_cpp.llama_init_from_model(self.model, prepare(params))
        self.memory = llama_cpp.llama_get_memory(self.context)
        self.batch = llama_cpp.llama_batch_init(BATCH, 0, 1)
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))

    def fill(self, rows: Iterable[tuple[int, int, int]], output: bool = True) -> Any:
        """Make a batch of (token, position, sequence)."""
        b, n = self.batch, 0
        for token, position, sequence in rows:
            b.token[n], b.pos[n], b.n_seq_id[n], b.logits[n] = token, position, 1, output
            b.seq_id[n][0] = sequence
            n += 1
        b.n_tokens = n
        return b

    def logits(self, row: int) -> np.ndarray:
        """Read the logits of a row of the last batch."""
        return np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(self.context, row), (self.vocabulary,))

    def forget(self, sequence: int) -> None:
        """Take a sequence out of the memory."""
        llama_cpp.llama_memory_seq_rm(self.memory, sequence, -1, -1)

    def close(self) -> None:
        """Free it."""
        llama_cpp.llama_batch_free(self.batch)
        llama_cpp.llama_free(self.context)
        llama_cpp.llama_model_free(self.model)


_QUIET = llama_cpp.llama_log_callback(lambda _level, _text, _data: None)


@dataclass
class Slot:
    """A sequence that is computed."""

    job: Job
    sample: int
    tokens: list[int]  # prompt and answer
    computed: int = 0
    at: int = field(default=0)  # place in the batch of its last token, if that is sampled from


class Served:
    """The engine: joins, chunks of prompts, shared prefixes, preemption, aborts."""

    name = "llama.cpp"
    hooks: Sequence[Hook] = list(NAMES.values())
    sampled: Sequence[Hook] = []
    tolerance = 1e-3

    def __init__(self, run: Pipeline, path: Path, vocabulary: int, unified: bool, name: str = "llama",
                 captures: bool = True) -> None:  # fmt: skip
        """Load the model and begin to capture; captures: False leaves the engine as it is, without a callback."""
        llama_tiny.write(path, vocabulary)
        self._run, self.unified, self.preempted = run, unified, 0
        self.alone_of = llama_tiny.Alone(vocabulary)
        settings = WriterSettings(f"{run.dir}/s", mode="complete", engine_instance=name, meta={"name": "tiny"})
        self.capture = Capture(settings, [*HOOKS])
        self.witness = Witness(self.capture)
        self.model = Model(path, self.capture.prepare if captures else lambda params: params, unified)
        if not captures:
            self.capture.prepare(llama_cpp.llama_context_default_params())
        self._decode = self.capture.decode if captures else llama_cpp.llama_decode
        self.capture.attach(self.model.model)
        self.capture.recorder.wait_attached(20)
        self._slots: dict[int, Slot] = {}

    def serve(self, jobs: Sequence[Job], rng: random.Random) -> list[Answer]:
        """Serve jobs, a step at a time."""
        waiting = [(j, sample) for j in jobs for sample in range(j.samples)]
        out: list[Answer] = []
        while waiting or self._slots:
            for _ in range(rng.randint(0, 3) if self._slots else SLOTS):
                free = [i for i in range(SLOTS) if i not in self._slots]
                if waiting and free:
                    self._join(rng.choice(free), *waiting.pop(0))
            if len(self._slots) > 1 and rng.random() < 0.03:
                self._preempt(rng.choice(list(self._slots)))
            self._step(rng)
            out += self._ended(rng)
        return out

    def _join(self, number: int, job: Job, sample: int) -> None:
        """Begin a sequence with what of its prompt another one has, if they share one memory."""
        slot, cached = Slot(job, sample, list(job.prompt)), 0
        for other, has in self._slots.items() if self.unified else ():
            n = 0
            while n < min(has.computed, len(job.prompt) - 1) and has.tokens[n] == job.prompt[n]:
                n += 1
            if n > cached:
                self.model.forget(number)
                llama_cpp.llama_memory_seq_cp(self.model.memory, other, number, 0, n)
                cached = n
        slot.computed = cached
        self._slots[number] = slot
        request = Request(job.id, len(job.prompt), sample, max_tokens=job.max_tokens)
        self.capture.open(number, request, cached)

    def _preempt(self, number: int) -> None:
        """Take the memory of a sequence away; it is computed again from its first token."""
        self.model.forget(number)
        self._slots[number].computed = 0
        self.preempted += 1

    def _step(self, rng: random.Random) -> None:
        """Compute a batch of all sequences, in an order that means nothing."""
        rows: list[tuple[int, int, int]] = []
        room = BATCH
        for number in rng.sample(list(self._slots), len(self._slots)):
            slot = self._slots[number]
            left = len(slot.tokens) - slot.computed
            count = min(left, room, rng.randint(1, 16))
            rows += [(slot.tokens[p], p, number) for p in range(slot.computed, slot.computed + count)]
            room -= count
            slot.computed += count
            slot.at = len(rows) - 1 if count == left else -1
        parted = len({number for _, _, number in rows})
        self.witness.plain.widest = max(self.witness.plain.widest, parted)
        assert self._decode(self.model.context, self.model.fill(rows)) == 0
        for slot in self._slots.values():
            if slot.at >= 0:
                start, stop = slot.job.own
                best = int(self.model.logits(slot.at)[start:stop].argmax())
                slot.tokens.append(start + (best if slot.sample == 0 else rng.randrange(stop - start)))

    def _ended(self, rng: random.Random) -> list[Answer]:
        out = []
        stopping = self.capture.stopping()
        for number, slot in list(self._slots.items()):
            answer = slot.tokens[len(slot.job.prompt) :]
            length = len(answer) >= slot.job.max_tokens
            gone = bool(slot.job.abort_after) and len(answer) >= slot.job.abort_after
            if number in stopping or length or gone:
                finish = Finish.LENGTH if length else Finish.ABORT
                self.capture.end(number, finish, len(answer))
                self.model.forget(number)
                del self._slots[number]
                out.append(Answer(slot.job.id, slot.sample, answer, "length" if length else "abort"))
        return out

    def stored(self) -> Iterable[Row]:
        """Stop the engine and give every row."""
        self.stats = self.capture.stats()
        self.capture.close()
        self.model.close()
        return rows_of(wait_closed(self._run, self.stats["epoch"]), self.stats["epoch"])

    def plain(self) -> Plain | None:
        """Give what the plain callback saw."""
        return self.witness.plain

    def alone(self, tokens: list[int]) -> Mapping[Hook, np.ndarray]:
        """Compute a sequence by itself with NumPy."""
        return self.alone_of(tokens)
