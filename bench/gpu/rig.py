"""What the parts share: models of random weights, an agent, hooks of other makes, and the file of results."""

from __future__ import annotations

import contextlib
import copy
import datetime
import json
import os
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

import sonde
from sonde.names import Catalogue, Tap
from sonde.recorder import Recorder
from sonde.step import Phase, Range
from sonde.taps import first_tensor

ROOT = Path(__file__).resolve().parents[2]

#: Without a GPU the parts run as a trial: small shapes, eager steps where graphs would be, figures that say nothing.
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ON_GPU = DEVICE == "cuda"

#: Hooks of one layer: one residual, and six tensors.
HOOKS = {1: ["resid_post"], 6: ["resid_post", "resid_mid", "attn_out", "mlp_out", "q", "z"]}

SHAPES = {
    "small": {"hidden_size": 64, "num_hidden_layers": 8, "num_attention_heads": 4, "num_key_value_heads": 2,
              "head_dim": 16, "intermediate_size": 128, "vocab_size": 997},
    "1.7b": {"hidden_size": 2048, "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8,
             "head_dim": 128, "intermediate_size": 6144, "vocab_size": 151936},
    "8b": {"hidden_size": 4096, "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8,
           "head_dim": 128, "intermediate_size": 12288, "vocab_size": 151936},
}  # fmt: skip

CONFIG = """\
bus:
  embedded: {{store_dir: {dir}/bus, listen: "{bus}", sync: interval, max_bytes: 24GiB, retain_bytes: 64MiB}}
agent: {{socket: {dir}/s, wait: {wait}, dead_letter: {{dir: {dir}/dead/agent}}}}
policy: {{rules: [{{name: bench, hooks: ["{hooks}"], layers: [{layers}]}}]}}
materializer: {{lake: {dir}/lake, commit_interval_ms: 500, dead_letter_dir: {dir}/dead/materializer}}
detectors: [{detectors}]
http: {{listen: "{http}"}}
"""


def model(shape: str, layers: int = 0) -> transformers.PreTrainedModel:
    """Make a Qwen3 of random bf16 weights on the device."""
    torch.manual_seed(0)
    config = transformers.Qwen3Config(**SHAPES[shape], max_position_embeddings=4096, pad_token_id=0, eos_token_id=None)
    if layers:
        config.num_hidden_layers = layers
        config.layer_types = None
        config = transformers.Qwen3Config(**{**config.to_dict(), "layer_types": ["full_attention"] * layers})
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(DEVICE):
            return transformers.Qwen3ForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)


def twin(m: torch.nn.Module) -> Any:
    """Copy modules without copying weights: hooks of one copy do not run in another."""
    shared: dict[int, Any] = {id(p): p for p in m.parameters()}
    shared.update({id(b): b for b in m.buffers()})
    return copy.deepcopy(m, shared)


def prepare_states(m: Any) -> None:
    """Let a Hugging Face model give its hidden states under fullgraph, which wants the hooks for it there before."""
    try:
        from transformers.utils.output_capturing import maybe_install_capturing_hooks
    except ImportError:  # a version that has no need of it
        return
    maybe_install_capturing_hooks(m.model)


def taps(m: torch.nn.Module, hooks: Sequence[str]) -> list[Tap]:
    """Find the taps of hooks."""
    return Catalogue(m).choose(hooks)


def plain_hooks(m: torch.nn.Module, chosen: Sequence[Tap], take: Callable[[int, torch.Tensor], None]) -> list[Any]:
    """Hand the tensor of each tap to `take`, by plain hooks of PyTorch."""
    modules, handles = dict(m.named_modules()), []
    for i, tap in enumerate(chosen):
        if tap.site == "input":

            def before(_m: Any, args: Any, kwargs: Any, i: int = i) -> None:
                x = first_tensor(args, None)
                take(i, first_tensor(kwargs, None) if x is None else x)

            handles.append(modules[tap.path].register_forward_pre_hook(before, with_kwargs=True))
        else:

            def behind(_m: Any, _a: Any, out: Any, i: int = i, part: Any = tap.part) -> None:
                take(i, first_tensor(out, part))

            handles.append(modules[tap.path].register_forward_hook(behind))
    return handles


