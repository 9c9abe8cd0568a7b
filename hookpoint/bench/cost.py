"""What capture costs a decode of a small Llama on the CPU, against the other ways of getting at its activations.

Arms are copies of one model that share its weights; all stay as they are for the whole run. In each round every arm, in
random order, makes one short call of `generate` on one thread. The figure of a call is the median of its tokens, but
for the prompt and the first ones. An arm is compared with another round by round; given are the median of the
differences and a 95 % interval of it by bootstrap. `none again` is a second copy of what `none` is, and shows the
noise. `a call` is the difference of whole calls: prompt, first tokens and the opening of requests included.

CPU time is that of the thread that decodes; where there are several cores, it is kept on one and the agent on the
others. The agent (`sonde run`) takes everything, under a policy of all hooks; that no row was lost is checked.

What the arms do with the activations:
  sonde               copies them into the ring, with request, sample, position and pass of each row, and the token ids
  a hook that clones  `kept.append(output.clone())`; nothing else, and `kept` is emptied before the next call
  output_hidden_states=True, return_dict_in_generate=True
                      copies nothing: the states of all layers are handed out when the call returns
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import gc
import itertools
import os
import platform
import random
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers

import sonde

ROOT = Path(__file__).resolve().parents[2]
PROMPT, TOKENS, FIRST = 16, 16, 5  # of a call: tokens of each prompt, tokens decoded, and those of them left out
WARM = 3  # rounds before those that count
RESAMPLES = 1000

CONFIG = """\
bus: {{embedded: {{store_dir: {dir}/bus, listen: "127.0.0.1:0"}}}}
agent: {{socket: {dir}/s, dead_letter: {{dir: {dir}/dead}}}}
policy: {{rules: [{{name: everything, hooks: ["*"]}}]}}
http: {{listen: ""}}
"""


class Shape(NamedTuple):
    """Of a model and its batch."""

    layers: int
    width: int
    batch: int


@dataclass
class Arm:
    """One way to run the model. Figures are microseconds, one of each round."""

    model: transformers.PreTrainedModel
    how: dict[str, Any] = field(default_factory=dict)  #: further arguments of generate
    kept: list[torch.Tensor] = field(default_factory=list)  #: emptied before each call
    capture: sonde.Capture | None = None
    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    call: list[float] = field(default_factory=list)


@contextlib.contextmanager
def agent(binary: Path, cores: set[int]) -> Iterator[str]:
    """Run an agent on these cores, and give its socket."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "sonde.yaml").write_text(CONFIG.format(dir=folder))
        command = [str(binary), "run", "--config", f"{folder}/sonde.yaml", "--role", "bus", "--role", "agent"]
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, cores)  # which it inherits
        with open(f"{folder}/log", "w") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
        os.sched_setaffinity(0, before)
        try:
            while not Path(f"{folder}/s").exists():
                if process.poll() is not None:
                    raise SystemExit(f"the agent ended:\n{Path(folder, 'log').read_text()}")
                time.sleep(0.05)
            yield f"{folder}/s"
        finally:
            process.terminate()
            process.wait()


def llama(shape: Shape) -> transformers.PreTrainedModel:
    """Make a Llama with random weights."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=shape.width, num_hidden_layers=shape.layers, num_attention_heads=8, num_key_value_heads=4,
        intermediate_size=shape.width * 43 // 16, vocab_size=4096, pad_token_id=0, eos_token_id=None,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def arms(shape: Shape, socket: str) -> dict[str, Arm]:
    """Make them. Whatever a library does to a model stays in that copy."""
    first = llama(shape)
    shared = {id(x): x for x in itertools.chain(first.parameters(), first.buffers())}

    def plain(**how: Any) -> Arm:
        return Arm(copy.deepcopy(first, dict(shared)), how)

    def attached(*hooks: str) -> Arm:
        arm = plain()
        arm.capture = sonde.attach(arm.model, hooks, socket=socket, mode="complete")
        arm.capture.wait_attached()
        return arm

    def cloning(layers: int) -> Arm:
        arm = plain()
        for layer in arm.model.model.layers[:layers]:
            layer.register_forward_hook(lambda _module, _args, output: arm.kept.append(output.clone()))
        return arm

    found = {
        "none": plain(),
        "none again": plain(),
        "sonde, detached": attached("resid_post"),
        "sonde, disabled, all layers": attached("resid_post"),
        "sonde, 1 hook": attached("resid_post.0"),
        "sonde, all layers": attached("resid_post"),
        "a forward hook that clones, 1 layer": cloning(1),
        "forward hooks that clone, all layers": cloning(shape.layers),
        "output_hidden_states": plain(output_hidden_states=True, return_dict_in_generate=True),
    }
    generate(found["sonde, detached"], shape)
    found["sonde, detached"].capture.detach()
    found["sonde, detached"].capture = None
    found["sonde, disabled, all layers"].capture.disable()
    return found


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


def generate(arm: Arm, shape: Shape) -> tuple[float, float, float]:
    """Make one call, and return the microseconds of a token, of the thread's CPU and of the clock, and of the call."""
    ids = torch.arange(1, shape.batch * PROMPT + 1).reshape(shape.batch, PROMPT)
    mask, ticks = torch.ones_like(ids), Ticks()
    criteria = transformers.StoppingCriteriaList([ticks])
    arm.kept.clear()
    gc.collect(0)
    before = time.thread_time_ns()
    arm.model.generate(
        ids, attention_mask=mask, max_new_tokens=TOKENS, do_sample=False, stopping_criteria=criteria, **arm.how
    )
    call = time.thread_time_ns() - before
    cpu, wall = (statistics.median(b - a for a, b in itertools.pairwise(t[FIRST:])) for t in (ticks.cpu, ticks.wall))
    return cpu / 1e3, wall / 1e3, call / 1e3


