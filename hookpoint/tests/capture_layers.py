"""A small model that returns, between its layers, whatever a test wants it to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

X = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(7))


class Layers(nn.Module):
    """Two layers with a function between them."""

    def __init__(self, between: Callable[[torch.Tensor], Any] = torch.relu) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.a, self.b, self.between = nn.Linear(8, 8), nn.Linear(8, 8), Returns(between)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(torch.relu(self.a(x)) + number(self.between(self.a(x))))


class Returns(nn.Module):
    def __init__(self, what: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.what = what

    def forward(self, x: torch.Tensor) -> Any:
        return self.what(x)


def number(value: Any) -> float:
    """Use whatever a module returned, so that a change of it shows."""
    while isinstance(value, (tuple, list, dict)):
        value = next(iter(value.values() if isinstance(value, dict) else value), None)
    if value is None or value.is_meta:
        return 1.0
    value = value.detach()
    if value.is_quantized:
        value = value.dequantize()
    return float(value.to_dense().to(torch.complex64).real.nansum() % 7) if value.numel() else 1.0
