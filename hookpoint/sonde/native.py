"""What is done at every token, in libsonde's builtin functions; cuda/src/python.cpp has the other half of the words.

They read tensors by the exchange API of PyTorch. Where that is missing, or the library is an older one, each forward
goes the general way in Python.
"""

from __future__ import annotations

import ctypes as c
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

from sonde import libsonde

MISFIT = 1  # of `run`: what was tapped does not fit the step, and nothing happened

_EXCHANGE = "__dlpack_c_exchange_api__"


class Functions(NamedTuple):
    """The builtin functions."""

    #: (tensor) → how it lies in memory, as bytes; None: of no kind that a step can count on.
    describe: Callable[[Any], bytes | None]
    #: (what was tapped, address of a step) → status of the step, or MISFIT.
    run: Callable[[list[Any], int], int]
    #: (ids, sequences, rows, columns, address of ranges, their count) → 1: ids are the last of so many columns of the
    #: sequences, or lie on a GPU, and each range was moved on by a token. 0: they are not, and nothing was.
    advance: Callable[[Any, Any, int, int, int, int], int]
    #: (tensor) → 1: booleans of the host in one dimension, all false. 0: others, or something else.
    are_false: Callable[[Any], int]


@cache
def functions() -> Functions | None:
    """Find them once; None: there is no PyTorch, or it does not have the API in a version that libsonde knows."""
    try:
        import torch
    except ModuleNotFoundError:  # whoever records without it has none of its tensors
        return None

    capsule = getattr(torch.Tensor, _EXCHANGE, None)
    library = c.PyDLL(libsonde.load()._name)
    if capsule is None or not hasattr(library, "sonde_python"):
        return None
    make = library.sonde_python
    make.argtypes, make.restype = [c.py_object, c.py_object], c.py_object
    found = make(capsule, torch.Tensor)
    return None if found is None else Functions(*found)


class Step:
    """A whole step of the host of which the addresses of the tensors are all that changes."""

    def __init__(self, handle: int, layouts: bytes, copies: tuple[int, int], number: Any) -> None:
        """copies: where they are, and how many. number: a c_uint64 that takes the number of the step."""
        self._layouts, self._number = c.create_string_buffer(layouts, len(layouts)), number
        self._head = [handle, 0, 0, c.addressof(self._layouts), len(layouts) // 4, *copies, c.addressof(number)]
        self._words: Any = None
        self.address = 0

    def describe(self, taken: Sequence[tuple[int, Any, Any]], offsets: Sequence[int], ranges: tuple[int, int]) -> bool:
        """Say what is tapped. offsets: bytes before the rows, -1: it is not captured. False: it cannot be said.

        ranges: where they are, and how many.
        """
        found = functions()
        if found is None:
            return False
        self._head[1:3] = ranges
        words = [*self._head, len(taken)]
        for (index, x, _), offset in zip(taken, offsets, strict=True):
            described = found.describe(x)
            if described is None:
                return False
            words += (index, offset, *memoryview(described).cast("q"))
        self._words = (c.c_int64 * len(words))(*words)
        self.address = c.addressof(self._words)
        return True
