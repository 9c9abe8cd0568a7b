"""What the plug-in is told: by the additional configuration at the start, and by each request."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from sonde.adapters.contract import Request
from sonde.errors import CaptureError
from sonde.recorder import MODES

KEY = "sonde"
WINDOW = "hidden_state_window"  #: of a request: [start, end) in tokens of its answer
ABSOLUTE = "hidden_state_window_absolute"  #: of a request: [start, end) in positions, the prompt included
EXTERNAL = "sonde.external_id"  #: what the front end hands on
LABEL = "sonde.label."
TEXTS = {"sonde.request_id": "id", "sonde.tenant": "tenant", "sonde.trace_parent": "trace_parent"}
OPT_IN = "sonde.opt_in"
ASKED = (WINDOW, ABSOLUTE, OPT_IN)


@dataclass(frozen=True)
class Settings:
    """The object `sonde` of --additional-config."""

    socket: str = "/run/sonde/ring.sock"
    hooks: tuple[str, ...] = ("resid_post",)
    requests: str = "all"  #: or "asked": those alone that ask for it
    mode: str = "best_effort"  #: or "complete"
    data_bytes: int = 64 << 20  #: of the ring
    engine: str = ""  #: name of the instance; "": vllm-<process id>
    token_ids: bool = True
    weights_digest: str = ""  #: to which detectors are bound; "": of model.safetensors, if the model is one small file

    @classmethod
    def of(cls, additional: Any) -> Settings | None:
        """Read them; None: the plug-in is not asked for. Raises CaptureError."""
        given = additional.get(KEY) if isinstance(additional, Mapping) else None
        if given is None:
            return None
        if not isinstance(given, Mapping):
            raise CaptureError(f'configure sonde: --additional-config has "{KEY}": {given!r}; it must be an object')
        kinds = {f.name: f.type for f in fields(cls)}
        for name, value in given.items():
            if name not in kinds:
                near = difflib.get_close_matches(name, kinds, 1)
                hint = f"; did you mean {near[0]}?" if near else f"; there is {', '.join(kinds)}"
                raise CaptureError(f"configure sonde: unknown key {name!r} in --additional-config{hint}")
            kind = type(getattr(cls(), name))
            if kind is tuple and not _texts(value) or kind is not tuple and type(value) is not kind:
                raise CaptureError(f"configure sonde: {name} is {value!r}; it must be {_KINDS[kind]}")
        out = cls(**{**given, **({"hooks": tuple(given["hooks"])} if "hooks" in given else {})})
        for name, value, allowed in (("mode", out.mode, tuple(MODES)), ("requests", out.requests, ("all", "asked"))):
            if value not in allowed:
                raise CaptureError(f"configure sonde: {name} is {value!r}; it is one of {', '.join(allowed)}")
        return out


_KINDS = {str: "a text", tuple: "a list of texts", int: "a whole number", bool: "true or false"}


def _texts(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) > 0 and all(isinstance(v, str) for v in value)


def check_extra(extra: Mapping[str, Any]) -> None:
    """Raise ValueError for what a request asks of sonde and cannot have."""
    for name in (WINDOW, ABSOLUTE):
        if name in extra:
            _window(name, extra[name])
    if WINDOW in extra and ABSOLUTE in extra:
        raise ValueError(f"{WINDOW} and {ABSOLUTE} exclude each other; give one of them")
    for name, value in extra.items():
        if not name.startswith("sonde."):
            continue
        if name == OPT_IN:
            if value not in (0, 1):
                raise ValueError(f"{OPT_IN} is {value!r}; it is 0 or 1")
        elif name in TEXTS or name.startswith(LABEL):
            if not isinstance(value, str) or not value or len(value) > 256 or not value.isprintable():
                raise ValueError(f"{name} is {value!r:.80}; it must be a printable text of 1 to 256 letters")
        else:
            raise ValueError(f"{name} is unknown; there is {', '.join((*TEXTS, OPT_IN))} and {LABEL}NAME")


def _window(name: str, value: Any) -> tuple[int, int]:
    whole = isinstance(value, (list, tuple)) and len(value) == 2 and all(type(v) is int for v in value)
    if not whole or not 0 <= value[0] < value[1] < 1 << 31:
        raise ValueError(f"{name} is {value!r:.80}; it must be [start, end) with 0 <= start < end")
    return value[0], value[1]


@dataclass(frozen=True)
class EngineRequest(Request):
    """A sequence of vLLM, whose external id is what its abort takes; it may have another name in the dataset."""

    external_id: str = ""


def request_of(
    extra: Mapping[str, Any], engine_id: str, prompt_tokens: int, max_tokens: int, adapter: str
) -> EngineRequest:
    """Describe a sequence from what its request asked for and its internal id, in the worker."""
    external = str(extra.get(EXTERNAL, engine_id))
    window = None
    if WINDOW in extra:
        start, stop = _window(WINDOW, extra[WINDOW])
        window = (prompt_tokens + start, prompt_tokens + stop)
    elif ABSOLUTE in extra:
        window = _window(ABSOLUTE, extra[ABSOLUTE])
    named = {field: extra[name] for name, field in TEXTS.items() if name in extra}
    return EngineRequest(
        **{"id": external, **named},
        external_id=external,
        prompt_tokens=prompt_tokens,
        sample=sample_of(engine_id, external),
        engine_id=engine_id,
        max_tokens=max_tokens,
        adapter=adapter,
        labels={name[len(LABEL) :]: value for name, value in extra.items() if name.startswith(LABEL)},
        opt_in=bool(extra.get(OPT_IN, False)),
        window=window,
    )


def sample_of(internal: str, external: str) -> int:
    """Read the sample out of an internal id: vLLM names sample i of n as i_<internal id of the request>."""
    if internal == external or internal.startswith(f"{external}-"):
        return 0
    number, _, rest = internal.partition("_")
    mine = rest == external or rest.startswith(f"{external}-")
    return int(number) if number.isdecimal() and mine else 0
