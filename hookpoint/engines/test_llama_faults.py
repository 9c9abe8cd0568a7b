"""llama.cpp: wrong builds, which the suite must catch, and batches that nobody can name."""

from __future__ import annotations

import dataclasses
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("llama_cpp", reason="NOT RUN: llama.cpp is not installed; install-llama.sh installs it")

import llama_cpp  # noqa: E402
import llama_tiny  # noqa: E402
import pipeline  # noqa: E402
from llama_served import Model, Served  # noqa: E402
from nats.errors import NoRespondersError  # noqa: E402
from pipeline import Pipeline  # noqa: E402
from suite import Canaries, Job, Judge, run  # noqa: E402

from sonde.adapters import llamacpp  # noqa: E402
from sonde.adapters.contract import Part, Request  # noqa: E402
from sonde.errors import CaptureError, UnknownHook  # noqa: E402
from sonde.recorder import WriterSettings  # noqa: E402
from sonde.step import Finish  # noqa: E402


def swapped(parts: list[Part]) -> list[Part]:
    """Give two sequences each other's rows."""
    if len(parts) < 2 or parts[0].count != parts[1].count:
        return parts
    a, b = parts[:2]
    return [dataclasses.replace(a, row=b.row), dataclasses.replace(b, row=a.row), *parts[2:]]


def shifted(parts: list[Part]) -> list[Part]:
    """Give a sequence the rows of the token before its own."""
    return [dataclasses.replace(p, row=max(p.row - 1, 0)) for p in parts]


