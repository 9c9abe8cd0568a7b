"""Beam search: hypotheses are samples that fork, and each returned sequence names the rows that made it.

A row of a forward is known by the tokens before it, not by its place: hypotheses move between rows at every step.
A request of which `n` sequences are returned has the samples 0 … n-1 for these, opened when `generate` returns and
without rows of their own: their label `sonde.lineage` says of which hypotheses they consist, as `5:0-8,9:8-12` for the
positions 0 to 7 of sample 5 and then 8 to 11 of sample 9. Hypotheses are the samples from `n` on. One that forks opens
a new sample, whose labels `sonde.parent_sample` and `sonde.parent_position` say where it left which other one; its
first row is at that position. Hypotheses with the same tokens are captured once. Rows that lead to no returned
sequence are amended as rejected as soon as that is certain.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch

from sonde.generation import Generation, Given
from sonde.identity import Book, Naming, Track
from sonde.step import Finish, Phase, Range, Unidentified

MAX_LABEL = 4096  # bytes of one label


class Node:
    """A token that was computed behind others; the root stands for the whole prompt."""

    __slots__ = ("children", "ends", "kept", "parent", "position", "step", "token", "track")

    def __init__(self, parent: Node | None, token: int, position: int, track: Track) -> None:
        """position: of the token; of the root, of the last token of the prompt."""
        self.parent, self.token, self.position, self.track = parent, token, position, track
        self.children: dict[int, Node] = {}
        self.ends: set[int] = set()  # last tokens, never computed, of sequences that were finished here
        self.step, self.kept = -1, False


class Tree:
    """The hypotheses of one prompt."""

    def __init__(self, book: Book, track: Track, first_sample: int) -> None:
        """Start with the prompt alone."""
        self.book, self.root, self._next = book, Node(None, -1, track.prompt - 1, track), first_sample + 1
        self.root.kept = True
        book.recorder.will_stop(track.number)
        self.live: set[Node] = {self.root}
        self.tracks: dict[Track, int] = {track: 1}  # open ones, with how many of their rows may still be returned
        self.stopped = False  # by a detector

    def child(self, parent: Node, token: int) -> Node | None:
        """Continue a hypothesis; None when another row does just that."""
        if token in parent.children:
            return None
        track = parent.track
        if track.ended or track.length != parent.position + 1:  # another child continues it
            old, at = track, parent.position + 1
            track = self.book.open(
                old.name, self._next, old.prompt, at, parent_sample=str(old.sample), parent_position=str(at)
            )
            self._next += 1
            self.book.recorder.will_stop(track.number)
        self.tracks[track] = self.tracks.get(track, 0) + 1
        node = parent.children[token] = Node(parent, token, parent.position + 1, track)
        return node

    def take_back(self, nodes: Iterable[Node]) -> None:
        """Amend rows as rejected, and end the hypotheses that nothing is left of."""
        steps: dict[int, list[tuple[int, int, int, int]]] = {}
        for node in nodes:
            steps.setdefault(node.step, []).append((node.track.number, node.position, 1, 0))
            self.tracks[node.track] -= 1
        for step, rows in steps.items():
            self.book.reject(step, rows)
        for track in [t for t, left in self.tracks.items() if left == 0]:
            self.end(track, Finish.ABORT)

    def end(self, track: Track, finish: Finish) -> None:
        """End a hypothesis; nothing of it can be amended from then on."""
        del self.tracks[track]
        self.book.end(track, finish, max(track.length - track.prompt, 0))

    def prune(self, leaves: Iterable[Node]) -> Iterator[Node]:
        """Keep only what leads to these leaves or to a finished sequence; give what is taken back."""
        before, self.live = self.live, set(leaves)
        for node in before - self.live:
            while not (node.children or node.ends or node.kept or node in self.live) and node.parent is not None:
                yield node
                del node.parent.children[node.token]
                node = node.parent

    def find(self, tokens: list[int], fill: int) -> tuple[Node, int] | None:
        """Find the last computed node of a finished sequence, padded by fill, and count its generated tokens."""
        node = self.root
        for i, token in enumerate(tokens):
            if token in node.ends and all(t == fill for t in tokens[i + 1 :]):
                return node, i + 1
            if token not in node.children:
                return None
            node = node.children[token]
        return None

    def nodes(self) -> list[Node]:
        """List what is computed behind the prompt."""
        out, waiting = [], list(self.root.children.values())
        while waiting:
            node = waiting.pop()
            out.append(node)
            waiting.extend(node.children.values())
        return out


class Beams(Generation):
    """Beam search and beam sampling."""

    def __init__(self, book: Book, naming: Naming, prompts: Any) -> None:
        """As a Generation."""
        super().__init__(book, naming, prompts)
        self._returned = prompts.config.num_return_sequences or 1
        self._trees: list[Tree] = []
        self._leaves: list[Node] = []  # of each row
        self._tokens: torch.Tensor | None = None  # [rows, columns]: of what the leaves stand for
        self._fresh: list[Node] = []  # computed by the last forward

    def _track(self, name: dict[str, Any], row: int, prompt: int, cached: int) -> Track | None:
        if row % self.prompts.copies:
            return None  # all beams begin with the same prompt: it is captured once
        limit = max((self.prompts.config.max_length or 0) - self.prompts.tokens, 0)
        track = self.book.open(name, self._returned, prompt, cached, limit)
        tree = Tree(self.book, track, self._returned)
        self._trees.append(tree)
        self._leaves += [tree.root] * self.prompts.copies
        return track

    def forward(self, given: Given) -> list[Range]:
        """Name the rows of a forward. Raises Unidentified."""
        if self.prefilling:
            parts = [t for t in (self._tokens, self.full) if t is not None]
            self._tokens = torch.cat(parts, 1) if parts else None  # a prompt may come in chunks
            return super().forward(given)
        full = self.full
        _, stop, _ = self._columns(given)
        if full is None or self._tokens is None or given.rows != len(self.rows) or stop != self.length:
            raise Unidentified("a forward of beam search is not behind the last one")
        self.computed, self._step, self._fresh = stop, [], []
        leaves = self._continued(full)
        last = full[:, -1].tolist()
        for r, parent in enumerate(leaves):
            tree = self._trees[r // self.prompts.copies]
            node = None if tree.stopped else tree.child(parent, last[r])
            if node is not None:
                row = (r + 1) * given.columns - 1
                self._step += node.track.take(node.position, 1, row, Phase.DECODE, Phase.DECODE, 1)
                self._fresh.append(node)
            self._leaves[r] = parent.children.get(last[r], parent)
        self._tokens = full
        for p, tree in enumerate(self._trees):
            tree.take_back(tree.prune(self._leaves[p * self.prompts.copies : (p + 1) * self.prompts.copies]))
        return self._step

    def _continued(self, full: torch.Tensor) -> list[Node]:
        """Find for each row the leaf whose tokens it continues."""
        beams = self.prompts.copies
        before, now = self._tokens, full[:, :-1]
        if before is None or before.shape != now.shape:
            raise Unidentified("beam search goes on with sequences of another length")
        groups = (-1, beams, now.shape[1])
        same = (now.reshape(groups)[:, :, None] == before.reshape(groups)[:, None]).all(-1)  # [prompts, beams, beams]
        if not bool(same.any(-1).all()):
            raise Unidentified("a row of beam search continues none of the rows before it")
        parents = same.int().argmax(-1).flatten().tolist()
        return [self._leaves[r // beams * beams + p] for r, p in enumerate(parents)]

    def committed(self, step: int) -> None:
        """Learn the number of the step that has the ranges of the last forward."""
        super().committed(step)
        for node in self._fresh:
            node.step = step
        self._fresh = []

    def chosen(self, tokens: torch.Tensor, done: torch.Tensor) -> torch.Tensor:
        """Learn the candidates, best first for each prompt, and which of them the criteria end; return which end."""
        self.prefilling, done = False, done.clone()
        self.length, self._step = self.shift + tokens.shape[1], []
        per_prompt = tokens.shape[0] // len(self._trees)
        over = {p for p, tree in enumerate(self._trees) if tree.stopped}
        for p, tree in enumerate(self._trees):
            tree.stopped = tree.stopped or any(self.book.stopping(t) for t in tree.tracks)
            if tree.stopped:
                done[p * per_prompt : (p + 1) * per_prompt] = True
        for c in done.nonzero().flatten().tolist():
            p, rank = divmod(c, per_prompt)
            if rank < self.prompts.copies and p not in over:  # the others are never returned
                self._finished(p, tokens[c])
        return done

    def _finished(self, prompt: int, tokens: torch.Tensor) -> None:
        """Mark the leaf that a finished candidate continues by a last token."""
        beams, before = self.prompts.copies, self._tokens
        if before is None or before.shape[1] != tokens.shape[0] - 1:
            raise Unidentified("a candidate of beam search has another length than its row")
        rows = before[prompt * beams : (prompt + 1) * beams]
        found = (rows == tokens[:-1]).all(-1).nonzero().flatten().tolist()
        if not found:
            raise Unidentified("a candidate of beam search continues no row")
        self._leaves[prompt * beams + found[0]].ends.add(int(tokens[-1]))

    def close(self, result: Any, failed: bool) -> None:
        """Open a sample for each returned sequence that names its rows, and take everything else back."""
        sequences = getattr(result, "sequences", result)
        usable = not failed and isinstance(sequences, torch.Tensor) and self._trees
        usable = usable and sequences.shape[0] == len(self._trees) * self._returned
        try:
            for r, tokens in enumerate(sequences[:, self.prompts.tokens :].tolist() if usable else []):
                self._return(self._trees[r // self._returned], r % self._returned, tokens)
        except Unidentified:
            usable = False
            raise
        finally:
            for tree in self._trees:
                if usable:
                    tree.take_back([n for n in tree.nodes() if not n.kept])
                finish = Finish.ERROR if failed else Finish.DETECTOR if tree.stopped else Finish.STOP
                for track in list(tree.tracks):
                    tree.end(track, finish)

    def _return(self, tree: Tree, sample: int, tokens: list[int]) -> None:
        found = tree.find(tokens, self._fill())
        if found is None:
            raise Unidentified("beam search returned a sequence that no hypothesis explains")
        node, generated = found
        parts: list[tuple[int, int, int]] = []
        at: Node | None = node
        while at is not None:
            at.kept = True
            low = 0 if at.parent is None else at.position
            if parts and parts[-1][0] == at.track.sample:
                parts[-1] = (at.track.sample, low, parts[-1][2])
            else:
                parts.append((at.track.sample, low, at.position + 1))
            at = at.parent
        track = self.book.open(tree.root.track.name, sample, tree.root.track.prompt, tree.root.track.cached,
                               **lineage_labels(parts[::-1]))  # fmt: skip
        limit = self.prompts.config.max_length - self.prompts.tokens
        self.book.end(track, Finish.DETECTOR if tree.stopped else Finish.LENGTH if generated >= limit else Finish.STOP,
                      generated)  # fmt: skip

    def _fill(self) -> int:
        """Give the token that beam search writes behind the end of a sequence."""
        pad, eos = self.prompts.config._pad_token_tensor, self.prompts.config._eos_token_tensor
        if eos is None:
            return -1
        return int(pad) if pad is not None and int(pad) else int(eos[0])


def lineage_labels(parts: list[tuple[int, int, int]]) -> dict[str, str]:
    """Write (sample, first position, end) as labels `lineage`, `lineage.1` … of bounded size."""
    out: list[str] = [""]
    for part in ("{}:{}-{}".format(*p) for p in parts):
        if len(out[-1]) + len(part) + 1 > MAX_LABEL:
            out.append("")
        out[-1] += ("," if out[-1] else "") + part
    return {f"lineage.{i}" if i else "lineage": text for i, text in enumerate(out)}
