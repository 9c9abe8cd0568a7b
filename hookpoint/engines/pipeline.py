"""`sonde run` for the engines under test, and every row that it stored."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nats
import numpy as np
from suite import Row

import sonde
from sonde.lake import _elements


def _tests(name: str) -> Any:
    """Load a file of the package's own tests, whose pipeline this is."""
    path = Path(__file__).resolve().parents[1] / "tests" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"package_{name}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_package = _tests("conftest")
Pipeline, free_address, ROOT = _package.Pipeline, _package.free_address, _package.ROOT
summary, read_witness = _package.pytest_terminal_summary, _tests("witness").read_witness


def wait_closed(run: Pipeline, epoch: str) -> sonde.Lake:
    """Wait until everything of an epoch is stored."""
    end = time.monotonic() + 180
    while True:
        try:
            lake = sonde.open_lake(run.lake)
            facts = lake.table("ledger", columns=["fact"], epoch=epoch)
            if facts.num_rows and "closed" in facts["fact"].to_pylist():
                return lake
        except sonde.LakeError:
            pass
        if time.monotonic() > end:
            raise RuntimeError(f"epoch {epoch} was not closed in the lake:\n{run.log()}")
        time.sleep(0.2)


def rows_of(lake: sonde.Lake, epoch: str) -> Iterator[Row]:
    """Give every row of an epoch."""
    columns = ["request", "sample", "position", "pass", "hook", "layer"]
    table = lake.vectors(epoch=epoch)
    if table.num_rows:
        for r, values in zip(table.select(columns).to_pylist(), _elements(table), strict=True):
            yield Row(*(r[c] for c in columns), values)
    for r in lake.table("tokens", columns=[*columns, "token_id"], epoch=epoch).to_pylist():
        yield Row(*(r[c] for c in columns), np.array([r["token_id"]], np.int32))


def abort(run: Pipeline, epoch: str, engine: str, number: int, position: int) -> str:
    """Ask for the end of a sequence as a detector does, over the bus; give the outcome."""
    command = {"epoch": epoch, "number": number, "sample": 0, "engine_id": "", "position": position,
               "expires_wall_ns": time.time_ns() + 60 * 10**9, "alert_id": "a"}  # fmt: skip

    async def ask() -> str:
        client = await nats.connect(run.url)
        answer = await client.request(f"sonde.cmd.default.{engine}.0.abort", json.dumps(command).encode(), timeout=20)
        await client.close()
        return str(json.loads(answer.data)["outcome"])

    return asyncio.run(ask())
