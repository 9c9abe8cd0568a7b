"""The fear of the short way: a step of decoding whose rows go on where those of another step were."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="NOT RUN: torch is not installed")

from sonde.decoding import Rows, rows_of  # noqa: E402
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


def test_the_words_for_the_library_are_the_ranges_that_python_sees() -> None:
    tracks, rows = going()
    for step in range(1, 4):
        decoded = rows.advance(9 + step)
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
    first, second = rows.advance(10), rows.advance(11)
    assert first is not None and second is not None and not first.current and second.current
    assert first[0].position == 5 and second[0].position == 6


@pytest.mark.parametrize("column", [8, 9, 11])
def test_a_step_that_is_not_behind_the_last_one_is_not_guessed_at(column: int) -> None:
    tracks, rows = going()
    before = rows.words.tobytes()
    assert rows.advance(column) is None
    assert rows.words.tobytes() == before and [t.length for t in tracks] == [5, 4, 10]


def test_tokens_that_were_computed_otherwise_end_the_short_way() -> None:
    tracks, rows = going()
    tracks[1].take(4, 1, 0, Phase.DECODE, Phase.DECODE, 1)
    assert rows.advance(10) is None and [t.length for t in tracks] == [5, 5, 10]


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