def measure(found: dict[str, Arm], shape: Shape, rounds: int, seed: int) -> None:
    """Time all arms, round after round."""
    order = random.Random(seed)
    gc.collect()
    gc.freeze()  # or each collection would look at the modules of all arms
    for turn in range(WARM + rounds):
        for name in order.sample(list(found), len(found)):
            arm = found[name]
            figures = generate(arm, shape)
            if turn >= WARM:
                for into, x in zip((arm.cpu, arm.wall, arm.call), figures, strict=True):
                    into.append(x)
    gc.unfreeze()


def finish(found: dict[str, Arm], rounds: int) -> None:
    """Detach, and fail if anything was not captured."""
    for name, arm in found.items():
        if arm.capture is None:
            continue
        arm.capture.detach()
        stats = arm.capture.stats()
        forwards = 0 if "disabled" in name else (WARM + rounds) * TOKENS
        lost = stats.problems or stats.dropped_rows or stats.aborted_rows or stats.unidentified or stats.failures
        if lost or stats.forwards != forwards:
            raise SystemExit(f"{name}: the capture did not do what it should: {stats}")


def against(one: Sequence[float], other: Sequence[float], seed: int) -> tuple[float, float, float]:
    """Compare two arms: the median of the differences of the rounds, and a 95 % interval of it by bootstrap."""
    rng, differences = random.Random(seed), [a - b for a, b in zip(one, other, strict=True)]
    found = sorted(statistics.median(rng.choices(differences, k=len(differences))) for _ in range(RESAMPLES))
    return statistics.median(differences), found[RESAMPLES // 40], found[-RESAMPLES // 40 - 1]


def report(found: dict[str, Arm], seed: int) -> None:
    """Print what each arm adds, and whether the aims are met."""
    none = found["none"]
    head = f"{'CPU':>7} {'added, 95 % interval':>23} | {'clock':>7} {'added, 95 % interval':>23}"
    print(f"{'microseconds per token':<38} {head} | a call")
    for name, arm in found.items():
        columns = [against(arm.cpu, none.cpu, seed), against(arm.wall, none.wall, seed)]
        cpu, wall = (f"{x:>6.0f} ({low:>6.0f} … {high:>5.0f})" for x, low, high in columns)
        print(
            f"{name:<38} {statistics.median(arm.cpu):>7.0f} {cpu} | {statistics.median(arm.wall):>7.0f} {wall} | "
            f"{against(arm.call, none.call, seed)[0]:>6.0f}"
        )
    middle, low, high = against(found["none again"].cpu, none.cpu, seed)
    noise = max(abs(low), abs(high))
    print(f"\nnoise: the two arms without capture differ by {middle:.0f} ({low:.0f} … {high:.0f})")
    for name in ("sonde, detached", "sonde, disabled, all layers"):
        middle, low, high = against(found[name].cpu, none.cpu, seed)
        verdict = "yes" if abs(middle) <= noise or low <= 0 <= high else "NO"
        print(f"{name} costs nothing beyond noise: {verdict}, {middle:.0f} ({low:.0f} … {high:.0f})")
    for name, other in (
        ("sonde, all layers", "forward hooks that clone, all layers"),
        ("sonde, all layers", "output_hidden_states"),
        ("sonde, 1 hook", "a forward hook that clones, 1 layer"),
        ("sonde, 1 hook", "output_hidden_states"),
    ):
        middle, low, high = against(found[name].cpu, found[other].cpu, seed)
        verdict = "yes" if high < 0 else "NO" if low > 0 else "not decided"
        print(f"{name} < {other}: {verdict}, by {middle:.0f} ({low:.0f} … {high:.0f})")


def bench(shape: Shape, given: argparse.Namespace, cores: list[int]) -> None:
    """Measure one shape, and print its table."""
    rounds = max(given.rounds * 64 // (shape.layers * shape.batch * shape.width // 128), 16)
    print(
        f"\nLlama of {shape.layers} layers x {shape.width}, f32, batch {shape.batch}, {TOKENS} tokens a call of which "
        f"{TOKENS - FIRST - 1} count; {rounds} rounds, seed {given.seed}; load "
        f"{' '.join(f'{x:.1f}' for x in os.getloadavg())}",
        flush=True,
    )
    with agent(given.sonde, set(cores[1:] or cores)) as socket:
        found = arms(shape, socket)
        os.sched_setaffinity(0, cores[:1])  # this thread alone: those of the library exist by now
        try:
            measure(found, shape, rounds, given.seed)
        finally:
            os.sched_setaffinity(0, cores)
        finish(found, rounds)
    report(found, given.seed)


def main() -> None:
    """Print the tables."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=200, help="of all arms in the smallest shape (200)")
    options.add_argument("--shape", action="append", metavar="LAYERSxWIDTHxBATCH", help="(8x256x4 and 16x1024x16)")
    options.add_argument("--seed", type=int, default=0, help="of the order of the arms (0)")
    options.add_argument("--sonde", type=Path, default=ROOT / "build" / "sonde", help="the binary (build/sonde)")
    given = options.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    cores = sorted(os.sched_getaffinity(0))
    print(
        f"torch {torch.__version__}, transformers {transformers.__version__}, Python {platform.python_version()}, "
        f"{platform.machine()}, {len(cores)} cores",
        flush=True,
    )
    for text in given.shape or ("8x256x4", "16x1024x16"):
        bench(Shape(*map(int, text.split("x"))), given, cores)


if __name__ == "__main__":
    main()
