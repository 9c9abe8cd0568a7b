"""What a capture counts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Stats:
    """What a capture has done so far. Rows are those of all hooks."""

    attached: bool  #: an agent has the ring
    forwards: int  #: that were captured
    unidentified: int  #: forwards of which nothing was stored, because nobody could say whose tokens they compute
    raised: int  #: forwards that raised; nothing of them is stored
    failures: int  #: of capture itself; the model never saw them
    overwritten: int  #: tensors that were not read because the model had overwritten them
    captured_rows: int  #: offered to the ring, dropped ones included
    dropped_rows: dict[str, int]  #: by reason
    aborted_rows: int  #: their tensor had been overwritten, or their copy failed
    problems: dict[str, int]  #: sentences, and how often each was true


@dataclass
class Counts:
    """Those of `Stats` that the ring does not count."""

    forwards: int = 0
    unidentified: int = 0
    raised: int = 0
    failures: int = 0
    problems: Counter[str] = field(default_factory=Counter)
