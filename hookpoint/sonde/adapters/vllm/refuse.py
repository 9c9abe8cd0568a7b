"""What of vLLM the plug-in cannot serve. It is said at the start, in one sentence each, and vLLM does not start."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from sonde.errors import CaptureError

log = logging.getLogger("sonde")

TESTED = "0.32"  #: the version that the tests run on

#: What is read of a model runner, and what for.
RUNNER = {
    "_model_forward": "where a batch is computed",
    "execute_model": "where a step begins and ends",
    "sample_tokens": "where a step is answered",
    "input_batch.req_ids": "which requests a batch has",
    "input_batch.num_reqs": "how many they are",
    "input_batch.num_computed_tokens_cpu": "the positions of their tokens",
    "query_start_loc.np": "where the tokens of each request lie",
    "discard_request_mask.np": "which rows are sampled from",
    "requests": "what each request asked for",
    "model": "the modules to tap",
}


def check_config(config: Any) -> None:
    """Raise CaptureError if vLLM is told to run in a way that cannot be captured."""
    for sentence in _unfit(config):
        raise CaptureError(f"capture vLLM: {sentence}")


def _unfit(config: Any) -> Iterator[str]:
    parallel, graphs = config.parallel_config, config.compilation_config.cudagraph_mode
    if config.use_v2_model_runner:
        yield (
            "it runs the model runner V2, whose batches live on the GPU and cannot be named from the host; "
            "set VLLM_USE_V2_MODEL_RUNNER=0, or take `sonde` out of --additional-config"
        )
    if config.speculative_config is not None:
        yield "speculative decoding is not supported: rejected drafts would be stored as accepted; start without it"
    if parallel.pipeline_parallel_size > 1:
        yield f"pipeline_parallel_size is {parallel.pipeline_parallel_size}; only 1 is supported"
    for name in ("decode_context_parallel_size", "prefill_context_parallel_size"):
        if getattr(parallel, name, 1) > 1:
            yield f"{name} is {getattr(parallel, name)}; only 1 is supported: ranks hold parts of a sequence"
    if getattr(parallel, "enable_dbo", False) or getattr(parallel, "num_ubatches", 1) > 1:
        yield "a batch is split into micro-batches on two threads; start without --enable-dbo"
    if graphs is not None and graphs.name != "NONE" and _on_cuda(config):
        yield (
            f"CUDA graphs ({graphs.name}) replay without hooks, and nothing would arrive; "
            "start with --enforce-eager, or with --compilation-config '{\"cudagraph_mode\": \"NONE\"}'"
        )
    if getattr(config.model_config, "is_encoder_decoder", False):
        yield "encoder and decoder compute different tokens in one forward; such models are not supported"
    if getattr(config.model_config, "runner_type", "generate") != "generate":
        yield f"the runner {config.model_config.runner_type!r} is not supported; only generation is"


def _on_cuda(config: Any) -> bool:
    return getattr(config.device_config, "device_type", "") == "cuda"


def check_runner(runner: Any, version: str) -> None:
    """Raise CaptureError if a model runner is not built as those that the plug-in knows."""
    missing = []
    for path, what in RUNNER.items():
        at = runner
        for name in path.split("."):
            at = getattr(at, name, None)
        if at is None:
            missing.append(f"{path}, {what}")
    if missing:
        raise CaptureError(
            f"capture vLLM {version}: {type(runner).__name__} has no {'; no '.join(missing)}; "
            f"this version is not supported, {TESTED} is"
        )
    if not version.startswith(TESTED):
        log.warning("vLLM %s: the plug-in was tested on %s alone; this one is built alike", version, TESTED)
