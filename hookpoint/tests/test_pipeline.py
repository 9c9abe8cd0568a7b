"""Fears about the whole: what Python sees is what the engine computed, or a gap, or an error."""

from __future__ import annotations

import asyncio
import re
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import nats
import numpy as np
import pyarrow as pa
import pytest
from conftest import REQUESTS, Pipeline, make_pipeline, wait_closed

import sonde
from sonde.dtypes import widen

README = Path(__file__).resolve().parents[1] / "README.md"


def bits(values: np.ndarray) -> bytes:
    return np.ascontiguousarray(values).tobytes()


def live_rows(p: Pipeline, **choice: object) -> tuple[dict[tuple, bytes], list[sonde.Gap]]:
    """Read what the stream has: (request, sample, hook, layer, position, pass) to the bits of the row."""
    rows: dict[tuple, bytes] = {}
    gaps = []
    with sonde.subscribe(p.url, since="start", timeout=2, **choice) as subscription:  # type: ignore[arg-type]
        for item in subscription:
            if isinstance(item, sonde.Gap):
                gaps.append(item)
                continue
            names = zip(item.requests, item.samples, item.positions, item.passes, strict=True)
            for (request, sample, position, pass_), vector in zip(names, item.vectors, strict=True):
                key = (request, int(sample), item.hook, item.layer, int(position), int(pass_))
                assert key not in rows, f"{key} came twice"
                rows[key] = bits(vector)
    return rows, gaps


@pytest.fixture(scope="module")
def everything(arithmetic: Pipeline) -> dict[tuple, bytes]:
    rows, gaps = live_rows(arithmetic)
    assert gaps == []
    return rows


def test_every_row_is_live_what_it_is_in_the_lake(arithmetic: Pipeline, everything: dict[tuple, bytes]) -> None:
    lake = sonde.open_lake(arithmetic.lake)
    stored = {}
    for r in lake.table("tokens").to_pylist():
        key = (r["request"], r["sample"], r["hook"], r["layer"], r["position"], r["pass"])
        stored[key] = bits(np.array(r["token_id"], np.int32))
    table = lake.vectors()
    keys = table.select(["request", "sample", "hook", "layer", "position", "pass"]).to_pylist()
    for key, values in zip(keys, sonde.lake._elements(table), strict=True):
        stored[tuple(key.values())] = bits(values)
    assert stored == everything
    assert {k[0] for k in stored} == set(REQUESTS)
    assert len({k[2] for k in stored}) == 18, "the torture model has 18 hooks"


def test_every_tensor_is_that_of_sonde_lake_tensor(arithmetic: Pipeline, everything: dict[tuple, bytes]) -> None:
    lake = sonde.open_lake(arithmetic.lake)
    compared = 0
    for hook, layer in sorted({(k[2], k[3]) for k in everything if k[0] == "c" and k[3] <= 0}):
        t = lake.tensor("c", hook, layer, sample=1, allow_partial=True)  # its prompt was computed by sample 0
        assert (t.positions[1:] > t.positions[:-1]).all()
        for position, pass_, row in zip(t.positions, t.passes, t.values, strict=True):
            assert bits(row) == everything["c", 1, hook, layer, int(position), int(pass_)]
        if t.values.dtype == object:
            continue  # .npy has no ragged arrays
        name = str(layer) if layer >= 0 else "-"
        place = ["--lake", str(arithmetic.lake), "--out", "t.npy"]
        arithmetic.sonde("lake", "tensor", "c", hook, name, "--sample", "1", "--allow-partial", *place)
        theirs = np.load(arithmetic.dir / "t.npy")
        if theirs.dtype == np.float16:  # .npy has halves and small integers
            theirs = widen("f16", theirs.reshape(-1).view(np.uint8)).reshape(theirs.shape)
        elif theirs.dtype.kind in "iu":
            theirs = theirs.astype(t.values.dtype)
        assert theirs.shape == t.values.shape and bits(theirs) == bits(t.values), hook
        compared += 1
    assert compared >= 15


def test_choices_leave_out_everything_else(arithmetic: Pipeline, everything: dict[tuple, bytes]) -> None:
    rows, gaps = live_rows(arithmetic, hook="resid_post", layer=1, request="b")
    assert gaps == []
    assert rows == {k: v for k, v in everything.items() if k[2:4] == ("resid_post", 1) and k[0] == "b"}
    rows, _ = live_rows(arithmetic, hook="token_ids", layer=-1)
    assert rows == {k: v for k, v in everything.items() if k[2] == "token_ids"}


