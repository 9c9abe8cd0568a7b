"""Identity for Hugging Face models: plain forwards, `generate` and continuous batching.

While it is attached, a model has wrappers of a few of its own methods as attributes of the instance; they change
nothing that these return, but that a sequence which a detector stops is finished. `detach` removes them.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from sonde.beams import Beams
from sonde.continuous import Continuous
from sonde.forwards import Forwards
from sonde.generation import Generation, Given, Prompts, cache_in
from sonde.identity import Book, Naming
from sonde.step import Range, Unidentified

WRAPPED = ("generate", "_get_logits_processor", "_get_stopping_criteria", "prepare_inputs_for_generation",
           "init_continuous_batching", "generate_batch")  # fmt: skip
TWO_SIDES = "encoder and decoder compute different tokens in one forward"
UNKNOWN_LOOP = (
    "generate did not go the known way: attach to the module whose forward it calls, as model.get_base_model(); or "
    "this version of transformers is not known"
)
BEAMS = ("beam_search", "beam_sample")
ROWS = ("greedy_search", "sample", "assisted_generation")


def supports(model: nn.Module) -> bool:
    """Say whether a model takes token ids and hands on caches as those of the transformers library do."""
    return hasattr(model, "config") and "input_ids" in inspect.signature(model.forward).parameters


class HuggingFace:
    """Names the rows of each forward of one model. One per capture; threads may run the model at the same time."""

    def __init__(self, model: nn.Module, recorder: Any, naming: Callable[[], Naming],
                 report: Callable[[Exception], None]) -> None:  # fmt: skip
        """Wrap the methods of the model.

        naming: called once for each call of the model that opens requests. report: takes what could not be named or
        went wrong where no forward is there to say it.
        """
        self._model, self._naming, self._report = model, naming, report
        self._book = Book(recorder)
        self._lock = threading.RLock()
        self._forwards = Forwards(self._book)
        self._continuous = Continuous(self._book, naming)
        self._local = _Local()
        self._parameters = [
            p.name for p in inspect.signature(model.forward).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD
        ]
        self._tuner = _tuner(model)
        self._before: dict[str, Any] = {}
        for name in WRAPPED:
            if callable(getattr(model, name, None)):
                self._before[name] = model.__dict__.get(name)
                model.__dict__[name] = _Wrapper(model, name, getattr(self, "_on_" + name.lstrip("_")))
        self.unnamed: Counter[str] = Counter()  #: forwards of which nothing was captured, by reason

    def detach(self) -> None:
        """End what is open and leave the model as it was."""
        for name, before in self._before.items():
            if before is None:
                self._model.__dict__.pop(name, None)
            else:
                self._model.__dict__[name] = before
        self._before = {}
        with self._lock:
            self._forwards.close()
            self._continuous.close()

    # ---- forwards ----

    def ranges(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Sequence[Range] | None:
        """Name the rows of the forward that begins. Raises Unidentified."""
        if module is not self._model:
            return None  # a copy of the model
        local = self._local
        call = local.calls[-1] if local.calls and not args else None
        if call is not None and call.generation is not None:
            step = call.generation.decode(kwargs)
            if step is not None:
                local.running = call.generation
                return step
        try:
            with self._lock:
                return self._ranges(args, kwargs)
        except Unidentified as e:
            self.unnamed[str(e)] += 1
            raise

    def _ranges(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Range]:
        self._local.running = None
        if getattr(self._model.config, "is_encoder_decoder", False):
            raise Unidentified(TWO_SIDES)
        given = self._given({**dict(zip(self._parameters, args, strict=False)), **kwargs})
        if self._local.calls:
            call = self._local.calls[-1]
            if call is None or call.generation is None:
                raise Unidentified("a draft by the model itself" if call is None else call.reason or UNKNOWN_LOOP)
            if call.generation.full is None:
                raise Unidentified("a forward within generate that is not of its loop, as for guidance")
            try:
                out = call.generation.forward(given)
            except Unidentified as e:
                call.give_up(str(e))
                raise
            self._local.running = call.generation
            return out
        if "cu_seq_lens_q" in given.kwargs and "cache" in given.kwargs:
            return self._continuous.forward(given)
        self._local.running = self._forwards
        adapters = self._adapters(kwargs)
        starts = _packed(given)
        if starts is not None:
            return self._forwards.packed(given, self._naming(), adapters, starts)
        return self._forwards.forward(given, self._naming(), adapters)

    def finished(self, module: Any, output: Any) -> None:
        """Learn that the forward ended and its step was committed."""
        local = self._local
        running, local.running = local.running, None
        if module is not self._model or running is None:
            return
        if running is not self._forwards:
            running.committed(self._book.recorder.last_step)  # of this thread alone
            return
        with self._lock:
            running.finished(output)

    def _given(self, arguments: dict[str, Any]) -> Given:
        ids, embeds = arguments.get("input_ids"), arguments.get("inputs_embeds")
        tokens = ids if ids is not None else embeds
        if not isinstance(tokens, torch.Tensor) or tokens.dim() < 2:
            raise Unidentified("the model is given neither input_ids nor inputs_embeds of shape [rows, columns]")
        rows, columns = tokens.shape[:2]
        return Given(ids, rows, columns, arguments.get("attention_mask"), arguments.get("position_ids"),
                     cache_in(arguments), arguments)  # fmt: skip

    def _adapters(self, kwargs: dict[str, Any]) -> tuple[str, ...]:
        """Name the adapter of each row, or the one of all."""
        names = kwargs.get("adapter_names")
        if self._tuner is not None:  # PEFT takes the names itself, and hands them to its layers by hooks
            for hook in self._tuner._forward_pre_hooks.values():
                names = getattr(hook, "keywords", {}).get("adapter_names", names)
        if isinstance(names, (list, tuple)):
            return tuple("" if n == "__base__" else str(n) for n in names)
        if self._tuner is None or self._tuner.disable_adapters:
            return ()
        return ("+".join(self._tuner.active_adapters),)

    # ---- generate ----

    def _on_generate(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        calls = self._local.calls
        if calls:  # by the model for itself, as for drafts
            calls.append(None)
            try:
                return original(*args, **kwargs)
            finally:
                calls.pop()
        self._tuner = _tuner(self._model)
        call = _Call(self._naming(), kwargs.get("assistant_model"), self._adapters(kwargs), self._guard)
        if kwargs.get("custom_generate") is not None:
            call.reason = "a decoding loop of custom_generate, which may do anything with its rows"
        calls.append(call)
        result, failed = None, True
        try:
            result = original(*args, **kwargs)
            failed = False
            return result
        finally:
            calls.pop()
            if call.generation is not None:
                self._guard(call.generation.close, result, failed)
            elif not failed and not call.reason:
                self._guard(_raise, Unidentified(UNKNOWN_LOOP))

    def _on_get_logits_processor(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        out = original(*args, **kwargs)
        call = self._local.calls[-1] if self._local.calls else None
        if call is not None and getattr(self._model.config, "is_encoder_decoder", False):
            call.reason = TWO_SIDES
        elif call is not None and not call.reason and call.generation is None:
            self._guard(self._begin, call, kwargs)
        return out

    def _begin(self, call: _Call, known: dict[str, Any]) -> None:
        """Start to follow a generation: everything is prepared, and no forward was made."""
        config, given = known["generation_config"], known["model_kwargs"]
        mode = config.get_generation_mode(call.assistant).value
        if mode not in BEAMS + ROWS:
            call.reason = f"generation mode {mode}"
            return
        tokens, mask, cache = known["input_ids_seq_length"], given.get("attention_mask"), cache_in(given)
        cached = Given(None, 0, 0, None, None, cache, {}).past
        columns = mask.shape[1] if mask is not None else getattr(config, "_mask_length", None)
        if columns is None and not cached:
            columns = tokens
        if columns is None or cached is None or columns < max(cached, tokens):
            call.reason = "how many tokens a cache holds and how many are new is not known"
            return
        kind = Beams if mode in BEAMS else Generation
        call.generation = kind(
            self._book, call.naming, Prompts(config, tokens, mask, columns, cached, call.adapters)
        )

    def _on_get_stopping_criteria(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        criteria = original(*args, **kwargs)
        call = self._local.calls[-1] if self._local.calls else None
        if call is None or call.generation is None:
            return criteria
        return _watching(criteria, call)

    def _on_prepare_inputs_for_generation(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        call = self._local.calls[-1] if self._local.calls else None
        if call is not None and call.generation is not None:
            call.generation.full = args[0] if args else kwargs.get("input_ids")
        return original(*args, **kwargs)

    # ---- continuous batching ----

    def _on_init_continuous_batching(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        manager = original(*args, **kwargs)
        self._guard(self._continuous.watch, manager)
        return manager

    def _on_generate_batch(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return original(*args, **kwargs)
        finally:
            self._guard(self._continuous.sweep_finished)

    def _guard(self, work: Callable[..., Any], *args: Any) -> Any:
        """Do what must never reach the model."""
        try:
            with self._lock:
                return work(*args)
        except Exception as e:  # noqa: BLE001 (nothing that goes wrong here may reach the model)
            if isinstance(e, Unidentified):
                self.unnamed[str(e)] += 1
            self._report(e)
            return None


class _Local(threading.local):
    """What runs in a thread."""

    def __init__(self) -> None:
        self.calls: list[_Call | None] = []
        self.running: Any = None


class _Call:
    """One call of generate, until its end."""

    def __init__(self, naming: Naming, assistant: Any, adapters: tuple[str, ...], guard: Callable[..., Any]) -> None:
        self.naming, self.assistant, self.adapters, self.guard = naming, assistant, adapters, guard
        self.generation: Generation | None = None
        self.reason = ""  # why nothing is captured

    def give_up(self, reason: str) -> None:
        """Capture nothing more of this call."""
        self.reason, generation, self.generation = reason, self.generation, None
        if generation is not None:
            self.guard(generation.close, None, True)


class _Wrapper:
    """Stands for a method of one instance. A copy or a pickle of the model has its plain method instead."""

    def __init__(self, model: nn.Module, name: str, replacement: Callable[..., Any]) -> None:
        self._model, self._name, self._replacement = model, name, replacement
        self._original = getattr(model, name)
        functools.update_wrapper(self, self._original)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._replacement(self._original, *args, **kwargs)

    def __reduce__(self) -> Any:
        return getattr, (self._model, self._name)


def _watching(criteria: Any, call: _Call) -> Any:
    """Make stopping criteria that tell what was chosen, and that end what a detector stops."""

    class Watching(type(criteria)):  # type: ignore[misc]
        def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
            done = super().__call__(input_ids, scores, **kwargs)
            if call.generation is None:
                return done
            try:
                return call.generation.chosen(input_ids, done)
            except Exception as e:  # noqa: BLE001 (nothing that goes wrong here may reach the model)
                call.guard(_raise, e)
                call.give_up(str(e))
                return done

    return Watching(criteria)


def _raise(e: Exception) -> None:
    raise e


def _tuner(model: nn.Module) -> Any:
    """Find a layer that has adapters, as those of PEFT."""
    for module in model.modules():
        kind = type(module)
        if isinstance(getattr(kind, "active_adapters", None), property) and hasattr(kind, "disable_adapters"):
            return module
    return None


def _packed(given: Given) -> list[int] | None:
    """Find where the sequences begin that one row holds one behind the other; None: it is one sequence."""
    positions = given.positions
    if given.rows != 1 or given.mask is not None or positions is None or positions.dim() != 2 or given.past:
        return None
    table = positions[0].tolist()
    starts = [c for c, p in enumerate(table) if p == 0]
    if len(starts) < 2 or len(table) != given.columns:
        return None
    expected = [c - max(s for s in starts if s <= c) for c in range(len(table))] if starts[0] == 0 else []
    if table != expected:
        raise Unidentified("position_ids are neither those of one sequence nor of several that begin at 0")
    return starts
