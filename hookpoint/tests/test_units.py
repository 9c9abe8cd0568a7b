"""Fears about pure parts: widening, chains, messages, the commit log."""

from __future__ import annotations

import base64
import json
import random
from pathlib import Path

import numpy as np
import pytest

import sonde
from sonde.chain import ATTACHED_ANEW, Chain, Chains
from sonde.commitlog import crc32c
from sonde.dtypes import widen
from sonde.ledger import Ledger
from sonde.live import _token
from sonde.message import decode

GOLDEN = Path(__file__).resolve().parents[2] / "schema" / "testdata"


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_every_sixteen_bit_float_has_its_own_float32(dtype: str) -> None:
    every = np.arange(1 << 16, dtype="<u2")
    got = widen(dtype, every.view(np.uint8))
    assert len(np.unique(got.view(np.uint32))) == 1 << 16
    if dtype == "f16":
        numbers = ~np.isnan(got)
        assert (got[numbers] == every.view("<f2").astype(np.float32)[numbers]).all()
        assert (np.isnan(got) == np.isnan(every.view("<f2"))).all()
    else:
        assert (got.view(np.uint32) >> 16 == every).all()


def test_eight_bit_floats_are_those_of_their_definition() -> None:
    every = np.arange(256, dtype=np.uint8)
    e5m2, e4m3 = widen("f8e5m2", every), widen("f8e4m3", every)
    halves = (every.astype("<u2") << 8).view("<f2").astype(np.float32)
    assert np.array_equal(e5m2, halves, equal_nan=True)
    for b in range(256):
        sign, exponent, mantissa = -1.0 if b >> 7 else 1.0, b >> 3 & 15, b & 7
        if exponent == 15 and mantissa == 7:
            assert np.isnan(e4m3[b])
        elif exponent == 0:
            assert e4m3[b] == sign * mantissa / 8 * 2.0**-6
        else:
            assert e4m3[b] == sign * (1 + mantissa / 8) * 2.0 ** (exponent - 7)


def test_integers_that_float32_cannot_hold_stay_integers() -> None:
    assert widen("i64", np.array([2**62 + 1], "<i8").view(np.uint8)).tolist() == [2**62 + 1]
    assert widen("i32", np.array([-(2**31)], "<i4").view(np.uint8)).tolist() == [-(2**31)]


