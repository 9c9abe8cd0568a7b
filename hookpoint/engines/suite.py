"""The contract suite: the judge of every adapter of an engine.

An engine under test is a `Subject`. It is given jobs whose tokens are canaries: no two requests share a token, but for
prefixes that several are meant to share. It serves them with joins and aborts, and then the judge looks at every stored
row: whose token it is, at which position, of which pass; that its bytes are those that a plain hook on the same engine
saw for that token at that position; and that they are, within the tolerance that the subject states, those of a forward
of that sequence alone. Rows that are missing, there twice, or computed and never stored are wrong, too.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

DIGEST = 8  # bytes of the SHA-256 of a row

Hook = tuple[str, int]  # hook, layer


def digest(row: bytes) -> bytes:
    """Shorten a row to what plain hooks write down."""
    return hashlib.sha256(row).digest()[:DIGEST]


@dataclass(frozen=True)
class Job:
    """One request."""

    id: str
    prompt: list[int]
    max_tokens: int
    samples: int = 1
    own: tuple[int, int] = (0, 0)  #: tokens [start, stop) that it may generate; (0, 0): any
    abort_after: int = 0  #: tokens, after which the client goes away; 0: it stays


@dataclass(frozen=True)
class Answer:
    """What a client got of one sample."""

    id: str
    sample: int
    tokens: list[int] | None  #: generated; None: the interface gives text alone
    finish: str  #: "stop", "length" or "abort"


@dataclass(frozen=True)
class Row:
    """One stored row."""

    request: str
    sample: int
    position: int
    pass_: int
    hook: str
    layer: int
    values: np.ndarray


@dataclass
class Plain:
    """What plain hooks on the engine saw in the same run, past Sonde."""

    #: bytes of a row → the (token, position) for which they were computed; None where a hook cannot tell
    seen: dict[Hook, dict[bytes, set[tuple[int, int] | None]]] = field(default_factory=lambda: defaultdict(dict))
    #: how often each (token, position) was computed
    computed: Counter[tuple[int, int]] = field(default_factory=Counter)
    widest: int = 0  #: most sequences in one batch

    def note(self, hook: Hook, row: bytes, place: tuple[int, int] | None) -> None:
        """Write down one row by its digest."""
        self.seen[hook].setdefault(row, set()).add(place)


class Subject(Protocol):
    """An engine with its adapter, ready to serve."""

    name: str
    hooks: Sequence[Hook]  #: that must be stored of every token
    sampled: Sequence[Hook]  #: that must be stored of every token that is sampled from
    tolerance: float  #: of a row's norm, against a forward of its sequence alone

    def serve(self, jobs: Sequence[Job], rng: random.Random) -> list[Answer]:
        """Serve jobs with random joins, and abort those that say so; return when all have ended."""

    def stored(self) -> Iterable[Row]:
        """Stop, wait until everything is stored, and give every row, those of token_ids too."""

    def plain(self) -> Plain | None:
        """Give what plain hooks saw; None: this mode of the engine has no room for them."""

    def alone(self, tokens: list[int]) -> Mapping[Hook, np.ndarray]:
        """Compute a sequence by itself, elsewhere: [tokens, elements of a row] of every hook."""


class Canaries:
    """Makes jobs. Token 0 … first-1 belong to nobody; then each request has an alphabet, and each shared prefix."""

    def __init__(self, rng: random.Random, count: int, letters: int = 16, prefixes: int = 6, first: int = 4) -> None:
        """letters: of an alphabet."""
        self.rng, self.count, self.letters, self.first, self.prefixes = rng, count, letters, first, prefixes
        self.vocabulary = first + (count + prefixes) * letters

    def alphabet(self, owner: int) -> tuple[int, int]:
        """Give the tokens of a request, or behind the last request those of a prefix."""
        return self.first + owner * self.letters, self.first + (owner + 1) * self.letters

    def jobs(
        self, prefix_tokens: int, prompt: tuple[int, int], answer: tuple[int, int], aborts: float, bound: bool = True
    ) -> list[Job]:
        """Make all jobs: half of them begin with a shared prefix, a fifth has two samples.

        bound: the engine can keep a request to its own alphabet while it generates.
        """
        shared = [self._word(self.count + p, prefix_tokens) for p in range(self.prefixes)]
        out = []
        for i in range(self.count):
            tokens = list(self.rng.choice(shared)) if i % 2 else []
            tokens += self._word(i, self.rng.randint(*prompt))
            new = self.rng.randint(*answer)
            own = self.alphabet(i) if bound else (0, 0)
            abort = self.rng.randint(1, new) if self.rng.random() < aborts else 0
            out.append(Job(f"canary-{i}", tokens, new, 2 if i % 5 == 0 else 1, own, abort))
        return out

    def _word(self, owner: int, length: int) -> list[int]:
        start, stop = self.alphabet(owner)
        return [self.rng.randrange(start, stop) for _ in range(length)]


@dataclass
class Verdict:
    """What the judge found."""

    rows: int = 0
    requests: int = 0
    sequences: int = 0
    recomputed: int = 0  #: rows of pass 1 and above
    cached: int = 0  #: positions that a prefix cache had
    aborted: int = 0  #: sequences
    widest: int = 0  #: most sequences in one batch, as plain hooks saw it
    furthest: float = 0.0  #: largest distance to a forward alone, as a part of the row's norm
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """Say it in a line."""
        return (
            f"{self.requests} requests, {self.sequences} sequences ({self.aborted} aborted), {self.rows} rows "
            f"({self.recomputed} recomputed), {self.cached} positions from a prefix cache, {self.widest} sequences in "
            f"a batch at most, {self.furthest:.1e} from a forward alone at most; {len(self.wrong)} rows wrong"
        )


class Judge:
    """Looks at every row of one run."""

    def __init__(self, subject: Subject, jobs: Sequence[Job], answers: Sequence[Answer]) -> None:
        """Nothing is judged yet."""
        self.subject, self.jobs = subject, {j.id: j for j in jobs}
        self.answers = {(a.id, a.sample): a for a in answers}
        self.verdict = Verdict(requests=len(jobs), sequences=len(answers))
        self.verdict.aborted = sum(a.finish == "abort" for a in answers)

    def judge(self, rows: Iterable[Row], plain: Plain | None) -> Verdict:
        """Judge all rows of the run, and those that should be there."""
        sequences: dict[tuple[str, int], dict[Hook, dict[int, dict[int, np.ndarray]]]] = {}
        for row in rows:
            self.verdict.rows += 1
            self.verdict.recomputed += row.pass_ > 0
            of_hook = sequences.setdefault((row.request, row.sample), {}).setdefault((row.hook, row.layer), {})
            passes = of_hook.setdefault(row.position, {})
            if row.pass_ in passes:
                self._wrong(f"{row} is stored twice")
            passes[row.pass_] = row.values
        for key in self.answers.keys() - sequences.keys():
            if self.answers[key].finish != "abort":
                self._wrong(f"{key} has no rows")
        stored: Counter[tuple[int, int]] = Counter()
        for key, by_hook in sequences.items():
            self._sequence(key, by_hook, plain, stored)
        if plain is not None:
            self.verdict.widest = plain.widest
            for place in stored.keys() | plain.computed.keys():
                if stored[place] != plain.computed[place]:
                    self._wrong(f"(token, position) {place}: stored {stored[place]}, computed {plain.computed[place]}")
        return self.verdict

    def _sequence(self, key: tuple[str, int], by_hook: dict[Hook, dict[int, dict[int, np.ndarray]]],
                  plain: Plain | None, stored: Counter[tuple[int, int]]) -> None:  # fmt: skip
        job, answer = self.jobs.get(key[0]), self.answers.get(key)
        if job is None or answer is None:
            self._wrong(f"nobody asked for {key}")
            return
        ids = by_hook.pop(("token_ids", -1), {})
        tokens = self._tokens(key, job, answer, ids)
        for position, passes in ids.items():
            if sorted(passes) != list(range(len(passes))):
                self._wrong(f"{key}, position {position} has the passes {sorted(passes)}")
            for value in passes.values():
                stored[int(value[0]), position] += 1
        self._complete(key, job, answer, ids, by_hook)
        alone = self.subject.alone(tokens)
        if answer.tokens is None:
            self._greedy(key, tokens, len(job.prompt), alone[self.subject.sampled[0]])
        for hook, positions in by_hook.items():
            known = {} if plain is None else plain.seen.get(hook, {})
            for position, passes in positions.items():
                if position >= len(tokens):
                    self._wrong(f"{key} of {len(tokens)} tokens has {hook} at {position}")
                    continue
                for pass_, value in passes.items():
                    what = f"{key}, {hook} at {position}, pass {pass_}"
                    places = known.get(digest(value.tobytes()), ())
                    if plain is not None and (tokens[position], position) not in places and None not in places:
                        self._wrong(f"{what}: no plain hook saw these bytes for this token; for {places or 'no one'}")
                    self._near(what, value.reshape(-1), alone[hook][position])

    def _tokens(
        self, key: tuple[str, int], job: Job, answer: Answer, ids: dict[int, dict[int, np.ndarray]]
    ) -> list[int]:
        """Give the tokens of a sequence, and hold each stored id against what the client sent and got."""
        client = [*job.prompt, *(answer.tokens or ())]
        out = list(client)
        for position in sorted(ids):
            for value in ids[position].values():
                token = int(value[0])
                if position < len(client):
                    if token != client[position]:
                        self._wrong(f"{key}, position {position} has token {token} instead of {client[position]}")
                elif answer.tokens is not None and answer.finish != "abort":
                    self._wrong(f"{key} has a row at {position}, behind its {len(client)} tokens")
                elif job.own != (0, 0) and not job.own[0] <= token < job.own[1]:
                    self._wrong(f"{key}, position {position} has token {token}, which is another request's")
                if position == len(out):
                    out.append(token)
        return out

    def _greedy(self, key: tuple[str, int], tokens: list[int], prompt: int, logits: np.ndarray) -> None:
        """Hold tokens that the client never saw against those that a forward alone chooses, ties aside."""
        for position in range(prompt, len(tokens)):
            best = logits[position - 1]
            if best[tokens[position]] < best.max() - 1e-2 * max(float(best.std()), 1e-6):
                self._wrong(f"{key}, position {position} has token {tokens[position]}, which is not the likeliest")

    def _complete(self, key: tuple[str, int], job: Job, answer: Answer, ids: Mapping[int, object],
                  by_hook: Mapping[Hook, Mapping[int, object]]) -> None:  # fmt: skip
        """Look for what is missing: positions, hooks, sampled rows."""
        there = set(ids)
        first = min(there, default=0)
        self.verdict.cached += first
        own = len(job.prompt) - (key[1] == 0)  # a further sample may begin behind the prompt that it shares
        if there != set(range(first, first + len(there))) or first > max(own, 0):
            self._wrong(f"{key} has the positions {sorted(there)}")
        if answer.tokens is not None and answer.finish != "abort":
            last = len(job.prompt) + len(answer.tokens) - 1  # the last token is never computed
            if max(there, default=-1) != last - 1:
                self._wrong(f"{key} ends at {max(there, default=-1)} instead of {last - 1}")
        for hook in self.subject.hooks:
            if set(by_hook.get(hook, ())) != there:
                self._wrong(f"{key} lacks rows of {hook}")
        sampled = {p for p in there if p >= len(job.prompt) - 1}
        for hook in self.subject.sampled:
            if set(by_hook.get(hook, ())) != sampled:
                self._wrong(f"{key} has {hook} at {sorted(by_hook.get(hook, ()))}, sampled were {sorted(sampled)}")
        for hook in by_hook.keys() - {*self.subject.hooks, *self.subject.sampled}:
            self._wrong(f"{key} has rows of {hook}, which nobody asked for")

    def _near(self, what: str, value: np.ndarray, alone: np.ndarray) -> None:
        far = float(np.linalg.norm(value - alone) / max(float(np.linalg.norm(alone)), 1e-6))
        self.verdict.furthest = max(self.verdict.furthest, far)
        if far > self.subject.tolerance:
            self._wrong(f"{what} is {far:.3g} of its norm from a forward of the sequence alone")

    def _wrong(self, what: str) -> None:
        self.verdict.wrong.append(what)


def run(subject: Subject, jobs: Sequence[Job], rng: random.Random) -> Verdict:
    """Let a subject serve jobs, and judge what was stored."""
    answers = subject.serve(jobs, rng)
    rows = list(subject.stored())
    return Judge(subject, jobs, answers).judge(rows, subject.plain())
