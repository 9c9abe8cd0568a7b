"""Whether capture changes what a model says: not at all in eager mode, and as any observer does under a compiler.

Eager, and eager inside of a CUDA graph: logits with a capture of six hooks a layer and without are compared bit for
bit. Under torch.compile a model that is observed is another program: each build compiles the same model without hooks
twice, with a capture, with `output_hidden_states`, and with an operation at each tap that does nothing and has the
compiler finish the tensor there (`pin`); the difference of each from the first is reported.
"""

from __future__ import annotations

from typing import Any

import cost
import decoder
import rig
import torch
import transformers

import sonde

BATCHES = [1, 8, 64] if rig.ON_GPU else [2]
BUILDS = 5 if rig.ON_GPU else 1

_library = torch.library.Library("sonde_bench", "DEF")
_library.define("pin(Tensor x, Tensor(a!) token) -> ()")
_library.impl("pin", lambda x, token: None, "CompositeExplicitAutograd")
torch.library.register_fake("sonde_bench::pin", lambda x, token: None, lib=_library)


def tight(results: rig.Results, shape: str) -> None:
    """Compare logits of the tight decoder, eager and in graphs."""
    model = decoder.make(shape, max(BATCHES), cost.PAST + 8, rig.DEVICE)
    out: dict[str, Any] = {}
    for batch in BATCHES:
        bench = cost.Bench(model, batch)
        plain, tapped = cost.Arm(bench, "off", True), cost.Sonde(bench, "on", True, 6, "")
        before, again, during = (a.call().clone() for a in (plain, plain, tapped))
        graphs = [rig.Step(a.call, a.capture) for a in (plain, tapped)]
        slots = tapped._slots.ranges()
        inside = [g.replay(slots).clone() for g in graphs]
        rig.synchronize()
        out[f"batch {batch}"] = {
            "repeated": torch.equal(before, again), "eager": torch.equal(before, during),
            "graph": torch.equal(inside[0], inside[1]), "graph and eager": torch.equal(inside[0], before),
        }  # fmt: skip
        tapped.capture.detach(0)
    results.add(f"logits: {shape} tight decoder, equal with capture", **out)


def eager(results: rig.Results, shape: str) -> None:
    """Compare logits of eager forwards of a Hugging Face model."""
    model, same, batches = rig.model(shape), 0, 8
    inputs = [torch.randint(3, 900, (4, 16), device=rig.DEVICE) for _ in range(batches)]
    before = [model(input_ids=x).logits for x in inputs]
    with sonde.attach(model, rig.HOOKS[6], socket=None):
        during = [model(input_ids=x).logits for x in inputs]
    for a, b in zip(before, during, strict=True):
        same += torch.equal(a, b)
    again = sum(torch.equal(a, model(input_ids=x).logits) for a, x in zip(before, inputs, strict=True))
    results.add(f"logits: {shape} Hugging Face, eager", batches=batches, equal=same, repeated_equal=again)


class Build:
    """One model, compiled in several ways."""

    def __init__(self, seed: int) -> None:
        """seed: of the weights."""
        torch.manual_seed(seed)
        width = 512 if rig.ON_GPU else 32
        config = transformers.Qwen3Config(
            hidden_size=width, num_hidden_layers=6 if rig.ON_GPU else 2, num_attention_heads=8, num_key_value_heads=4,
            head_dim=64 if rig.ON_GPU else 8, intermediate_size=3 * width, vocab_size=4096, pad_token_id=0)  # fmt: skip
        torch.set_default_dtype(torch.bfloat16)
        try:
            with torch.device(rig.DEVICE):
                self.model = transformers.Qwen3ForCausalLM(config).eval()
        finally:
            torch.set_default_dtype(torch.float32)
        for p in self.model.parameters():
            if p.dim() > 1:
                p.normal_(0, 0.05)
        self.ids = torch.randint(3, 4000, (8, 32), device=rig.DEVICE)

    def logits(self, way: str) -> torch.Tensor:
        """Compile anew, and give the logits."""
        torch.compiler.reset()
        m = rig.twin(self.model)
        taps, capture = rig.taps(m, rig.HOOKS[6]), None
        if "pin" in way:
            token = torch.zeros(1, dtype=torch.int32, device=rig.DEVICE)
            rig.plain_hooks(m, taps, lambda i, x: torch.ops.sonde_bench.pin.default(x, token))
        if "capture" in way:
            capture = sonde.attach(m, rig.HOOKS[6], socket=None, token_ids=False)
        how = {"output_hidden_states": True} if "hidden" in way else {}
        if how:
            rig.prepare_states(m)
        run = torch.compile(lambda ids: m(input_ids=ids, use_cache=False, **how).logits, fullgraph=True)
        out = [run(self.ids).float() for _ in range(2)][-1]
        if capture is not None:
            capture.detach(0)
            if capture.stats().forwards != 2:
                raise SystemExit(f"the compiled model was not captured: {capture.stats()}")
        return out


WAYS = ["compiled again", "capture", "output_hidden_states", "pin", "pin and capture"]


def compiled(results: rig.Results, seeds: list[int]) -> None:
    """Report how far logits move when a compiled model is observed."""
    for seed in seeds:
        if results.has(f"logits: compiled, build {seed}"):
            continue
        build = Build(seed)
        first = build.logits("off")
        out: dict[str, Any] = {"largest_logit": round(first.abs().max().item(), 3)}
        for way in WAYS:
            now = build.logits(way)
            out[way] = {"max": round((now - first).abs().max().item(), 4),
                        "mean": round((now - first).abs().mean().item(), 5),
                        "argmax_flips": int((now.argmax(-1) != first.argmax(-1)).sum())}  # fmt: skip
        with_eager = build.model(input_ids=build.ids, use_cache=False).logits.float()
        out["eager"] = {"max": round((with_eager - first).abs().max().item(), 4),
                        "argmax_flips": int((with_eager.argmax(-1) != first.argmax(-1)).sum())}  # fmt: skip
        results.add(f"logits: compiled, build {seed}", rows=first.shape[0] * first.shape[1], **out)


def run(results: rig.Results, only: str) -> None:
    """Compare those whose name holds `only`."""
    shape = "qwen3-8b" if rig.ON_GPU else "tiny"
    if only in f"logits: {shape} tight decoder, equal with capture":
        tight(results, shape)
    for shape in ("small", "1.7b") if rig.ON_GPU else ("small",):
        if only in f"logits: {shape} Hugging Face, eager":
            eager(results, shape)
    compiled(results, [i for i in range(BUILDS) if only in f"logits: compiled, build {i}"])
