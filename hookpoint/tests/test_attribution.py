"""The fear above all: a row that carries the name of another request, sample or position.

Every request has tokens of its own, two for each position, that no other one in its batch or the three around it has:
the id of a row's token proves whose row it is and where it stands, whatever the identity says. Beside that, each
returned sequence is computed again by itself.
"""

from __future__ import annotations

import dataclasses
import os
import random
from collections.abc import Callable, Iterable
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="NOT RUN: torch is not installed")
pytest.importorskip("transformers", reason="NOT RUN: transformers is not installed")

from oracle import Driver, alone, wrong_rows  # noqa: E402
from transformers import (  # noqa: E402
    ContinuousBatchingConfig,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessor,
    StoppingCriteria,
)

from sonde.identity import Naming  # noqa: E402
from sonde.step import Finish, Range, Verdict  # noqa: E402

TAPS = ["model.layers.0", "model.norm"]
POSITIONS, FIRST, EOS = 32, 4, 2
BATCH = 16
ALPHABETS = 4 * BATCH


def token(request: int, position: int, bit: int) -> int:
    return FIRST + (request % ALPHABETS * POSITIONS + position) * 2 + bit


def owner(t: int) -> tuple[int, int]:
    """Read from a token whose alphabet it is of, and at which position it stands."""
    return divmod((t - FIRST) // 2, POSITIONS)


class Own(LogitsProcessor):
    """Lets each row go on with its request's own tokens only, and end after a number of tokens that the request has."""

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        out = torch.full_like(scores, -1e9)
        for r, last in enumerate(input_ids[:, -1].tolist()):
            if last < FIRST:  # the row has ended
                out[r, EOS] = 0
                continue
            request, position = owner(last)
            if position + 1 >= 12 + request % 17:
                out[r, EOS] = 0
            for t in (token(request, position + 1, 0), token(request, position + 1, 1)):
                out[r, t] = scores[r, t]
        return out


class Aborting(StoppingCriteria):
    """Stands for a detector that stops some sequences at some moment."""

    def __init__(self, d: Driver, rng: random.Random) -> None:
        self.d, self.rng, self.stopped = d, rng, set()

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        for number, r in self.d.memory.requests.items():
            if r.ended is None and self.rng.random() < 0.005:
                self.d.memory.stop.add(number)
                self.stopped.add(number)
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    torch.manual_seed(1)
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=FIRST + ALPHABETS * POSITIONS * 2, hidden_size=16, intermediate_size=24,
                    num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, initializer_range=0.4,
                    pad_token_id=0, bos_token_id=1, eos_token_id=EOS, tie_word_embeddings=True)
    ).eval()  # fmt: skip


@pytest.fixture(scope="module")
def rng() -> random.Random:
    seed = int(os.environ.get("SONDE_SEED", "20261125"))
    print(f"SONDE_SEED={seed}")
    torch.manual_seed(seed)
    return random.Random(seed)


class Traffic:
    """Requests in batches: prompts of different lengths, some of them the same twice."""

    def __init__(self, rng: random.Random, first: int, count: int) -> None:
        self.names = [f"canary-{i}" for i in range(first, first + count)]
        self.prompts: list[list[int]] = []
        for i in range(first, first + count):
            twin = i > first and rng.random() < 0.1
            length = rng.randint(1, 11)
            self.prompts.append(
                list(self.prompts[-1]) if twin else [token(i, p, rng.randint(0, 1)) for p in range(length)]
            )

    def batch(self, left: bool) -> dict[str, Any]:
        width = max(map(len, self.prompts))
        pads = [[0] * (width - len(p)) for p in self.prompts]
        ids = [z + p if left else p + z for z, p in zip(pads, self.prompts, strict=True)]
        mask = [[0] * len(z) + [1] * len(p) if left else [1] * len(p) + [0] * len(z)
                for z, p in zip(pads, self.prompts, strict=True)]  # fmt: skip
        return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def unproven(d: Driver, traffic: Traffic) -> list[str]:
    """Judge every row, taken back or not, by the id of its token and by what plain hooks saw of that token."""
    out = [f"{key} was captured twice" for key in d.memory.twice]
    steps = []
    for ids, seen in d.batches:
        places: dict[int, list[int]] = {}
        for i, t in enumerate(ids.reshape(-1).tolist()):
            places.setdefault(t, []).append(i)
        steps.append((places, {name: x.reshape(-1, x.shape[-1]) for name, x in seen.items()}))
    for (number, position, _), row in d.memory.rows.items():
        request = int(d.memory.requests[number].external_id.partition("-")[2])
        mine = traffic.prompts[request - int(traffic.names[0].partition("-")[2])]
        if row.token < FIRST and d.memory.verdicts.get((number, position, row.range.pass_)) == Verdict.REJECTED:
            continue  # what beam search computes behind an end
        if owner(row.token) != (owner(mine[0])[0], position):
            out.append(f"{request}, position {position} has the token of {owner(row.token)}")
        places, seen = steps[row.step]
        for name, vector in row.vectors.items():
            if not bool((seen[name][places[row.token]] == vector).all(-1).any()):
                out.append(f"{request}, position {position} of {name} has the bytes of no such token")
    return out


