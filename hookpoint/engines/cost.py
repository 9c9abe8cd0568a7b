"""What capture adds to vLLM on a CPU, beside plain hooks in the same run.

Each arm is an engine of its own, eager, one after the other in one process. It serves the same batch of greedy requests
in rounds, and given is the processor time of the thread that runs the engine, per decoded token: the median of the
rounds, and that of the differences to the median of `nothing` with a 95 % interval by bootstrap. `again` is a second
engine like `nothing`, and shows the noise. `plain hooks` clone the same sums, as a user would, and keep the last ones.
"""

from __future__ import annotations

import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1",
               "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}  # fmt: skip

import torch  # noqa: E402
import transformers  # noqa: E402
import vllm  # noqa: E402
from pipeline import Pipeline  # noqa: E402

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


def engine(model: Path, **additional: Any) -> Any:
    """Start one arm."""
    return vllm.LLM(str(model), skip_tokenizer_init=True, dtype="float32", enforce_eager=True, max_model_len=128,
                    max_num_seqs=BATCH, enable_prefix_caching=False, additional_config=additional)  # fmt: skip


def plain(llm: Any) -> Any:
    """Hook the layers as a user would."""
    model = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner.model
    kept: dict[int, torch.Tensor] = {}
    for i, layer in enumerate(model.model.layers):
        layer.register_forward_hook(lambda _m, _a, out, i=i: kept.__setitem__(i, (out[0] + out[1]).clone()))
    return llm


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
    """Run all arms in turns."""
    model, rng = write(folder / "model"), random.Random(1)
    arms: dict[str, Callable[[], Any]] = {
        "nothing": lambda: engine(model),
        "again": lambda: engine(model),
        "plain hooks, all layers": lambda: plain(engine(model)),
        "sonde, 1 layer": lambda: engine(model, sonde={"socket": socket, "hooks": ["resid_post.4"], "engine": "one"}),
        "sonde, all layers": lambda: engine(model, sonde={"socket": socket, "hooks": ["resid_post"], "engine": "all"}),
    }
    greedy = vllm.SamplingParams(max_tokens=TOKENS, temperature=0, ignore_eos=True, detokenize=False)
    prompts = [{"prompt_token_ids": [rng.randrange(3, 4096) for _ in range(PROMPT)]} for _ in range(BATCH)]
    took: dict[str, list[float]] = {name: [] for name in arms}
    said: dict[str, list[list[int]]] = {}
    for name, start in arms.items():
        llm = start()
        for turn in range(ROUNDS + 2):
            before = time.thread_time_ns()
            out = llm.generate(prompts, greedy, use_tqdm=False)
            if turn >= 2:
                took[name].append((time.thread_time_ns() - before) / 1e3 / (BATCH * TOKENS))
            said[name] = [list(o.outputs[0].token_ids) for o in out]
        stats = llm.collective_rpc("sonde_stats")[0]
        if stats is not None:
            assert stats["failures"] == stats["unidentified"] == stats["silent"] == 0, stats
            print(f"{name}: {stats['captured_rows']} rows, {stats['dropped_rows']} dropped")
        llm.llm_engine.engine_core.shutdown()
    assert all(tokens == said["nothing"] for tokens in said.values()), "capture changed a token"
    print(f"{BATCH} requests of {PROMPT} + {TOKENS} tokens, {ROUNDS} rounds; processor time, microseconds per token")
    base = statistics.median(took["nothing"])
    for name, values in took.items():
        middle, low, high = interval([v - base for v in values], rng)
        print(f"{name:<26} {statistics.median(values):8.1f}   added {middle:6.1f} ({low:.1f} … {high:.1f})")
    print("all arms generated the same tokens")


if __name__ == "__main__":
    main()
