"""What capture costs a decode of a small Llama on the CPU, against the other ways of getting at its activations.

All arms run in one process, in random order, round after round; a figure is the median over the rounds of the time of
one generated token. `none again` is the same as `none` and shows the noise. An agent (`sonde run`, without a dataset)
reads the ring, so that its memory is used again and again, as in a real run; it takes its time on another core.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import torch
import transformers

import sonde

ROOT = Path(__file__).resolve().parents[2]
LAYERS, BATCH, PROMPT, TOKENS = 8, 4, 16, 32
RING = 4 << 20  # bytes: it has been around once before a figure is taken
WARM = 4  # calls of generate before the one that counts

CONFIG = """\
bus: {{embedded: {{store_dir: {dir}/bus, listen: "127.0.0.1:0"}}}}
agent: {{socket: {dir}/s, dead_letter: {{dir: {dir}/dead}}}}
policy: {{rules: [{{name: counted only, hooks: ["no_such_hook"]}}]}}
http: {{listen: ""}}
"""


Arm = Callable[[], AbstractContextManager[None]]


def model() -> transformers.PreTrainedModel:
    """Make a Llama with random weights."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=256, num_hidden_layers=LAYERS, num_attention_heads=8, num_key_value_heads=4, intermediate_size=688,
        vocab_size=4096, pad_token_id=0, eos_token_id=None,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


@contextlib.contextmanager
def agent() -> Iterator[str]:
    """Run an agent, and give its socket."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "sonde.yaml").write_text(CONFIG.format(dir=folder))
        command = [str(ROOT / "build" / "sonde"), "run", "--config", f"{folder}/sonde.yaml"]
        command += ["--role", "bus", "--role", "agent"]
        with open(f"{folder}/log", "w") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            while not Path(f"{folder}/s").exists():
                if process.poll() is not None:
                    raise SystemExit(f"the agent ended:\n{Path(folder, 'log').read_text()}")
                time.sleep(0.05)
            yield f"{folder}/s"
        finally:
            process.terminate()
            process.wait()


def attached(m: transformers.PreTrainedModel, socket: str, hooks: list[str], enabled: bool = True) -> Arm:
    """Capture hooks."""

    @contextlib.contextmanager
    def arm() -> Iterator[None]:
        with sonde.attach(m, hooks, socket=socket, data_bytes=RING) as capture:
            capture.wait_attached()
            if not enabled:
                capture.disable()
            yield
            stats = capture.stats()
            if stats.problems or stats.dropped_rows or (stats.captured_rows > 0) != enabled:
                raise SystemExit(f"the capture did not do what it should: {stats}")

    return arm


def cloning(m: transformers.PreTrainedModel) -> Arm:
    """Have plain forward hooks clone the output of each layer."""

    @contextlib.contextmanager
    def arm() -> Iterator[None]:
        kept: list[torch.Tensor] = []
        handles = [x.register_forward_hook(lambda _m, _a, out: kept.append(out.clone())) for x in m.model.layers]
        yield
        for h in handles:
            h.remove()

    return arm


def detached(m: transformers.PreTrainedModel) -> Arm:
    """Attach, capture once, and detach."""

    def arm() -> AbstractContextManager[None]:
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
    with agent() as socket:
        report(measure(socket, given, clock), given)


def measure(socket: str, given: argparse.Namespace, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Time all arms, round after round."""
    m, order = model(), random.Random(given.seed)
    other = model()  # transformers leaves hooks of its own in a model that once gave its hidden states
    hidden = {"output_hidden_states": True, "return_dict_in_generate": True}
    arms: dict[str, tuple[Arm, transformers.PreTrainedModel, dict[str, object]]] = {
        "none": (contextlib.nullcontext, m, {}),
        "none again": (contextlib.nullcontext, m, {}),
        "sonde detached": (detached(m), m, {}),
        "sonde disabled, all layers": (attached(m, socket, ["resid_post"], enabled=False), m, {}),
        "sonde, 1 hook": (attached(m, socket, ["resid_post.0"]), m, {}),
        "sonde, all layers": (attached(m, socket, ["resid_post"]), m, {}),
        "forward hooks that clone, all layers": (cloning(m), m, {}),
        "output_hidden_states": (contextlib.nullcontext, other, hidden),
    }
    times: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(given.rounds + 1):
        for name in order.sample(list(arms), len(arms)):
            make, used, how = arms[name]
            with make():
                for _ in range(WARM):
                    generate(used, **how)
                t = generate(used, clock, **how)
            if turn:
                times[name].append(t)
    return times


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