class Slots:
    """Names the rows of a batch that decodes one token each, as an engine does, which knows them on the host."""

    def __init__(self, recorder: Recorder, rows: int, position: int = 0, name: str = "slot") -> None:
        """position: of the first token that is computed."""
        self.numbers = [recorder.open_request(f"{name}-{r}") for r in range(rows)]
        self.position = position

    def ranges(self, *_: object) -> list[Range]:
        """Name the rows of the next step."""
        at = self.position
        return [Range(n, at, 1, r, 0, Phase.DECODE, True) for r, n in enumerate(self.numbers)]

    def finished(self, *_: object) -> None:
        """Go on to the next position."""
        self.position += 1


def free_address() -> str:
    """Find a port that nobody has."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{s.getsockname()[1]}"


class Agent:
    """`sonde run` in a folder of its own, with the table or without it."""

    def __init__(
        self, hooks: str, stored: bool, wait: str = "poll", detector: str = "", layers: Sequence[int] = ()
    ) -> None:
        """hooks, layers: of the policy's rule; no layers: all. detector: `{bundle: …, mode: …}`, if there is one."""
        memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self.folder = Path(tempfile.mkdtemp(prefix="sonde-", dir=memory))
        self.socket, self.lake = f"{self.folder}/s", self.folder / "lake"
        self.bus, self._http = free_address(), free_address()
        text = CONFIG.format(dir=self.folder, bus=self.bus, wait=wait, hooks=hooks, detectors=detector, http=self._http,
                             layers=", ".join(map(str, layers)) or "all")  # fmt: skip
        (self.folder / "sonde.yaml").write_text(text)
        roles = [] if stored else ["--role", "bus", "--role", "agent"]
        self._log = (self.folder / "log").open("wb")
        command = [str(ROOT / "build" / "sonde"), "run", "--config", f"{self.folder}/sonde.yaml", *roles]
        self.process = subprocess.Popen(command, stdout=self._log, stderr=self._log)
        end = time.monotonic() + 30
        while not Path(self.socket).exists():
            if self.process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"the agent did not start:\n{self.log()}")
            time.sleep(0.05)

    def metric(self, name: str) -> float:
        """Read a metric, the sum over its labels."""
        with urllib.request.urlopen(f"http://{self._http}/metrics", timeout=5) as page:
            lines = page.read().decode().splitlines()
        return sum(float(x.rsplit(" ", 1)[1]) for x in lines if x.split("{")[0].split(" ")[0] == name)

    def wait_idle(self, seconds: float) -> bool:
        """Wait until the table has all that the stream has; False: it did not come to that in time."""
        end = time.monotonic() + seconds
        while self.metric("sonde_materializer_lag_messages") > 0:
            if time.monotonic() > end:
                return False
            time.sleep(0.05)
        return True

    def log(self) -> str:
        """Give the end of what it said."""
        return (self.folder / "log").read_text()[-3000:]

    def wait_stored(self, capture: sonde.Capture, seconds: float) -> sonde.Lake:
        """Wait until everything of a detached capture is in the table."""
        return self.wait_closed(capture.epoch, seconds)

    def wait_closed(self, epoch: str, seconds: float) -> sonde.Lake:
        """Do the same for an epoch."""
        end = time.monotonic() + seconds
        while True:
            with contextlib.suppress(sonde.LakeError):
                lake = sonde.open_lake(self.lake)
                facts = lake.table("ledger", columns=["fact", "epoch"], epoch=epoch)
                if facts.num_rows and "closed" in facts["fact"].to_pylist():
                    return lake
            if time.monotonic() > end:
                raise SystemExit(f"not everything was stored within {seconds:.0f} s:\n{self.log()}")
            time.sleep(0.25)

    def verify(self) -> str:
        """Have `sonde lake verify` read everything; give its last line."""
        command = [str(ROOT / "build" / "sonde"), "lake", "verify", "--lake", str(self.lake)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return f"exit {done.returncode}: {(done.stdout + done.stderr).strip()[-600:]}"

    def stop(self) -> None:
        """Stop it and remove its folder."""
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._log.close()
        subprocess.run(["rm", "-rf", str(self.folder)], check=False)


def synchronize() -> None:
    """Wait for the GPU."""
    if ON_GPU:
        torch.cuda.synchronize()


def settle(capture: sonde.Capture, seconds: float = 60) -> None:
    """Wait until the agent has read what was captured."""
    synchronize()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        stats = capture.recorder.stats()
        if stats.detached == 0 and stats.claim == stats.release:
            return
        time.sleep(0.01)


class Told:
    """The identity of an engine that says before each step whose rows it computes."""

    def __init__(self) -> None:
        """Nothing is computed yet."""
        self.now: Sequence[Range] = ()

    def ranges(self, *_: object) -> Sequence[Range]:
        """Name the rows of the step."""
        return self.now

    def finished(self, *_: object) -> None:
        """Nothing follows from it."""


class Step:
    """A call that is recorded as a CUDA graph, or made anew each time where there is no GPU."""

    def __init__(self, call: Callable[[], Any], capture: sonde.Capture | None, pool: Any = None) -> None:
        """capture: of the model that is called; None: it has none. pool: as `torch.cuda.graph` takes it."""
        self._call, self._told = call, None if capture is None else capture.identity
        self._graph: Any = None
        if capture is not None and ON_GPU:
            self._graph = capture.graph(call, pool)
            self.output = self._graph.output
        elif ON_GPU:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                call()
                call()
            torch.cuda.current_stream().wait_stream(side)
            torch.cuda.synchronize()
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, pool=pool):
                self.output = call()

    def replay(self, ranges: Sequence[Range] = ()) -> Any:
        """Run it; give what it returns, which is the same memory each time."""
        if self._graph is None:
            if self._told is not None:
                self._told.now = ranges
            self.output = self._call()
        elif self._told is not None:
            self._graph.replay(ranges)
        else:
            self._graph.replay()
        return self.output


