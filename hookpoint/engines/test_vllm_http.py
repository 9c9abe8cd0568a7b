"""The contract suite on `vllm serve` with all its processes, and what clients and detectors do beside it."""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
import urllib.error
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("vllm", reason="NOT RUN: vLLM is not installed; hookpoint/engines/install.sh installs it")

import aiohttp  # noqa: E402
import tiny  # noqa: E402
from pipeline import Pipeline, abort  # noqa: E402
from suite import Answer, Canaries, Job, Judge  # noqa: E402
from vllm_server import Server, complete  # noqa: E402

import sonde  # noqa: E402
from sonde.adapters.vllm.abort import over_http  # noqa: E402

REQUESTS = 240


@pytest.fixture(scope="module")
def canaries() -> Canaries:
    return Canaries(random.Random(9), REQUESTS)


@pytest.fixture(scope="module")
def server(module_pipe: Pipeline, canaries: Canaries, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    server = Server(module_pipe, tiny.write(folder / "model", canaries.vocabulary), folder, "server")
    try:
        yield server
    finally:
        server.stop()


class Client(threading.Thread):
    """One completion, asked for on another thread."""

    def __init__(self, server: Server, job: Job, **xargs: Any) -> None:
        super().__init__()
        self.server, self.job, self.xargs = server, job, xargs
        self.answers: list[Answer] = []
        self.start()

    def run(self) -> None:
        async def ask() -> list[Answer]:
            async with aiohttp.ClientSession(f"http://{self.server.address}") as session:
                return await complete(session, self.job, **self.xargs)

        self.answers = asyncio.run(ask())

    def said(self) -> list[Answer]:
        self.join(60)
        assert not self.is_alive(), "the completion never ended"
        return self.answers


def sequences(server: Server) -> list[dict[str, Any]]:
    return json.loads(server.get("/collective_rpc", {"method": "sonde_sequences"}))["results"][0]


def until(what: Any) -> None:
    end = time.monotonic() + 20
    while not what():
        assert time.monotonic() < end
        time.sleep(0.02)


def heard(server: Server, epoch: str, request: str) -> int:
    """Read the number of a request's sequence on the bus, as a detector does."""
    for batch in sonde.subscribe(server.pipe.url, hook="resid_post", layer=0, since="start", timeout=20):
        if isinstance(batch, sonde.Batch) and batch.epoch == epoch and request in batch.requests:
            return int(batch.numbers[list(batch.requests).index(request)])
    raise AssertionError(f"nothing of {request} came over the bus")


def test_a_window_and_a_name_come_through_extra_body(server: Server) -> None:
    Client(server, Job("seen", [5, 6, 7], 6), **{"hidden_state_window": [1, 3]}).said()
    with pytest.raises(urllib.error.HTTPError) as refused:
        server.get("/v1/completions", {"model": "tiny", "prompt": [5], "vllm_xargs": {"hidden_state_window": [3, 1]}})
    assert refused.value.code == 400 and "start < end" in refused.value.read().decode()


def test_a_detector_ends_a_generation_of_the_server(server: Server) -> None:
    client, other = Client(server, Job("stopped", [8, 9], 150)), Client(server, Job("goes-on", [9, 8], 150))
    until(lambda: len(sequences(server)) == 2)
    epoch = server.stats()["epoch"]
    number = heard(server, epoch, "stopped")
    assert abort(server.pipe, epoch, "server", number, 3) == "stopped"
    (answer,), (whole,) = client.said(), other.said()
    assert answer.finish == "stop" and len(answer.tokens or ()) < 150
    assert whole.finish == "length" and len(whole.tokens or ()) == 150


def test_the_servers_own_abort_has_its_traps(server: Server) -> None:
    clients = [Client(server, Job(name, [4, 4, len(name)], 150, n)) for name, n in (("trap", 2), ("trap-too", 1))]
    until(lambda: len(sequences(server)) == 3)
    internal = sorted(s["engine_id"] for s in sequences(server))
    said = json.loads(server.get("/abort_requests", {"request_ids": internal}))
    assert said["aborted"] == 3 and len(sequences(server)) == 3, "internal ids are reported as aborted, and go on"
    stopper = over_http(f"http://{server.address}")
    assert stopper.stop("tra") == stopper.stop("cmpl-trap") == "unknown", "a prefix is nobody's id"
    assert stopper.stop("trap") == "stopped"
    assert {s["request"] for s in sequences(server)} == {"trap-too"}
    server.get("/abort_requests", {"request_ids": []})  # everything
    until(lambda: not sequences(server))
    for client in clients:
        assert {a.finish for a in client.said()} == {"abort"}


def test_no_row_of_the_api_server_is_wrong(server: Server, canaries: Canaries) -> None:
    jobs = canaries.jobs(64, (4, 40), (4, 40), aborts=0.1)
    answers = server.serve(jobs, random.Random(10))
    mine = {j.id for j in jobs}
    rows = [r for r in server.stored() if r.request in mine]
    verdict = Judge(server, jobs, answers).judge(rows, server.plain())
    print(f"vLLM's API server: {verdict}; {server.preempted} preemptions")
    assert verdict.wrong == [], (verdict.wrong[:10], server.said()[-2000:])
    assert not any(server.told[n] for n in ("unidentified", "failures", "dropped_rows", "silent")), server.told
    assert verdict.rows >= 100_000 and verdict.widest >= 16 and verdict.cached and verdict.aborted
    assert server.preempted and verdict.recomputed


def test_what_was_asked_over_http_is_stored(server: Server) -> None:
    lake = server.lake
    assert list(lake.tensor("seen", "resid_post", 1).positions) == [4, 5]
    events = lake.table("requests", epoch=server.told["epoch"]).to_pylist()
    assert next(e["engine_id"] for e in events if e["request"] == "seen").startswith("cmpl-seen-0-")
    ends = {(e["request"], e["sample"]): e["reason"] for e in events if e["event"] == "end"}
    assert ends["stopped", 0] == "detector" and ends["goes-on", 0] == "length"
    assert ends["trap", 0] == ends["trap", 1] == ends["trap-too", 0] == "abort"
