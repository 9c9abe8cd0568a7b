"""The contract of adapters by itself, without an engine and without torch: what follows from what an adapter says."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import pytest

from sonde.adapters.contract import Part, Request, Sequences
from sonde.errors import CaptureError
from sonde.recorder import Abort
from sonde.step import Finish, Phase, Range, Unidentified, Verdict


class Memory:
    """Has the methods of a Recorder that sequences use."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.opened: list[dict[str, Any]] = []
        self.ended: dict[int, dict[str, Any]] = {}
        self.amended: list[tuple[int, int, int, int, int, Verdict]] = []

    def open_request(self, external_id: str, **others: Any) -> int:
        self.opened.append({"external_id": external_id, **others})
        return len(self.opened)

    def end_request(self, number: int, **others: Any) -> None:
        assert number not in self.ended
        self.ended[number] = others

    def amend(self, step: int, ranges: Sequence[tuple[int, int, int, int, Verdict]]) -> None:
        self.amended += [(step, *r) for r in ranges]


@pytest.fixture
def memory() -> Memory:
    return Memory()


@pytest.fixture
def sequences(memory: Memory) -> Sequences:
    return Sequences(memory)  # type: ignore[arg-type]


def test_a_preempted_sequence_comes_again_as_the_next_pass(sequences: Sequences) -> None:
    sequences.open("k", Request("r", prompt_tokens=4))
    sequences.ranges([Part("k", 0, 4, 0, True)])
    sequences.ranges([Part("k", 4, 1, 7, True)])
    assert sequences.ranges([Part("k", 0, 6, 2, True)]) == [
        Range(1, 0, 4, 2, 1, Phase.RECOMPUTE, False),
        Range(1, 4, 1, 6, 1, Phase.RECOMPUTE, False),
        Range(1, 5, 1, 7, 0, Phase.DECODE, True),
    ]


def test_what_a_prefix_cache_had_is_never_computed(sequences: Sequences, memory: Memory) -> None:
    sequences.open("k", Request("r", prompt_tokens=4), cached=3)
    assert sequences.ranges([Part("k", 3, 1, 0, True)]) == [Range(1, 3, 1, 0, 0, Phase.PREFILL, True)]
    sequences.end("k", Finish.STOP, 1)
    assert memory.ended[1]["cached_tokens"] == 3


def test_a_window_cuts_ranges_and_what_is_sampled(sequences: Sequences) -> None:
    sequences.open("k", Request("r", prompt_tokens=4, window=(1, 3)))
    assert sequences.ranges([Part("k", 0, 4, 10, True)]) == [Range(1, 1, 2, 11, 0, Phase.PREFILL, False)]
    assert sequences.ranges([Part("k", 4, 1, 0, True)]) == []


@pytest.mark.parametrize("part", [Part("other", 0, 1, 0, True), Part("k", 2, 1, 0, True)])
def test_what_nobody_knows_is_not_named(sequences: Sequences, part: Part) -> None:
    sequences.open("k", Request("r", prompt_tokens=4))
    with pytest.raises(Unidentified):
        sequences.ranges([part])


def test_rows_behind_the_end_are_taken_back_once(sequences: Sequences, memory: Memory) -> None:
    sequences.open("k", Request("r", prompt_tokens=2))
    for step, part in enumerate([Part("k", 0, 2, 0, True), Part("k", 2, 1, 0, True), Part("k", 3, 1, 0, True)]):
        sequences.ranges([part])
        sequences.committed(step)
    sequences.end("k", Finish.STOP, 2)  # the second token ended it, while the next batch had it already
    sequences.end("k", Finish.STOP, 2)
    assert memory.amended == [(2, 1, 3, 1, 0, Verdict.PHANTOM)] and memory.ended[1]["generated_tokens"] == 2


def test_what_is_open_at_the_end_keeps_its_rows(sequences: Sequences, memory: Memory) -> None:
    sequences.open("k", Request("r", prompt_tokens=2))
    sequences.ranges([Part("k", 0, 2, 0, True)])
    sequences.ranges([Part("k", 2, 1, 0, True)])
    sequences.committed(1)
    sequences.close()
    assert memory.amended == [] and memory.ended[1]["finish"] == Finish.DISCONNECT and len(sequences) == 0


def test_a_step_that_was_not_stored_is_not_taken_back(sequences: Sequences, memory: Memory) -> None:
    sequences.open("k", Request("r", prompt_tokens=1))
    sequences.ranges([Part("k", 0, 1, 0, True)])
    sequences.ranges([Part("k", 1, 1, 0, True)])
    sequences.committed(-1)
    sequences.end("k", Finish.STOP, 1)
    assert memory.amended == [] and 1 in memory.ended


def test_a_detector_stops_what_is_open_and_nothing_else(sequences: Sequences, memory: Memory) -> None:
    for key in ("a", "b"):
        sequences.open(key, Request(key, prompt_tokens=1))
    sequences.abort(Abort("a", 0, 1, 0))
    sequences.abort(Abort("?", 0, 99, 0))
    assert sequences.stopping() == ["a"]
    sequences.end("a", Finish.STOP, 1)
    sequences.end("b", Finish.STOP, 1)
    assert sequences.stopping() == []
    assert (memory.ended[1]["finish"], memory.ended[2]["finish"]) == (Finish.DETECTOR, Finish.STOP)


def test_a_key_is_one_sequence_at_a_time(sequences: Sequences, memory: Memory) -> None:
    sequences.open("k", Request("r", prompt_tokens=1, sample=3, engine_id="k", labels={"a": "b"}))
    with pytest.raises(CaptureError, match="open already"):
        sequences.open("k", Request("r", prompt_tokens=1))
    sequences.end("k", Finish.STOP, 0)
    sequences.open("k", Request("r", prompt_tokens=1))
    assert [(o["sample"], o["engine_id"]) for o in memory.opened] == [(3, "k"), (0, "")]
