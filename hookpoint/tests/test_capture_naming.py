"""Fears about names of requests: what no reader takes must be refused here, in a sentence, and not lost."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from capture_layers import Layers, X

import sonde
from sonde.attachment import Stats


def run(names: tuple[Any, ...] = (), **options: Any) -> Stats:
    """Run a model of two rows with what attach is given, or a block names; its result is that of an untouched copy."""
    model = Layers()
    with sonde.attach(model, ["a", "b"], socket=None, **options) as capture:
        if names:
            with capture.request(*names):
                out = model(X)
        else:
            out = model(X)
        assert torch.equal(out, Layers()(X))
        stats = capture.stats()
        capture.detach(0)
    return stats


def test_a_list_of_requests_of_the_wrong_length_stores_nothing() -> None:
    stats = run(requests=["only one"])
    assert (stats.forwards, stats.unidentified, stats.captured_rows) == (0, 1, 0)
    assert "names 1 prompts and the call has 2" in next(iter(stats.problems))


def test_the_same_id_twice_is_two_sequences() -> None:
    stats = run(requests=["same", "same"])
    assert (stats.forwards, stats.failures, stats.problems, stats.captured_rows) == (1, 0, {}, 30)


def test_an_id_of_half_a_character_is_refused_here_and_not_lost_by_the_agent() -> None:
    stats = run(requests=["\udc80", "b"])
    assert stats.captured_rows == 0 and "no UTF-8 form" in next(iter(stats.problems))


def test_a_prompt_without_an_id_among_others_gets_a_random_one(monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []
    opened = sonde.attachment.Recorder.open_request

    def keep(self: Any, external_id: str, **more: Any) -> int:
        names.append(external_id)
        return opened(self, external_id, **more)

    monkeypatch.setattr(sonde.attachment.Recorder, "open_request", keep)
    assert run(("a", None)).captured_rows == 30
    assert names[0] == "a" and len(names[1]) == 36


def test_a_list_where_an_id_belongs_is_refused() -> None:
    with pytest.raises(sonde.CaptureError, match="an id is a text"):
        run((["a", "b"],))


@pytest.mark.parametrize("labels", [{"key": "v" * 5000}, {"k": "\0"}, {str(i): "" for i in range(65)}, {"k": 7}])
def test_enormous_and_odd_labels_store_nothing(labels: dict[str, Any]) -> None:
    stats = run(labels=labels)
    assert stats.forwards == 0 and stats.unidentified == 1 and stats.problems


def test_a_socket_that_nobody_listens_at_is_named_while_the_model_runs(tmp_path: Path) -> None:
    model = Layers()
    with sonde.attach(model, ["a"], socket=tmp_path / "rnig.sock") as capture:
        model(X)
        end = time.monotonic() + 60
        while not capture.stats().problems and time.monotonic() < end:
            time.sleep(0.05)
        (text,) = capture.stats().problems
        assert "no agent answers at" in text and "rnig.sock: No such file or directory" in text
        assert capture.stats().failures == 0
        capture.detach(0)