def test_the_header_names_who_computed_the_rows(arithmetic: Pipeline) -> None:
    with sonde.subscribe(arithmetic.url, "resid_post", 2, since="start", timeout=2) as subscription:
        batch = next(subscription)
    assert isinstance(batch, sonde.Batch)
    requests = sonde.open_lake(arithmetic.lake).requests()
    assert {(batch.epoch, batch.engine, batch.model, batch.weights_digest)} == {
        (r["epoch"], r["engine"], r["model"], r["weights_digest"]) for r in requests.to_pylist()
    }
    assert (batch.dtype, batch.shape, batch.vectors.shape) == ("bf16", (16,), (len(batch), 16))
    assert requests.num_rows == 4 and all(requests["ended"].to_pylist())


def test_a_prefix_from_the_cache_is_an_error_and_never_zeros(tmp_path_factory: pytest.TempPathFactory) -> None:
    for p in make_pipeline(tmp_path_factory, "arithmetic"):
        prompt = "the same long beginning of two requests, which the second need not compute again"
        p.complete("first", prompt, 4)
        p.complete("second", prompt, 4)
        p.stop_process("engine")
        wait_closed(p)
        lake = sonde.open_lake(p.lake)
        assert len(lake.tensor("first", "resid_post", 0).positions) > 16
        with pytest.raises(sonde.IncompleteTensor, match="served from the prefix cache") as e:
            lake.tensor("second", "resid_post", 0)
        theirs = p.sonde("lake", "tensor", "second", "resid_post", "0", "--lake", str(p.lake), check=False)
        first = e.value.missing[0]
        assert theirs.returncode == 1 and f"[{first.start}, {first.stop}): {first.reason}" in theirs.stderr
        part = lake.tensor("second", "resid_post", 0, allow_partial=True)
        assert part.missing == tuple(e.value.missing) and part.positions[0] == first.stop
        with pytest.raises(sonde.NotInLake):
            lake.tensor("third", "resid_post", 0)
        with pytest.raises(sonde.NotInLake):
            lake.tensor("first", "no_such_hook", 0)


# A second broker gets the messages of the first, damaged in ways that are written down here.


async def copy(source: str, subject: str) -> list[tuple[str, bytes]]:
    nc = await nats.connect(source)
    sub = await nc.jetstream().subscribe(subject, ordered_consumer=True)
    out = []
    try:
        while True:
            m = await sub.next_msg(timeout=1)
            out.append((m.subject, m.data))
    except nats.errors.TimeoutError:
        return out
    finally:
        await nc.close()


@pytest.fixture(scope="module")
def messages(arithmetic: Pipeline) -> list[tuple[str, bytes]]:
    """All messages of one chain, in order."""
    out = asyncio.run(asyncio.wait_for(copy(arithmetic.url, "sonde.v1.*.*.*.vectors.q.0"), 60))
    assert len(out) >= 3
    return out


@pytest.fixture
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    """A broker alone, whose stream is empty."""
    p = Pipeline(tmp_path_factory.mktemp("b"), "none")
    p.start_run("bus")
    try:
        publish(p, [])
        yield p
    finally:
        p.stop()


def publish(p: Pipeline, messages: list[tuple[str, bytes]], delete: tuple[int, ...] = (), purge: int = 0) -> None:
    """Wait until the broker has made its stream and publish to it, then delete positions, and purge below one."""

    async def work() -> None:
        nc = await nats.connect(p.url, max_reconnect_attempts=-1, reconnect_time_wait=0.1)
        js = nc.jetstream()
        while True:
            try:
                await js.stream_info("SONDE")
                break
            except (nats.js.errors.Error, nats.errors.Error):
                await asyncio.sleep(0.1)
        for subject, data in messages:
            await js.publish(subject, data)
        for seq in delete:
            await js.delete_msg("SONDE", seq)
        if purge:
            await js.purge_stream("SONDE", seq=purge)
        await nc.close()

    asyncio.run(asyncio.wait_for(work(), 60))


def items(p: Pipeline, **choice: object) -> list[sonde.Batch | sonde.Gap]:
    with sonde.subscribe(p.url, since="start", timeout=1.5, **choice) as subscription:  # type: ignore[arg-type]
        return list(subscription)


def identity(items: list[sonde.Batch | sonde.Gap]) -> list[tuple[int, int]]:
    batches = [b for b in items if isinstance(b, sonde.Batch)]
    return [(int(s), int(r)) for b in batches for s, r in zip(b.seq, b.row, strict=True)]


def test_duplicates_are_dropped(broker: Pipeline, messages: list[tuple[str, bytes]]) -> None:
    publish(broker, [*messages[:2], *messages[:2], *messages[1:], *messages])
    with sonde.subscribe(broker.url, since="start", timeout=1.5) as subscription:
        got = list(subscription)
        assert subscription.duplicates > 0
    assert not any(isinstance(i, sonde.Gap) for i in got)
    assert len(set(identity(got))) == len(identity(got))
    clean = sum(pa.ipc.open_stream(data).read_next_batch().num_rows for _, data in messages)
    assert len(identity(got)) == clean


