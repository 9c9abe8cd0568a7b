"""What capture costs a decode of a small Llama on the CPU, against the other ways of getting at its activations.

All arms run in one process, in random order, round after round; a figure is the median over the rounds of the time of
one generated token. `none again` is the same as `none` and shows the noise. The ring is written and never read: an
agent runs in a process of its own, and here it would take one of the cores that the model computes with.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import statistics
import time
from collections.abc import Callable, Iterator

import torch
import transformers

import sonde

LAYERS, BATCH, PROMPT, TOKENS = 8, 4, 16, 32
RING = 256 << 20  # more than all rounds of one attachment write


def model() -> transformers.PreTrainedModel:
    """Make a Llama with random weights."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=256, num_hidden_layers=LAYERS, num_attention_heads=8, num_key_value_heads=4, intermediate_size=688,
        vocab_size=4096, pad_token_id=0, eos_token_id=None,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def attached(m: transformers.PreTrainedModel, hooks: list[str], enabled: bool = True) -> Callable[[], object]:
    """Capture hooks."""

    @contextlib.contextmanager
    def arm() -> Iterator[None]:
        with sonde.attach(m, hooks, socket=None, data_bytes=RING) as capture:
            if not enabled:
                capture.disable()
            yield
            stats = capture.stats()
            if stats.problems or stats.dropped_rows or (stats.captured_rows > 0) != enabled:
                raise SystemExit(f"the capture did not do what it should: {stats}")

    return arm


def cloning(m: transformers.PreTrainedModel) -> Callable[[], object]:
    """Have plain forward hooks clone the output of each layer."""

    @contextlib.contextmanager
    def arm() -> Iterator[None]:
        kept: list[torch.Tensor] = []
        handles = [x.register_forward_hook(lambda _m, _a, out: kept.append(out.clone())) for x in m.model.layers]
        yield
        for h in handles:
            h.remove()

    return arm


def detached(m: transformers.PreTrainedModel) -> Callable[[], object]:
    """Attach, capture once, and detach."""

    def arm() -> contextlib.AbstractContextManager[None]:
        with sonde.attach(m, ["resid_post"], socket=None):
            generate(m)
        return contextlib.nullcontext()

    return arm


def generate(m: transformers.PreTrainedModel, clock: Callable[[], float] = time.perf_counter, **how: object) -> float:
    """Decode, and return the microseconds of one token."""
    ids = torch.arange(1, BATCH * PROMPT + 1).reshape(BATCH, PROMPT)
    mask = torch.ones_like(ids)
    start = clock()
    m.generate(ids, attention_mask=mask, max_new_tokens=TOKENS, do_sample=False, **how)
    return (clock() - start) / TOKENS * 1e6


def main() -> None:
    """Print the table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=40, help="of all arms (40)")
    options.add_argument("--seed", type=int, default=0, help="of the order of the arms (0)")
    options.add_argument("--cpu-time", action="store_true", help="of the process, for a machine that others use, too")
    options.add_argument("--threads", type=int, default=1, help="that torch computes with (1)")
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    transformers.logging.set_verbosity_error()
    clock = time.process_time if given.cpu_time else time.perf_counter
    m, order = model(), random.Random(given.seed)
    other = model()  # transformers leaves hooks of its own in a model that once gave its hidden states
    hidden = {"output_hidden_states": True, "return_dict_in_generate": True}
    arms: dict[str, tuple[Callable[[], object], transformers.PreTrainedModel, dict[str, object]]] = {
        "none": (contextlib.nullcontext, m, {}),
        "none again": (contextlib.nullcontext, m, {}),
        "sonde detached": (detached(m), m, {}),
        "sonde disabled, all layers": (attached(m, ["resid_post"], enabled=False), m, {}),
        "sonde, 1 hook": (attached(m, ["resid_post.0"]), m, {}),
        "sonde, all layers": (attached(m, ["resid_post"]), m, {}),
        "forward hooks that clone, all layers": (cloning(m), m, {}),
        "output_hidden_states": (contextlib.nullcontext, other, hidden),
    }
    times: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(given.rounds + 1):
        for name in order.sample(list(arms), len(arms)):
            make, used, how = arms[name]
            with make():  # type: ignore[attr-defined]
                generate(used, **how)
                t = generate(used, clock, **how)
            if turn:
                times[name].append(t)
    report(times, given)


def report(times: dict[str, list[float]], given: argparse.Namespace) -> None:
    """Print medians, and the median of the differences from `none` of the same round."""
    print(
        f"Llama of {LAYERS} layers x 256, batch {BATCH}, {given.threads} thread(s), {given.rounds} rounds in random "
        f"order, seed {given.seed}; torch {torch.__version__}, transformers {transformers.__version__}"
    )
    print(f"{'':<38} {'us a token':>10} {'added':>8} {'%':>7}")
    base = times["none"]
    for name, got in times.items():
        added = statistics.median(a - b for a, b in zip(got, base, strict=True))
        print(f"{name:<38} {statistics.median(got):>10.0f} {added:>8.0f} {added / statistics.median(base) * 100:>7.2f}")


if __name__ == "__main__":
    main()
