"""What the tests of captures share: small random models, plain hooks to compare with, and a lake to read back from."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from conftest import BINARY, Pipeline
from torch import nn

import sonde
from sonde.lake import _elements
from sonde.names import Catalogue, Tap
from sonde.taps import first_tensor

Key = tuple[str, str, int, int]  # request, hook, layer, position


class Rig(Pipeline):
    """`sonde run`, and the rows of an epoch once it has closed."""

    @property
    def socket(self) -> str:
        return f"{self.dir}/s"

    def rows(self, capture: sonde.Capture) -> dict[Key, bytes]:
        """Wait until everything of a detached capture is stored; give the bits of each row."""
        epoch = capture.epoch
        end = time.monotonic() + 120
        while True:
            lake = self.opened(end)
            facts = lake.table("ledger", columns=["fact", "epoch"]).to_pylist() if lake else []
            if any(f["fact"] == "closed" and f["epoch"] == epoch for f in facts):
                break
            assert time.monotonic() < end, f"epoch {epoch} was not closed in the lake:\n{self.log()}"
            time.sleep(0.1)
        assert lake is not None
        out: dict[Key, bytes] = {}
        columns = ["request", "hook", "layer", "position"]
        table = lake.vectors(epoch=epoch)
        found = []
        if table.num_rows:
            names = table.select(columns).to_pylist()
            found = [(k, np.ascontiguousarray(v).tobytes()) for k, v in zip(names, _elements(table), strict=True)]
        for r in lake.table("tokens", epoch=epoch).to_pylist():
            found.append(({c: r[c] for c in columns}, np.array(r["token_id"], np.int32).tobytes()))
        for key, value in found:
            name = tuple(key[c] for c in columns)
            assert name not in out, f"{name} is stored twice"
            out[name] = value
        return out

    def opened(self, end: float) -> sonde.Lake | None:
        try:
            return sonde.open_lake(self.lake)
        except sonde.LakeError:
            return None


def make_rig(factory: pytest.TempPathFactory) -> Iterator[Rig]:
    if not BINARY.exists():
        pytest.skip("NOT RUN: build/sonde is missing; make build makes it")
    folder = factory.mktemp("c")
    rig = Rig(folder, "none")
    rig.start_run()
    try:
        yield rig
    finally:
        rig.stop()
        shutil.rmtree(folder, ignore_errors=True)


SMALL = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48, "vocab_size": 97, "max_position_embeddings": 64, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 97,
        "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8}

#: name → (class, configuration, what is not in SMALL)
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("Llama", {}),
    "GPT2": ("GPT2", GPT2),
    "Qwen3": ("Qwen3", {"head_dim": 8}),
    "Gemma": ("Gemma", {"head_dim": 8}),
    "Mistral": ("Mistral", {}),
    "Qwen3-MoE": ("Qwen3Moe", EXPERTS),
    "Phi": ("Phi", {"num_key_value_heads": 4}),
}


def make_model(name: str) -> transformers.PreTrainedModel:
    kind, more = FAMILIES[name]
    torch.manual_seed(sum(name.encode()))
    config = getattr(transformers, f"{kind}Config")(**(more if kind == "GPT2" else {**SMALL, **more}))
    head = "LMHeadModel" if kind == "GPT2" else "ForCausalLM"
    return getattr(transformers, f"{kind}{head}")(config).eval()


def batch(seed: int = 0, rows: int = 3, columns: int = 7, vocab: int = 97) -> dict[str, torch.Tensor]:
    """Token ids with padding on the left of the second row."""
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, vocab, (rows, columns), generator=g)
    mask = torch.ones_like(ids)
    if rows > 1:
        mask[1, : columns // 2] = 0
    return {"input_ids": ids, "attention_mask": mask}


class PlainHooks:
    """Clones of the same tensors, by plain hooks of torch."""

    def __init__(self, model: nn.Module, taps: list[Tap]) -> None:
        self.seen: dict[Tap, list[torch.Tensor]] = {t: [] for t in taps}
        modules = dict(model.named_modules())
        self._handles = []
        for tap in taps:
            m = modules[tap.path]
            if tap.site == "output":
                self._handles.append(m.register_forward_hook(self._output(tap)))
            else:
                self._handles.append(m.register_forward_pre_hook(self._input(tap), with_kwargs=True))

    def _output(self, tap: Tap) -> Any:
        def hook(_m: Any, _a: Any, out: Any) -> None:
            self.seen[tap].append(first_tensor(out, tap.part).detach().clone())

        return hook

    def _input(self, tap: Tap) -> Any:
        def hook(_m: Any, args: Any, kwargs: Any) -> None:
            x = first_tensor(args, None)
            self.seen[tap].append((first_tensor(kwargs, None) if x is None else x).detach().clone())

        return hook

    def remove(self) -> None:
        for h in self._handles:
            h.remove()


def expected(taps: dict[Tap, list[torch.Tensor]], mask: torch.Tensor, requests: list[str]) -> dict[Key, bytes]:
    """What the lake must hold of one forward."""
    out: dict[Key, bytes] = {}
    rows, columns = mask.shape
    for tap, tensors in taps.items():
        (x,) = tensors
        x = x.reshape(rows, columns, -1) if x.shape[0] != 1 else x.expand(rows, *x.shape[1:]).reshape(rows, columns, -1)
        if tap.columns:
            x = x[..., tap.columns[0] : tap.columns[1]]
        for r in range(rows):
            tokens = mask[r].nonzero()[:, 0].tolist()
            for position, column in enumerate(tokens):
                if not tap.sampled or column == tokens[-1]:
                    out[requests[r], tap.hook, tap.layer, position] = x[r, column].float().numpy().tobytes()
    return out


def all_taps(model: nn.Module) -> list[Tap]:
    return list(Catalogue(model).taps.values())
