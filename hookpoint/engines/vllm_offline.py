"""vLLM in this process, as a subject of the suite."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import probe
import tiny
from pipeline import Pipeline, rows_of, wait_closed
from suite import Answer, Hook, Job, Plain, Row

HOOKS = ("resid_post", "attn_out", "mlp_out", "resid_mid")
ALL = [*((h, i) for h in HOOKS for i in range(tiny.LAYERS)), ("ln_final", -1)]

#: A small cache for preemption, and steps that are shorter than a prompt.
ENGINE = {
    "skip_tokenizer_init": True, "dtype": "float32", "max_model_len": 192, "block_size": 32,
    "num_gpu_blocks_override": 40, "max_num_seqs": 24, "max_num_batched_tokens": 96, "enable_prefix_caching": True,
}  # fmt: skip


class Offline:
    """`LLM` with its engine, stepped here, so that requests join and leave between steps."""

    hooks: Sequence[Hook] = ALL
    sampled: Sequence[Hook] = [("logits", -1)]
    tolerance = 1e-3

    def __init__(
        self, run: Pipeline, model: Path, folder: Path, name: str, capture: bool = True, plain: bool = True,
        **engine: Any,
    ) -> None:  # fmt: skip
        """Start the engine. folder: for what the plain hooks write; plain: there are such, as no compiler allows."""
        import vllm

        self.name, self._run, self.seen = name, run, folder / f"{name}.probe" if plain else None
        self.preempted, self.captures = 0, capture
        self.alone_of = tiny.Alone(model)
        os.environ[probe.VARIABLE] = str(self.seen or "")
        sonde = {"socket": f"{run.dir}/s", "hooks": [*HOOKS, "ln_final", "logits"], "mode": "complete", "engine": name}
        if capture:
            engine["additional_config"] = {"sonde": sonde}
        self.llm = vllm.LLM(str(model), **{**ENGINE, "enforce_eager": True, **engine})
        self.engine = self.llm.llm_engine

    def serve(self, jobs: Sequence[Job], rng: random.Random) -> list[Answer]:
        """Serve jobs; a few join before each step."""
        self._count_preemptions()
        waiting, open_, out = list(jobs), {}, {}  # type: list[Job], dict[str, Job], dict[tuple[str, int], Answer]
        while waiting or open_:
            for _ in range(rng.randint(0, 4) if open_ else 20):
                if waiting and len(open_) < 40:
                    job = waiting.pop(0)
                    open_[job.id] = job
                    self.engine.add_request(job.id, {"prompt_token_ids": job.prompt}, params(job))
            for result in self.engine.step():
                job = open_.get(result.request_id)
                if job is None:
                    continue  # aborted in this step, for what its other sample said
                for c in result.outputs:
                    out[job.id, c.index] = Answer(job.id, c.index, list(c.token_ids), c.finish_reason or "abort")
                if result.finished:
                    del open_[job.id]
                elif job.abort_after and any(len(c.token_ids) >= job.abort_after for c in result.outputs):
                    self.engine.abort_request([job.id])
                    del open_[job.id]
                    for i in range(job.samples):
                        seen = out.get((job.id, i))
                        if seen is None or seen.finish != "length":
                            out[job.id, i] = Answer(job.id, i, seen.tokens if seen else [], "abort")
        return list(out.values())

    def _count_preemptions(self) -> None:
        core = getattr(self.engine.engine_core, "engine_core", None)
        if core is None:
            return
        preempt = core.scheduler._preempt_request

        def counting(*args: Any, **kwargs: Any) -> Any:
            self.preempted += 1
            return preempt(*args, **kwargs)

        core.scheduler._preempt_request = counting

    def stored(self) -> Iterable[Row]:
        """Stop the engine and give every row."""
        (stats,) = self.llm.collective_rpc("sonde_stats")
        self.stats = stats
        self.engine.engine_core.shutdown()
        return rows_of(wait_closed(self._run, stats["epoch"]), stats["epoch"])

    def plain(self) -> Plain | None:
        """Give what plain hooks in the engine saw."""
        return probe.read(self.seen) if self.seen else None

    def alone(self, tokens: list[int]) -> Mapping[Hook, np.ndarray]:
        """Compute a sequence by itself with Hugging Face."""
        return self.alone_of(tokens)


def params(job: Job) -> Any:
    """Sample within the job's own alphabet. A seed of a request ends vLLM on a CPU when its prompt comes in chunks."""
    import vllm
    from vllm.sampling_params import RequestOutputKind

    return vllm.SamplingParams(
        n=job.samples, max_tokens=job.max_tokens, temperature=1.0, detokenize=False, ignore_eos=True,
        allowed_token_ids=list(range(*job.own)) if job.own != (0, 0) else None,
        output_kind=RequestOutputKind.CUMULATIVE,
    )  # fmt: skip