def unlike(d: Driver, model: Any, sequences: Iterable[tuple[str, int, list[int]]]) -> list[str]:
    """Judge the rows of returned sequences by computing each again by itself; all but the last token have one."""
    out = []
    for name, sample, tokens in sequences:
        rows = d.memory.tensor(name, sample)
        if list(rows) != list(range(len(tokens) - 1)):
            out.append(f"{name}/{sample} has the positions {list(rows)} of {len(tokens)}")
        out += [f"{name}/{sample}: {w}" for w in wrong_rows(rows, tokens, alone(model, tokens, TAPS))]
    return out


def returned(d: Driver, traffic: Traffic, new: list[list[int]], n: int) -> list[tuple[str, int, list[int]]]:
    """Name what generate returned, each cut where its request ended."""
    out = []
    for r, tokens in enumerate(new):
        name, sample = traffic.names[r // n], r % n
        end = d.memory.requests[d.memory.numbers(name, sample)[0]].ended
        assert end is not None
        stop = next((i + 1 for i, t in enumerate(tokens) if t < FIRST), len(tokens))
        if end["finish"] == Finish.DETECTOR:
            stop = end["generated_tokens"]
        assert end["generated_tokens"] == stop
        out.append((name, sample, traffic.prompts[r // n] + tokens[:stop]))
    return out


def generated(model: Any, traffic: Traffic, rng: random.Random, n: int = 1, aborts: bool = True,
              wrap: Callable[[Any], Any] = lambda i: i, **options: Any) -> tuple[Driver, list[str]]:  # fmt: skip
    batch = traffic.batch(left=True)
    with Driver(model, TAPS, Naming(requests=traffic.names), wrap) as d:
        criteria = [Aborting(d, rng)] if aborts else []
        out = model.generate(**batch, max_new_tokens=20, logits_processor=[Own()], stopping_criteria=criteria,
                             num_return_sequences=n, **{"do_sample": n > 1, **options})  # fmt: skip
        assert d.skipped == []
    new = out[:, batch["input_ids"].shape[1] :].tolist()
    return d, unproven(d, traffic) + unlike(d, model, returned(d, traffic, new, n))


def test_no_row_of_any_request_is_wrong(llama: LlamaForCausalLM, rng: random.Random) -> None:
    modes: list[dict[str, Any]] = [
        {},
        {"n": 4},
        {"do_sample": True},
        {"cache_implementation": "static"},
        {"prefill_chunk_size": 4},
        {"num_beams": 3, "n": 2, "aborts": False, "do_sample": False},
        {"use_cache": False},
    ]
    requests = rows = aborted = 0
    wrong: list[str] = []
    for first in range(0, 480, BATCH):
        traffic = Traffic(rng, first, BATCH)
        d, found = generated(llama, traffic, rng, **modes[first // BATCH % len(modes)])
        wrong += found
        requests, rows = requests + BATCH, rows + len(d.memory.rows)
        aborted += sum(r.finish == Finish.DETECTOR for r in d.memory.requests.values())
    print(f"{requests} requests, {rows} rows, {aborted} stopped by a detector, {len(wrong)} wrong")
    assert wrong == [] and aborted >= 10


@pytest.mark.parametrize("left", [True, False])
def test_no_row_of_a_plain_forward_is_wrong(llama: LlamaForCausalLM, rng: random.Random, left: bool) -> None:
    traffic = Traffic(rng, 480 + BATCH * left, BATCH)
    batch = traffic.batch(left)
    places = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    with Driver(llama, TAPS, Naming(requests=traffic.names)) as d, torch.no_grad():
        llama(**batch, position_ids=places, use_cache=False)
    sequences = [(n, 0, [*p, EOS]) for n, p in zip(traffic.names, traffic.prompts, strict=True)]
    assert unproven(d, traffic) + unlike(d, llama, sequences) == []


def test_no_row_of_assisted_decoding_is_wrong(llama: LlamaForCausalLM, rng: random.Random) -> None:
    rejected = 0
    for request in range(512, 528):
        traffic = Traffic(rng, request, 1)
        traffic.prompts[0] = [token(request, p, 0) for p in range(6)]
        d, wrong = drafted(llama, traffic, rng)
        rejected += len(d.memory.verdicts)
        assert wrong == []
    assert rejected > 8, "no draft was rejected: the test shows nothing"


def drafted(model: Any, traffic: Traffic, rng: random.Random) -> tuple[Driver, list[str]]:
    """Draft with another model. What it writes is nobody's own tokens: only the recomputation judges."""
    torch.manual_seed(rng.randint(0, 1 << 30))
    draft = LlamaForCausalLM(model.config).eval()
    draft.load_state_dict({k: v + 0.02 * torch.randn_like(v) for k, v in model.state_dict().items()})
    ids = torch.tensor(traffic.prompts)
    with Driver(model, TAPS, Naming(requests=traffic.names)) as d:
        out = model.generate(ids, max_new_tokens=20, min_new_tokens=20, assistant_model=draft, do_sample=False)
    assert set(d.skipped) == set()
    return d, unlike(d, model, [(traffic.names[0], 0, out[0].tolist())])


def test_no_row_of_continuous_batching_is_wrong(llama: LlamaForCausalLM, rng: random.Random) -> None:
    traffic = Traffic(rng, 528, 48)
    config = GenerationConfig(max_new_tokens=6, do_sample=True, eos_token_id=EOS)
    with Driver(llama, TAPS, Naming(requests=traffic.names)) as d:
        cb = ContinuousBatchingConfig(max_batch_tokens=32, num_blocks=40, page_size=8)
        out = llama.generate_batch(traffic.prompts, generation_config=config, continuous_batching_config=cb)
    assert d.skipped == []
    wrong = []
    for key, o in out.items():
        name, tokens = traffic.names[int(key[4:])], o.prompt_ids + o.generated_tokens
        rows = d.memory.tensor(name)
        wrong += [f"{name}: {w}" for w in wrong_rows(rows, tokens, alone(llama, tokens, TAPS))]
        assert max(rows) == len(tokens) - 2
    assert wrong == [] and len(out) == 48


# Faults on purpose, planted in front of the identity: the same judge must find each.


class Planted:
    """Gives what an identity gives, with a fault in every eighth forward."""

    def __init__(self, identity: Any) -> None:
        self.identity, self.forwards = identity, 0

    def ranges(self, module: Any, args: Any, kwargs: Any) -> list[Range] | None:
        found = self.identity.ranges(module, args, kwargs)
        self.forwards += 1
        return self.fault(list(found)) if found and len(found) > 1 and self.forwards % 8 == 2 else found

    def finished(self, module: Any, output: Any) -> None:
        self.identity.finished(module, output)

    def fault(self, found: list[Range]) -> list[Range]:
        raise NotImplementedError


class Shifted(Planted):
    """One row is said to be one position further."""

    def fault(self, found: list[Range]) -> list[Range]:
        return [dataclasses.replace(found[0], position=found[0].position + 1), *found[1:]]


class Swapped(Planted):
    """Two rows change places."""

    def fault(self, found: list[Range]) -> list[Range]:
        a, b = found[:2]
        a, b = (dataclasses.replace(x, first_row=y.first_row) for x, y in ((a, b), (b, a)))
        return [a, b, *found[2:]]


@pytest.mark.parametrize("fault", [Shifted, Swapped])
@pytest.mark.parametrize("n", [1, 4])
def test_a_planted_fault_is_found(llama: LlamaForCausalLM, rng: random.Random, fault: Any, n: int) -> None:
    traffic = Traffic(rng, 0, BATCH)
    traffic.prompts = [[token(i, p, 0) for p in range(5)] for i in range(BATCH)]  # nobody ends before the fault
    d, wrong = generated(llama, traffic, rng, n=n, aborts=False, wrap=fault)
    assert wrong, "a wrong build passes for a right one"