def plant(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    if fault in ("swapped", "shifted"):
        right, wrong = llamacpp.Capture._parts, {"swapped": swapped, "shifted": shifted}[fault]
        monkeypatch.setattr(llamacpp.Capture, "_parts", lambda self, tokens: wrong(list(right(self, tokens))))
    elif fault == "another node":
        monkeypatch.setitem(llamacpp.HOOKS, "resid_post", "ffn_inp")
        monkeypatch.setitem(llamacpp.HOOKS, "resid_mid", "l_out")
    elif fault == "arrival":  # as if a cache of each sequence were computed in the order of the batch
        monkeypatch.setattr(llamacpp, "by_sequence", llamacpp.in_order)


@pytest.mark.parametrize("fault", ["none", "swapped", "shifted", "another node", "arrival"])
def test_a_wrong_build_is_caught(
    pipe: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    rng = random.Random(3)
    canaries = Canaries(rng, 16)
    jobs = canaries.jobs(16, (4, 20), (4, 12), aborts=0)
    plant(monkeypatch, fault)
    subject = Served(pipe, tmp_path / "m.gguf", canaries.vocabulary, unified=fault != "arrival")
    answers = subject.serve(jobs, rng)
    verdict = Judge(subject, jobs, answers).judge(list(subject.stored()), subject.plain())
    print(f"llama.cpp, {fault}: {verdict}")
    if fault == "none":
        assert verdict.wrong == [] and not subject.stats["problems"], (verdict.wrong[:5], subject.stats)
    else:
        assert verdict.wrong, f"the fault {fault!r} passes for a right build"
    if fault == "arrival":  # the graph's own tokens contradict: what is not known is not stored
        assert subject.stats["unidentified"]
        assert all("computed" in w or "no rows" in w or "positions" in w or "ends at" in w for w in verdict.wrong)


@pytest.mark.parametrize("unified", [True, False])
def test_equal_tokens_at_equal_positions_are_told_apart(pipe: Pipeline, tmp_path: Path, unified: bool) -> None:
    rng = random.Random(7)
    jobs = [Job(f"twin-{i}", [10 + i, *rng.choices(range(40, 60), k=rng.randint(0, 2)), 5, 5, 5], 12, own=(5, 6))
            for i in range(50)]  # fmt: skip
    subject = Served(pipe, tmp_path / "m.gguf", 64, unified)
    verdict = run(subject, jobs, rng)
    print(f"llama.cpp, one token for all, {'one cache' if unified else 'a cache of each sequence'}: {verdict}")
    assert verdict.wrong == [] and not subject.stats["problems"], (verdict.wrong[:5], subject.stats)


def test_a_detector_stops_one_sequence_and_no_other(pipe: Pipeline, tmp_path: Path) -> None:
    rng = random.Random(5)
    jobs = [Job(f"r{i}", [10 + i, 20, 21], 400 if i == 2 else 120, own=(4, 60)) for i in range(4)]
    subject = Served(pipe, tmp_path / "m.gguf", 64, unified=True)
    outcome: list[str] = []

    def ask() -> None:
        while True:
            try:
                outcome.append(pipeline.abort(pipe, subject.capture.recorder.epoch, "llama", 3, 4))
                return
            except NoRespondersError:  # the agent has the ring, and does not listen for commands yet
                time.sleep(0.02)

    asking = threading.Thread(target=ask)
    decode, step = subject._decode, [0]

    def counting(*args: Any) -> int:
        step[0] += 1
        if step[0] == 10:
            asking.start()
        if step[0] > 10 and not outcome and len(subject._slots) > 2:
            time.sleep(0.02)  # the command is on its way over the bus
        return decode(*args)

    subject._decode = counting
    answers = {a.id: a for a in subject.serve(jobs, rng)}
    asking.join(30)
    facts = list(subject.stored())
    finishes = {i: a.finish for i, a in answers.items()}
    print(f"llama.cpp, abort: {outcome}, {finishes}, r2 has {len(answers['r2'].tokens or [])} of 400 tokens")
    assert finishes == {"r0": "length", "r1": "length", "r2": "abort", "r3": "length"}
    assert outcome and outcome[0] != "unknown" and facts


@pytest.fixture
def small(pipe: Pipeline, tmp_path: Path) -> Iterator[tuple[llamacpp.Capture, Model]]:
    capture = llamacpp.Capture(WriterSettings(f"{pipe.dir}/s", engine_instance="small"), ["resid_post"])
    model = Model(llama_tiny.write(tmp_path / "m.gguf", 64), capture.prepare, unified=True)
    capture.attach(model.model)
    yield capture, model
    capture.close()
    model.close()


def test_what_cannot_be_named_is_not_stored_and_is_said(small: tuple[llamacpp.Capture, Model]) -> None:
    capture, model = small
    capture.open(0, Request("a", 3))
    rows = [(9, 0, 0), (8, 1, 0), (7, 2, 0)]
    assert capture.decode(model.context, model.fill(rows, output=False)) == 0
    assert "not every token of the batch is one" in " ".join(capture.stats()["problems"])
    assert capture.decode(model.context, model.fill([(9, 0, 5)])) == 0  # a sequence that nobody opened
    assert "never opened" in " ".join(capture.stats()["problems"])
    assert capture.decode(model.context, llama_cpp.llama_batch_get_one((llama_cpp.llama_token * 1)(7), 1)) == 0
    assert "fill token, pos, seq_id" in " ".join(capture.stats()["problems"])
    assert capture.stats()["unidentified"] == 3 and capture.stats()["forwards"] == 0
    capture.end(0, Finish.ABORT, 0)


def test_a_batch_that_llama_cpp_refuses_stores_nothing(small: tuple[llamacpp.Capture, Model]) -> None:
    capture, model = small
    capture.open(0, Request("a", 2))
    assert capture.decode(model.context, model.fill([(9, 4, 0), (8, 9, 0)])) != 0  # a gap in the positions
    stats = capture.stats()
    assert stats["forwards"] == stats["silent"] == stats["captured_rows"] == 0, stats
    assert capture.decode(model.context, model.fill([(9, 0, 0), (8, 1, 0)])) == 0
    assert capture.stats()["forwards"] == 1, capture.stats()
    capture.end(0, Finish.STOP, 1)


def test_a_batch_that_is_given_up_half_way_counts_as_aborted(small: tuple[llamacpp.Capture, Model]) -> None:
    capture, model = small
    calls = [0]

    def after_some(_data: object) -> bool:  # asked before each node
        calls[0] += 1
        return calls[0] > 60

    give_up = llama_cpp.ggml_abort_callback(after_some)
    capture.open(0, Request("a", 2))
    llama_cpp.llama_set_abort_callback(model.context, give_up, None)
    assert capture.decode(model.context, model.fill([(9, 0, 0), (8, 1, 0)])) != 0
    stats = capture.stats()
    assert stats["aborted_rows"] > 0 and not stats["silent"] and not stats["problems"], stats
    llama_cpp.llama_set_abort_callback(model.context, llama_cpp.ggml_abort_callback(), None)
    model.forget(0)
    assert capture.decode(model.context, model.fill([(9, 0, 0), (8, 1, 0)])) == 0
    assert capture.stats()["forwards"] == 1 and capture.stats()["aborted_rows"] == stats["aborted_rows"]
    capture.end(0, Finish.STOP, 1)


def test_a_context_without_the_callback_is_an_alarm(pipe: Pipeline, tmp_path: Path) -> None:
    capture = llamacpp.Capture(WriterSettings(f"{pipe.dir}/s", engine_instance="silent"), ["resid_post.0"])
    capture.prepare(llama_cpp.llama_context_default_params())
    model = Model(llama_tiny.write(tmp_path / "m.gguf", 64), lambda params: params, unified=True)
    capture.attach(model.model)
    capture.open(0, Request("a", 1))
    assert capture.decode(model.context, model.fill([(9, 0, 0)])) == 0
    assert capture.stats()["silent"] == 1
    capture.close()
    model.close()


def test_tensors_of_another_memory_are_read_through_ggml(small: tuple[llamacpp.Capture, Model]) -> None:
    capture, model = small
    capture._host = lambda _buffer: False
    capture.open(0, Request("a", 2))
    assert capture.decode(model.context, model.fill([(9, 0, 0), (8, 1, 0)])) == 0
    assert capture.stats()["forwards"] == 1 and not capture.stats()["problems"], capture.stats()
    capture.end(0, Finish.STOP, 1)


def test_wrong_use_is_refused_in_a_sentence(small: tuple[llamacpp.Capture, Model]) -> None:
    capture, model = small
    with pytest.raises(UnknownHook, match="there is resid_mid"):
        llamacpp.choose(["resid"], 3)
    taken = llama_cpp.llama_context_default_params()
    taken.cb_eval = capture._call
    with pytest.raises(CaptureError, match="cb_eval is taken"):
        capture.prepare(taken)
    with pytest.raises(CaptureError, match="call `prepare` first"):
        llamacpp.Capture(WriterSettings(None), ["resid_post"]).attach(model.model)


def test_capture_changes_no_token(pipe: Pipeline, tmp_path: Path) -> None:
    said = []
    for captures in (True, False):
        subject = Served(pipe, tmp_path / "m.gguf", 400, False, f"captures-{captures}", captures)
        jobs = Canaries(random.Random(11), 18).jobs(16, (4, 20), (8, 24), aborts=0)
        said.append({(a.id, a.sample): a.tokens for a in subject.serve(jobs, random.Random(11))})
        list(subject.stored())
    print(f"llama.cpp: {sum(len(t or ()) for t in said[0].values())} tokens with capture equal those without")
    assert said[0] == said[1]
