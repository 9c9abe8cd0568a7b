"""Plain hooks on a model of vLLM, as a user would write them: the suite compares with what they saw.

They are a plug-in of vLLM of their own, knowing nothing of Sonde: `SONDE_PROBE` names the file to which each forward
adds what it computed, and `write_entry` makes the folder that puts the plug-in on Python's path.
"""

from __future__ import annotations

import itertools
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from suite import Plain, digest

VARIABLE = "SONDE_PROBE"


def write_entry(folder: Path) -> str:
    """Make a folder for PYTHONPATH through which vLLM finds this plug-in; give its path."""
    info = folder / "sonde_probe-0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sonde-probe\nVersion: 0\n")
    (info / "entry_points.txt").write_text("[vllm.general_plugins]\nsonde_probe = probe:register\n")
    return f"{folder}{os.pathsep}{Path(__file__).parent}"


def register() -> None:
    """Hook each model that a worker of this process loads, if a file is named then."""
    from vllm.v1.worker.worker_base import WorkerWrapperBase

    if hasattr(WorkerWrapperBase, "sonde_probe"):
        return
    load = WorkerWrapperBase.__dict__.get("load_model")

    def load_model(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = self.worker.load_model(*args, **kwargs) if load is None else load(self, *args, **kwargs)
        if os.environ.get(VARIABLE):
            Hooks(self.worker.model_runner.model, Path(os.environ[VARIABLE]))
        return out

    WorkerWrapperBase.load_model, WorkerWrapperBase.sonde_probe = load_model, True


class Hooks:
    """Clones what modules return, and writes digests of the rows."""

    def __init__(self, model: Any, path: Path) -> None:
        self._file = path.open("ab")
        self._step: dict[Any, Any] = {}
        self._real = False
        self._kept: list[Any] = []
        model.register_forward_pre_hook(self._begin, with_kwargs=True)
        for i, layer in enumerate(model.model.layers):
            self._on(layer, ("resid_post", i), lambda out: out[0] + out[1])
            self._on(layer.self_attn, ("attn_out", i), lambda out: out)
            self._on(layer.mlp, ("mlp_out", i), lambda out: out)
            self._on(layer.post_attention_layernorm, ("resid_mid", i), lambda out: out[1])
        self._on(model.model.norm, ("ln_final", -1), lambda out: out[0])
        model.register_forward_hook(self._end)
        model.logits_processor.register_forward_hook(self._logits)

    def _on(self, module: Any, hook: Any, pick: Any) -> None:
        def hear(_module: Any, _args: Any, out: Any) -> None:
            if self._real:
                self._step[hook] = pick(out).clone()

        module.register_forward_hook(hear)

    def _begin(self, _module: Any, _args: Any, kwargs: Any) -> None:
        from vllm.forward_context import get_forward_context

        self._real = bool(get_forward_context().attn_metadata)  # a warm-up has none
        self._step = {"tokens": kwargs["input_ids"].tolist(), "positions": kwargs["positions"].tolist()}

    def _end(self, *_: Any) -> None:
        if not self._real:
            return
        n = len(self._step["tokens"])
        rows = {k: [digest(r.numpy().tobytes()) for r in v[:n]] for k, v in self._step.items() if isinstance(k, tuple)}
        self._write({**{k: self._step[k] for k in ("tokens", "positions")}, "rows": rows})

    def _logits(self, _module: Any, _args: Any, out: Any) -> None:
        if self._real:
            self._write({"logits": [digest(r.numpy().tobytes()) for r in out]})

    def _write(self, record: dict[str, Any]) -> None:
        pickle.dump(record, self._file)
        self._file.flush()


def records(path: Path) -> int:
    """Count what the hooks wrote so far."""
    return sum(1 for _ in _records(path)) if path.exists() else 0


def read(path: Path, after: int = 0) -> Plain:
    """Put together what the hooks wrote, after so many records."""
    out = Plain()
    for record in itertools.islice(_records(path), after, None):
        for row in record.get("logits", ()):
            out.note(("logits", -1), row, None)
        out.widest = max(out.widest, len(record.get("logits", ())))
        places = list(zip(record.get("tokens", ()), record.get("positions", ()), strict=True))
        out.computed.update(places)
        for hook, rows in record.get("rows", {}).items():
            for row, place in zip(rows, places, strict=True):
                out.note(hook, row, place)
    return out


def _records(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as f:
        while True:
            try:
                yield pickle.load(f)  # noqa: S301 (written by this test)
            except EOFError:
                return
