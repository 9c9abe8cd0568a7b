"""Which bytes of a tapped tensor are the row of which token."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sonde.errors import CaptureError
from sonde.libsonde import MAX_DIMS
from sonde.names import Tap

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

_PLAIN = (torch.Tensor, torch.nn.Parameter)


class Refused(CaptureError):
    """A tensor that cannot be captured; the text says why."""


@dataclass(frozen=True)
class Grid:
    """The tokens of a forward: rows of the batch × columns, and the columns of which logits are kept."""

    batch: int
    seq: int
    kept: tuple[int, ...] | None = None  #: None: all, or what `logits_to_keep` does not say

    @property
    def rows(self) -> int:
        """Count the tokens, padding included."""
        return self.batch * self.seq


@dataclass(frozen=True)
class Rows:
    """How the rows of a tensor lie in memory."""

    tensor: torch.Tensor  #: that tensor, or a contiguous copy where its rows do not lie at one stride
    shape: tuple[int, ...]  #: of a row
    dtype: str  #: of the elements in memory
    offset: int  #: bytes in front of the first row
    stride: int  #: bytes from row to row
    count: int  #: of rows
    columns: tuple[int, ...] | None  #: of the grid, that the tensor has; None: all

    @property
    def address(self) -> int:
        """Where the first row is."""
        return self.tensor.data_ptr() + self.offset


def rows_of(x: torch.Tensor, tap: Tap, grid: Grid, cast: str | None) -> Rows:
    """Find the rows of a tensor that a forward of `grid` gave at a tap. Raises Refused."""
    _check(x, tap, cast)
    if x.dtype == torch.float64:
        x = x.to(CASTS[str(cast)])
    elif cast is None and x.dtype == torch.bool:
        x = x.view(torch.uint8)
    x, lead, columns = _leading(x, tap, grid)
    shape = tuple(x.shape[lead:])
    if not x.is_contiguous():
        x = x.contiguous()
    size = x.element_size()
    offset, stride = 0, size
    for n in shape:
        stride *= n
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
    count = 1
    for n in x.shape[:lead]:
        count *= n
    return Rows(x, shape, ELEMENTS[x.dtype], offset, stride, count, columns)


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


def _leading(x: torch.Tensor, tap: Tap, grid: Grid) -> tuple[torch.Tensor, int, tuple[int, ...] | None]:
    """Say how many leading dimensions count rows, and which columns they have."""
    shape = tuple(x.shape)
    if shape[:2] == (grid.batch, grid.seq):
        return x, 2, None
    if tap.sampled and len(shape) >= 2 and shape[0] == grid.batch and grid.kept is not None:
        if shape[1] == len(grid.kept):
            return x, 2, grid.kept
    elif shape[:1] == (grid.rows,):
        return x, 1, None
    elif shape[:2] == (1, grid.seq):  # the same for the whole batch, as learned positions
        return x.expand(grid.batch, *shape[1:]), 2, None
    raise Refused(
        f"{tap.path or 'the model'} gave a tensor of shape {shape}, which has no row for each of the "
        f"{grid.batch} x {grid.seq} tokens"
    )
