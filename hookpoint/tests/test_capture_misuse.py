"""Fears about misuse: each wrong use does what README.md says, and the model computes what an untouched copy does."""

from __future__ import annotations

import copy
import gc
import io
import logging
import os
import pickle
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from capture_layers import Layers, X
from capture_rig import batch, make_model
from torch import nn

import sonde
from sonde import libsonde
from sonde.attachment import Capture, Stats


@pytest.fixture
def attach() -> Iterator[Callable[..., Capture]]:
    made: list[Capture] = []

    def call(model: nn.Module, hooks: Any = ("a", "b"), **options: Any) -> Capture:
        made.append(sonde.attach(model, hooks, **{"socket": None, **options}))
        return made[-1]

    yield call
    for capture in made:
        capture.detach(0)


def same(model: nn.Module, untouched: nn.Module, *args: Any, **kwargs: Any) -> None:
    torch.testing.assert_close(model(*args, **kwargs), untouched(*args, **kwargs), rtol=0, atol=0, equal_nan=True)


def clean(stats: Stats, forwards: int) -> None:
    assert (stats.forwards, stats.failures, stats.unidentified, stats.problems) == (forwards, 0, 0, {})


# ---- what attach refuses ----

REFUSED: dict[str, tuple[Callable[[], nn.Module], Any, dict[str, Any], type[Exception], str]] = {
    "a module that does not exist": (Layers, ["layers.0"], {}, sonde.UnknownHook, "nothing of that name"),
    "a name with a typing error": (lambda: make_model("Llama"), ["resid_pots"], {}, sonde.UnknownHook,
                                   "Nearest: resid_post"),
    "a place that no module has": (Layers, ["a:middle"], {}, sonde.UnknownHook, "input, output"),
    "no hooks": (Layers, [], {}, sonde.CaptureError, "the list is empty"),
    "one text instead of a list": (Layers, "resid_post", {}, sonde.CaptureError, "give a list"),
    "a number as a hook": (Layers, [3], {}, sonde.CaptureError, "a name is a text"),
    "a hook on a list of parameters": (lambda: nn.Sequential(nn.ParameterList([torch.ones(2)])), ["0"], {},
                                       sonde.CaptureError, "is never called"),
    "one text instead of ids": (Layers, ["a"], {"requests": "abc"}, sonde.CaptureError, "one entry for each prompt"),
    "a list as an id": (Layers, ["a"], {"requests": [["a"], ["b"]]}, sonde.CaptureError, "an id is a text"),
    "one text for who opted in": (Layers, ["a"], {"opt_in": "no"}, sonde.CaptureError, "one entry for each prompt"),
    "bytes of a ring that are no number": (Layers, ["a"], {"data_bytes": "64MiB"}, sonde.CaptureError, "whole number"),
    "an identity that is none": (Layers, ["a"], {"identity": object()}, sonde.CaptureError, "sonde.step.Identity"),
    "a socket that is no path": (Layers, ["a"], {"socket": 5}, sonde.CaptureError, "must be a text"),
    "an unknown dtype": (Layers, ["a"], {"dtype": "float32"}, sonde.CaptureError, "dtype='float32'"),
    "an unknown mode": (Layers, ["a"], {"mode": "lossless"}, sonde.CaptureError, "best_effort, complete"),
    "a ring of a size that cannot be": (Layers, ["a"], {"data_bytes": 1000}, sonde.CaptureError, "power of two"),
    "a long name of the engine": (Layers, ["a"], {"engine": "e" * 64}, sonde.CaptureError, "engine"),
    "a name of the model that is no text": (Layers, ["a"], {"model_name": 7}, sonde.CaptureError, "must be a text"),
    "TorchScript": (lambda: torch.jit.script(nn.Linear(2, 2)), [""], {}, sonde.CaptureError, "TorchScript"),
    "no module": (lambda: (lambda x: x), ["a"], {}, sonde.CaptureError, "only a torch.nn.Module"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("case", REFUSED)
def test_attach_refuses_and_leaves_the_model_alone(attach: Callable[..., Capture], case: str) -> None:
    make, hooks, options, error, text = REFUSED[case]
    model = make()
    with pytest.raises(error, match=text):
        attach(model, hooks, **options)
    if isinstance(model, nn.Module):
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


# ---- what tensors may come ----

FP8 = torch.float8_e4m3fn
TENSORS: dict[str, tuple[Callable[[torch.Tensor], Any], str]] = {
    "nothing at all": (lambda x: None, ""),
    "an empty tuple": (lambda x: (), ""),
    "a tuple": (lambda x: (x, x + 1), ""),
    "a dict": (lambda x: {"first": x}, ""),
    "a nested tuple": (lambda x: ((x,),), ""),
    "a view that is not contiguous": (lambda x: x.transpose(0, 1).contiguous().transpose(0, 1), ""),
    "every second column": (lambda x: x[..., ::2], ""),
    "an expanded tensor": (lambda x: x[:, :, :1].expand(2, 5, 8), ""),
    "NaN and infinities": (lambda x: x / 0, ""),
    "fp8 without a scale": (lambda x: x.to(FP8), ""),
    "int64": (lambda x: x.long(), ""),
    "bool": (lambda x: x > 0, ""),
    "uint8": (lambda x: x.abs().to(torch.uint8), ""),
    "a tensor that requires grad": (lambda x: x * nn.Parameter(torch.ones(8)), ""),
    "float64": (lambda x: x.double(), "float64"),
    "int16": (lambda x: x.to(torch.int16), "int16"),
    "complex": (lambda x: x.to(torch.complex64), "complex64"),
    "a sparse tensor": (lambda x: x.to_sparse(), "sparse"),
    "a quantised tensor": (lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.quint8), "quantised"),
    "the meta device": (lambda x: x.to("meta"), "meta"),
    "another number of rows": (lambda x: x[:, :3], "no row for each"),
    "a scalar": (lambda x: x.sum(), "no row for each"),
    "rows without elements": (lambda x: x[..., :0], "none of them 0"),
    "nine dimensions": (lambda x: x.reshape(2, 5, 1, 1, 1, 1, 2, 2, 2, 1, 1), "dimensions"),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("case", TENSORS)
def test_any_tensor_is_captured_or_refused_with_a_sentence(attach: Callable[..., Capture], case: str) -> None:
    what, text = TENSORS[case]
    model = Layers(what)
    untouched = copy.deepcopy(model)
    capture = attach(model, ["between", "b"])
    for _ in range(3):
        same(model, untouched, X)
    stats = capture.stats()
    assert stats.forwards == 3, "the other hook is captured"
    if text:
        (problem,) = stats.problems
        assert text in problem and stats.problems[problem] >= 1 and stats.failures >= 1
    else:
        clean(stats, 3)


# ---- what happens to the model ----


def test_a_closed_capture_captures_nothing_and_can_be_closed_again(attach: Callable[..., Capture]) -> None:
    model = Layers()
    capture = attach(model)
    capture.detach(0)
    capture.detach(0)
    same(model, Layers(), X)
    assert capture.stats().forwards == 0
    with pytest.raises(sonde.CaptureError, match="detached"):
        capture.recorder.open_request("late")


def test_hooking_twice_is_refused_also_for_a_part_and_a_whole(attach: Callable[..., Capture]) -> None:
    whole = nn.Sequential(Layers(), nn.Identity())
    capture = attach(whole[0])
    for model in (whole[0], whole, whole[0].a):
        with pytest.raises(sonde.AlreadyAttached, match="detach that first"):
            attach(model, [""] if isinstance(model, nn.Linear) else ["0.a"])
    same(whole, nn.Sequential(Layers(), nn.Identity()), X)
    clean(capture.stats(), 1)
    capture.detach(0)
    attach(whole, ["0.a"])


def test_two_models_in_one_process_have_rings_of_their_own(attach: Callable[..., Capture]) -> None:
    one, two = Layers(), Layers(torch.tanh)
    a, b = attach(one), attach(two)
    same(one, Layers(), X)
    same(one, Layers(), X)
    same(two, Layers(torch.tanh), X)
    clean(a.stats(), 2)
    clean(b.stats(), 1)
    assert a.epoch != b.epoch


def test_a_row_larger_than_the_ring_is_dropped_and_counted(attach: Callable[..., Capture]) -> None:
    model = nn.Sequential(nn.Linear(8, 70000))
    untouched = copy.deepcopy(model)
    capture = attach(model, ["0"], data_bytes=1 << 18)
    same(model, untouched, X)
    assert capture.stats().dropped_rows == {"oversize": 10} and capture.stats().failures == 0


def test_an_agent_that_never_comes_costs_rows_and_nothing_else(attach: Callable[..., Capture]) -> None:
    model = Layers()
    capture = attach(model, socket="/nonexistent/sonde.sock", data_bytes=1 << 18)
    for _ in range(600):
        same(model, Layers(), X) if _ % 200 == 0 else model(X)
    stats = capture.stats()
    assert not stats.attached and stats.failures == 0
    assert sum(stats.dropped_rows.values()) > 0
    with pytest.raises(sonde.CaptureError, match="no agent"):
        capture.wait_attached(0.01)


def test_an_exception_in_the_forward_is_the_models_own(attach: Callable[..., Capture]) -> None:
    def fail(x: torch.Tensor) -> torch.Tensor:
        if x.shape[0] == 1:
            raise KeyError("the model's own")
        return x

    model = Layers(fail)
    capture = attach(model)
    with pytest.raises(KeyError, match="the model's own"):
        model(X[:1])
    try:  # a forward inside of an except block did not raise
        raise ValueError
    except ValueError:
        same(model, Layers(fail), X)
    stats = capture.stats()
    assert (stats.raised, stats.forwards, stats.failures) == (1, 1, 0)


def test_an_exception_in_the_block_detaches(attach: Callable[..., Capture]) -> None:
    model = Layers()
    with pytest.raises(ZeroDivisionError), sonde.capture(model, ["a"], socket=None):
        raise ZeroDivisionError
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_module_used_twice_in_one_forward_has_a_hook_for_each_use(attach: Callable[..., Capture]) -> None:
    model = Layers()
    capture = attach(model, ["a"])  # a is used twice
    same(model, Layers(), X)
    clean(capture.stats(), 1)
    (layout,) = capture._gatherer._layouts
    assert [e.hook for e in layout] == ["a:output", "a:output#2"]


def test_an_empty_batch_and_zero_columns_are_no_tokens(attach: Callable[..., Capture]) -> None:
    model = Layers()
    capture = attach(model)
    same(model, Layers(), X[:0])
    same(model, Layers(), X[:, :0])
    clean(capture.stats(), 0)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_every_grad_mode(attach: Callable[..., Capture], mode: Callable[[], Any]) -> None:
    model = Layers()
    capture = attach(model)
    with mode():
        same(model, Layers(), X)
    clean(capture.stats(), 1)


def test_training_with_backward_has_the_same_gradients(attach: Callable[..., Capture]) -> None:
    model, untouched = Layers(), Layers()
    capture = attach(model)
    for m in (model, untouched):
        optimiser = torch.optim.SGD(m.parameters(), 0.1)
        for _ in range(3):
            optimiser.zero_grad()
            m(X).square().sum().backward()
            optimiser.step()
    for p, q in zip(model.parameters(), untouched.parameters(), strict=True):
        assert torch.equal(p, q) and torch.equal(p.grad, q.grad)
    clean(capture.stats(), 3)


def test_data_parallel(attach: Callable[..., Capture]) -> None:
    model = Layers()
    capture = attach(model)
    same(nn.DataParallel(model), Layers(), X)
    assert capture.stats().failures == 0


@pytest.mark.filterwarnings("ignore")
def test_jit_trace_of_an_attached_model(attach: Callable[..., Capture]) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    untouched = copy.deepcopy(model)
    capture = attach(model, ["0"])
    traced = torch.jit.trace(model, X)
    same(traced, untouched, X)
    assert capture.stats().failures == 0


def test_a_copy_of_an_attached_model_is_not_attached(attach: Callable[..., Capture]) -> None:
    model = Layers()
    capture = attach(model)
    same(copy.deepcopy(model), Layers(), X)
    clean(capture.stats(), 0)
    same(model, Layers(), X)
    clean(capture.stats(), 1)


class Picklable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.a = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.a(x)


def test_a_pickle_of_an_attached_model_is_not_attached(attach: Callable[..., Capture]) -> None:
    model = Picklable()
    capture = attach(model, ["a", ":input"])
    loaded = pickle.loads(pickle.dumps(model))  # noqa: S301 (its own)
    same(loaded, Picklable(), X)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    same(torch.load(buffer, weights_only=False), Picklable(), X)
    assert b"sonde" not in pickle.dumps(nn.Sequential(model[0] if isinstance(model, nn.Sequential) else model.a))
    clean(capture.stats(), 0)


def test_threads_that_run_the_model_at_once(attach: Callable[..., Capture]) -> None:
    model, untouched = Layers(), Layers()
    capture = attach(model)
    inputs = [torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    wrong: list[int] = []

    def work(i: int) -> None:
        for _ in range(25):
            if not torch.equal(model(inputs[i]), untouched(inputs[i])):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert wrong == []
    clean(capture.stats(), 100)


FORK = """
import os, sys, torch, sonde
from capture_layers import Layers, X
model = Layers()
capture = sonde.attach(model, ["a"], socket=None)
want = model(X)
child = os.fork()
if child == 0:
    ok = torch.equal(model(X), want) and "forked" in next(iter(capture.stats().problems))
    capture.detach()
    ok = ok and torch.equal(model(X), want)
    os._exit(0 if ok else 1)
code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
model(X)
assert capture.stats().forwards == 2, capture.stats()
sys.exit(code)
"""


def run(text: str, **environment: str) -> subprocess.CompletedProcess[str]:
    here = os.path.dirname(os.path.abspath(__file__))
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([here, *sys.path]), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run([sys.executable, "-c", text], env=env, capture_output=True, text=True, timeout=300)


def test_a_forked_child_runs_the_model_and_captures_nothing() -> None:
    done = run(FORK)
    assert done.returncode == 0 and "close writer" not in done.stderr, done.stderr


def test_without_the_library_attach_says_what_to_do() -> None:
    done = run("import sonde\nfrom capture_layers import Layers\nsonde.attach(Layers(), ['a'])",
               SONDE_LIBRARY="/nonexistent/libsonde.so")  # fmt: skip
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and last.startswith("sonde.errors.LibraryMissing: load libsonde") and "g++" in last


def test_a_library_of_something_else_is_refused_with_a_sentence() -> None:
    done = run("import sonde\nfrom capture_layers import Layers\nsonde.attach(Layers(), ['a'])",
               SONDE_LIBRARY=__file__)  # fmt: skip
    assert "sonde.errors.LibraryMissing" in done.stderr and "make libsonde" in done.stderr


def test_an_interpreter_that_ends_attached_ends_quietly() -> None:
    done = run("import sonde\nfrom capture_layers import Layers, X\nm = Layers()\n"
               "c = sonde.attach(m, ['a'], socket=None, on_abort=print)\nm(X)")  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_a_model_that_is_dropped_without_detach_lets_its_ring_go() -> None:
    model = Layers()
    capture = sonde.attach(model, ["a"], socket=None)
    model(X)
    recorder = capture.recorder
    del model, capture
    gc.collect()
    assert recorder.closed


def test_in_place_changes_after_the_tap_are_never_stored_wrong(attach: Callable[..., Capture]) -> None:
    class Overwrites(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(3)
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.a(x)
            y = self.b(h)
            return h.add_(y)

    model = Overwrites()
    capture = attach(model, ["a", "b"])
    with torch.no_grad():
        for _ in range(3):
            same(model, Overwrites(), X)
    stats = capture.stats()
    assert (stats.overwritten, stats.aborted_rows, stats.failures) == (1, 10, 0), "once, then it copies at the tap"
    assert stats.captured_rows == 3 * 20


def test_an_identity_that_fails_is_counted_and_reported_once(
    attach: Callable[..., Capture], caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        def ranges(self, *_: Any) -> None:
            raise RuntimeError("no idea")

        def finished(self, *_: Any) -> None:
            raise RuntimeError("no idea")

    model = Layers()
    capture = attach(model, identity=Broken())
    with caplog.at_level(logging.WARNING, "sonde"), warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(5):
            same(model, Layers(), X)
    assert capture.stats().failures == 5 and capture.stats().forwards == 0
    assert sum("no idea" in r.getMessage() for r in caplog.records) == 1


@pytest.mark.parametrize("bad", ["outside", "overlapping number", "zero"])
def test_ranges_that_cannot_be_are_counted(attach: Callable[..., Capture], bad: str) -> None:
    from sonde.step import Range

    class Wrong:
        def ranges(self, *_: Any) -> list[Range]:
            first, count = {"outside": (8, 5), "overlapping number": (0, 2**32), "zero": (0, 0)}[bad]
            return [Range(1, 0, count, first)]

        def finished(self, *_: Any) -> None:
            pass

    model = Layers()
    capture = attach(model, identity=Wrong())
    same(model, Layers(), X)
    assert capture.stats().failures == 1 and capture.stats().forwards == 0
    same(model, Layers(), X)  # and no step was left open


def test_disable_and_enable_while_it_runs(attach: Callable[..., Capture]) -> None:
    model = Layers()
    capture = attach(model)
    for n in range(6):
        (capture.disable if n % 2 else capture.enable)()
        same(model, Layers(), X)
    clean(capture.stats(), 3)


def test_the_library_speaks_of_what_it_is_asked(attach: Callable[..., Capture]) -> None:
    with pytest.raises(libsonde.LibraryFailure, match="layout"):
        libsonde.check(libsonde.load().sonde_define_layout(None, None, 0, None))


def test_detach_leaves_the_model_as_it_was(attach: Callable[..., Capture]) -> None:
    model = make_model("Llama")
    before = look(model)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    capture = attach(model, ["*", "model.layers.*.mlp:input"])
    inputs = batch()
    model(**inputs)
    model.generate(**inputs, max_new_tokens=2)
    assert look(model) != before
    capture.detach(0)
    assert look(model) == before
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    pickle.dumps(model)


def look(model: nn.Module) -> list[Any]:
    """Everything of a model that attaching could have changed."""
    out: list[Any] = []
    for name, m in model.named_modules():
        hooks = {k: list(v) for k, v in vars(m).items() if k.startswith("_") and "hook" in k and isinstance(v, dict)}
        out.append((name, type(m), m.forward.__code__, sorted(vars(m)), hooks, [n for n, _ in m.named_buffers()]))
    return out
