"""Canaries: requests whose activations are known, sent among the others, to notice rows that carry a wrong name.

A canary runs through the user's own serving path, and what comes back through the lake or the bus is compared with a
reference that was computed by itself. When each canary meets a fault with probability p, k canaries notice it with
probability 1 - (1 - p)^k: `canaries_needed` says k. A row counts as wrong when the norm of its difference is more than
`tolerance` of the reference's norm; a reference whose own rows are closer to each other than twice that is refused.
"""

from __future__ import annotations

import json
import logging
import math
import os
import random
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import numpy as np

from sonde.errors import CaptureError, IncompleteTensor, NotInLake, SondeError
from sonde.lake import Lake

log = logging.getLogger("sonde")

Hook = tuple[str, int]  # name and layer
Rows = Mapping[Hook, tuple[np.ndarray, np.ndarray]]  # positions, int [rows]; values, float32 [rows, …]
PREFIX = "sonde-canary-"
MAX_WAITING = 4096  # canaries that were not read yet; the oldest counts as lost


class Misattribution(SondeError):
    """Rows of a canary are not what its reference says."""


@dataclass(frozen=True)
class Reference:
    """What a prompt gives when it runs by itself."""

    prompt: Any  #: as the serving path takes it: a text, or token ids
    tokens: int  #: that are compared, from position 0 on
    values: Mapping[Hook, np.ndarray]  #: float32, [tokens, …]

    @property
    def separation(self) -> float:
        """Measure how far the closest two rows of a hook are from each other, relative to their norm."""
        closest = math.inf
        for rows in self.values.values():
            flat = rows.reshape(len(rows), -1).astype(np.float64)
            for i, row in enumerate(flat):
                others = np.delete(flat, i, axis=0)
                if len(others):
                    closest = min(closest, float(_distance(others, row[None]).min()))
        return closest

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as one .npz file."""
        arrays = {f"{hook}/{layer}": rows for (hook, layer), rows in self.values.items()}
        about = json.dumps({"prompt": self.prompt, "tokens": self.tokens})
        with open(path, "wb") as f:
            np.savez(f, about=np.array(about), **arrays)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Reference:
        """Read what `save` wrote. Raises CaptureError."""
        try:
            with np.load(path, allow_pickle=False) as f:
                about = json.loads(str(f["about"]))
                values = {_hook(name): f[name] for name in f.files if name != "about"}
            return Reference(about["prompt"], int(about["tokens"]), values)
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise CaptureError(f"read the canary reference {path}: it is not what save wrote: {e!r:.200}") from e


def make_reference(model: Any, tokens: Sequence[int], hooks: Sequence[str] = ("resid_post",), prompt: Any = None,
                   generated: int = 0) -> Reference:  # fmt: skip
    """Run a model of transformers on one prompt, alone and without a capture, and keep what its hooks give.

    generated: further tokens to compare, for a serving path that decodes greedily. prompt: as the serving path takes
    it; the ids when not given. Raises CaptureError.
    """
    import torch

    from sonde.names import Catalogue
    from sonde.taps import first_tensor

    seen: dict[Hook, np.ndarray] = {}
    taps = Catalogue(model).choose(hooks)
    modules, handles = dict(model.named_modules()), []
    with torch.no_grad():
        ids = torch.tensor([list(tokens)], device=next(model.parameters()).device)
        if generated:
            ids = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, num_beams=1,
                                 max_new_tokens=generated + 1)[:, :-1]  # fmt: skip
        for tap in taps:
            if tap.site != "output" or tap.sampled:
                raise CaptureError(f"make a canary reference of {tap.name}: it is no output with a row for each token")

            def keep(_module: Any, _args: Any, output: Any, tap: Any = tap) -> None:
                x = first_tensor(output, tap.part)
                if x is not None:
                    x = x[0] if tap.columns is None else x[0][..., slice(*tap.columns)]
                    seen[tap.hook, tap.layer] = x.detach().float().cpu().numpy().copy()

            handles.append(modules[tap.path].register_forward_hook(keep))
        try:
            model(input_ids=ids, use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
    if not seen:
        raise CaptureError("make a canary reference: no hook gave a tensor")
    return Reference(list(tokens) if prompt is None else prompt, ids.shape[1], seen)


def canaries_needed(fault_rate: float, confidence: float = 1 - 1e-6) -> int:
    """Count the canaries that notice, with this confidence, a fault that each meets with probability fault_rate."""
    if not 0 < fault_rate <= 1 or not 0 < confidence < 1:
        raise ValueError(f"count canaries for a fault rate of {fault_rate} and confidence {confidence}: give fractions")
    return 1 if fault_rate == 1 else math.ceil(math.log(1 - confidence) / math.log(1 - fault_rate))


@dataclass
class Counts:
    """What became of canaries."""

    sent: int = 0
    right: int = 0
    wrong: int = 0
    lost: int = 0  #: their rows did not come in time, or not all of them: no proof of anything


class Canaries:
    """Sends canaries at a low rate and judges what comes back. Not for several threads at once."""

    def __init__(
        self,
        reference: Reference,
        read: Callable[[str, float], Rows | None],
        *,
        rate: float = 0.001,
        tolerance: float = 0.02,
        patience: float = 300.0,
        on_alert: Callable[[Misattribution], object] | None = None,
        seed: int | None = None,
    ) -> None:
        """reference: see `make_reference`. read: `from_lake` or `from_bus`, or what gives the rows of a request.

        rate: canaries per batch. tolerance: relative error of a row. patience: seconds until rows that did not come
        count as lost. on_alert: called instead of raising. Raises CaptureError.
        """
        separation = reference.separation
        if not 0 < 2 * tolerance <= separation:
            raise CaptureError(
                f"use a canary reference with tolerance {tolerance}: its rows differ by {separation:.2g} only and "
                "could not be told apart; choose another prompt or hook, or a lower tolerance"
            )
        self.reference, self.rate, self.tolerance, self.patience = reference, rate, tolerance, patience
        self.counts = Counts()
        self._read, self._on_alert, self._random = read, on_alert, random.Random(seed)
        self._waiting: dict[str, float] = {}  # since when

    def join(self, prompts: Sequence[Any], requests: Sequence[str]) -> tuple[list[Any], list[str], int | None]:
        """Put a canary into a batch, now and then, at a random place.

        Returns the prompts and request ids to serve, and the place of the canary, whose answer is nobody's; None: there
        is none.
        """
        prompts, requests = list(prompts), list(requests)
        if self._random.random() >= self.rate:
            return prompts, requests, None
        place, name = self._random.randint(0, len(prompts)), self.send()
        prompts.insert(place, self.reference.prompt)
        requests.insert(place, name)
        return prompts, requests, place

    def send(self) -> str:
        """Give the request id of a canary that you serve by other means than `join`."""
        while len(self._waiting) >= MAX_WAITING:
            self._waiting.pop(next(iter(self._waiting)))
            self.counts.lost += 1
        name = f"{PREFIX}{uuid.uuid4()}"
        self._waiting[name] = time.time()
        self.counts.sent += 1
        return name

    def check(self) -> Counts:
        """Judge the canaries whose rows have come. Raises Misattribution, or calls on_alert, for each wrong one."""
        for name, since in list(self._waiting.items()):
            rows = self._read(name, since)
            if rows is None:
                if time.time() - since > self.patience:
                    del self._waiting[name]
                    self.counts.lost += 1
                continue
            del self._waiting[name]
            wrong = self.judge(rows)
            if wrong:
                self.counts.wrong += 1
                self._alert(name, wrong)
            else:
                self.counts.right += 1
        return self.counts

    def judge(self, rows: Rows) -> list[str]:
        """Say what is wrong with the rows of a canary: at most one sentence for each hook."""
        out = []
        for (hook, layer), want in self.reference.values.items():
            positions, values = rows[hook, layer]
            inside = positions < len(want)
            positions, values = positions[inside], values[inside]
            where = f"{hook} of layer {layer}"
            if list(positions) != list(range(len(want))):
                out.append(f"{where} has {len(positions)} of {len(want)} positions, or not in their order")
                continue
            if values.shape != want.shape:
                out.append(f"{where} has rows of shape {values.shape[1:]} instead of {want.shape[1:]}")
                continue
            flat = values.reshape(len(want), -1).astype(np.float64)
            errors = _distance(flat, want.reshape(len(want), -1).astype(np.float64))
            bad = np.flatnonzero(~(errors <= self.tolerance))
            if len(bad):
                most, first = np.max(errors[bad]), int(bad[0])
                how = f"by {most:.2g} at most, first at position {first}"
                out.append(f"{where} is off at {len(bad)} of {len(want)} positions, {how}")
        return out

    def _alert(self, name: str, wrong: list[str]) -> None:
        e = Misattribution(f"canary {name} came back with rows that are not its own: {'; '.join(wrong[:4])}")
        log.error("%s", e)
        if self._on_alert is None:
            raise e
        self._on_alert(e)


def from_lake(lake: Lake, hooks: Sequence[Hook]) -> Callable[[str, float], Rows | None]:
    """Read canaries from a dataset."""

    def read(request: str, since: float) -> Rows | None:
        lake.refresh()
        out = {}
        for hook, layer in hooks:
            try:
                t = lake.tensor(request, hook, layer)
            except (NotInLake, IncompleteTensor):
                return None
            out[hook, layer] = (t.positions, t.values)
        return out

    return read


def from_bus(
    url: str, hooks: Sequence[Hook], tokens: int, timeout: float = 2.0
) -> Callable[[str, float], Rows | None]:
    """Read canaries from the bus: tokens rows of each hook. timeout: seconds until a hook counts as not there yet."""
    from sonde.live import subscribe
    from sonde.message import Batch

    def read(request: str, since: float) -> Rows | None:
        out = {}
        for hook, layer in hooks:
            found: dict[int, tuple[int, np.ndarray]] = {}
            start = datetime.fromtimestamp(since - 1, timezone.utc)
            with subscribe(url, hook, layer, request=request, since=start, timeout=timeout) as subscription:
                for item in subscription:
                    if not isinstance(item, Batch):
                        continue
                    for p, n, v in zip(item.positions, item.passes, item.vectors, strict=True):
                        if int(p) not in found or found[int(p)][0] <= n:
                            found[int(p)] = (int(n), v)
                    if len(found) >= tokens:
                        break
            if len(found) < tokens:
                return None
            places = sorted(found)
            out[hook, layer] = (np.array(places), np.stack([found[p][1] for p in places]))
        return out

    return read


def _distance(rows: np.ndarray, want: np.ndarray) -> np.ndarray:
    """Give the norm of each difference relative to the norm of what is wanted."""
    return np.linalg.norm(rows - want, axis=1) / np.maximum(np.linalg.norm(want, axis=1), 1e-30)


def _hook(name: str) -> Hook:
    hook, _, layer = name.rpartition("/")
    return hook, int(layer)