class Results:
    """Appends measurements to a file of one JSON object a line, and knows which are there already."""

    def __init__(self, path: Path, again: bool) -> None:
        """again: measure also what is there."""
        self.path, self._again, self.machine = path, again, machine()

    def has(self, name: str) -> bool:
        """Say whether this machine has measured this at this commit."""
        if self._again or not self.path.exists():
            return False
        lines = [json.loads(line) for line in self.path.read_text().splitlines()]
        same = ("gpu", "commit", "torch")
        return any(x["name"] == name and all(x[k] == self.machine[k] for k in same) for x in lines)

    def add(self, name: str, **figures: Any) -> None:
        """Append one measurement, and print it."""
        now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        line = json.dumps({"name": name, "date": now, **self.machine, **figures})
        with self.path.open("a") as f:
            f.write(line + "\n")
        print(f"{name}: {json.dumps(figures)}", flush=True)


def machine() -> dict[str, str]:
    """Describe what is measured, and on what."""
    if not ON_GPU:
        return {"gpu": "none: a trial of the code", "torch": str(torch.__version__), "commit": ""}
    query = ["nvidia-smi", "--query-gpu=driver_version,clocks.sm,clocks.max.sm", "--format=csv,noheader"]
    driver = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip().splitlines()
    commit = os.environ.get("SONDE_COMMIT") or subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "gpu": torch.cuda.get_device_name(), "driver": driver[0] if driver else "", "torch": str(torch.__version__),
        "transformers": transformers.__version__, "commit": commit, "cpus": str(os.cpu_count()),
    }  # fmt: skip


@contextlib.contextmanager
def agent(hooks: str, stored: bool, **more: Any) -> Iterator[Agent]:
    """Run an agent for the length of a block; arguments as those of `Agent`."""
    a = Agent(hooks, stored, **more)
    try:
        yield a
    finally:
        a.stop()
