"""Continuous batching of Hugging Face in this process, as a subject of the suite."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tiny
import torch
from pipeline import Pipeline, rows_of, wait_closed
from suite import Answer, Hook, Job, Plain, Row, digest
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

import sonde

HOOKS = ("resid_post", "attn_out", "mlp_out", "resid_mid")


class Batched:
    """A manager of `transformers`, to which requests come and from which they go while it computes."""

    name = "Hugging Face"
    hooks: Sequence[Hook] = [*((h, i) for h in HOOKS for i in range(tiny.LAYERS)), ("ln_final", -1)]
    sampled: Sequence[Hook] = ()
    tolerance = 1e-3

    def __init__(self, run: Pipeline, model: Path) -> None:
        """Load the model and capture it."""
        self.pipe, self.alone_of = run, tiny.Alone(model)
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        self.capture = sonde.attach(self.model, [*HOOKS, "ln_final"], socket=f"{run.dir}/s", mode="complete")
        self._plain = Plain()
        self._real = 0
        self._step: dict[Hook, torch.Tensor] = {}
        self._hook()

    def serve(self, jobs: Sequence[Job], rng: random.Random) -> list[Answer]:
        """Serve jobs; some are cancelled on their way."""
        sampling = GenerationConfig(max_new_tokens=64, do_sample=True, eos_token_id=2, pad_token_id=0)
        batching = ContinuousBatchingConfig(max_batch_tokens=96, num_blocks=96, page_size=8)
        manager = self.model.init_continuous_batching(generation_config=sampling, continuous_batching_config=batching)
        manager.start()
        out, waiting, open_ = {}, list(jobs), {}  # type: dict[str, Answer], list[Job], dict[str, float]
        known = {j.id: j for j in jobs}
        while waiting or open_:
            while waiting and len(open_) < 40 and rng.random() < 0.7:
                job = waiting.pop(0)
                manager.add_request(job.prompt, request_id=job.id, max_new_tokens=job.max_tokens)
                open_[job.id] = time.monotonic() + rng.random() * 0.5 if job.abort_after else 0.0
            result = manager.get_result(timeout=0.02)
            if result is not None and result.request_id in open_:
                name = result.request_id
                out[name] = Answer(name, 0, list(result.generated_tokens), "length")
                del open_[name]
            for name in [n for n, end in open_.items() if end and end < time.monotonic()]:
                manager.cancel_request(name)
                out[name] = Answer(name, 0, [], "abort")
                del open_[name]
        manager.stop(block=True)
        assert out.keys() == known.keys()
        return list(out.values())

    def stored(self) -> Iterable[Row]:
        """Detach and give every row."""
        self.stats, epoch = self.capture.stats(), self.capture.epoch
        self.capture.detach()
        return rows_of(wait_closed(self.pipe, epoch), epoch)

    def plain(self) -> Plain | None:
        """Give what plain hooks saw."""
        return self._plain

    def alone(self, tokens: list[int]) -> Mapping[Hook, np.ndarray]:
        """Compute a sequence by itself."""
        return self.alone_of(tokens)

    # ---- plain hooks ----

    def _hook(self) -> None:
        model = self.model.model
        self.model.register_forward_pre_hook(self._begin, with_kwargs=True)
        for i, layer in enumerate(model.layers):
            self._on(layer, ("resid_post", i))
            self._on(layer.self_attn, ("attn_out", i))
            self._on(layer.mlp, ("mlp_out", i))
            layer.post_attention_layernorm.register_forward_pre_hook(self._given(("resid_mid", i)))
        self._on(model.norm, ("ln_final", -1))
        self.model.register_forward_hook(self._end)

    def _begin(self, _module: Any, _args: Any, kwargs: Any) -> None:
        self._step = {}
        starts, ids = kwargs["cu_seq_lens_q"], kwargs["input_ids"].flatten()
        self._real = int(starts[-1])
        self._places = list(zip(ids.tolist(), kwargs["position_ids"].flatten().tolist(), strict=True))[: self._real]
        self._plain.widest = max(self._plain.widest, int((starts.diff() > 0).sum()))

    def _end(self, *_: Any) -> None:
        self._plain.computed.update(self._places)
        for hook, x in self._step.items():
            for place, row in zip(self._places, x.reshape(-1, x.shape[-1]), strict=False):
                self._plain.note(hook, digest(row.numpy().tobytes()), place)

    def _on(self, module: torch.nn.Module, hook: Hook) -> None:
        def hear(_module: Any, _args: Any, out: Any) -> None:
            self._step[hook] = (out[0] if isinstance(out, tuple) else out).detach().clone()

        module.register_forward_hook(hear)

    def _given(self, hook: Hook) -> Any:
        def hear(_module: Any, args: Any) -> None:
            self._step[hook] = args[0].detach().clone()

        return hear
