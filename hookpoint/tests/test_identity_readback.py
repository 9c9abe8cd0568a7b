"""Fears about tensors that are put together: a part in the wrong place, or one that is missing in silence."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from sonde.assembly import Part, join_lineage, join_shards, lineage
from sonde.errors import AmbiguousRequest, LakeError, Missing
from sonde.lake import Tensor


def tensor(shard: int, positions: list[int], width: int = 2, missing: tuple[Missing, ...] = ()) -> Tensor:
    """Rows of which every element says shard, position and place."""
    values = np.array([[100 * shard + 10 * p + i for i in range(width)] for p in positions], np.float32)
    return Tensor(request="r", sample=0, hook="h", layer=0, epoch=f"e{shard}", number=shard, dtype="f32",
                  values=values.reshape(len(positions), width), positions=np.array(positions, np.int32),
                  passes=np.zeros(len(positions), np.int32), missing=missing)  # fmt: skip


def test_shards_lie_in_their_order_whatever_their_width() -> None:
    t = join_shards("t", {1: tensor(1, [0, 1], 3), 0: tensor(0, [0, 1])}, {2})
    assert t.values.tolist() == [[0, 1, 100, 101, 102], [10, 11, 110, 111, 112]] and t.missing == ()
    assert (t.epoch, t.number) == ("e0", 0)


def test_rows_of_more_dimensions_are_joined_along_the_last_one() -> None:
    a, b = (dataclasses.replace(tensor(s, [0], 4), values=tensor(s, [0], 4).values.reshape(1, 2, 2)) for s in (0, 1))
    t = join_shards("t", {0: a, 1: b}, {2})
    assert t.values.tolist() == [[[0, 1, 100, 101], [2, 3, 102, 103]]]


def test_a_shard_that_is_missing_is_named_for_every_position() -> None:
    t = join_shards("t", {0: tensor(0, [0, 1, 2])}, {2})
    assert len(t.positions) == len(t.values) == 0
    assert t.missing == (Missing(0, 3, "shard 1 of 2 has no row: nothing of it is in the lake"),)


def test_a_row_that_one_shard_lacks_is_missing_with_its_reason() -> None:
    lacking = tensor(1, [0, 2], missing=(Missing(1, 2, "dropped by the ring: no_space"),))
    t = join_shards("t", {0: tensor(0, [0, 1, 2]), 1: lacking}, {2})
    assert t.positions.tolist() == [0, 2] and t.values[1].tolist() == [20, 21, 120, 121]
    assert t.missing == (Missing(1, 2, "shard 1 of 2 has no row: dropped by the ring: no_space"),)


@pytest.mark.parametrize(
    ("shards", "counts", "why"),
    [
        ({0: tensor(0, [0]), 1: dataclasses.replace(tensor(1, [0]), dtype="bf16")}, {2}, "differ in dtype"),
        ({0: tensor(0, [0]), 1: dataclasses.replace(tensor(1, [0]), passes=np.array([1]))}, {2}, "different passes"),
        ({0: tensor(0, [0]), 1: tensor(1, [0])}, {2, 3}, r"shards \[0, 1\] of \[2, 3\]"),
        ({0: tensor(0, [0]), 5: tensor(5, [0])}, {2}, r"shards \[0, 5\] of \[2\]"),
        ({0: tensor(0, [0]), 1: dataclasses.replace(tensor(1, [0]), values=np.zeros(1))}, {2}, "do not fit"),
    ],
)
def test_shards_that_do_not_fit_are_an_error(shards: dict[int, Tensor], counts: set[int], why: str) -> None:
    with pytest.raises(LakeError, match=why):
        join_shards("t", shards, counts)


def test_a_lineage_takes_from_each_sample_its_positions() -> None:
    parts = [(Part(4, 0, 2, "e"), tensor(4, [0, 1, 2])), (Part(9, 2, 4, "e"), tensor(9, [2, 3]))]
    t = join_lineage("t", parts)
    assert t.positions.tolist() == [0, 1, 2, 3] and t.values[:, 0].tolist() == [400, 410, 920, 930]
    gaps = (Missing(2, 3, "lost"), Missing(0, 2, "elsewhere"))
    holed = [parts[0], (Part(9, 2, 5, "e"), tensor(9, [3], missing=gaps))]
    assert join_lineage("t", holed).missing == (Missing(2, 3, "sample 9: lost"),)


def event(text: str, epoch: str = "e", number: int = 1, rank: int = 0, **more: str) -> dict[str, object]:
    labels = [("sonde.lineage", text), *((k.replace("_", "."), v) for k, v in more.items())]
    return {"epoch": epoch, "number": number, "rank": rank, "labels": labels if text else []}


def test_a_lineage_is_read_from_its_labels() -> None:
    assert lineage("r", 0, []) == lineage("r", 0, [event("")]) == []
    assert lineage("r", 0, [event("3:0-2"), event("3:0-2")]) == [Part(3, 0, 2, "e")]
    assert lineage("r", 0, [event("3:0-2", sonde_lineage_1="4:2-3")]) == [Part(3, 0, 2, "e"), Part(4, 2, 3, "e")]
    assert lineage("r", 0, [event("3:0-2"), event("3:0-2", "f", 7, 1)]) == [Part(3, 0, 2, None)]


@pytest.mark.parametrize("text", ["3", "3:2-1", "3:-1-2", "a:0-1", "3:0-1,", "3:0-1,x"])
def test_a_damaged_lineage_is_an_error(text: str) -> None:
    if text.endswith(","):
        assert lineage("r", 0, [event(text)]) == [Part(3, 0, 1, "e")]
    else:
        with pytest.raises(LakeError, match="is not sample:start-stop"):
            lineage("r", 0, [event(text)])


def test_a_lineage_of_several_sequences_is_ambiguous() -> None:
    with pytest.raises(AmbiguousRequest, match="e/1, e/2"):
        lineage("r", 0, [event("3:0-2"), event("3:0-2", number=2)])
    with pytest.raises(AmbiguousRequest):
        lineage("r", 0, [event("3:0-2"), event("4:0-2", "f", 7, 1)])
