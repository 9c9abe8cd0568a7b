"""`sonde run` for the engines under test, and every row that it stored."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from suite import Row

import sonde
from sonde.lake import _elements


def _tests() -> Any:
    """Load the fixtures of the package's own tests, whose pipeline this is."""
    path = Path(__file__).resolve().parents[1] / "tests" / "conftest.py"
    spec = importlib.util.spec_from_file_location("package_conftest", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_package = _tests()
Pipeline, free_address = _package.Pipeline, _package.free_address


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
