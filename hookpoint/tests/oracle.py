"""A recorder in memory, a driver that follows the contract of a step, and a judge that recomputes every row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from sonde.huggingface import HuggingFace
from sonde.identity import Naming
from sonde.step import Finish, Range, Unidentified, Verdict

torch.set_num_threads(1)  # tiny models: further threads only wait for each other

Key = tuple[int, int, int]  # (number, position, pass)


@dataclass
class Request:
    """One sequence as it was announced."""

    external_id: str
    sample: int
    labels: Mapping[str, str]
    opened: dict[str, Any]
    ended: dict[str, Any] | None = None

    @property
    def finish(self) -> Finish:
        assert self.ended is not None, f"{self.external_id}/{self.sample} never ended"
        return self.ended["finish"]


@dataclass
class Row:
    """One captured row: a vector for each tap, and the id of its token."""

    step: int
    vectors: dict[str, torch.Tensor]
    token: int
    range: Range


@dataclass
class Memory:
    """Has the methods of a Recorder that deal with requests, and keeps what it is told."""

    requests: dict[int, Request] = field(default_factory=dict)
    rows: dict[Key, Row] = field(default_factory=dict)
    verdicts: dict[Key, Verdict] = field(default_factory=dict)
    stop: set[int] = field(default_factory=set)
    twice: list[Key] = field(default_factory=list)
    last_step: int = -1

    def open_request(self, external_id: str, *, sample: int = 0, labels: Mapping[str, str] | None = None,
                     **others: Any) -> int:  # fmt: skip
        number = len(self.requests) + 1
        self.requests[number] = Request(external_id, sample, dict(labels or {}), others)
        return number

    def end_request(self, number: int, **end: Any) -> None:
        assert self.requests[number].ended is None, f"number {number} ended twice"
        self.requests[number].ended = end

    def amend(self, step: int, ranges: Sequence[tuple[int, int, int, int, Verdict]]) -> None:
        for number, position, count, pass_, verdict in ranges:
            assert self.requests[number].ended is None, f"number {number} was amended after its end"
            for p in range(position, position + count):
                assert self.rows[number, p, pass_].step == step
                self.verdicts[number, p, pass_] = verdict

    @property
    def stops(self) -> int:
        return len(self.stop)

    def stopping(self, number: int) -> bool:
        return number in self.stop

    def will_stop(self, number: int) -> None:
        assert self.requests[number].ended is None

    def numbers(self, external_id: str, sample: int | None = None) -> list[int]:
        return [n for n, r in self.requests.items()
                if r.external_id == external_id and sample in (None, r.sample)]  # fmt: skip

    def accepted(self, number: int) -> dict[int, Row]:
        """Give the rows of a sequence that count: of each position the last pass that was not taken back."""
        out: dict[int, tuple[int, Row]] = {}
        for (n, position, pass_), row in self.rows.items():
            taken_back = self.verdicts.get((n, position, pass_), Verdict.ACCEPTED) != Verdict.ACCEPTED
            if n == number and not taken_back and (position not in out or out[position][0] < pass_):
                out[position] = (pass_, row)
        return {p: row for p, (_, row) in sorted(out.items())}

    def tensor(self, external_id: str, sample: int = 0) -> dict[int, Row]:
        """Read a sample back as the lake does: its own rows, or those that its lineage names."""
        (number,) = self.numbers(external_id, sample)
        lineage = [v for k, v in self.requests[number].labels.items() if k.startswith("sonde.lineage")]
        if not lineage:
            return self.accepted(number)
        out: dict[int, Row] = {}
        for part in ",".join(lineage).split(","):
            other, _, places = part.partition(":")
            start, _, stop = places.partition("-")
            (source,) = self.numbers(external_id, int(other))
            rows = self.accepted(source)
            for p in range(int(start), int(stop)):
                assert p not in out
                out[p] = rows[p]
        return out


class Driver:
    """Attaches an identity to a model with plain hooks, as the contract says."""

    def __init__(self, model: nn.Module, taps: Sequence[str], naming: Naming | None = None,
                 wrap: Callable[[Any], Any] = lambda identity: identity) -> None:  # fmt: skip
        self.model, self.memory = model, Memory()
        self.naming = naming or Naming()
        self.errors: list[Exception] = []
        self.skipped: list[str] = []
        self.identity = HuggingFace(model, self.memory, lambda: self.naming, self.errors.append)
        self._asked = wrap(self.identity)
        self.planted = self._asked is not self.identity  # a fault, which the judge must find
        self.enabled = True
        self._ranges: list[Range] | None = None
        self._seen: dict[str, torch.Tensor] = {}
        self.batches: list[tuple[torch.Tensor | None, dict[str, torch.Tensor]]] = []  # what plain hooks saw
        modules = dict(model.named_modules())
        self._handles = [model.register_forward_pre_hook(self._before, with_kwargs=True, prepend=True)]
        self._handles += [modules[name].register_forward_hook(self._tap(name)) for name in taps]
        self._handles.append(model.register_forward_hook(self._after, with_kwargs=True))

    def __enter__(self) -> Driver:
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self.identity.detach()
        assert not self.errors, self.errors
        assert self.planted or not self.memory.twice, f"captured twice: {self.memory.twice[:8]}"

    def _before(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self._seen, self._ranges = {}, None
        if not self.enabled:
            return
        try:
            self._ranges = self._asked.ranges(module, args, kwargs)
        except Unidentified as e:
            self.skipped.append(str(e))

    def _tap(self, name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            self._seen[name] = (output[0] if isinstance(output, tuple) else output).detach().clone()

        return hook

    def _after(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        self.batches.append((ids, self._seen))
        if self._ranges:
            self.memory.last_step += 1
            tokens = None if ids is None else ids.reshape(-1).tolist()
            flat = {k: v.reshape(-1, *v.shape[2:]) for k, v in self._seen.items()}
            for r in self._ranges:
                assert r.count > 0
                for i in range(r.count):
                    key = (r.number, r.position + i, r.pass_)
                    if key in self.memory.rows:
                        self.memory.twice.append(key)
                    at = r.first_row + i
                    vectors = {k: v[at].clone() for k, v in flat.items()}
                    token = -1 if tokens is None else tokens[at]
                    self.memory.rows[key] = Row(self.memory.last_step, vectors, token, r)
            self._asked.finished(module, output)


def alone(model: nn.Module, tokens: Sequence[int], taps: Sequence[str]) -> dict[str, torch.Tensor]:
    """Compute one sequence by itself, without padding or cache: for each tap a tensor [tokens, …]."""
    seen: dict[str, torch.Tensor] = {}
    modules = dict(model.named_modules())

    def hook(name: str) -> Callable[..., None]:
        def keep(_module: nn.Module, _args: Any, output: Any) -> None:
            seen[name] = (output[0] if isinstance(output, tuple) else output)[0]

        return keep

    handles = [modules[name].register_forward_hook(hook(name)) for name in taps]
    with torch.no_grad():
        model(input_ids=torch.tensor([list(tokens)]))
    for handle in handles:
        handle.remove()
    return seen


def wrong_rows(rows: Mapping[int, Row], tokens: Sequence[int], want: Mapping[str, torch.Tensor],
               tolerance: float = 1e-4) -> list[str]:  # fmt: skip
    """Judge the rows of a sequence, by position, against its tokens and what it gives alone; say what is wrong.

    tolerance: of the difference's norm, relative to the norm of the recomputed row.
    """
    out = [f"position {p} is behind the {len(tokens)} tokens" for p in rows if p >= len(tokens)]
    inside = [p for p in rows if p < len(tokens)]
    other = [p for p in inside if rows[p].token != tokens[p]]
    out += [f"position {p} has token {rows[p].token} instead of {tokens[p]}" for p in other]
    for name in want if inside else ():
        reference = want[name][inside].double()
        errors = (torch.stack([rows[p].vectors[name] for p in inside]).double() - reference).norm(dim=-1)
        errors /= reference.norm(dim=-1)
        out += [f"position {p} of {name} differs by {e:.2g}" for p, e in zip(inside, errors.tolist(), strict=True)
                if not e <= tolerance]  # fmt: skip
    return out
