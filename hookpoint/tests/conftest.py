"""A pipeline of real processes, on free ports and in a temporary folder, that all tests of the package share."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BINARY = ROOT / "build" / "sonde"
TRILINGUAL = ROOT / "models" / "trilingual"

CONFIG = """\
bus:
  embedded: {{store_dir: {dir}/bus, listen: "{bus}", sync: interval, retain_bytes: 512MiB}}
  partitions: {partitions}
agent:
  socket: {dir}/s
  linger_ms: 20
  dead_letter: {{dir: {dir}/dead-letter/agent}}
policy:
  rules:
{rules}
materializer:
  lake: {dir}/lake
  commit_interval_ms: 50
  dead_letter_dir: {dir}/dead-letter/materializer
http: {{listen: ""}}
"""

EVERYTHING = '    - {name: every row, hooks: ["*"]}'


def free_address() -> str:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{s.getsockname()[1]}"


class Pipeline:
    """`sonde run` and `sonde engine`, each a process."""

    def __init__(
        self,
        folder: Path,
        model: str,
        rules: str = EVERYTHING,
        engine_args: tuple[str, ...] = (),
        partitions: int = 1,
    ) -> None:
        self.dir, self.lake = folder, folder / "lake"
        self.bus, self.engine = free_address(), free_address()
        self.url = f"nats://{self.bus}"
        self._config = folder / "sonde.yaml"
        self._config.write_text(CONFIG.format(dir=folder, bus=self.bus, rules=rules, partitions=partitions))
        self._engine_args = ["--model", model, "--listen", self.engine, "--ring-socket", f"{folder}/s", *engine_args]
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> Pipeline:
        self.start_run()
        self._start("engine", "engine", *self._engine_args, "--wait-agent", "20s")
        self._until(self._engine_answers, "the engine answers")
        return self

    def start_run(self, *roles: str) -> None:
        chosen = [word for role in roles for word in ("--role", role)]
        self._start("run", "run", "--config", str(self._config), *chosen)

    def stop(self) -> None:
        """Stop the engine first, so that all that was captured arrives."""
        for name in ("engine", "run"):
            self.stop_process(name)

    def stop_process(self, name: str) -> None:
        process = self._running.pop(name, None)
        if process is None:
            return
        if process.poll() is not None:
            raise RuntimeError(f"{name} ended by itself with code {process.returncode}:\n{self.log()}")
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def complete(self, request: str, prompt: str, max_tokens: int, n: int = 1, tenant: str = "") -> None:
        """Have the engine answer a prompt; raises when it does not."""
        body = {"prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "n": n}
        body["sonde"] = {"request_id": request, "tenant": tenant}
        question = urllib.request.Request(f"http://{self.engine}/v1/completions", json.dumps(body).encode())
        question.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(question, timeout=60) as answer:
            json.load(answer)

    def sonde(self, *args: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return subprocess.run([str(BINARY), *args], cwd=self.dir, check=check, capture_output=True, text=True)

    def log(self) -> str:
        return "\n".join(f"--- {p.name}\n{p.read_text()[-3000:]}" for p in sorted(self.dir.glob("*.log")))

    def _start(self, name: str, *args: str) -> None:
        with (self.dir / f"{name}.log").open("ab") as log:
            self._running[name] = subprocess.Popen([str(BINARY), *args], cwd=ROOT, stdout=log, stderr=log)

    def _engine_answers(self) -> bool:
        try:
            return urllib.request.urlopen(f"http://{self.engine}/healthz", timeout=2).status == 200
        except OSError:
            return False

    def _until(self, condition: object, what: str) -> None:
        end = time.monotonic() + 60
        while not condition():  # type: ignore[operator]
            if time.monotonic() > end or any(p.poll() is not None for p in self._running.values()):
                raise RuntimeError(f"not so that {what}:\n{self.log()}")
            time.sleep(0.05)


def make_pipeline(factory: pytest.TempPathFactory, model: str, **options: object) -> Iterator[Pipeline]:
    if not BINARY.exists():
        pytest.skip("NOT RUN: build/sonde is missing; make build makes it")
    folder = factory.mktemp("p")
    if len(os.fsencode(f"{folder}/s")) > 100:
        pytest.skip("NOT RUN: the temporary folder is too deep for a unix socket")
    p = Pipeline(folder, model, **options)  # type: ignore[arg-type]
    try:
        yield p.start()
    finally:
        p.stop()
        shutil.rmtree(folder, ignore_errors=True)


REQUESTS = ("a", "b", "c")


@pytest.fixture(scope="session")
def arithmetic(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    """The torture model after three requests, one of two samples, with the engine stopped: its epoch is closed."""
    for p in make_pipeline(tmp_path_factory, "arithmetic", engine_args=("--step-delay", "10ms")):
        for i, request in enumerate(REQUESTS):
            p.complete(request, f"{request} tells of {i} things and then of others", 12, n=2 if request == "c" else 1)
        p.stop_process("engine")
        wait_closed(p)
        yield p


def wait_closed(p: Pipeline) -> None:
    """Wait until the lake holds the `closed` fact of an epoch, so everything before it."""
    import sonde

    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            facts = sonde.open_lake(p.lake).table("ledger", columns=["fact"])
        except sonde.LakeError:
            facts = None
        if facts is not None and facts.num_rows and "closed" in facts["fact"].to_pylist():
            return
        time.sleep(0.1)
    raise RuntimeError(f"the epoch was not closed in the lake:\n{p.log()}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """End as the Go tests end: what could not run, and one line that counts."""
    stats = terminalreporter.stats
    for report in stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        terminalreporter.write_line(f"NOT RUN: {report.nodeid}: {reason.partition('NOT RUN: ')[2] or reason}")
    failed = len(stats.get("failed", [])) + len(stats.get("error", []))
    counts = f"{len(stats.get('passed', []))} passed, {failed} failed, {len(stats.get('skipped', []))} skipped"
    terminalreporter.write_line(counts)
