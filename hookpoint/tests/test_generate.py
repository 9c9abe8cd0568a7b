"""Fears about generate: rows that go to the wrong sample, hypothesis, pass or position, or behind the end."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="NOT RUN: torch is not installed")
pytest.importorskip("transformers", reason="NOT RUN: transformers is not installed")

from oracle import Driver, alone, wrong_rows  # noqa: E402
from transformers import (  # noqa: E402
    ContinuousBatchingConfig,
    DynamicCache,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    StoppingCriteria,
)

from sonde.beams import Beams, lineage_labels  # noqa: E402
from sonde.huggingface import UNKNOWN_LOOP  # noqa: E402
from sonde.identity import Naming  # noqa: E402
from sonde.step import Finish, Phase, Verdict  # noqa: E402

TAPS = ["model.layers.0", "model.norm"]
PROMPTS = [[5, 6, 7, 8], [9, 10], [11, 12, 13, 14, 15, 16]]
WIDTH = max(map(len, PROMPTS))
IDS = torch.tensor([[0] * (WIDTH - len(p)) + p for p in PROMPTS])
MASK = torch.tensor([[0] * (WIDTH - len(p)) + [1] * len(p) for p in PROMPTS])
EOS = [2, 3, 20, 21, 22, 23, 24, 25]  # an eighth of the vocabulary, so that rows end at different times


def make(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                    num_key_value_heads=2, initializer_range=0.3, pad_token_id=0, eos_token_id=EOS)
    ).eval()  # fmt: skip


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    return make(3)


def ended(tokens: list[int]) -> list[int]:
    """Cut what generate wrote behind the end."""
    stop = next((i for i, t in enumerate(tokens) if t in EOS), len(tokens) - 1)
    return tokens[: stop + 1]


def judge(d: Driver, model: Any, sequences: list[list[int]], prompts: list[list[int]], n: int = 1) -> None:
    """Every returned sequence reads back as an independent forward of it, and nothing is left open."""
    assert len(sequences) == len(prompts) * n and d.skipped == []
    for r, new in enumerate(sequences):
        tokens = prompts[r // n] + ended(new)
        rows = d.memory.tensor(f"r{r // n}", r % n)
        assert list(rows) == list(range(len(tokens) - 1)), "each token but the last one is computed"
        assert wrong_rows(rows, tokens, alone(model, tokens, TAPS)) == []
        (number,) = d.memory.numbers(f"r{r // n}", r % n)
        end = d.memory.requests[number].ended
        assert end is not None and end["prompt_tokens"] == len(prompts[r // n])
        assert end["generated_tokens"] == len(tokens) - len(prompts[r // n])
    assert all(r.ended is not None for r in d.memory.requests.values())


def generate(model: Any, **options: Any) -> tuple[Driver, list[list[int]]]:
    """Generate twice with one seed, the second time captured: the tokens must be the same."""
    options = {"max_new_tokens": 14, "do_sample": False, "input_ids": IDS, "attention_mask": MASK, **options}
    torch.manual_seed(7)
    plain = model.generate(**copy.deepcopy(options))
    names = Naming(requests=[f"r{i}" for i in range(len(options["input_ids"]))])
    with Driver(model, TAPS, names) as d:
        torch.manual_seed(7)
        out = model.generate(**options)
    assert torch.equal(out, plain)
    return d, out[:, options["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize(
    ("options", "n"),
    [
        ({}, 1),
        ({"do_sample": True, "num_return_sequences": 4}, 4),
        ({"cache_implementation": "static"}, 1),
        ({"prefill_chunk_size": 4}, 1),
        ({"prefill_chunk_size": 3}, 1),  # divides the prompt
        ({"max_new_tokens": 1}, 1),
        ({"repetition_penalty": 1.3, "no_repeat_ngram_size": 2}, 1),
    ],
)
def test_rows_go_to_their_sample_and_position(llama: LlamaForCausalLM, options: dict[str, Any], n: int) -> None:
    d, sequences = generate(llama, **options)
    judge(d, llama, sequences, PROMPTS, n)
    assert not d.memory.verdicts and {key[2] for key in d.memory.rows} == {0}
    lengths = {len(ended(s)) for s in sequences}
    assert len(lengths) > 1 or options.get("max_new_tokens") == 1, "some row must end before the others"
    finishes = {r.finish for r in d.memory.requests.values()}
    assert Finish.STOP in finishes or options.get("max_new_tokens") == 1
    for (number, r), tokens in zip(sorted(d.memory.requests.items()), sequences, strict=True):
        whole = len(ended(tokens)) == options.get("max_new_tokens", 14)
        assert r.finish == (Finish.LENGTH if whole else Finish.STOP), number


def test_only_the_token_that_is_sampled_from_is_marked(llama: LlamaForCausalLM) -> None:
    d, _ = generate(llama, prefill_chunk_size=4)
    for (_, position, _), row in d.memory.rows.items():
        r = row.range
        prompt = d.memory.requests[r.number].opened["prompt_tokens"]
        last = position == r.position + r.count - 1
        assert (r.sampled and last) == (position >= prompt - 1)
        assert r.phase == (Phase.PREFILL if position < prompt else Phase.DECODE)


def test_without_a_cache_each_computation_is_a_pass(llama: LlamaForCausalLM) -> None:
    d, sequences = generate(llama, use_cache=False)
    judge(d, llama, sequences, PROMPTS)
    for r, new in enumerate(sequences):
        (number,) = d.memory.numbers(f"r{r}")
        tokens = PROMPTS[r] + ended(new)
        passes = Counter(p for n, p, _ in d.memory.rows if n == number)
        steps = len(ended(new))
        assert [passes[p] for p in range(len(tokens) - 1)] == [
            steps - max(p + 1 - len(PROMPTS[r]), 0) for p in range(len(tokens) - 1)
        ]
    assert {row.range.phase for k, row in d.memory.rows.items() if k[2]} == {Phase.RECOMPUTE}


def test_embeddings_as_a_prompt(llama: LlamaForCausalLM) -> None:
    with Driver(llama, TAPS, Naming(requests=["r0", "r1", "r2"])) as d:
        embeds = llama.get_input_embeddings()(IDS)
        out = llama.generate(inputs_embeds=embeds, attention_mask=MASK, max_new_tokens=9, do_sample=False)
    for r in range(3):  # the model was given no ids for them
        for p, row in d.memory.tensor(f"r{r}").items():
            row.token = PROMPTS[r][p] if p < len(PROMPTS[r]) else row.token
    judge(d, llama, out.tolist(), PROMPTS)


@pytest.mark.parametrize("whole", [True, False])
def test_a_conversation_goes_on_behind_its_cache(llama: LlamaForCausalLM, whole: bool) -> None:
    cache = DynamicCache(config=llama.config)
    first = llama.generate(IDS, attention_mask=MASK, max_new_tokens=3, min_new_tokens=3, do_sample=False,
                           past_key_values=cache)  # fmt: skip
    said = torch.cat([first, torch.tensor([[30, 31]] * 3)], 1)
    mask = torch.cat([MASK, torch.ones(3, 5, dtype=MASK.dtype)], 1)
    held = cache.get_seq_length()
    with Driver(llama, TAPS, Naming(requests=["r0", "r1", "r2"])) as d:
        given = said if whole else said[:, held:]
        out = llama.generate(given, attention_mask=mask, max_new_tokens=6, do_sample=False, past_key_values=cache)
    assert d.skipped == []
    for r in range(3):
        prompt = said[r, WIDTH - len(PROMPTS[r]) :].tolist()
        tokens = prompt + ended(out[r, given.shape[1] :].tolist())
        rows = d.memory.tensor(f"r{r}")
        assert list(rows) == list(range(len(prompt) - 3, len(tokens) - 1))
        assert wrong_rows(rows, tokens, alone(llama, tokens, TAPS)) == []
        end = d.memory.requests[d.memory.numbers(f"r{r}")[0]].ended
        assert end is not None and (end["prompt_tokens"], end["cached_tokens"]) == (len(prompt), len(prompt) - 3)


# Beam search.


BEAM_OPTIONS: list[dict[str, Any]] = [
    {"num_beams": 3},
    {"num_beams": 4, "num_return_sequences": 4, "early_stopping": True},
    {"num_beams": 4, "num_return_sequences": 3, "length_penalty": 2.0, "early_stopping": "never"},
    {"num_beams": 3, "num_return_sequences": 2, "use_cache": False},
    {"num_beams": 3, "num_return_sequences": 3, "do_sample": True},
    {"num_beams": 3, "num_return_sequences": 2, "cache_implementation": "static"},
    {"num_beams": 3, "prefill_chunk_size": 4},
]


@pytest.mark.parametrize("options", BEAM_OPTIONS)
def test_every_returned_beam_is_the_rows_of_its_lineage(llama: LlamaForCausalLM, options: dict[str, Any]) -> None:
    d, sequences = generate(llama, **options)
    n = options.get("num_return_sequences", 1)
    judge(d, llama, sequences, PROMPTS, n)
    hypotheses = [r for r in d.memory.requests.values() if "sonde.parent_sample" in r.labels]
    assert hypotheses, "no hypothesis forked: the test shows nothing"
    assert {v for v in d.memory.verdicts.values()} == {Verdict.REJECTED}
    # What is not rejected is exactly what some returned sequence consists of.
    kept = set()
    for r in range(len(PROMPTS)):
        for sample in range(n):
            (number,) = d.memory.numbers(f"r{r}", sample)
            for part in d.memory.requests[number].labels["sonde.lineage"].split(","):
                other, _, places = part.partition(":")
                start, stop = map(int, places.split("-"))
                kept |= {(d.memory.numbers(f"r{r}", int(other))[0], p, 0) for p in range(start, stop)}
    assert set(d.memory.rows) - set(d.memory.verdicts) == kept


def test_a_hypothesis_begins_where_it_left_its_parent(llama: LlamaForCausalLM) -> None:
    d, _ = generate(llama, num_beams=4)
    for number, r in d.memory.requests.items():
        positions = [p for n, p, _ in d.memory.rows if n == number]
        if "sonde.parent_sample" in r.labels:
            assert min(positions) == int(r.labels["sonde.parent_position"])
            (parent,) = d.memory.numbers(r.external_id, int(r.labels["sonde.parent_sample"]))
            assert min(positions) - 1 in [p for n, p, _ in d.memory.rows if n == parent] or "sonde.parent_sample" in \
                d.memory.requests[parent].labels  # fmt: skip
        assert positions == list(range(min(positions, default=0), max(positions, default=-1) + 1))


def test_a_detector_stops_all_hypotheses_of_a_request(llama: LlamaForCausalLM) -> None:
    with Driver(llama, TAPS, Naming(requests=["r0", "r1", "r2"])) as d:
        options = {"num_beams": 3, "max_new_tokens": 14, "min_new_tokens": 12, "do_sample": False}

        class Stop(StoppingCriteria):
            def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
                if input_ids.shape[1] == WIDTH + 4:
                    d.memory.stop |= set(d.memory.numbers("r1"))
                return torch.zeros(input_ids.shape[0], dtype=torch.bool)

        out = llama.generate(IDS, attention_mask=MASK, stopping_criteria=[Stop()], **options)
    ends = [d.memory.requests[d.memory.numbers(f"r{r}", 0)[0]] for r in range(3)]
    assert [r.finish == Finish.DETECTOR for r in ends] == [False, True, False]
    assert ends[1].ended["generated_tokens"] == 4 and min(ends[r].ended["generated_tokens"] for r in (0, 2)) >= 12
    assert max(p for n, p, _ in d.memory.rows if n in d.memory.numbers("r1")) == len(PROMPTS[1]) + 2
    tokens = PROMPTS[1] + out[1, WIDTH : WIDTH + 4].tolist()
    assert wrong_rows(d.memory.tensor("r1"), tokens, alone(llama, tokens, TAPS)) == []
    assert set(out[1, WIDTH + 4 :].tolist()) <= {0, *EOS}


def test_a_long_lineage_is_cut_into_labels() -> None:
    parts = [(i % 7, i, i + 1) for i in range(2000)]
    labels = lineage_labels(parts)
    assert len(labels) > 1 and all(len(v) <= 4096 for v in labels.values())
    assert list(labels)[:2] == ["lineage", "lineage.1"]
    assert ",".join(labels.values()) == ",".join(f"{s}:{a}-{b}" for s, a, b in parts)


def test_beams_that_cannot_be_followed_are_given_up(llama: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def shuffled(self: Beams, full: Any) -> Any:
        return original(self, full.flip(-1))

    original = Beams._continued
    monkeypatch.setattr(Beams, "_continued", shuffled)
    with Driver(llama, TAPS, Naming(requests=["r0", "r1", "r2"])) as d:
        llama.generate(IDS, attention_mask=MASK, num_beams=3, max_new_tokens=6, do_sample=False)
    assert set(d.skipped) == {"a row of beam search continues none of the rows before it"}
    assert {r.finish for r in d.memory.requests.values()} == {Finish.ERROR}
    assert max(p for _, p, _ in d.memory.rows) < WIDTH


# Drafts.

ONE = [5, 6, 7, 8, 5, 6, 7, 8, 9, 10, 5, 6, 7, 8]


@pytest.mark.parametrize(
    ("options", "drafts_by"),
    [
        ({}, "another model"),
        ({"do_sample": True}, "another model"),
        ({"prompt_lookup_num_tokens": 3}, "lookup"),
        ({"assistant_early_exit": 1}, "the model itself"),
    ],
)
def test_rejected_drafts_are_taken_back(llama: LlamaForCausalLM, options: dict[str, Any], drafts_by: str) -> None:
    options = {"input_ids": torch.tensor([ONE]), "attention_mask": None, "max_new_tokens": 24, "min_new_tokens": 20,
               **options}  # fmt: skip
    if drafts_by == "another model":
        torch.manual_seed(11)
        draft = copy.deepcopy(llama)
        for p in draft.parameters():
            p.data += 0.01 * torch.randn_like(p)
        options["assistant_model"] = draft
    torch.manual_seed(7)
    with Driver(llama, TAPS, Naming(requests=["r0"])) as d:
        out = llama.generate(**{"do_sample": False, **options})
    assert set(d.skipped) <= {"a draft by the model itself"} and bool(d.skipped) == (drafts_by == "the model itself")
    d.skipped.clear()
    judge(d, llama, out[:, len(ONE) :].tolist(), [ONE])
    assert d.memory.verdicts and set(d.memory.verdicts.values()) == {Verdict.REJECTED}
    assert max(pass_ for _, _, pass_ in d.memory.rows) >= 1, "a rejected position is computed again as the next pass"
    for (number, position, pass_), row in d.memory.rows.items():
        later = d.memory.rows.get((number, position, pass_ + 1))
        assert later is None or ((number, position, pass_) in d.memory.verdicts and later.step > row.step)
        assert row.range.sampled == (position >= len(ONE) - 1) or position < len(ONE) - 1


# Stops, phantoms and calls that are none of generate's own.


@pytest.mark.parametrize("n", [1, 2])
def test_a_detector_stops_one_row(llama: LlamaForCausalLM, n: int) -> None:
    with Driver(llama, TAPS, Naming(requests=["r0", "r1", "r2"])) as d:

        class Stop(StoppingCriteria):
            def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
                if input_ids.shape[1] == WIDTH + 5:
                    d.memory.stop |= set(d.memory.numbers("r1", n - 1))
                return torch.zeros(input_ids.shape[0], dtype=torch.bool)

        torch.manual_seed(5)
        out = llama.generate(IDS, attention_mask=MASK, do_sample=n > 1, num_return_sequences=n, max_new_tokens=12,
                             min_new_tokens=12, stopping_criteria=[Stop()])  # fmt: skip
    (number,) = d.memory.numbers("r1", n - 1)
    assert d.memory.requests[number].finish == Finish.DETECTOR
    assert d.memory.requests[number].ended["generated_tokens"] == 5
    assert out[n + n - 1, WIDTH + 5 :].tolist() == [0] * 7, "generate went on with a row that was stopped"
    tokens = PROMPTS[1] + out[n + n - 1, WIDTH : WIDTH + 5].tolist()
    rows = d.memory.tensor("r1", n - 1)
    assert list(rows) == list(range(len(tokens) - 1)) and wrong_rows(rows, tokens, alone(llama, tokens, TAPS)) == []
    others = [r for k, r in d.memory.requests.items() if k != number]
    assert {r.finish for r in others} == {Finish.LENGTH}


def test_a_user_s_own_criterion_ends_its_row_alone(llama: LlamaForCausalLM) -> None:
    class Third(StoppingCriteria):
        def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
            done = torch.zeros(input_ids.shape[0], dtype=torch.bool)
            done[2] = input_ids.shape[1] == WIDTH + 3
            return done

    d, sequences = generate(llama, stopping_criteria=[Third()], min_new_tokens=14)
    sequences[2] = sequences[2][:3]
    judge(d, llama, sequences, PROMPTS)


def test_a_capture_that_is_disabled_for_a_while_goes_on_in_its_place(llama: LlamaForCausalLM) -> None:
    with Driver(llama, TAPS, Naming(requests=["r0", "r1", "r2"])) as d:

        class Switch(StoppingCriteria):
            def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
                d.enabled = not WIDTH + 3 <= input_ids.shape[1] < WIDTH + 6
                return torch.zeros(input_ids.shape[0], dtype=torch.bool)

        out = llama.generate(IDS, attention_mask=MASK, max_new_tokens=9, min_new_tokens=9, do_sample=False,
                             stopping_criteria=[Switch()])  # fmt: skip
    assert d.skipped == []
    for r in range(3):
        n, tokens = len(PROMPTS[r]), PROMPTS[r] + out[r, WIDTH:].tolist()
        rows = d.memory.tensor(f"r{r}")
        assert list(rows) == [*range(n + 2), *range(n + 5, n + 8)]
        assert wrong_rows(rows, tokens, alone(llama, tokens, TAPS)) == []


def test_forwards_that_are_not_of_the_loop_are_not_captured(llama: LlamaForCausalLM) -> None:
    with Driver(llama, TAPS, Naming(requests=["r0", "r1", "r2"])) as d:
        out = llama.generate(IDS, attention_mask=MASK, guidance_scale=1.5, max_new_tokens=5, min_new_tokens=5)
    assert set(d.skipped) == {"a forward within generate that is not of its loop, as for guidance"}
    d.skipped.clear()
    judge(d, llama, out[:, WIDTH:].tolist(), PROMPTS)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"custom_generate": lambda model, input_ids, **_: (model(input_ids), input_ids)[1]}, "custom_generate"),
        ({"right": True}, "padded on the right"),
        ({"position_ids": torch.arange(WIDTH)[None] + 5}, "position_ids are not the places"),
        ({"names": ["a"]}, "requests= names 1 prompts and the call has 3"),
    ],
)
def test_what_generate_leaves_uncertain_is_not_captured(llama: LlamaForCausalLM, options: Any, why: str) -> None:
    options = dict(options)
    given = {"input_ids": IDS, "attention_mask": MASK, "max_new_tokens": 4, "do_sample": False}
    if options.pop("right", False):
        given["attention_mask"] = MASK.flip(-1)
    with Driver(llama, TAPS, Naming(requests=options.pop("names", ["r0", "r1", "r2"]))) as d:
        ours = llama.generate(**given, **options)
    assert torch.equal(ours, llama.generate(**given, **options))
    assert not d.memory.rows and d.skipped and all(why in s for s in d.skipped)


def test_another_library_version_is_refused_and_not_guessed_at(llama: LlamaForCausalLM) -> None:
    with Driver(llama, TAPS, Naming(requests=["r0", "r1", "r2"])) as d:
        llama.__dict__["_get_logits_processor"] = type(llama)._get_logits_processor.__get__(llama)
        llama.generate(IDS, attention_mask=MASK, max_new_tokens=3, do_sample=False)
        errors, d.errors[:] = [str(e) for e in d.errors], []
    assert not d.memory.rows and set(d.skipped) == {UNKNOWN_LOOP}
    assert errors == [UNKNOWN_LOOP]


class Wrapped(torch.nn.Module):
    """Generates past its own forward, as models of PEFT do."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner, self.config = inner, inner.config

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner.generate(*args, **kwargs)

    def forward(self, input_ids: Any) -> Any:
        return self.inner(input_ids)


