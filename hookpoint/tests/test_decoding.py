"""The fear of the short way: a step of decoding whose rows go on where those of another step were."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch", reason="NOT RUN: torch is not installed")

import torch  # noqa: E402

from sonde.decoding import Decoded, Rows, rows_of  # noqa: E402
from sonde.identity import Track  # noqa: E402
from sonde.recorder import pack  # noqa: E402
from sonde.step import Phase, Range  # noqa: E402

NAME = {"external_id": "r", "labels": {}}


def going(column: int = 9) -> tuple[list[Track], Rows]:
    """Decode one token of three sequences of different lengths, the second of which is in the last row."""
    tracks = []
    for number, length in ((1, 4), (7, 3), (1 << 40, 9)):
        tracks.append(Track(number, NAME, 0, length, 0))
        tracks[-1].take(0, length, 0, Phase.PREFILL, Phase.RECOMPUTE, 1)
    rows = (0, 5, 2)
    last = [t.take(t.length, 1, r, Phase.DECODE, Phase.DECODE, 1)[0] for t, r in zip(tracks, rows, strict=True)]
    found = rows_of(tracks, last, column)
    assert found is not None
    return tracks, found


def advance(rows: Rows, column: int, tokens: tuple[int, ...] = (3, 1, 4)) -> Decoded | None:
    """Decode a token of each row, whose sequences end with these."""
    sequences = torch.tensor([[9, 9, t] for t in tokens])
    return rows.advance(column, torch.tensor([[3], [1], [4]]), sequences, 3, 3)


def test_the_words_for_the_library_are_the_ranges_that_python_sees() -> None:
    tracks, rows = going()
    for step in range(1, 4):
        decoded = advance(rows, 9 + step)
        assert decoded is not None and decoded.current
        masks = [step, 0, 1 << 63]
        rows.mask(masks)
        assert rows.words.tobytes() == pack(decoded, masks)
        assert list(decoded) == decoded[:] == [
            Range(1, 4 + step, 1, 0, 0, Phase.DECODE, True),
            Range(7, 3 + step, 1, 5, 0, Phase.DECODE, True),
            Range(1 << 40, 9 + step, 1, 2, 0, Phase.DECODE, True),
        ]
        assert [t.length for t in tracks] == [5 + step, 4 + step, 10 + step]
    assert rows.address == rows.words.buffer_info()[0], "the library reads where the words were"


def test_an_older_step_says_that_its_words_are_gone() -> None:
    _, rows = going()
    first, second = advance(rows, 10), advance(rows, 11)
    assert first is not None and second is not None and not first.current and second.current
    assert first[0].position == 5 and second[0].position == 6


@pytest.mark.parametrize("column", [8, 9, 11])
def test_a_step_that_is_not_behind_the_last_one_is_not_guessed_at(column: int) -> None:
    tracks, rows = going()
    before = rows.words.tobytes()
    assert advance(rows, column) is None
    assert rows.words.tobytes() == before and [t.length for t in tracks] == [5, 4, 10]


def test_tokens_that_were_computed_otherwise_end_the_short_way() -> None:
    tracks, rows = going()
    tracks[1].take(4, 1, 0, Phase.DECODE, Phase.DECODE, 1)
    assert advance(rows, 10) is None and [t.length for t in tracks] == [5, 5, 10]


def test_rows_that_went_on_otherwise_count_what_they_decoded_before() -> None:
    tracks, rows = going()
    assert advance(rows, 10) is not None
    (again,) = tracks[2].take(10, 1, 0, Phase.DECODE, Phase.RECOMPUTE, 1)
    assert (again.pass_, again.phase) == (1, Phase.RECOMPUTE)
    assert [t.length for t in tracks] == [6, 5, 11] and tracks[2].passes[-2:] == [1, 2]
    assert advance(rows, 11) is None and [t.length for t in tracks] == [6, 5, 11]


@pytest.mark.parametrize("tokens", [(3, 1, 5), (2, 1, 4), (1, 3, 4)])
def test_other_tokens_than_those_of_the_sequences_end_the_short_way(tokens: tuple[int, ...]) -> None:
    tracks, rows = going()
    assert advance(rows, 10, tokens) is None and [t.length for t in tracks] == [5, 4, 10]


@pytest.mark.parametrize(
    ("ids", "columns"),
    [
        (torch.tensor([[3], [1]]), 3),
        (torch.tensor([3, 1, 4]), 3),
        (torch.tensor([[3.0], [1.0], [4.0]]), 3),
        (torch.tensor([[3], [1], [4]], dtype=torch.int32), 3),
        (torch.tensor([[3, 3], [1, 1], [4, 4]]), 3),
        (torch.nn.Parameter(torch.tensor([[3], [1], [4]]), requires_grad=False), 3),
        (torch.tensor([[3], [1], [4]]).to_sparse(), 3),
        (torch.tensor([[3], [1], [4]], device="meta"), 3),
        (None, 3),
        ([[3], [1], [4]], 3),
        (torch.tensor([[3], [1], [4]]), 2),
        (torch.tensor([[3], [1], [4]]), 0),
    ],
)
def test_ids_that_the_library_cannot_read_end_the_short_way(ids: Any, columns: int) -> None:
    _, rows = going()
    before = rows.words.tobytes()
    assert rows.advance(10, ids, torch.tensor([[9, 9, 3], [9, 9, 1], [9, 9, 4]]), 3, columns) is None
    assert rows.words.tobytes() == before


def test_ids_are_found_in_every_second_column_of_a_larger_tensor() -> None:
    _, rows = going()
    wide = torch.arange(48).reshape(6, 8)
    ids, sequences = wide[::2, 4:5], wide[::2, ::2][:, :3]
    assert rows.advance(10, ids, sequences, 3, 3) is not None
    assert rows.advance(11, ids + 1, sequences, 3, 3) is None


@pytest.mark.parametrize(
    "last",
    [
        Range(1, 4, 2, 0, 0, Phase.DECODE, True),
        Range(1, 4, 1, 0, 1, Phase.DECODE, True),
        Range(1, 4, 1, 0, 0, Phase.RECOMPUTE, True),
        Range(1, 4, 1, 0, 0, Phase.DECODE, False),
        Range(2, 4, 1, 0, 0, Phase.DECODE, True),
    ],
)
def test_only_a_step_of_decoding_has_a_short_way(last: Range) -> None:
    assert rows_of([Track(1, NAME, 0, 4, 0)], [last], 4) is None


def test_rows_that_were_left_out_have_no_short_way() -> None:
    tracks, _ = going()
    assert rows_of(tracks, [], 4) is None and rows_of([], [], 4) is None
