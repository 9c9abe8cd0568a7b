"""What capture adds to vLLM on a CPU, beside plain hooks in the same run.

One eager engine in one process serves the same batch of greedy requests again and again. In each round every arm has a
turn, in random order: its hooks are put in place, the batch is served, they are taken away. Given is the processor time
of the thread that runs the engine, per decoded token: the median of the rounds, and of the differences to `nothing`
in the same round, with a 95 % interval by bootstrap. `again` is `nothing` once more, and shows the noise. `plain hooks`
clone the same sums, as a user would, and keep the last ones.
"""

from __future__ import annotations

import contextlib
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1",
               "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}  # fmt: skip

import torch  # noqa: E402
import transformers  # noqa: E402
import vllm  # noqa: E402
from pipeline import Pipeline  # noqa: E402

from sonde.adapters.vllm import worker  # noqa: E402
from sonde.adapters.vllm.settings import Settings  # noqa: E402

BATCH, PROMPT, TOKENS, ROUNDS, LAYERS = 16, 32, 48, 15, 8


def write(folder: Path) -> Path:
    """Write a Llama of 8 layers of 256."""
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        vocab_size=4096, hidden_size=256, intermediate_size=704, num_hidden_layers=LAYERS, num_attention_heads=8,
        num_key_value_heads=4, head_dim=32, max_position_embeddings=256, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).eval().save_pretrained(folder)
    return folder


class Arm:
    """Hooks that are put in place for a turn."""

    def __init__(self, driver: Any, socket: str) -> None:
        """driver: of the worker. socket: of the agent."""
        self.driver, self.socket = driver, socket
        self.model = driver.worker.model_runner.model

    @contextlib.contextmanager
    def nothing(self) -> Iterator[None]:
        """Put nothing in place."""
        yield

    @contextlib.contextmanager
    def plain(self) -> Iterator[None]:
        """Hook the layers as a user would."""
        kept: dict[int, torch.Tensor] = {}

        def hear(i: int) -> Any:
            return lambda _module, _args, out: kept.__setitem__(i, (out[0] + out[1]).clone())

        handles = [layer.register_forward_hook(hear(i)) for i, layer in enumerate(self.model.model.layers)]
        yield
        for handle in handles:
            handle.remove()

    @contextlib.contextmanager
    def capture(self, hook: str) -> Iterator[None]:
        """Capture."""
        settings = Settings(socket=self.socket, hooks=(hook,), weights_digest="none")
        adapter = worker.attach(self.driver.worker, self.driver.vllm_config, settings)
        assert adapter is not None
        adapter.recorder.wait_attached(10)
        yield
        stats = adapter.stats()
        adapter.close()
        wrong = [stats[n] for n in ("failures", "unidentified", "silent", "dropped_rows")]
        assert not any(wrong) and stats["captured_rows"], stats


def interval(values: list[float], rng: random.Random) -> tuple[float, float, float]:
    """Give the median and a 95 % interval of it."""
    medians = sorted(statistics.median(rng.choices(values, k=len(values))) for _ in range(2000))
    return statistics.median(values), medians[50], medians[1949]


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as name:
        run = Pipeline(Path(name), "none")
        run.start_run()
        try:
            measure(Path(name), f"{name}/s")
        finally:
            run.stop()


def measure(folder: Path, socket: str) -> None:
    """Serve all rounds."""
    rng = random.Random(1)
    llm = vllm.LLM(str(write(folder / "model")), skip_tokenizer_init=True, dtype="float32", enforce_eager=True,
                   max_model_len=128, max_num_seqs=BATCH, enable_prefix_caching=False,
                   additional_config={"sonde": {"socket": socket}})  # fmt: skip
    driver = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker
    driver.sonde.close()
    arm = Arm(driver, socket)
    arms: dict[str, Callable[[], Any]] = {
        "nothing": arm.nothing, "again": arm.nothing, "plain hooks, all layers": arm.plain,
        "sonde, 1 layer": lambda: arm.capture("resid_post.4"), "sonde, all layers": lambda: arm.capture("resid_post"),
    }  # fmt: skip
    greedy = vllm.SamplingParams(max_tokens=TOKENS, temperature=0, ignore_eos=True, detokenize=False)
    prompts = [{"prompt_token_ids": [rng.randrange(3, 4096) for _ in range(PROMPT)]} for _ in range(BATCH)]
    took: dict[str, list[float]] = {name: [] for name in arms}
    said: set[str] = set()
    for turn in range(ROUNDS + 2):
        for name in rng.sample(list(arms), len(arms)):
            with arms[name]():
                before = time.thread_time_ns()
                out = llm.generate(prompts, greedy, use_tqdm=False)
                spent = (time.thread_time_ns() - before) / 1e3 / (BATCH * TOKENS)
            said.add(str([list(o.outputs[0].token_ids) for o in out]))
            if turn >= 2:
                took[name].append(spent)
    assert len(said) == 1, "capture changed a token"
    print(f"{BATCH} requests of {PROMPT} + {TOKENS} tokens, {ROUNDS} rounds; processor time, microseconds per token")
    for name, values in took.items():
        middle, low, high = interval([v - n for v, n in zip(values, took["nothing"], strict=True)], rng)
        print(f"{name:<26} {statistics.median(values):8.1f}   added {middle:6.1f} ({low:.1f} … {high:.1f})")
    print("all turns generated the same tokens")


if __name__ == "__main__":
    main()
