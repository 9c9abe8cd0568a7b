"""What capture costs a decode of a small Llama on the CPU, against the other ways of getting at its activations.

All arms run in one process, in random order, round after round. A figure is the lower decile of the times of single
tokens of all rounds, the prompts aside: what a token takes when nothing else on the machine disturbs it. Its difference
from `none` comes with a 95 % interval by bootstrap over the rounds; `none again` is the same as `none` and shows the
noise. CPU time is that of the thread that decodes, and the more robust figure where others use the machine, too: while
they have its core, only the clock goes on. An agent (`sonde run`) reads everything that is captured, under a policy
that takes it all, on another core; that no row was dropped is checked.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import itertools
import os
import platform
import random
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers

import sonde

ROOT = Path(__file__).resolve().parents[2]
LAYERS, WIDTH, BATCH, PROMPT, TOKENS = 8, 256, 4, 16, 32
RING = 2 << 20  # bytes: the calls that do not count write all of it once, so that its pages exist
WARM, COUNTED = 2, 2  # calls of generate for each arm and round
RESAMPLES = 1000

CONFIG = """\
bus: {{embedded: {{store_dir: {dir}/bus, listen: "127.0.0.1:0"}}}}
agent: {{socket: {dir}/s, dead_letter: {{dir: {dir}/dead}}}}
policy: {{rules: [{{name: everything, hooks: ["*"]}}]}}
http: {{listen: ""}}
"""


@dataclass
class Arm:
    """One way to run the model."""

    make: Callable[[], AbstractContextManager[Callable[[], None]]]  #: gives what is called before each generate
    model: transformers.PreTrainedModel
    how: dict[str, object] = field(default_factory=dict)  #: further arguments of generate
    cpu: list[list[float]] = field(default_factory=list)  #: of each round, microseconds of each token
    wall: list[list[float]] = field(default_factory=list)


def model() -> transformers.PreTrainedModel:
    """Make a Llama with random weights."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=8, num_key_value_heads=4,
        intermediate_size=688, vocab_size=4096, pad_token_id=0, eos_token_id=None,
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


def nothing() -> None:
    """Prepare no call."""


@contextlib.contextmanager
def plain() -> Iterator[Callable[[], None]]:
    """Leave the model as it is."""
    yield nothing


@contextlib.contextmanager
def attached(
    m: transformers.PreTrainedModel, socket: str, hooks: list[str], enabled: bool = True
) -> Iterator[Callable[[], None]]:
    """Capture hooks; fail if anything was not captured."""
    with sonde.attach(m, hooks, socket=socket, data_bytes=RING, mode="complete") as capture:
        capture.wait_attached()
        if not enabled:
            capture.disable()
        yield nothing
        stats = capture.stats()
        forwards = (WARM + COUNTED) * TOKENS if enabled else 0
        lost = stats.problems or stats.dropped_rows or stats.aborted_rows or stats.unidentified or stats.failures
        if lost or stats.forwards != forwards:
            raise SystemExit(f"the capture did not do what it should: {stats}")


@contextlib.contextmanager
def cloning(m: transformers.PreTrainedModel, layers: int) -> Iterator[Callable[[], None]]:
    """Have plain forward hooks clone the output of layers, and keep the clones of one call of generate."""
    kept: list[torch.Tensor] = []
    handles = [x.register_forward_hook(lambda _m, _a, out: kept.append(out.clone())) for x in m.model.layers[:layers]]
    yield kept.clear
    for h in handles:
        h.remove()


@contextlib.contextmanager
def detached(m: transformers.PreTrainedModel) -> Iterator[Callable[[], None]]:
    """Attach, capture once, and detach."""
    with sonde.attach(m, ["resid_post"], socket=None):
        generate(m, {})
    yield nothing


class Ticks(transformers.StoppingCriteria):
    """Notes when each token was chosen, and stops nothing."""

    def __init__(self) -> None:
        """Begin with no token."""
        self.cpu: list[int] = []
        self.wall: list[int] = []

    def __call__(self, input_ids: torch.Tensor, scores: object, **_: object) -> torch.Tensor:
        """Read the clocks: of the thread's CPU, and of the wall."""
        self.cpu.append(time.thread_time_ns())
        self.wall.append(time.perf_counter_ns())
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)

    def steps(self, ticks: list[int]) -> list[float]:
        """Give the microseconds of each token but the first."""
        return [(b - a) / 1e3 for a, b in itertools.pairwise(ticks)]


def generate(m: transformers.PreTrainedModel, how: dict[str, object]) -> tuple[list[float], list[float]]:
    """Decode, and return the microseconds of each token: of the thread's CPU, and of the clock."""
    ids = torch.arange(1, BATCH * PROMPT + 1).reshape(BATCH, PROMPT)
    ticks = Ticks()
    criteria = transformers.StoppingCriteriaList([ticks])
    mask = torch.ones_like(ids)
    m.generate(ids, attention_mask=mask, max_new_tokens=TOKENS, do_sample=False, stopping_criteria=criteria, **how)
    return ticks.steps(ticks.cpu), ticks.steps(ticks.wall)


