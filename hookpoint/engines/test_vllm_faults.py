"""Wrong builds of the adapter of vLLM: the suite must catch each."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="NOT RUN: vLLM is not installed; hookpoint/engines/install.sh installs it")

import probe  # noqa: E402
import tiny  # noqa: E402
from pipeline import Pipeline  # noqa: E402
from suite import Canaries, Job, Judge, Plain, Row  # noqa: E402
from vllm_offline import Offline  # noqa: E402

from sonde.adapters.contract import Part  # noqa: E402
from sonde.adapters.vllm import hooks, settings, worker  # noqa: E402

COUNT = 24


def swapped(parts: list[Part]) -> list[Part]:
    """Give two requests each other's rows, in batches of decoding."""
    if len(parts) < 2 or any(p.count > 1 for p in parts[:2]):
        return parts
    a, b = parts[:2]
    return [dataclasses.replace(a, row=b.row), dataclasses.replace(b, row=a.row), *parts[2:]]


def shifted(parts: list[Part]) -> list[Part]:
    """Give a request the rows of the token before its own."""
    return [dataclasses.replace(p, row=max(p.row - 1, 0)) for p in parts]


def by_arrival(parts: list[Part]) -> list[Part]:
    """Name rows in the order in which requests came, as if the scheduler packed them so."""
    rows, out = 0, []
    for p in sorted(parts, key=lambda p: p.key):
        out.append(dataclasses.replace(p, row=rows))
        rows += p.count
    return out


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Plant one of the faults."""

    def layout(fault: Any) -> None:
        right = worker.Adapter._layout

        def wrong(self: Any, positions: Any) -> Any:
            parts, last = right(self, positions)
            return fault(parts), last

        monkeypatch.setattr(worker.Adapter, "_layout", wrong)

    def half() -> None:
        right = hooks.Hook._pass
        monkeypatch.setattr(hooks.Hook, "_pass", lambda self, x, residual: right(self, x, None))

    def one_sample() -> None:
        monkeypatch.setattr(settings, "sample_of", lambda internal, external: 0)

    return {
        "none": lambda: None, "swapped": lambda: layout(swapped), "shifted": lambda: layout(shifted),
        "by arrival": lambda: layout(by_arrival), "half of the stream": half, "one sample": one_sample,
    }  # fmt: skip


class Served:
    """One engine that serves several sets of jobs, one after the other."""

    def __init__(self, pipe: Pipeline, folder: Path) -> None:
        self.canaries = Canaries(random.Random(3), 8 * COUNT)
        self.subject = Offline(pipe, tiny.write(folder / "model", self.canaries.vocabulary), folder, "faults")
        self.jobs = self.canaries.jobs(64, (4, 20), (6, 16), aborts=0)
        self.kept: list[tuple[str, list[Job], list[Any], Plain]] = []

    def serve(self, name: str) -> None:
        jobs = [self.jobs.pop() for _ in range(COUNT)]
        seen = probe.records(self.subject.seen)
        answers = self.subject.serve(jobs, random.Random(4))
        self.kept.append((name, jobs, answers, probe.read(self.subject.seen, seen)))


@pytest.fixture(scope="module")
def served(module_pipe: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    yield Served(module_pipe, tmp_path_factory.mktemp("faults"))


FAULTS = ("none", "swapped", "shifted", "by arrival", "half of the stream", "one sample")


@pytest.mark.parametrize("fault", FAULTS)
def test_serving_with_a_fault(served: Served, plant: Any, fault: str) -> None:
    plant[fault]()
    served.serve(fault)


def test_every_wrong_build_is_caught_and_the_right_one_is_not(served: Served) -> None:
    rows = list(served.subject.stored())
    for name, jobs, answers, plain in served.kept:
        mine = {j.id for j in jobs}
        found: list[Row] = [r for r in rows if r.request in mine]
        verdict = Judge(served.subject, jobs, answers).judge(found, plain)
        print(f"{name}: {verdict}")
        if name == "none":
            assert verdict.wrong == [], verdict.wrong[:5]
        else:
            assert verdict.wrong, f"the fault {name!r} passes for a right build"
    assert [k[0] for k in served.kept] == list(FAULTS)
