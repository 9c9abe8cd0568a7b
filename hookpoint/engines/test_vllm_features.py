"""What a client asks of the plug-in and a detector of the engine, on one running vLLM; and what must be refused."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm", reason="NOT RUN: vLLM is not installed; hookpoint/engines/install.sh installs it")

import tiny  # noqa: E402
import vllm  # noqa: E402
from pipeline import Pipeline, abort, wait_closed  # noqa: E402
from vllm.exceptions import VLLMValidationError  # noqa: E402
from vllm_offline import Offline  # noqa: E402

import sonde  # noqa: E402
from sonde.adapters.vllm import refuse  # noqa: E402
from sonde.adapters.vllm.abort import in_process  # noqa: E402
from sonde.adapters.vllm.settings import Settings, sample_of  # noqa: E402
from sonde.errors import CaptureError  # noqa: E402

PROMPT = [11, 12, 13, 14, 15]


class Engine:
    """One vLLM, and its dataset once it has stopped."""

    def __init__(self, pipe: Pipeline, folder: Path) -> None:
        self.pipe = pipe
        self.subject = Offline(pipe, tiny.write(folder / "model", 200), folder, "features")
        self.engine = self.subject.engine
        self._lake: sonde.Lake | None = None
        self.epoch = self.stats()["epoch"]

    def stats(self) -> dict[str, Any]:
        return self.engine.collective_rpc("sonde_stats")[0]

    def add(self, name: str, n: int = 1, tokens: int = 6, prompt: list[int] = PROMPT, **extra: Any) -> None:
        parameters = vllm.SamplingParams(n=n, max_tokens=tokens, temperature=float(n > 1), ignore_eos=True,
                                         detokenize=False, extra_args=extra or None)  # fmt: skip
        self.engine.add_request(name, {"prompt_token_ids": prompt}, parameters)

    def finish(self) -> dict[str, Any]:
        out = {}
        while self.engine.has_unfinished_requests():
            for result in self.engine.step():
                if result.finished:
                    out[result.request_id] = result
        return out

    def lake(self) -> sonde.Lake:
        if self._lake is None:
            list(self.subject.stored())
            self._lake = wait_closed(self.pipe, self.epoch)
        return self._lake


@pytest.fixture(scope="module")
def engine(module_pipe: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    yield Engine(module_pipe, tmp_path_factory.mktemp("features"))


# The tests below serve one after the other; the last ones read what was stored.


def test_windows_and_names_of_requests_are_served(engine: Engine) -> None:
    engine.add("window", hidden_state_window=[2, 4])
    engine.add("absolute", prompt=[21, 22, 23, 24], hidden_state_window_absolute=[1, 6])
    engine.add("named", n=2, prompt=[31, 32, 33], **{"sonde.request_id": "mine", "sonde.tenant": "acme",
               "sonde.opt_in": 1, "sonde.label.team": "red",
               "sonde.trace_parent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"})  # fmt: skip
    assert set(engine.finish()) == {"window", "absolute", "named"}


def test_parameters_that_are_used_twice_name_two_requests(engine: Engine) -> None:
    window = {"hidden_state_window": [0, 9]}
    both = vllm.SamplingParams(max_tokens=3, temperature=0, ignore_eos=True, detokenize=False, extra_args=dict(window))
    for name in ("twice-a", "twice-b"):
        engine.engine.add_request(name, {"prompt_token_ids": PROMPT}, both)
    engine.finish()
    assert both.extra_args == window, "what the caller gave is the caller's"


@pytest.mark.parametrize("extra", [
    {"hidden_state_window": [4, 2]}, {"hidden_state_window": [0]}, {"hidden_state_window": "all"},
    {"hidden_state_window": [-1, 2]}, {"hidden_state_window": [0, 1.5]}, {"hidden_state_window_absolute": [0, 1 << 40]},
    {"hidden_state_window": [0, 1], "hidden_state_window_absolute": [0, 1]}, {"sonde.request": "x"},
    {"sonde.tenant": ""}, {"sonde.tenant": "a\nb"}, {"sonde.opt_in": "yes"}, {"sonde.label.k": 1},
    {"sonde.request_id": "x" * 300},
])  # fmt: skip
def test_what_cannot_be_asked_is_a_bad_request(engine: Engine, extra: dict[str, Any]) -> None:
    with pytest.raises(VLLMValidationError, match=next(iter(extra)).partition(".")[0]):
        engine.add("bad", **extra)
    assert not engine.engine.has_unfinished_requests()


def test_a_detector_ends_one_sequence_over_the_bus(engine: Engine) -> None:
    for name in ("stopped", "goes-on"):
        engine.add(name, tokens=60, prompt=[41, 42, len(name)])
    for _ in range(5):
        engine.engine.step()
    assert abort(engine.pipe, engine.epoch, "features", _number(engine, "stopped"), 6) == "stopped"
    out = engine.finish()
    stopped, other = out["stopped"].outputs[0], out["goes-on"].outputs[0]
    assert (stopped.finish_reason, stopped.stop_reason) == ("stop", "stopped by a detector")
    assert 5 <= len(stopped.token_ids) <= 8 and len(other.token_ids) == 60 and other.finish_reason == "length"


def _number(engine: Engine, request: str) -> int:
    """Ask the adapter, as a detector reads it on the bus."""
    adapter = engine.engine.engine_core.engine_core.model_executor.driver_worker.sonde
    return next(s.track.number for s in adapter.sequences._open.values() if s.request.id == request)


def test_vllms_own_abort_has_its_traps(engine: Engine) -> None:
    engine.add("trap", n=2, tokens=60)
    engine.add("trap-too", tokens=60)
    engine.engine.step()
    ids = {s["engine_id"] for s in engine.engine.collective_rpc("sonde_sequences")[0]}
    assert len(ids) == 3 and all(i.partition("trap")[1] for i in ids)
    engine.engine.abort_request(sorted(ids))  # internal ids: vLLM ignores them without a word
    engine.engine.abort_request([])
    engine.engine.step()
    assert len(engine.engine.collective_rpc("sonde_sequences")[0]) == 3, "the traps of vLLM have changed"
    stopper = in_process(engine.engine)
    with pytest.raises(CaptureError, match="empty"):
        stopper.stop("")
    assert stopper.stop("tra") == "unknown", "a prefix is nobody's id"
    assert stopper.stop(next(i for i in ids if i.startswith("0_trap"))) == "stopped", "by the internal id"
    left = engine.engine.collective_rpc("sonde_sequences")[0]
    assert [s["external_id"] for s in left] == ["trap-too"]
    assert stopper.stop("trap") == "unknown"
    assert stopper.stop("trap-too") == "stopped"
    engine.finish()


def test_hooks_to_which_nothing_comes_are_an_alarm(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    adapter = engine.engine.engine_core.engine_core.model_executor.driver_worker.sonde
    for hook in adapter._hooks:
        hook.take = lambda *_: None  # as a compiler would leave the taps out
    with caplog.at_level(logging.ERROR, "sonde"):
        engine.add("unheard", prompt=[51, 52])
        out = engine.finish()
    for hook in adapter._hooks:
        hook.take = adapter._take
    assert len(out["unheard"].outputs[0].token_ids) == 6, "the engine goes on"
    assert engine.stats()["silent"] == 6
    assert [r.message for r in caplog.records if "nothing arrives" in r.message] == [caplog.records[0].message]


def test_windows_hold_what_was_asked_for(engine: Engine) -> None:
    lake = engine.lake()
    t = lake.tensor("window", "resid_post", 1)
    assert list(t.positions) == [len(PROMPT) + 2, len(PROMPT) + 3] and not t.missing
    assert list(lake.tensor("absolute", "resid_post", 1).positions) == [1, 2, 3, 4, 5]
    assert list(lake.tensor("twice-b", "resid_post", 1).positions) == [5, 6]


def test_both_ids_and_all_names_are_stored(engine: Engine) -> None:
    events = engine.lake().table("requests", epoch=engine.epoch).to_pylist()
    opened = {(e["request"], e["sample"]): e for e in events if e["event"] == "open"}
    for sample in range(2):
        e = opened["mine", sample]
        assert e["engine_id"].startswith(f"{sample}_named-"), e["engine_id"]
        assert (e["request_tenant"], e["opt_in"], dict(e["labels"])) == ("acme", True, {"team": "red"})
        assert e["trace_parent"].startswith("00-0af7651916cd43dd8448eb211c80319c")
    assert opened["window", 0]["engine_id"].startswith("window-")
    ends = {(e["request"], e["sample"]): e["reason"] for e in events if e["event"] == "end"}
    assert ends["stopped", 0] == "detector" and ends["goes-on", 0] == "length"
    assert ends["trap", 0] == ends["trap", 1] == ends["trap-too", 0] == "abort"
    assert ("unheard", 0) in ends


# What is refused needs no running engine.


def config(**changes: Any) -> Any:
    parallel = SimpleNamespace(pipeline_parallel_size=1, decode_context_parallel_size=1, enable_dbo=False,
                               prefill_context_parallel_size=1, num_ubatches=1)  # fmt: skip
    out = SimpleNamespace(
        use_v2_model_runner=False, speculative_config=None, parallel_config=parallel,
        compilation_config=SimpleNamespace(cudagraph_mode=SimpleNamespace(name="NONE")),
        device_config=SimpleNamespace(device_type="cpu"),
        model_config=SimpleNamespace(is_encoder_decoder=False, runner_type="generate"),
    )  # fmt: skip
    for path, value in changes.items():
        at, _, name = path.rpartition("__")
        setattr(getattr(out, at) if at else out, name, value)
    return out


@pytest.mark.parametrize(("changes", "sentence"), [
    ({"use_v2_model_runner": True}, "VLLM_USE_V2_MODEL_RUNNER=0"),
    ({"speculative_config": object()}, "speculative decoding"),
    ({"parallel_config__pipeline_parallel_size": 2}, "pipeline_parallel_size is 2"),
    ({"parallel_config__decode_context_parallel_size": 2}, "decode_context_parallel_size"),
    ({"parallel_config__enable_dbo": True}, "micro-batches"),
    ({"compilation_config__cudagraph_mode": SimpleNamespace(name="FULL"),
      "device_config__device_type": "cuda"}, "--enforce-eager"),
    ({"model_config__is_encoder_decoder": True}, "encoder and decoder"),
    ({"model_config__runner_type": "pooling"}, "runner 'pooling'"),
])  # fmt: skip
def test_modes_that_cannot_be_served_are_refused_in_a_sentence(changes: dict[str, Any], sentence: str) -> None:
    refuse.check_config(config())
    with pytest.raises(CaptureError, match=sentence):
        refuse.check_config(config(**changes))


def test_a_runner_that_is_built_otherwise_is_refused() -> None:
    with pytest.raises(CaptureError, match=r"vLLM 9.9.*no query_start_loc.np.*0.32 is"):
        refuse.check_runner(SimpleNamespace(_model_forward=1, execute_model=1), "9.9.0")


@pytest.mark.parametrize(("given", "sentence"), [
    ({"hook": ["resid_post"]}, "did you mean hooks"), ({"hooks": []}, "hooks is"), ({"hooks": "all"}, "hooks is"),
    ({"mode": "slow"}, "best_effort"), ({"requests": "some"}, "all, asked"), ({"data_bytes": "1"}, "whole number"),
    ({"token_ids": 1}, "true or false"), ([], "object"),
])  # fmt: skip
def test_a_wrong_configuration_is_refused_in_a_sentence(given: Any, sentence: str) -> None:
    with pytest.raises(CaptureError, match=sentence):
        Settings.of({"sonde": given})


def test_an_engine_that_cannot_be_served_does_not_start(tmp_path: Path) -> None:
    model = tiny.write(tmp_path / "model", 200)
    drafts = {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 2}
    with pytest.raises(CaptureError, match="speculative decoding"):
        vllm.LLM(str(model), skip_tokenizer_init=True, dtype="float32", enforce_eager=True, max_model_len=64,
                 additional_config={"sonde": {}}, speculative_config=drafts)  # fmt: skip


def test_internal_ids_give_their_samples() -> None:
    seed = random.Random(time.time_ns() % 1000)
    for external in ("a", "0_a", "1_0_a", "x-y", "0", "0_0", "cmpl-q-0"):
        internal = f"{external}-{seed.randrange(16**8):08x}"
        assert sample_of(internal, external) == sample_of(external, external) == 0
        for i in (0, 1, 17):
            assert sample_of(f"{i}_{internal}", external) == sample_of(f"{i}_{external}", external) == i
