"""A small serving engine over the tight decoder: continuous batching, chunks of prompts, static shapes, CUDA graphs.

The host launches one step ahead: while the GPU computes a step, the host names the rows of the next one, and it looks
at sampled tokens one step later. A request ends after as many tokens as it asked for, or when a detector stopped it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import decoder
import rig
import torch

import sonde
from sonde.recorder import Abort
from sonde.step import Finish, Phase, Range

AHEAD = 1  # steps that were launched and whose tokens the host has not seen
STAGES = 4  # maps of rows that may be on their way to the GPU


@dataclass(eq=False)
class Request:
    """One request, and what became of it."""

    name: str
    arrival: float  #: seconds from the start
    prompt: int  #: tokens
    new: int  #: tokens
    slot: int = -1
    number: int = 0  #: in the recorder; 0: nothing is captured
    done: int = 0  #: tokens of the prompt that were computed
    launched: int = 0  #: tokens that were sampled
    seen: list[float] = field(default_factory=list)  #: when the host saw each of them, seconds from the start
    stopped: int = -1  #: position up to which the detector had seen that stopped it

    @property
    def length(self) -> int:
        """Count the tokens whose keys the cache holds once everything that was launched has run."""
        return self.done + max(self.launched - 1, 0)


class Engine:
    """A decoder with its graphs, and its capture, if it has one."""

    def __init__(
        self, model: decoder.Decoder, chunk: int, sizes: Sequence[int], stoppable: bool = False, **capture: Any
    ) -> None:
        """chunk: tokens of a prompt at a time. sizes: of batches. capture: arguments of `sonde.attach`; none: none."""
        self.model, self.cache, self.chunk, self.sizes = rig.twin(model), model.cache, chunk, sorted(sizes)
        self.capture: sonde.Capture | None = None
        if capture:
            told = rig.Told()
            stop = self._stop if stoppable else None
            self.capture = sonde.attach(self.model, identity=told, token_ids=False, on_abort=stop, **capture)
            self.capture.wait_attached()
        self.ids = torch.zeros(1, chunk, dtype=torch.int64, device=rig.DEVICE)
        self._running: dict[int, Request] = {}
        pin = {"pin_memory": rig.ON_GPU}
        self._stages = [torch.zeros(self.sizes[-1], dtype=torch.int32, **pin) for _ in range(STAGES)]
        self._outs = [torch.zeros(self.sizes[-1] + 1, dtype=torch.int64, **pin) for _ in range(AHEAD + 2)]
        self._turn, self._shown = 0, []  # type: int, list[int]
        self.cache.chunk_tokens.fill_(chunk)
        self.cache.chunk.fill_(self.cache.nobody)
        self.cache.rows.fill_(self.cache.nobody)
        pool = torch.cuda.graph_pool_handle() if rig.ON_GPU else None
        self.prefill = rig.Step(lambda: self.call(0), self.capture, pool)
        self.decode = {n: rig.Step(lambda n=n: self.call(n), self.capture, pool) for n in self.sizes}
        self.cache.lengths.zero_()

    def close(self) -> None:
        """Detach."""
        if self.capture is not None:
            self.capture.detach(60)

    def call(self, size: int) -> torch.Tensor:
        """Compute what a graph computes: a batch of this size; 0: a chunk of a prompt. Gives the sampled tokens."""
        return decoder.decode(self.model, size) if size else decoder.prefill(self.model, self.ids)

    def begin(self) -> None:
        """Forget what another engine of the same cache did."""
        self._shown = []

    # ---- requests ----

    def open(self, r: Request, slot: int) -> None:
        """Give a request a slot."""
        r.slot = slot
        self.cache.lengths[slot : slot + 1].zero_()
        if self.capture is not None:
            r.number = self.capture.recorder.open_request(r.name, prompt_tokens=r.prompt, max_tokens=r.new)
            self._running[r.number] = r

    def end(self, r: Request) -> None:
        """End a request."""
        if self.capture is not None:
            finish = Finish.LENGTH if r.stopped < 0 else Finish.DETECTOR
            self.capture.recorder.end_request(r.number, prompt_tokens=r.prompt, generated_tokens=r.launched,
                                              finish=finish)  # fmt: skip
            self._running.pop(r.number, None)

    def _stop(self, abort: Abort) -> None:
        r = self._running.get(abort.number)
        if r is not None:
            r.stopped = abort.position

    # ---- steps ----

    def compute_prompt(self, r: Request, ids: torch.Tensor) -> bool:
        """Compute the next chunk of a prompt; True: it was the last one, and a token was sampled."""
        count = min(self.chunk, r.prompt - r.done)
        self.ids[0, :count].copy_(ids[r.done : r.done + count])
        self.cache.chunk.fill_(r.slot)
        self.cache.chunk_tokens.fill_(count)
        last = r.done + count == r.prompt
        self.prefill.replay([Range(r.number, r.done, count, 0, 0, Phase.PREFILL, last)] if r.number else ())
        r.done += count
        r.launched += last
        return last

    def compute_tokens(self, running: Sequence[Request]) -> None:
        """Compute one more token of each."""
        slots = [r.slot for r in running]
        n = next(n for n in self.sizes if n >= len(slots))
        wanted = slots + [self.cache.nobody] * (n - len(slots))
        if wanted != self._shown:
            stage = self._stages[self._turn % STAGES]
            self._turn += 1
            stage[:n] = torch.tensor(wanted, dtype=torch.int32)
            self.cache.rows[:n].copy_(stage[:n], non_blocking=True)
            self._shown = wanted
        ranges = [Range(r.number, r.length, 1, i, 0, Phase.DECODE, True) for i, r in enumerate(running) if r.number]
        self.decode[n].replay(ranges)
        for r in running:
            r.launched += 1

    def saw(self) -> None:
        """Learn that the host sees the tokens of the oldest round."""

    def fetch(self, running: Sequence[Request], prompt: bool, turn: int) -> Any:
        """Have the sampled tokens of a round copied to the host; gives the event behind it."""
        out = self._outs[turn % len(self._outs)]
        if prompt:
            out[-1:].copy_(self.prefill.output, non_blocking=True)
        if running:
            n = next(n for n in self.sizes if n >= len(running))
            out[:n].copy_(self.decode[n].output, non_blocking=True)
        if not rig.ON_GPU:
            return None
        event = torch.cuda.Event()
        event.record()
        return event


class Served:
    """What a run of `serve` measured."""

    def __init__(self, requests: list[Request], seconds: float, rounds: list[tuple[float, float, int]]) -> None:
        """rounds: when each was launched and seen, and how many rows decoded in it."""
        self.requests, self.seconds, self.rounds = requests, seconds, rounds

    @property
    def tokens(self) -> int:
        """Count what was sampled."""
        return sum(len(r.seen) for r in self.requests)


def serve(engine: Engine, requests: list[Request], prompts: torch.Tensor, batch: int) -> Served:
    """Serve requests in the order of their arrival, at most `batch` at a time.

    prompts: ids [requests, tokens] on the device, as many as the longest prompt has.
    """
    waiting, prefilling, running = deque(enumerate(requests)), deque(), []  # type: Any, Any, list[Request]
    free, flying, rounds = list(range(batch)), deque(), []  # type: list[int], Any, list[tuple[float, float, int]]
    engine.begin()
    start, turn = time.perf_counter(), 0

    def see() -> None:
        event, launched, rows = flying.popleft()
        if event is not None:
            event.synchronize()
        engine.saw()
        now = time.perf_counter() - start
        rounds.append((launched, now, len(rows)))
        for r in rows:
            r.seen.append(now)

    while waiting or prefilling or running or flying:
        now = time.perf_counter() - start
        while waiting and free and waiting[0][1].arrival <= now:
            i, r = waiting.popleft()
            engine.open(r, free.pop())
            prefilling.append((i, r))
        for r in [r for r in running if r.launched >= r.new or r.stopped >= 0]:
            running.remove(r)
            engine.end(r)
            free.append(r.slot)
        rows, sampled = list(running), []  # type: list[Request], list[Request]
        chunk = bool(prefilling)
        if chunk:
            i, r = prefilling[0]
            if engine.compute_prompt(r, prompts[i]):
                sampled = [prefilling.popleft()[1]]
                running += sampled
        if rows:
            engine.compute_tokens(rows)
        if rows or chunk:
            flying.append((engine.fetch(rows, bool(sampled), turn), now, rows + sampled))
            turn += 1
        if len(flying) > AHEAD or flying and not (rows or chunk):
            see()
        elif not flying and waiting:
            time.sleep(min(max(waiting[0][1].arrival - now, 0), 0.001))
    rig.synchronize()
    return Served(requests, time.perf_counter() - start, rounds)


def poisson(rate: float, seconds: float, prompts: tuple[int, int], new: tuple[int, int], seed: int) -> list[Request]:
    """Draw requests that arrive at `rate` a second; prompts and new: bounds of tokens, both included."""
    g = torch.Generator().manual_seed(seed)
    gaps = -torch.log1p(-torch.rand(int(rate * seconds * 2) + 16, generator=g)) / rate
    out = []
    for i, at in enumerate(gaps.cumsum(0).tolist()):
        if at < seconds:
            p, n = (int(torch.randint(low, high + 1, (1,), generator=g)) for low, high in (prompts, new))
            out.append(Request(f"{seed}-{i}", at, p, n))
    return out