def test_a_wrapper_that_generates_past_its_forward_is_told_of(llama: LlamaForCausalLM) -> None:
    with Driver(Wrapped(llama), []) as d:
        d.model.generate(IDS, attention_mask=MASK, max_new_tokens=2, do_sample=False)
        assert not d.memory.requests and [str(e) for e in d.errors] == [UNKNOWN_LOOP]
        d.errors.clear()


# Continuous batching.


def batching(model: Any, prompts: list[list[int]], n: int, blocks: int, eos: Any) -> tuple[Driver, dict[str, Any]]:
    config = GenerationConfig(max_new_tokens=12, do_sample=True, eos_token_id=eos, num_return_sequences=n)
    with Driver(model, TAPS, Naming(requests=[f"r{i}" for i in range(len(prompts))])) as d:
        out = model.generate_batch(
            prompts,
            generation_config=config,
            continuous_batching_config=ContinuousBatchingConfig(max_batch_tokens=16, num_blocks=blocks, page_size=8),
        )
    assert d.skipped == [] and len(out) == len(prompts) * n
    return d, out


def judge_batch(d: Driver, model: Any, out: dict[str, Any]) -> None:
    for key, o in out.items():
        parent, _, child = key.partition("__child#")
        (number,) = d.memory.numbers(f"r{parent[4:]}", int(child) + 1 if child else 0)
        tokens = o.prompt_ids + o.generated_tokens
        rows, end = d.memory.accepted(number), d.memory.requests[number].ended
        assert end is not None and list(rows)[-1] == len(tokens) - 2
        assert list(rows) == list(range(len(tokens) - len(rows) - 1, len(tokens) - 1))
        assert end["cached_tokens"] >= min(rows), "what was not computed came from another sequence"
        assert wrong_rows(rows, tokens, alone(model, tokens, TAPS)) == []
        assert (end["prompt_tokens"], end["generated_tokens"]) == (len(o.prompt_ids), len(o.generated_tokens))
        assert end["finish"] == (Finish.LENGTH if len(o.generated_tokens) == 12 else Finish.STOP)


