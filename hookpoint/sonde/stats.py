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


MAX_REPORTED = 256  # different problems that are told apart; further ones are only counted


class Problems(Counter[str]):
    """Sentences about what went wrong, and how often each was true."""

    def first(self, text: str) -> str | None:
        """Count a sentence, and give what is to be said of it the first time."""
        if text not in self and len(self) >= MAX_REPORTED:
            text = "further problems"
        self[text] += 1
        return text if self[text] == 1 else None


@dataclass
class Counts:
    """Those of `Stats` that the ring does not count."""

    forwards: int = 0
    unidentified: int = 0
    raised: int = 0
    failures: int = 0
    problems: Problems = field(default_factory=Problems)
