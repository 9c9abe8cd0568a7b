"""Live subscriptions to a stream with several partitions, on a real broker."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path

import nats
import nats.errors
import nats.js.errors
import pytest
from conftest import Pipeline

import sonde

SCHEMA = Path(__file__).resolve().parents[2] / "schema" / "SCHEMA.md"
PARTITIONS = 3


def partition_of(subject: str, partitions: int) -> int:
    """Compute what schema/SCHEMA.md says, from its words alone."""
    engine, rank = [*subject.split("."), "", "", "", "", ""][3:5]
    h = 14695981039346656037
    for byte in f"{engine}.{rank}".encode():
        h = (h ^ byte) * 1099511628211 % 2**64
    return h % partitions


def test_partitions_are_those_of_the_page() -> None:
    rows = re.findall(r"^\| `(sonde\.v1[^`]*)` \|((?: \d+ \|)+)$", SCHEMA.read_text(), re.M)
    assert len(rows) >= 10
    for subject, numbers in rows:
        want = [int(n) for n in numbers.strip("| ").split(" | ")]
        assert [partition_of(subject, n) for n in (1, 2, 3, 4, 16, 100, 256)] == want, subject


@pytest.fixture(scope="module")
def messages(arithmetic: Pipeline) -> list[tuple[str, bytes]]:
    """All messages of some chains, each in order."""

    async def copy() -> list[tuple[str, bytes]]:
        nc = await nats.connect(arithmetic.url)
        sub = await nc.jetstream().subscribe("sonde.v1.*.*.*.vectors.q.>", ordered_consumer=True)
        out = []
        try:
            while True:
                m = await sub.next_msg(timeout=1)
                out.append((m.subject, m.data))
        except nats.errors.TimeoutError:
            return out
        finally:
            await nc.close()

    out = asyncio.run(asyncio.wait_for(copy(), 60))
    assert len({s for s, _ in out}) >= PARTITIONS
    return out


@pytest.fixture
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    p = Pipeline(tmp_path_factory.mktemp("b"), "none", partitions=PARTITIONS)
    p.start_run("bus")
    try:
        yield p
    finally:
        p.stop()


def publish(p: Pipeline, messages: list[tuple[str, bytes]]) -> None:
    """Spread chains over the partitions, as so many engines would."""

    async def work() -> None:
        nc = await nats.connect(p.url, max_reconnect_attempts=-1, reconnect_time_wait=0.1)
        js = nc.jetstream()
        chains = sorted({s for s, _ in messages})
        for subject, data in messages:
            i = chains.index(subject) % PARTITIONS
            tokens = subject.split(".")
            wire = ".".join([*tokens[:3], f"{i}of{PARTITIONS}", *tokens[3:]])
            while True:
                try:
                    ack = await js.publish(wire, data)
                    break
                except (nats.js.errors.Error, nats.errors.Error):  # the streams are being made
                    await asyncio.sleep(0.1)
            assert ack.stream == f"SONDE-{i}"
        await nc.close()

    asyncio.run(asyncio.wait_for(work(), 60))


def identity(items: list[sonde.Batch | sonde.Gap]) -> list[tuple[str, int, int, int]]:
    batches = [b for b in items if isinstance(b, sonde.Batch)]
    return [(b.hook, b.layer, int(s), int(r)) for b in batches for s, r in zip(b.seq, b.row, strict=True)]


def test_all_partitions_are_read_once_and_in_order(
    arithmetic: Pipeline, broker: Pipeline, messages: list[tuple[str, bytes]]
) -> None:
    publish(broker, messages)
    with sonde.subscribe(broker.url, "q", since="start", timeout=3) as subscription:
        got = list(subscription)
        assert subscription.duplicates == 0
    with sonde.subscribe(arithmetic.url, "q", since="start", timeout=3) as subscription:
        want = list(subscription)
    assert not any(isinstance(i, sonde.Gap) for i in got)
    assert sorted(identity(got)) == sorted(identity(want)) and len(identity(got)) > 0
    for layer in {row[1] for row in identity(got)}:
        rows = [row for row in identity(got) if row[1] == layer]
        assert rows == sorted(rows)


def test_a_hook_of_one_partition_is_found_and_a_position_is_refused(
    broker: Pipeline, messages: list[tuple[str, bytes]]
) -> None:
    publish(broker, messages)
    with sonde.subscribe(broker.url, "q", 1, since="start", timeout=3) as subscription:
        assert {b.layer for b in subscription if isinstance(b, sonde.Batch)} == {1}
    with pytest.raises(sonde.SondeError, match="has 3 partitions, each with positions of its own"):
        sonde.subscribe(broker.url, since=5, timeout=10)
    with (
        pytest.warns(UserWarning, match=r"hooks in the stream: q \(layers"),
        sonde.subscribe(broker.url, "nothing", since="start", timeout=sonde.live.HINT_AFTER + 1.5) as subscription,
    ):
        assert list(subscription) == []