def test_packed_batches_shared_prefixes_and_forks(llama: LlamaForCausalLM) -> None:
    prompts = [[30, 31, 32], [33] * 20, [30, 31, 32], [34 + i for i in range(30)], [34 + i for i in range(30)], [40]]
    d, out = batching(llama, prompts, n=2, blocks=64, eos=EOS)
    judge_batch(d, llama, out)
    cached = [r.ended["cached_tokens"] for r in d.memory.requests.values()]
    assert any(cached) and max(row.range.first_row for row in d.memory.rows.values()) > 0


def test_a_preempted_request_is_computed_again_as_the_next_pass(llama: LlamaForCausalLM) -> None:
    prompts = [[30 + i] * 9 for i in range(6)]
    d, out = batching(llama, prompts, n=1, blocks=6, eos=-1)
    judge_batch(d, llama, out)
    again = {row.range.phase for key, row in d.memory.rows.items() if key[2]}
    assert again == {Phase.RECOMPUTE}, "nothing was preempted: the test shows nothing"


def test_requests_that_are_added_by_hand_keep_their_ids(llama: LlamaForCausalLM) -> None:
    config = GenerationConfig(max_new_tokens=4, do_sample=False, eos_token_id=EOS)
    cb = ContinuousBatchingConfig(max_batch_tokens=16, num_blocks=16, page_size=8)
    d = Driver(llama, TAPS)
    with d, llama.continuous_batching_context_manager(config, continuous_batching_config=cb) as manager:
        manager.add_request([30, 31, 32], request_id="mine")
        other = manager.add_request([40, 41])
        results = {r.request_id: r for r in (manager.get_result(timeout=30) for _ in range(2)) if r}
    assert set(results) == {"mine", other}
    names = {r.external_id for r in d.memory.requests.values()}
    assert "mine" in names and other not in names and len(names) == 2
    tokens = results["mine"].prompt_ids + results["mine"].generated_tokens
    assert wrong_rows(d.memory.tensor("mine"), tokens, alone(llama, tokens, TAPS)) == []


def test_an_id_that_is_used_again_is_another_request(llama: LlamaForCausalLM) -> None:
    config = GenerationConfig(max_new_tokens=4, do_sample=False, eos_token_id=-1)
    cb = ContinuousBatchingConfig(max_batch_tokens=16, num_blocks=16, page_size=8)
    done = []
    d = Driver(llama, TAPS)
    with d, llama.continuous_batching_context_manager(config, continuous_batching_config=cb) as manager:
        for prompt in ([30, 31, 32], [33, 34], [35, 36, 37, 38]):
            manager.add_request(prompt, request_id="mine")
            done.append(manager.get_result(timeout=30))
    assert not {"add_request", "add_requests"} & set(manager.__dict__), "detaching leaves the manager wrapped"
    numbers = d.memory.numbers("mine")
    assert len(numbers) == 3 and all(d.memory.requests[n].finish == Finish.LENGTH for n in numbers)
    for number, o in zip(numbers, done, strict=True):
        tokens = o.prompt_ids + o.generated_tokens
        rows = d.memory.accepted(number)
        assert list(rows) == list(range(len(tokens) - 1))
        assert wrong_rows(rows, tokens, alone(llama, tokens, TAPS)) == []
