"""In the worker of vLLM: its forwards are captured, and their rows named by the scheduler's packed layout."""

from __future__ import annotations

import atexit
import functools
import hashlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sonde.adapters.contract import Counts, Part, Sequences
from sonde.adapters.vllm import hooks, refuse, scheduling
from sonde.adapters.vllm.settings import ASKED, Settings, request_of
from sonde.errors import CaptureError
from sonde.gather import Gatherer
from sonde.recorder import Recorder, WriterSettings
from sonde.rows import ELEMENTS, grid
from sonde.step import Finish, Unidentified
from sonde.taps import Forward

log = logging.getLogger("sonde")

DIGESTED = 2 << 30  # bytes of weights that are read at the start for their digest
CLOSE_TIMEOUT = 10.0  # seconds that the end waits for the agent

SILENT = (
    "hooks are attached and nothing arrives: a batch was computed, and no tap was passed. This vLLM calls its model "
    "in a way that the plug-in does not see; nothing is stored"
)


def install() -> None:
    """Follow each worker that loads a model from now on, if its engine captures."""
    from vllm.v1.worker.worker_base import WorkerWrapperBase

    if hasattr(WorkerWrapperBase, "sonde_stats"):
        return
    shutdown = WorkerWrapperBase.shutdown
    load = WorkerWrapperBase.__dict__.get("load_model")  # of another plug-in; vLLM itself asks the worker

    def load_model(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = self.worker.load_model(*args, **kwargs) if load is None else load(self, *args, **kwargs)
        settings = Settings.of(self.vllm_config.additional_config)
        if settings is not None:
            self.sonde = attach(self.worker, self.vllm_config, settings)
        return out

    @functools.wraps(shutdown)
    def closing(self: Any, *args: Any, **kwargs: Any) -> Any:
        if getattr(self, "sonde", None) is not None:
            self.sonde.close()
        return shutdown(self, *args, **kwargs)

    def sonde_stats(self: Any) -> dict[str, Any] | None:
        """Say what was captured, for `collective_rpc`; None: this worker captures nothing."""
        adapter = getattr(self, "sonde", None)
        return None if adapter is None else adapter.stats()

    def sonde_sequences(self: Any) -> list[dict[str, Any]] | None:
        """List what is computed, for `collective_rpc`; None: this worker captures nothing."""
        adapter = getattr(self, "sonde", None)
        return None if adapter is None else adapter.open_sequences()

    WorkerWrapperBase.load_model, WorkerWrapperBase.shutdown, WorkerWrapperBase.sonde = load_model, closing, None
    WorkerWrapperBase.sonde_stats, WorkerWrapperBase.sonde_sequences = sonde_stats, sonde_sequences


def attach(worker: Any, config: Any, settings: Settings) -> Adapter | None:
    """Capture the model of a worker; None: another rank has the same rows. Raises CaptureError: vLLM does not start."""
    import vllm

    refuse.check_config(config)
    runner = worker.model_runner
    refuse.check_runner(runner, vllm.__version__)
    taps = hooks.choose(runner.model, settings.hooks, config.parallel_config.tensor_parallel_size)
    if getattr(worker, "rank", 0) % config.parallel_config.tensor_parallel_size:
        return None
    return Adapter(runner, config, settings, taps, vllm.__version__)


class Adapter:
    """Captures one model runner. All but the answers to aborts happens on the thread that runs the model."""

    def __init__(self, runner: Any, config: Any, settings: Settings, taps: list[hooks.EngineTap], version: str) -> None:
        """Hook the model and wrap three methods of the runner. Raises CaptureError."""
        self.runner, self.settings, self.taps = runner, settings, taps
        self._counts = Counts()
        self.recorder = Recorder(_writer(config, settings, version, self._abort, self._note))
        self.sequences = Sequences(self.recorder)
        self._gatherer = Gatherer(self.recorder, taps, None, None, self._counts.problem)
        self._forward: Forward | None = None
        self._ignored: set[str] = set()  # internal ids of what is not captured, while they are computed
        self._closed = False
        modules = dict(runner.model.named_modules())
        self._hooks = [hooks.Hook(i, tap, self._take) for i, tap in enumerate(taps)]
        self._handles = [hook.attach(modules[tap.path]) for hook, tap in zip(self._hooks, taps, strict=True)]
        hooks.listen(self._take)
        self._wrap(runner)
        scheduling.hear_end.append(self._end)
        atexit.register(self.close)
        log.warning("sonde captures %s of %s into %s", ", ".join(settings.hooks), type(runner.model).__name__,
                    settings.socket)  # fmt: skip

    def stats(self) -> dict[str, Any]:
        """Say what was captured and what was not."""
        n, ring = self._counts, self.recorder.stats()
        return {
            "epoch": self.recorder.epoch, "attached": bool(ring.attached), "forwards": n.forwards,
            "unidentified": n.unidentified, "silent": n.silent, "failures": n.failures,
            "captured_rows": ring.captured_rows, "dropped_rows": sum(ring.dropped_rows),
            "aborted_rows": ring.aborted_rows, "open": len(self.sequences), "problems": dict(n.problems),
        }  # fmt: skip

    def open_sequences(self) -> list[dict[str, Any]]:
        """List the sequences that are computed, each with its ids."""
        return [
            {"request": r.id, "external_id": r.external_id, "engine_id": r.engine_id, "sample": r.sample}
            for r in self.sequences.requests()
        ]

    def close(self) -> None:
        """Leave the model as it was, and wait until the agent has everything; again: nothing happens."""
        if self._closed:
            return
        self._closed = True
        hooks.listen(None)
        scheduling.hear_end.remove(self._end)
        atexit.unregister(self.close)
        for handle in self._handles:
            handle.remove()
        for name in WRAPPED:
            self.runner.__dict__.pop(name, None)
        if not self.recorder.forked:
            self.sequences.close()
            self._gatherer.close(CLOSE_TIMEOUT)
        left = self.recorder.close(CLOSE_TIMEOUT)
        if left:
            log.warning("sonde: %s", left)

    # ---- around a step ----

    def _wrap(self, runner: Any) -> None:
        forward, execute, sample = runner._model_forward, runner.execute_model, runner.sample_tokens

        def model_forward(*args: Any, **kwargs: Any) -> Any:
            self._begin(kwargs.get("input_ids"), kwargs.get("positions"))
            return forward(*args, **kwargs)

        def execute_model(scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
            self._counts.guard(self._finished, scheduler_output)
            self._forward = None
            out = execute(scheduler_output, *args, **kwargs)
            # Logits are computed behind the forward, and a step that raised stores nothing.
            self._counts.guard(self._store)
            return out

        def sample_tokens(*args: Any, **kwargs: Any) -> Any:
            return self._tell_stops(sample(*args, **kwargs))

        runner._model_forward, runner.execute_model, runner.sample_tokens = model_forward, execute_model, sample_tokens

    def _begin(self, ids: Any, positions: Any) -> None:
        """Name the rows of the batch that is computed next."""
        try:
            parts, last = self._layout(positions)
            ranges = self.sequences.ranges(parts)
            if not ranges:
                return
            rows = next((x.shape[0] for x in (ids, positions) if isinstance(x, torch.Tensor) and x.dim() == 1), 0)
            self._forward = Forward(ranges, grid(1, rows, last))
            if self.settings.token_ids and isinstance(ids, torch.Tensor):
                self._forward.taken.append((-1, ids, None))
        except Exception as e:  # noqa: BLE001 (whatever goes wrong in capture is not the model's)
            self._counts.unidentified += isinstance(e, Unidentified)
            self._counts.problem("identity", str(e) if isinstance(e, Unidentified) else repr(e))

    def _layout(self, positions: Any) -> tuple[list[Part], tuple[int, ...]]:
        """Read the packed batch: the parts that are captured, and the row of each request that gives logits."""
        batch = self.runner.input_batch
        n = batch.num_reqs
        starts = self.runner.query_start_loc.np[: n + 1].tolist()
        computed = batch.num_computed_tokens_cpu[:n].tolist()
        discard = self.runner.discard_request_mask.np[:n].tolist()
        keys = batch.req_ids[:n]
        _check(starts, computed, positions)
        parts = []
        for i, key in enumerate(keys):
            if key not in self.sequences and key not in self._ignored:
                self._open(key, computed[i])
            if key not in self._ignored:
                parts.append(Part(key, computed[i], starts[i + 1] - starts[i], starts[i], not discard[i]))
        return parts, tuple(s - 1 for s in starts[1:])

    def _open(self, key: str, computed: int) -> None:
        """Begin the sequence of a request, or ignore it."""
        state = self.runner.requests[key]
        params = state.sampling_params
        extra: Mapping[str, Any] = (params.extra_args if params is not None else None) or {}
        if self.settings.requests == "asked" and not any(extra.get(name) for name in ASKED):
            self._ignored.add(key)
            return
        lora = state.lora_request
        tokens = (params.max_tokens if params is not None else 0) or 0
        try:
            request = request_of(extra, key, state.num_prompt_tokens, tokens, lora.lora_name if lora else "")
            self.sequences.open(key, request, cached=computed)
        except (CaptureError, ValueError) as e:  # a name that cannot be stored; the other requests are captured
            self._ignored.add(key)
            self._counts.problem("request", str(e))

    def _take(self, index: int, x: torch.Tensor, residual: torch.Tensor | None) -> None:
        """Copy what a tap was passed with, or form the sum of the stream."""
        forward = self._forward
        if forward is None:
            return
        try:
            x = x.detach().clone() if residual is None else torch.add(x, residual)
            if self.taps[index].sampled:
                x = x.unsqueeze(0)
            forward.taken.append((index, x, None))
        except Exception as e:  # noqa: BLE001 (nothing that goes wrong here may reach the model)
            forward.problems.append((index, e))

    def _store(self) -> None:
        forward, self._forward = self._forward, None
        if forward is None:
            return
        if all(index < 0 for index, _, _ in forward.taken) and not forward.problems:
            self._counts.silent += 1
            if self._counts.silent == 1:
                log.error("sonde: %s", SILENT)
            return
        self.recorder.forget_step()
        try:
            with self.recorder.lock:
                self._counts.forwards += self._gatherer.store(forward)
        finally:
            self.sequences.committed(self.recorder.last_step)

    # ---- ends and stops ----

    def _finished(self, scheduler_output: Any) -> None:
        """End the sequences that the scheduler has ended."""
        ended = getattr(scheduler_output, scheduling.ENDED, {})
        self._ignored -= scheduler_output.finished_req_ids
        for key in scheduler_output.finished_req_ids:
            self.sequences.end(key, *ended.get(key, (Finish.ABORT, None)))

    def _end(self, key: str, finish: Finish, generated: int) -> None:
        """Hear from a scheduler in this process that a sequence ended."""
        self._counts.guard(self.sequences.end, key, finish, generated)

    def _abort(self, asked: Any) -> None:
        self.sequences.abort(asked)

    def _tell_stops(self, output: Any) -> Any:
        """Write beside the output of a step which of its sequences are to be stopped."""
        keys = self.sequences.stopping()
        if not keys or output is None:
            return output
        if not hasattr(output, "req_ids") and hasattr(output, "get_output"):  # asynchronous: the output comes later
            get = output.get_output
            output.get_output = lambda: self._tell_stops(get())
        else:
            setattr(output, scheduling.STOPPING, keys)
        return output

    # ---- what goes wrong ----

    def _note(self, text: str) -> None:
        log.warning("sonde: %s", text)


WRAPPED = ("_model_forward", "execute_model", "sample_tokens")


def _check(starts: list[int], computed: list[int], positions: Any) -> None:
    """Hold the layout against the positions that the model is given. Raises Unidentified."""
    if not isinstance(positions, torch.Tensor) or positions.dim() != 1 or not positions.is_cpu:
        return  # on a GPU reading them would wait for it
    counts = np.diff(starts)
    shift = np.repeat(np.asarray(computed) - np.asarray(starts[:-1]), counts)
    if not np.array_equal(positions.numpy()[: starts[-1]], np.arange(starts[-1]) + shift):
        raise Unidentified("the batch is packed otherwise than the scheduler says")


def _writer(config: Any, settings: Settings, version: str, on_abort: Any, on_log: Any) -> WriterSettings:
    model, parallel = config.model_config, config.parallel_config
    engine = settings.engine or f"vllm-{os.getpid()}"
    if parallel.data_parallel_size > 1:
        engine = f"{engine}-{parallel.data_parallel_rank}"
    text = model.hf_text_config
    number = {"layers": "num_hidden_layers", "d_model": "hidden_size", "vocab": "vocab_size"}
    served = model.served_model_name or model.model
    digest = settings.weights_digest or _digest(Path(model.model) / "model.safetensors")
    return WriterSettings(
        socket=settings.socket,
        mode=settings.mode,
        data_bytes=settings.data_bytes,
        engine_instance=engine,
        on_abort=on_abort,
        on_log=on_log,
        meta={
            "name": str(served[0] if isinstance(served, list) else served),
            "revision": digest.removeprefix("sha256:")[:12],
            "weights_digest": digest,
            "quantisation": str(model.quantization or ELEMENTS.get(getattr(text, "dtype", None), "")),
            "engine": "vllm",
            "engine_version": version,
            **{k: v for k, n in number.items() if isinstance(v := getattr(text, n, 0), int)},
        },
    )


def _digest(weights: Path) -> str:
    """Name the weights as detectors are bound to them; "": they are in several files, large, or not here."""
    if not weights.is_file() or weights.stat().st_size > DIGESTED:
        return ""
    digest = hashlib.sha256()
    with weights.open("rb") as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return f"sha256:{digest.hexdigest()}"
