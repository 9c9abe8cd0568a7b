"""Who is in a forward: sequences, absolute positions and passes, from what the model is given."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sonde.step import Finish, Phase, Range, Unidentified, Verdict

MAX_AMEND = 4096  # ranges of one amendment


@dataclass(frozen=True)
class Naming:
    """What the requests of a call are called. Sequences have one entry per prompt of the call."""

    requests: Sequence[str | None] | None = None  #: None, also as an entry: a random UUID
    tenant: str = "default"
    adapter: str = ""  #: "": the active adapter of the model, if it has one
    labels: Mapping[str, str] | Sequence[Mapping[str, str]] = field(default_factory=dict)
    opt_in: bool | Sequence[bool] = False
    trace_parent: str = ""

    def check(self, prompts: int) -> None:
        """Raise Unidentified unless the names fit a call with so many prompts."""
        for what, given in (("requests", self.requests), ("labels", self.labels), ("opt_in", self.opt_in)):
            one_for_all = given is None or isinstance(given, (bool, Mapping))
            if not one_for_all and len(given) != prompts:
                raise Unidentified(f"{what}= names {len(given)} prompts and the call has {prompts}")

    def fits(self, prompts: int) -> bool:
        """Say whether the names fit a call with so many prompts."""
        try:
            self.check(prompts)
        except Unidentified:
            return False
        return True

    def without_requests(self) -> Naming:
        """Give what holds for any number of prompts."""
        labels = self.labels if isinstance(self.labels, Mapping) else {}
        opt_in = self.opt_in if isinstance(self.opt_in, bool) else False
        return replace(self, requests=None, labels=labels, opt_in=opt_in)

    def of(self, prompt: int) -> dict[str, Any]:
        """Give the arguments of `Recorder.open_request` for one prompt."""
        labels = self.labels if isinstance(self.labels, Mapping) else self.labels[prompt]
        chosen = None if self.requests is None else self.requests[prompt]
        return {
            "external_id": str(uuid.uuid4() if chosen is None else chosen),
            "tenant": self.tenant,
            "adapter": self.adapter,
            "labels": dict(labels),
            "opt_in": self.opt_in if isinstance(self.opt_in, bool) else bool(self.opt_in[prompt]),
            "trace_parent": self.trace_parent,
        }


class Track:
    """One open sequence: a sample of a request, and how often each of its positions was computed."""

    __slots__ = ("_decoded", "_passes", "_rows", "cached", "ended", "name", "number", "prompt", "sample")

    def __init__(self, number: int, name: dict[str, Any], sample: int, prompt: int, cached: int) -> None:
        """Start a sequence whose first `cached` positions were computed elsewhere."""
        self.number, self.name, self.sample, self.prompt, self.cached = number, name, sample, prompt, cached
        self._passes: list[int] = [0] * cached
        self._rows: Any = None  # that decode it by themselves: `step` tokens behind the `_decoded` first ones
        self._decoded = 0
        self.ended = False

    def goes_with(self, rows: Any, decoded: int) -> None:
        """Let rows count the tokens that are decoded from now on, one by one. decoded: those that are known."""
        self._leave()
        self._rows, self._decoded = rows, decoded

    def _leave(self) -> None:
        """Do something else with the sequence."""
        if self._rows is not None:
            self._rows.disturb()
            self.passes  # noqa: B018 (counts what the rows have decoded)
            self._rows = None

    @property
    def passes(self) -> list[int]:
        """Say of each position how often it was computed."""
        if self._rows is not None:
            new = self._decoded + self._rows.step - len(self._passes)
            if new:
                self._passes.extend([1] * new)
        return self._passes

    @property
    def length(self) -> int:
        """Count the tokens of which something is known."""
        return len(self.passes)

    def skip(self, position: int) -> None:
        """Note that everything before a position was computed once, while nothing was captured."""
        passes = self.passes
        if position > len(passes):
            self._leave()
            passes.extend([1] * (position - len(passes)))

    def take(self, position: int, count: int, row: int, phase: Phase, again: Phase, sampled: int) -> list[Range]:
        """Compute `count` tokens from `position` on, in the rows from `row` on; the last `sampled` are sampled from.

        again: phase of those that were computed before. Raises Unidentified where a token before them is unknown.
        """
        self._leave()
        passes = self._passes
        if count == 1 and position == len(passes):  # a step of decoding
            passes.append(1)
            return [Range(self.number, position, 1, row, 0, phase, sampled > 0)]
        if position > len(passes):
            raise Unidentified(f"position {position} follows {len(passes)} known tokens")
        out: list[Range] = []
        stop = position + count
        at = position
        while at < stop:
            pass_ = passes[at] if at < len(passes) else 0
            end = at + 1
            if stop - at > sampled:  # a row that is sampled from ends its range
                while end < stop - max(sampled - 1, 0) and (passes[end] if end < len(passes) else 0) == pass_:
                    end += 1
            out.append(Range(self.number, at, end - at, row + at - position, pass_, again if pass_ else phase,
                             sampled > stop - end))  # fmt: skip
            at = end
        known = len(passes)
        for p in range(position, min(stop, known)):
            passes[p] += 1
        passes.extend([1] * (stop - known))
        return out


class Book:
    """The sequences that are open in a recorder, and how they are opened, amended and ended."""

    def __init__(self, recorder: Any) -> None:
        """recorder: a `Recorder`, or what has its methods for requests."""
        self.recorder = recorder
        self._open: dict[int, Track] = {}

    def __iter__(self) -> Iterator[Track]:
        """Go through the open sequences."""
        return iter(list(self._open.values()))

    def open(self, name: dict[str, Any], sample: int, prompt: int, cached: int = 0, max_tokens: int = 0,
             **labels: str) -> Track:  # fmt: skip
        """Open a sequence. labels: further ones, with _ for the dot behind `sonde`."""
        name = {**name, "labels": {**name["labels"], **{f"sonde.{k}": v for k, v in labels.items()}}}
        number = self.recorder.open_request(sample=sample, prompt_tokens=prompt, max_tokens=max_tokens, **name)
        track = Track(number, name, sample, prompt, cached)
        self._open[number] = track
        return track

    def end(self, track: Track, finish: Finish, generated: int) -> None:
        """End a sequence, once."""
        if track.ended:
            return
        track.ended = True
        self._open.pop(track.number, None)
        self.recorder.end_request(
            track.number,
            prompt_tokens=track.prompt,
            generated_tokens=generated,
            cached_tokens=track.cached,
            passes=max(track.passes, default=1) or 1,
            finish=finish,
        )

    def reject(self, step: int, rows: Iterable[tuple[int, int, int, int]], verdict: Verdict = Verdict.REJECTED) -> None:
        """Take back (number, position, count, pass) of a step; before the sequences end."""
        ranges = [(*r, verdict) for r in rows]
        for i in range(0, len(ranges) if step >= 0 else 0, MAX_AMEND):
            self.recorder.amend(step, ranges[i : i + MAX_AMEND])

    def stopping(self, track: Track) -> bool:
        """Say whether a detector wants a sequence to stop."""
        return self.recorder.stopping(track.number)


def name_adapters(names: Sequence[dict[str, Any]], adapters: Sequence[str]) -> None:
    """Fill in the adapter of each prompt where none was given; one adapter is that of all. Raises Unidentified."""
    if len(adapters) not in (0, 1, len(names)):
        raise Unidentified(f"adapter_names names {len(adapters)} rows and the call has {len(names)} prompts")
    for i, name in enumerate(names if adapters else ()):
        name["adapter"] = name["adapter"] or adapters[i if len(adapters) > 1 else 0]


def runs(mask: Sequence[int]) -> list[tuple[int, int, int]]:
    """Split a row of an attention mask into runs of tokens: (column, position, count). Padding has no position."""
    out: list[tuple[int, int, int]] = []
    position = start = 0
    for column in range(len(mask) + 1):
        if column < len(mask) and mask[column]:
            continue
        if column > start:
            out.append((start, position, column - start))
            position += column - start
        start = column + 1
    return out


def clip(row: Sequence[tuple[int, int, int]], start: int, stop: int) -> list[tuple[int, int, int]]:
    """Give what of runs lies in the columns [start, stop)."""
    out = []
    for column, position, count in row:
        low, high = max(column, start), min(column + count, stop)
        if low < high:
            out.append((low, position + low - column, high - low))
    return out
