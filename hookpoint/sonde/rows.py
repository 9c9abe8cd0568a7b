"""Which bytes of a tapped tensor are the row of which token."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from sonde.dtypes import SIZES
from sonde.errors import CaptureError
from sonde.libsonde import MAX_DIMS
from sonde.names import TOKEN_IDS, Tap, batch_last
from sonde.step import Unidentified

#: Types of elements that can be captured, and their names in the dataset.
ELEMENTS = {
    torch.float32: "f32",
    torch.float16: "f16",
    torch.bfloat16: "bf16",
    torch.float8_e4m3fn: "f8e4m3",
    torch.float8_e5m2: "f8e5m2",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.uint16: "u16",
    torch.bool: "u8",
}

FLOATS = ("f32", "f16", "bf16", "f8e4m3", "f8e5m2")

#: Types that `dtype=` may ask for.
CASTS = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}

#: Types of elements of torch, by their names in the dataset.
TORCH = {name: dtype for dtype, name in ELEMENTS.items() if dtype != torch.bool}

_PLAIN = (torch.Tensor, torch.nn.Parameter)


class Refused(CaptureError):
    """A tensor that cannot be captured; the text says why."""


@dataclass(frozen=True, eq=False)
class Grid:
    """The tokens of a forward: rows of the batch × columns, and the columns of which logits are kept. See `grid`."""

    batch: int
    seq: int
    kept: tuple[int, ...] | None  #: None: all, or what `logits_to_keep` does not say

    @property
    def rows(self) -> int:
        """Count the tokens, padding included."""
        return self.batch * self.seq


@lru_cache(maxsize=1024)
def grid(batch: int, seq: int, kept: tuple[int, ...] | None) -> Grid:
    """Make a grid, the same one for the same tokens."""
    return Grid(batch, seq, kept)


def positional(model: nn.Module) -> list[str]:
    """List the names of the parameters that the root takes by position."""
    try:
        found = inspect.signature(model.forward).parameters.values()
        return [p.name for p in found if p.kind <= p.POSITIONAL_OR_KEYWORD]
    except (TypeError, ValueError):
        return []


def grid_of(parameters: Sequence[str], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Grid:
    """Find the tokens of a forward from what the root is given: batch × columns. Raises Unidentified."""
    ids = kwargs.get("input_ids")
    if ids is not None and not args and ids.dim() == 2:
        batch, seq = ids.shape
        return grid(batch, seq, _kept(kwargs.get("logits_to_keep"), seq))
    named = {**dict(zip(parameters, args, strict=False)), **kwargs}
    kept = named.get("logits_to_keep")
    first = next((v for v in (*args, *kwargs.values()) if isinstance(v, torch.Tensor)), None)
    for x in (named.get("input_ids"), named.get("inputs_embeds"), first):
        if isinstance(x, torch.Tensor) and x.dim() > 0:
            one = x.dim() == 1 or x.dim() == 2 and x.is_floating_point() or x.dim() > 3  # images have no tokens
            batch, seq = (x.shape[0], 1) if one else x.shape[:2]
            return grid(batch, seq, _kept(kept, seq))
    raise Unidentified("no tensor with a batch was given to the model")


def grids(model: nn.Module, parameters: Sequence[str]) -> Callable[[tuple[Any, ...], Mapping[str, Any]], Grid]:
    """Give what finds the tokens of a forward of this model from its arguments. It raises Unidentified."""
    turned = batch_last(model)

    def find(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Grid:
        found = grid_of(parameters, args, kwargs)
        return grid(found.seq, found.batch, None) if turned else found

    return find


def _kept(keep: Any, seq: int) -> tuple[int, ...] | None:
    if isinstance(keep, torch.Tensor):
        return tuple(keep.tolist()) if keep.dim() == 1 else None
    return tuple(range(max(seq - keep, 0), seq)) if keep else None


@dataclass(frozen=True)
class Rows:
    """How the rows of a tensor lie in memory."""

    tensor: torch.Tensor  #: that tensor, or a contiguous copy where its rows do not lie at one stride
    shape: tuple[int, ...]  #: of a row
    dtype: str  #: of the elements in memory
    offset: int  #: bytes in front of the first row
    stride: int  #: bytes from row to row; more than a row has, where the tensor has others in between
    count: int  #: of rows
    columns: tuple[int, ...] | None  #: of the grid, that the tensor has; None: all

    @property
    def address(self) -> int:
        """Where the first row is."""
        return self.tensor.data_ptr() + self.offset

    @property
    def readable(self) -> int:
        """Count the bytes from there to the end of the last row."""
        row = math.prod(self.shape) * SIZES[self.dtype]
        return self.stride * (self.count - 1) + row if self.count else 0


def rows_of(x: torch.Tensor, tap: Tap, tokens: Grid, cast: str | None) -> Rows:
    """Find the rows of a tensor that a forward of these tokens gave at a tap. Raises Refused."""
    _check(x, tap, cast)
    if x.dtype == torch.float64:
        x = x.to(CASTS[str(cast)])
    elif cast is None and x.dtype == torch.bool:
        x = x.view(torch.uint8)
    x, lead, columns = _leading(x, tap, tokens)
    shape = tuple(x.shape[lead:])
    step = _step(x, lead)
    if step is None:
        x = x.contiguous()
        step = math.prod(shape)
    size = x.element_size()
    offset, stride, dtype = 0, step * size, ELEMENTS[x.dtype]
    if tap.hook == TOKEN_IDS and dtype == "i64":
        dtype = "i32"  # the lower half of a little-endian number is at its address
    if tap.columns is not None:
        start, stop = tap.columns
        if not shape or shape[-1] < stop:
            raise Refused(f"{tap.path} gave rows of shape {shape}, and {tap.hook} is columns {start} to {stop}")
        if len(shape) > 1:
            raise Refused(f"{tap.path} gave rows of shape {shape}; {tap.hook} needs rows of one dimension")
        offset, shape = start * size, (stop - start,)
    if tap.split is not None and shape == (tap.split[0] * tap.split[1],):
        shape = tap.split
    if len(shape) > MAX_DIMS or 0 in shape:
        raise Refused(f"{tap.path} gave rows of shape {shape}; at most {MAX_DIMS} dimensions, none of them 0")
    return Rows(x, shape, dtype, offset, stride, math.prod(x.shape[:lead]), columns)


def _step(x: torch.Tensor, lead: int) -> int | None:
    """Say how many elements lie from row to row; None: the rows are not each in one piece, or not evenly spaced."""
    strides, shape = x.stride(), x.shape
    inner = 1
    for n, s in zip(reversed(shape[lead:]), reversed(strides[lead:]), strict=True):
        if n != 1 and s != inner:
            return None
        inner *= n
    leading = [(n, s) for n, s in zip(shape[:lead], strides[:lead], strict=True) if n != 1]
    if not leading:
        return inner
    if len(leading) == 2 and leading[0][1] != leading[1][0] * leading[1][1]:
        return None
    return leading[-1][1]


def _check(x: torch.Tensor, tap: Tap, cast: str | None) -> None:
    what = f"{tap.path or 'the model'} gave a tensor of "
    if type(x) not in _PLAIN:
        raise Refused(f"{what}the class {type(x).__name__}, whose memory cannot be read")
    if x.layout != torch.strided or x.is_quantized:
        kind = "quantised elements" if x.is_quantized else f"layout {x.layout}"
        raise Refused(f"{what}{kind}; only dense, plain ones can be captured")
    if x.device.type not in ("cpu", "cuda"):
        raise Refused(f"{what}device {x.device.type}; only those of cpu and cuda have bytes that can be captured")
    if x.dtype == torch.float64 and cast is None:
        raise Refused(f"{what}float64, which the dataset does not have; ask for it as dtype='f32'")
    if x.dtype not in ELEMENTS and x.dtype != torch.float64:
        raise Refused(f"{what}{str(x.dtype)[6:]}; the dataset has {', '.join(sorted(set(ELEMENTS.values())))}")


def _leading(x: torch.Tensor, tap: Tap, tokens: Grid) -> tuple[torch.Tensor, int, tuple[int, ...] | None]:
    """Say how many leading dimensions count rows, and which columns they have."""
    shape = tuple(x.shape)
    if tap.turned and min(tokens.batch, tokens.seq) > 1:
        if shape[:2] != (tokens.seq, tokens.batch) or len(shape) < 3:
            raise Refused(f"{tap.path or 'the model'} gave a tensor of shape {shape} instead of [tokens, batch, …]")
        return x.transpose(0, 1), 2, None
    if shape[:2] == (tokens.batch, tokens.seq):
        return x, 2, None
    if tap.sampled and len(shape) >= 2 and shape[0] == tokens.batch and tokens.kept is not None:
        if shape[1] == len(tokens.kept):
            return x, 2, tokens.kept
    elif shape[:1] == (tokens.rows,):
        return x, 1, None
    elif shape[:2] == (1, tokens.seq):  # the same for the whole batch, as learned positions
        return x.expand(tokens.batch, *shape[1:]), 2, None
    raise Refused(
        f"{tap.path or 'the model'} gave a tensor of shape {shape}, which has no row for each of the "
        f"{tokens.batch} x {tokens.seq} tokens"
    )