def test_rows_are_seen_once_however_messages_are_repeated_and_reordered() -> None:
    seed = random.randrange(1 << 32)
    dice = random.Random(seed)
    for _ in range(200):
        cuts = sorted(dice.sample(range(1, 60), dice.randrange(1, 12)))
        cursors = [(k // 7, k % 7) for k in range(60)]
        pieces = [(a, b) for a, b in zip([0, *cuts], [*cuts, 60], strict=True)]
        order = [*pieces, *dice.sample(pieces, min(len(pieces), 4))]
        dice.shuffle(order)
        chain, seen = Chain((0, 0)), []
        for a, b in order:
            seq = np.array([cursors[k][0] for k in range(a, b)], np.uint64)
            row = np.array([cursors[k][1] for k in range(a, b)], np.uint32)
            last = (cursors[b - 1][0], cursors[b - 1][1] + 1)
            prev = (cursors[a - 1][0], cursors[a - 1][1] + 1) if a else (0, 0)
            new = chain.take(prev, last, seq, row)
            seen += [k for k, is_new in zip(range(a, b), new, strict=True) if is_new]
        assert sorted(seen) == list(range(60)), f"seed {seed}"
        assert chain.gaps == [], f"seed {seed}"


def test_a_hole_is_a_gap_and_the_start_only_where_it_was_asked_for() -> None:
    one = (np.array([9], np.uint64), np.array([0], np.uint32))
    assert Chains(whole=False).take(("x",), (5, 0), (9, 1), *one)[0] is None
    chains = Chains(whole=True)
    assert chains.take(("x",), (5, 0), (9, 1), *one)[0] == ((0, 0), (5, 0))
    two = (np.array([12], np.uint64), np.array([0], np.uint32))
    assert chains.take(("x",), (9, 1), (12, 1), *two)[0] is None
    three = (np.array([20], np.uint64), np.array([0], np.uint32))
    assert chains.take(("x",), (19, ATTACHED_ANEW), (20, 1), *three)[0] == ((12, 1), (19, ATTACHED_ANEW))


def test_open_gaps_are_bounded() -> None:
    chain = Chain((0, 0))
    for k in range(1000):
        at = 2 * k + 2
        chain.take((at, 0), (at, 1), np.array([at], np.uint64), np.array([0], np.uint32))
    assert len(chain.gaps) == 64


@pytest.mark.parametrize("name", ["vectors", "vectors_one_row", "vectors_ragged"])
def test_golden_messages_are_read(name: str) -> None:
    m = decode((GOLDEN / f"{name}.arrow").read_bytes())
    b = m.choose(np.ones(m.batch.num_rows, bool))
    assert len(b) == m.batch.num_rows == len(b.vectors) == len(b.positions)
    raw = [v.as_py() for v in m.batch.column("vec")]
    for k, v in enumerate(b.vectors):
        assert np.array_equal(v.reshape(-1), widen(b.dtype, np.frombuffer(raw[k], np.uint8)), equal_nan=True)
    half = np.arange(len(b)) % 2 == 0
    assert m.choose(half).positions.tolist() == b.positions[half].tolist()


@pytest.mark.parametrize("name", ["vectors", "vectors_one_row", "vectors_ragged"])
def test_messages_of_the_last_release_mean_what_they_meant(name: str) -> None:
    m = decode((GOLDEN / "frozen-1" / f"{name}.arrow").read_bytes())
    want = json.loads((GOLDEN / "frozen-1" / f"{name}.json").read_text())
    head, rows, b = want["header"], want["rows"], m.choose(np.ones(m.batch.num_rows, bool))
    assert len(b) == len(rows)
    assert (b.tenant, b.engine, b.rank, b.hook, b.layer) == tuple(
        head[k] for k in ("Tenant", "Engine", "Rank", "Hook", "Layer")
    )
    assert (b.shard, b.shard_count, b.dtype, list(b.shape), b.ragged) == (
        head["Shard"],
        head["ShardCount"],
        head["DType"],
        head["Shape"] or [],
        head["Ragged"],
    )
    assert (int(b.epoch, 16), m.prev) == (head["Epoch"], (head["Prev"]["Seq"], head["Prev"]["Row"]))
    columns = {
        "Seq": b.seq,
        "Row": b.row,
        "Number": b.numbers,
        "Request": b.requests,
        "Sample": b.samples,
        "Position": b.positions,
        "Pass": b.passes,
        "Phase": b.phases,
        "CaptureNS": b.capture_ns,
    }
    for i, row in enumerate(rows):
        assert {key: column[i] for key, column in columns.items()} == {key: row[key] for key in columns}
        raw = np.frombuffer(base64.b64decode(row["Vec"] or ""), np.uint8)
        assert np.array_equal(b.vectors[i].reshape(-1), widen(b.dtype, raw), equal_nan=True)


def test_what_a_later_minor_version_adds_is_passed_over() -> None:
    was, is_now = (decode((GOLDEN / f"{name}.arrow").read_bytes()) for name in ("vectors", "next_minor"))
    every = np.ones(was.batch.num_rows, bool)
    assert is_now.meta["version"] == "1.7" and "a_later_list" in is_now.batch.schema.names
    assert repr(is_now.choose(every)) == repr(was.choose(every))


def test_the_next_major_version_is_refused_with_a_sentence() -> None:
    with pytest.raises(sonde.DamagedMessage, match=r"schema version '2' and this package reads 1: upgrade it$"):
        decode((GOLDEN / "next_major.arrow").read_bytes())


@pytest.mark.parametrize("name", ["vectors", "vectors_ragged", "requests"])
def test_damaged_messages_are_errors_and_never_crash(name: str) -> None:
    good = (GOLDEN / f"{name}.arrow").read_bytes()
    seed = random.randrange(1 << 32)
    dice = random.Random(seed)
    for _ in range(1500):
        data = bytearray(good[: dice.randrange(len(good))] if dice.random() < 0.2 else good)
        for _ in range(dice.randrange(1, 4)):
            if data:
                data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
        try:
            m = decode(bytes(data))
            m.choose(np.ones(m.batch.num_rows, bool))
        except sonde.DamagedMessage:
            pass
        except Exception as e:
            raise AssertionError(f"seed {seed}: {e!r}") from e


def test_subject_tokens_are_escaped_as_the_bus_writes_them() -> None:
    assert [_token(t) for t in (None, "", "_", "resid_post", "a.b", "ü")] == [
        "*",
        "_",
        "=5F",
        "resid_post",
        "a=2Eb",
        "=C3=BC",
    ]


def test_arguments_that_make_no_sense_are_refused_at_once() -> None:
    for wrong in ({"since": "yesterday"}, {"since": 0}, {"layer": -2}):
        with pytest.raises(ValueError):
            sonde.subscribe("nats://127.0.0.1:1", **wrong)  # type: ignore[arg-type]


def test_checksum_is_castagnoli() -> None:
    assert crc32c(b"123456789") == 0xE3069283


def write_log(lake: Path, version: int, body: dict[str, object], name: str = "") -> Path:
    line = json.dumps(body).encode() + b"\n"
    path = lake / "_log" / (name or f"{version:020d}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(line + json.dumps({"crc32c": f"{crc32c(line):08x}"}).encode() + b"\n")
    return path


def entry(version: int, *files: str) -> dict[str, object]:
    listed = [{"table": "vectors", "path": f, "rows": 1, "bytes": 3, "epochs": ["00"]} for f in files]
    return {"format": 1, "version": version, "kind": "commit", "files": listed, "totals": {}}


def test_only_files_that_the_log_names_exist(tmp_path: Path) -> None:
    (tmp_path / "vectors").mkdir()
    for name in ("a", "b", "stray"):
        (tmp_path / "vectors" / f"{name}.parquet").write_bytes(b"abc")
    write_log(tmp_path, 1, entry(1, "vectors/a.parquet"))
    lake = sonde.open_lake(tmp_path)
    assert [Path(f).name for f in lake.files("vectors")] == ["a.parquet"]
    write_log(tmp_path, 2, {**entry(2, "vectors/b.parquet"), "format": 2, "partition": 1})
    assert lake.version == 1
    lake.refresh()
    assert [Path(f).name for f in lake.files("vectors")] == ["a.parquet", "b.parquet"]
    write_log(tmp_path, 3, {**entry(3), "format": 3})
    with pytest.raises(sonde.LakeError, match="upgrade"):
        lake.refresh()


def test_a_checkpoint_says_the_same_as_the_entries_before_it(tmp_path: Path) -> None:
    write_log(tmp_path, 0, {"format": 1, "files": entry(1, "vectors/a.parquet")["files"]}, f"{64:020d}-0.files.json")
    manifests = [{"name": f"{64:020d}-0.files.json", "level": 0, "files": 1}]
    body = {"format": 1, "version": 64, "totals": {"duplicates": 5}, "manifests": manifests}
    write_log(tmp_path, 64, body, f"{64:020d}.checkpoint.json")
    write_log(tmp_path, 64, entry(64))
    write_log(tmp_path, 65, entry(65, "vectors/b.parquet"))
    (tmp_path / "vectors").mkdir()
    for name in ("a", "b"):
        (tmp_path / "vectors" / f"{name}.parquet").write_bytes(b"abc")
    lake = sonde.open_lake(tmp_path)
    assert lake.version == 65
    assert [Path(f).name for f in lake.files("vectors")] == ["a.parquet", "b.parquet"]


def test_damage_to_a_lake_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(sonde.LakeError, match="no lake"):
        sonde.open_lake(tmp_path)
    path = write_log(tmp_path, 1, entry(1, "vectors/a.parquet"))
    with pytest.raises(sonde.LakeError, match=r"vectors/a\.parquet: it has None bytes"):
        sonde.open_lake(tmp_path).files("vectors")
    good = path.read_bytes()
    for k in range(0, len(good.partition(b"\n")[0]), 3):
        path.write_bytes(good[:k] + bytes([good[k] ^ 1]) + good[k + 1 :])
        with pytest.raises(sonde.LakeError, match=path.name):
            sonde.open_lake(tmp_path)
    write_log(tmp_path, 1, entry(1, "../outside.parquet"))
    with pytest.raises(sonde.LakeError, match="does not lie in the lake"):
        sonde.open_lake(tmp_path)
    write_log(tmp_path, 1, entry(1))
    write_log(tmp_path, 3, entry(3))
    with pytest.raises(sonde.LakeError, match="entry 2 of the log is missing"):
        sonde.open_lake(tmp_path)


def fact(kind: str, **said: object) -> dict[str, object]:
    numbers = {"number": 1, "position": 0, "count": 0, "stride": 1, "pass": 0, "layout": 1, "capture_seq": 0}
    texts = {"entries": "0", "outcome": "", "reason": "", "hook": "", "detail": ""}
    return {**numbers, **texts, "first_row": 0, "layer": -1, "fact": kind, **said}


def test_what_is_expected_and_not_there_is_named_with_its_reason() -> None:
    layout = json.dumps([{"hook": "q", "layer": 0, "shard": 0}, {"hook": "k", "layer": 0, "shard": 0}])
    facts = [
        fact("dropped", position=4, count=2, reason="budget"),  # before its expectation: facts come in any order
        fact("layout", detail=layout),
        fact("expected", position=0, count=8, outcome="captured", capture_seq=7),
        fact("expected", position=8, count=2, outcome="dropped", reason="no_space"),
        fact("expected", position=0, count=20, entries="1", outcome="captured", capture_seq=8),
        fact("expected", position=10, count=1, outcome="captured", capture_seq=9),
        fact("lost", capture_seq=9),
        fact("expected", position=11, count=1, outcome="captured", capture_seq=10),
        fact("amend", position=11, count=1, reason="rejected"),
    ]
    ledger = Ledger(1, "q", 0, 0)
    ledger.read(facts)
    runs = [(m.start, m.stop, m.reason.partition(":")[0]) for m in ledger.missing({0, 1, 2, 3, 6, 7}, 0)]
    assert runs == [
        (4, 6, "dropped by the agent"),
        (8, 10, "dropped by the ring"),
        (10, 11, "lost when the engine died"),
    ]