def arms(socket: str) -> dict[str, Arm]:
    """List them."""
    m = model()
    other = model()  # transformers leaves hooks of its own in a model that once gave its hidden states
    hidden: dict[str, object] = {"output_hidden_states": True, "return_dict_in_generate": True}
    return {
        "none": Arm(plain, m),
        "none again": Arm(plain, m),
        "sonde, detached": Arm(lambda: detached(m), m),
        "sonde, disabled, all layers": Arm(lambda: attached(m, socket, ["resid_post"], enabled=False), m),
        "sonde, 1 hook": Arm(lambda: attached(m, socket, ["resid_post.0"]), m),
        "sonde, all layers": Arm(lambda: attached(m, socket, ["resid_post"]), m),
        "a forward hook that clones, 1 layer": Arm(lambda: cloning(m, 1), m),
        "forward hooks that clone, all layers": Arm(lambda: cloning(m, LAYERS), m),
        "output_hidden_states": Arm(plain, other, hidden),
    }


def measure(found: dict[str, Arm], rounds: int, seed: int) -> None:
    """Time all arms, round after round."""
    order = random.Random(seed)
    for turn in range(rounds + 1):
        for name in order.sample(list(found), len(found)):
            arm = found[name]
            with arm.make() as prepare:
                times = []
                for _ in range(WARM + COUNTED):
                    prepare()
                    gc.collect(0)
                    times.append(generate(arm.model, arm.how))
            if turn:  # in the first one all is new
                cpu, wall = zip(*times[WARM:], strict=True)
                arm.cpu.append(list(itertools.chain(*cpu)))
                arm.wall.append(list(itertools.chain(*wall)))


def quiet(rounds: Sequence[list[float]]) -> float:
    """Give the lower decile of the tokens of rounds."""
    return statistics.quantiles(itertools.chain(*rounds), n=10)[0]


def against(one: list[list[float]], other: list[list[float]], seed: int) -> tuple[float, float, float]:
    """Compare two arms: the difference, and a 95 % interval of it by bootstrap over pairs of rounds."""
    rng, pairs = random.Random(seed), list(zip(one, other, strict=True))
    found = []
    for _ in range(RESAMPLES):
        a, b = zip(*rng.choices(pairs, k=len(pairs)), strict=True)
        found.append(quiet(a) - quiet(b))
    found.sort()
    return quiet(one) - quiet(other), found[RESAMPLES // 40], found[-RESAMPLES // 40 - 1]


def report(found: dict[str, Arm], seed: int) -> None:
    """Print what each arm adds, and whether the aims are met."""
    none = found["none"]
    print(f"{'microseconds per token':<38} {'CPU':>7} {'added':>7} {'95 % interval':>16} | {'clock':>7} {'added':>7}")
    for name, arm in found.items():
        cpu, low, high = against(arm.cpu, none.cpu, seed)
        wall, *_ = against(arm.wall, none.wall, seed)
        print(
            f"{name:<38} {quiet(arm.cpu):>7.0f} {cpu:>7.0f} {low:>7.0f} … {high:>6.0f} | "
            f"{quiet(arm.wall):>7.0f} {wall:>7.0f}"
        )
    noise = against(found["none again"].cpu, none.cpu, seed)
    width = max(abs(noise[1]), abs(noise[2]))
    print(f"\nnoise: the two arms without capture differ by {noise[0]:.0f} ({noise[1]:.0f} … {noise[2]:.0f})")
    for name in ("sonde, detached", "sonde, disabled, all layers"):
        got, low, high = against(found[name].cpu, none.cpu, seed)
        verdict = "yes" if abs(got) <= width or low <= 0 <= high else "NO"
        print(f"{name} costs nothing beyond noise: {verdict}, {got:.0f} ({low:.0f} … {high:.0f})")
    for name, other in (
        ("sonde, all layers", "forward hooks that clone, all layers"),
        ("sonde, all layers", "output_hidden_states"),
        ("sonde, 1 hook", "a forward hook that clones, 1 layer"),
    ):
        got, low, high = against(found[name].cpu, found[other].cpu, seed)
        verdict = "yes" if high < 0 else "NO" if low > 0 else "not decided"
        print(f"{name} < {other}: {verdict}, by {got:.0f} ({low:.0f} … {high:.0f})")


def main() -> None:
    """Print the table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=9, help="of all arms (9)")
    options.add_argument("--seed", type=int, default=0, help="of the order of the arms (0)")
    given = options.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    print(
        f"Llama of {LAYERS} layers x {WIDTH}, f32, batch {BATCH}, {TOKENS} tokens a call, one thread; {given.rounds} "
        f"rounds, seed {given.seed}\ntorch {torch.__version__}, transformers {transformers.__version__}, Python "
        f"{platform.python_version()}, {platform.machine()}; load {' '.join(f'{x:.1f}' for x in os.getloadavg())}\n",
        flush=True,
    )  # fmt: skip
    with agent() as socket:
        found = arms(socket)
        measure(found, given.rounds, given.seed)
    report(found, given.seed)


if __name__ == "__main__":
    main()