def test_deleted_and_trimmed_messages_are_gaps_in_their_place(
    broker: Pipeline, messages: list[tuple[str, bytes]]
) -> None:
    publish(broker, messages)
    whole = items(broker)
    publish(broker, [], delete=(2,))
    holed = items(broker)
    assert isinstance(holed[0], sonde.Batch) and isinstance(holed[1], sonde.Gap) and isinstance(holed[2], sonde.Batch)
    lost = whole[1]
    assert isinstance(lost, sonde.Batch)
    assert holed[1].certain and holed[1].hook == "q" and holed[1].layer == 0 and holed[1].epoch == lost.epoch
    for at in zip(lost.seq, lost.row, strict=True):
        assert holed[1].after <= (int(at[0]), int(at[1])) < holed[1].before
    publish(broker, [], purge=3)
    trimmed = items(broker)
    assert isinstance(trimmed[0], sonde.Gap) and trimmed[0].after == (0, 0) and "trimmed" in trimmed[0].reason
    assert identity(trimmed) == identity(whole[2:])
    publish(broker, messages[:1])  # published again, late: the gap closes without a duplicate
    late = items(broker)
    assert sorted(identity(late)) == sorted(identity(whole[:1]) + identity(whole[2:]))


def test_damaged_messages_are_skipped_loudly(broker: Pipeline, messages: list[tuple[str, bytes]]) -> None:
    subject = messages[1][0]
    publish(broker, [messages[0], (subject, b"nonsense"), messages[2]])
    with pytest.warns(UserWarning, match="a message of the bus is skipped"):
        got = items(broker)
    assert [type(i).__name__ for i in got] == ["Batch", "Gap", "Batch"]


def test_only_what_is_new_comes_without_since(broker: Pipeline, messages: list[tuple[str, bytes]]) -> None:
    publish(broker, messages[:1])
    with sonde.subscribe(broker.url, timeout=1.5) as subscription:
        publish(broker, messages[1:2])
        got = list(subscription)
    assert [type(i).__name__ for i in got] == ["Batch"]
    assert identity(got) == identity(items(broker))[len(identity(items(broker))) - len(identity(got)) :]


def test_a_broker_that_restarts_loses_and_repeats_nothing(broker: Pipeline, messages: list[tuple[str, bytes]]) -> None:
    publish(broker, messages[:1])
    with sonde.subscribe(broker.url, since="start", timeout=20) as subscription:
        got = [next(subscription)]
        broker.stop_process("run")
        broker.start_run("bus")
        publish(broker, messages[1:])
        rows = sum(pa.ipc.open_stream(data).read_next_batch().num_rows for _, data in messages)
        while len(identity(got)) < rows:
            got.append(next(subscription))
    assert not any(isinstance(i, sonde.Gap) for i in got)
    assert len(set(identity(got))) == rows


def test_a_hook_that_does_not_exist_is_hinted_at(broker: Pipeline, messages: list[tuple[str, bytes]]) -> None:
    publish(broker, messages)
    with pytest.warns(UserWarning, match=r"hooks in the stream: q \(layers 0\)"):
        assert items_after(broker, "resid_pots", sonde.live.HINT_AFTER + 1.5) == []


def items_after(p: Pipeline, hook: str, timeout: float) -> list[sonde.Batch | sonde.Gap]:
    with sonde.subscribe(p.url, hook, 0, since="start", timeout=timeout) as subscription:
        return list(subscription)


def test_a_server_that_is_away_is_an_error_after_the_timeout_that_hides_passwords() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(sonde.SondeError, match="no answer from nats://127.0.0.1:1 ") as e:
            sonde.subscribe("nats://me:secret@127.0.0.1:1", timeout=1)
    assert "secret" not in str(e.value)


def test_a_loop_that_is_left_leaves_nothing_running(broker: Pipeline, messages: list[tuple[str, bytes]]) -> None:
    publish(broker, messages)
    for _ in sonde.subscribe(broker.url, since="start"):
        break
    end = time.monotonic() + 10
    while any(t.name == "sonde-subscribe" for t in threading.enumerate()):
        assert time.monotonic() < end, "the thread of a subscription that nobody holds still runs"
        time.sleep(0.05)


def test_the_readme_runs_as_it_is_written(arithmetic: Pipeline, capsys: pytest.CaptureFixture[str]) -> None:
    snippets = re.findall(r"<!-- run: (\w+) -->\n```python\n(.*?)```", README.read_text(), re.S)
    assert [name for name, _ in snippets] == ["quickstart", "live", "lake"]
    for _, text in snippets[1:]:  # the first one is run by test_capture_quickstart.py
        assert len(text.splitlines()) <= 10
        own = {"URL": arithmetic.url, "LAKE": str(arithmetic.lake)}
        exec(compile(text, str(README), "exec"), own)  # noqa: S102 (the text under test)
        assert capsys.readouterr().out.count("\n") >= 2
