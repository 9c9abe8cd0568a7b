"""Fears about plain forwards: rows of padding, of other sequences, or of a cache that somebody changed."""

from __future__ import annotations

import copy
import functools
import gc
import io
import re
import warnings

import pytest

torch = pytest.importorskip("torch", reason="NOT RUN: torch is not installed")
pytest.importorskip("transformers", reason="NOT RUN: transformers is not installed")

from oracle import Driver, alone, wrong_rows  # noqa: E402
from transformers import (  # noqa: E402
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from sonde.forwards import Kept  # noqa: E402
from sonde.huggingface import WRAPPED  # noqa: E402
from sonde.identity import Book, Naming, Track, clip, runs  # noqa: E402
from sonde.step import Finish, Phase, Unidentified  # noqa: E402

TAPS = ["model.layers.0", "model.layers.1"]
PROMPTS = [[5, 6, 7, 8], [9, 10], [11, 12, 13, 14, 15, 16]]
NAMES = Naming(requests=["r0", "r1", "r2"])


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    torch.manual_seed(1)
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                    num_key_value_heads=2, initializer_range=0.3)
    ).eval()  # fmt: skip


def padded(prompts: list[list[int]], left: bool) -> dict[str, torch.Tensor]:
    width = max(map(len, prompts))
    ids = [[0] * (width - len(p)) + p if left else p + [0] * (width - len(p)) for p in prompts]
    mask = [[0] * (width - len(p)) + [1] * len(p) if left else [1] * len(p) + [0] * (width - len(p)) for p in prompts]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def judge(driver: Driver, model: torch.nn.Module, prompts: list[list[int]], taps: list[str] = TAPS) -> None:
    """Every token of every prompt was captured, and is right."""
    for r, prompt in enumerate(prompts):
        rows = driver.memory.tensor(f"r{r}")
        assert list(rows) == list(range(len(prompt)))
        assert wrong_rows(rows, prompt, alone(model, prompt, taps)) == []
    assert sum(len(p) for p in prompts) == len(driver.memory.rows)
    assert all(r.ended is not None for r in driver.memory.requests.values())


@pytest.fixture(scope="module")
def mamba() -> MambaForCausalLM:
    torch.manual_seed(1)
    return MambaForCausalLM(
        MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=4, initializer_range=0.3,
                    pad_token_id=0, eos_token_id=63)
    ).eval()  # fmt: skip


@pytest.mark.parametrize("left", [False, True])
def test_padding_has_no_rows(llama: LlamaForCausalLM, left: bool) -> None:
    batch = padded(PROMPTS, left)
    batch["position_ids"] = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    with Driver(llama, TAPS, NAMES) as d, torch.no_grad():
        llama(**batch, use_cache=False)
    judge(d, llama, PROMPTS)


def test_a_row_of_padding_alone_is_no_request(llama: LlamaForCausalLM) -> None:
    batch = padded([*PROMPTS[:2], []], left=False)
    with Driver(llama, TAPS, NAMES) as d, torch.no_grad():
        llama(**batch, use_cache=False)
    assert {r.external_id for r in d.memory.requests.values()} == {"r0", "r1"}


def test_an_encoder_gives_one_request_a_row() -> None:
    torch.manual_seed(2)
    bert = BertModel(BertConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                                intermediate_size=48, initializer_range=0.3)).eval()  # fmt: skip
    taps = ["encoder.layer.0", "encoder.layer.1"]
    batch = padded(PROMPTS, left=False)
    with Driver(bert, taps, NAMES) as d, torch.no_grad():
        bert(batch["input_ids"], attention_mask=batch["attention_mask"])  # ids by position
    judge(d, bert, PROMPTS, taps)
    assert all(r.finish == Finish.STOP for r in d.memory.requests.values())


def test_embeddings_are_tokens_too(llama: LlamaForCausalLM) -> None:
    with Driver(llama, TAPS, Naming(requests=["r0"])) as d, torch.no_grad():
        llama(inputs_embeds=llama.get_input_embeddings()(torch.tensor([PROMPTS[2]])), use_cache=False)
    rows = d.memory.tensor("r0")
    for row, token in zip(rows.values(), PROMPTS[2], strict=True):
        row.token = token  # the model was given none
    assert wrong_rows(rows, PROMPTS[2], alone(llama, PROMPTS[2], TAPS)) == []


def test_training_is_captured_and_not_changed(llama: LlamaForCausalLM) -> None:
    batch = {**padded(PROMPTS, left=False), "labels": padded(PROMPTS, left=False)["input_ids"]}

    def gradients() -> list[torch.Tensor]:
        llama.zero_grad()
        llama(**batch, use_cache=False).loss.backward()
        return [p.grad.clone() for p in llama.parameters() if p.grad is not None]

    plain = gradients()
    with Driver(llama, TAPS, NAMES) as d:
        ours = gradients()
    llama.zero_grad()
    judge(d, llama, PROMPTS)
    assert all(torch.equal(a, b) for a, b in zip(plain, ours, strict=True))


def test_sequences_packed_into_one_row_are_told_apart(llama: LlamaForCausalLM) -> None:
    ids, places = sum(PROMPTS, []), [i for p in PROMPTS for i in range(len(p))]
    with Driver(llama, TAPS, NAMES) as d, torch.no_grad():
        llama(input_ids=torch.tensor([ids]), position_ids=torch.tensor([places]), use_cache=False)
    judge(d, llama, PROMPTS)


def own_loop(llama: LlamaForCausalLM, steps: int, cache: object = None) -> tuple[list[list[int]], object]:
    """Decode by hand, as users do."""
    batch = padded(PROMPTS, left=True)
    mask, sequences = batch["attention_mask"], [list(p) for p in PROMPTS]
    out = llama(**batch, position_ids=(mask.cumsum(-1) - 1).clamp(min=0), past_key_values=cache)
    for _ in range(steps):
        token = out.logits[:, -1].argmax(-1, keepdim=True)
        for sequence, t in zip(sequences, token[:, 0].tolist(), strict=True):
            sequence.append(t)
        mask = torch.cat([mask, torch.ones(3, 1, dtype=mask.dtype)], 1)
        out = llama(input_ids=token, attention_mask=mask, position_ids=mask.cumsum(-1)[:, -1:] - 1,
                    past_key_values=out.past_key_values)  # fmt: skip
    return sequences, out.past_key_values


def test_a_cache_that_is_handed_on_continues_its_sequences(llama: LlamaForCausalLM) -> None:
    with Driver(llama, TAPS, NAMES) as d, torch.no_grad():
        sequences, cache = own_loop(llama, 5)
        assert all(r.ended is None for r in d.memory.requests.values())
        del cache
        gc.collect()
        llama(input_ids=torch.tensor([PROMPTS[0]] * 3), use_cache=False)  # any next forward ends them
        assert [r.ended is not None for r in d.memory.requests.values()] == [True] * 6
    for r, sequence in enumerate(sequences):
        rows = d.memory.accepted(d.memory.numbers(f"r{r}")[0])
        assert list(rows) == list(range(len(sequence)))
        assert wrong_rows(rows, sequence, alone(llama, sequence, TAPS)) == []


@pytest.mark.parametrize("change", ["swap", "drop", "crop", "fill"])
def test_a_cache_that_was_changed_is_not_guessed_at(llama: LlamaForCausalLM, change: str) -> None:
    with Driver(llama, TAPS, NAMES) as d, torch.no_grad():
        _, cache = own_loop(llama, 2)
        before, rows = len(d.memory.rows), 3
        if change == "swap":
            cache.reorder_cache(torch.tensor([1, 0, 2]))
        elif change == "drop":
            cache.batch_select_indices(torch.tensor([0, 2]))
            rows = 2
        elif change == "crop":
            cache.crop(-1)
        else:
            cache.layers[0].keys = cache.layers[0].keys.clone()
        llama(input_ids=torch.full((rows, 1), 3), past_key_values=cache)
        assert len(d.memory.rows) == before
        assert d.skipped == ["past_key_values was changed between two forwards: whose rows it holds is not known"]
        assert all(r.ended is not None for r in d.memory.requests.values())


@pytest.mark.parametrize("moved", [False, True])
def test_a_recurrent_state_continues_sequences_while_nobody_moves_them(mamba: MambaForCausalLM, moved: bool) -> None:
    ids, taps = torch.tensor([[5, 6, 7, 8, 9], [9, 10, 11, 12, 13], [3, 4, 5, 6, 7]]), ["backbone.layers.0"]
    with Driver(mamba, taps, NAMES) as d, torch.no_grad():
        cache = mamba(input_ids=ids[:, :3], use_cache=True).cache_params
        if moved:
            cache.reorder_cache(torch.tensor([1, 0, 2]))
        for i in (3, 4):
            mamba(input_ids=ids[:, i : i + 1], cache_params=cache, use_cache=True)
    judge(d, mamba, ids[:, : 3 if moved else 5].tolist(), taps)
    assert ["changed" in d.skipped[0], "not known" in d.skipped[1]] == [True, True] if moved else d.skipped == []


@pytest.mark.parametrize("beams", [1, 2])
def test_generate_of_a_recurrent_model_is_captured_to_its_end(mamba: MambaForCausalLM, beams: int) -> None:
    taps, inputs = ["backbone.layers.0"], padded(PROMPTS, True)
    with Driver(mamba, taps, NAMES) as d:
        out = mamba.generate(**inputs, max_new_tokens=6, do_sample=False, num_beams=beams)
    assert d.skipped == []
    for r, prompt in enumerate(PROMPTS):
        new = out[r, 6:].tolist()
        tokens = prompt + new[: new.index(63) + 1 if 63 in new else 6]
        rows = d.memory.tensor(f"r{r}")
        assert list(rows) == list(range(len(tokens) - 1))
        assert wrong_rows(rows, tokens, alone(mamba, tokens, taps)) == []


def test_a_cache_that_is_emptied_and_used_again_begins_anew(llama: LlamaForCausalLM) -> None:
    with Driver(llama, TAPS, NAMES) as d, torch.no_grad():
        _, cache = own_loop(llama, 2)
        cache.reset()
        sequences, _ = own_loop(llama, 2, cache)
    assert len(d.memory.requests) == 6
    for r, sequence in enumerate(sequences):
        rows = d.memory.accepted(d.memory.numbers(f"r{r}")[1])
        assert wrong_rows(rows, sequence, alone(llama, sequence, TAPS)) == [] and len(rows) == len(sequence)


def test_a_cache_from_before_the_capture_gives_rows_behind_it(llama: LlamaForCausalLM) -> None:
    with torch.no_grad():
        cache = llama(input_ids=torch.tensor([PROMPTS[2]])).past_key_values
        with Driver(llama, TAPS, Naming(requests=["r0"])) as d:
            llama(input_ids=torch.tensor([[20, 21]]), past_key_values=cache)
    rows, sequence = d.memory.tensor("r0"), [*PROMPTS[2], 20, 21]
    assert list(rows) == [6, 7] and wrong_rows(rows, sequence, alone(llama, sequence, TAPS)) == []
    assert next(iter(d.memory.requests.values())).ended["cached_tokens"] == 6


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"attention_mask": torch.ones(3, 1, 6, 6, dtype=torch.bool)}, "not two-dimensional"),
        ({"attention_mask": torch.ones(3, 9)}, r"shape \(3, 9\) instead of \(3, 6\)"),
        ({"position_ids": torch.tensor([[0, 1, 2, 5, 4, 3]])}, "do not rise by one"),
        ({"requests": ["a", "b"]}, "requests= names 2 prompts and the call has 3"),
        ({"labels": [{}]}, "labels= names 1 prompts"),
    ],
)
def test_what_is_uncertain_is_not_captured(llama: LlamaForCausalLM, given: dict[str, object], why: str) -> None:
    names = Naming(**{k: given.pop(k) for k in ("requests", "labels") if k in given})  # type: ignore[arg-type]
    ids = padded(PROMPTS, left=True)["input_ids"]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            plain = llama(ids, use_cache=False, **given).logits
        except (RuntimeError, ValueError):
            plain = None  # the model refuses it as well
        with Driver(llama, TAPS, names) as d:
            if plain is None:
                with pytest.raises((RuntimeError, ValueError)):
                    llama(ids, use_cache=False, **given)
            else:
                assert torch.equal(llama(ids, use_cache=False, **given).logits, plain)
        assert not d.memory.rows and not d.memory.requests
        assert len(d.skipped) == 1 == sum(d.identity.unnamed.values())
        assert re.search(why, d.skipped[0])


def test_encoder_and_decoder_together_are_refused_in_one_sentence() -> None:
    t5 = T5ForConditionalGeneration(T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2,
                                             decoder_start_token_id=0)).eval()  # fmt: skip
    with Driver(t5, ["encoder.block.0"]) as d, torch.no_grad():
        out = t5.generate(input_ids=torch.tensor([PROMPTS[0]]), max_new_tokens=3)
        t5(input_ids=torch.tensor([PROMPTS[0]]), decoder_input_ids=torch.tensor([[0, 3]]))
    assert out.shape[1] > 1 and not d.memory.rows
    assert set(d.skipped) == {"encoder and decoder compute different tokens in one forward"}


def test_labels_tenants_and_adapters_reach_their_request(llama: LlamaForCausalLM) -> None:
    names = Naming(requests=["r0", "r1", "r2"], tenant="t", adapter="lora", labels=[{"n": str(i)} for i in range(3)],
                   opt_in=[True, False, True], trace_parent="00-1-2-3")  # fmt: skip
    with Driver(llama, TAPS, names) as d, torch.no_grad():
        llama(**padded(PROMPTS, left=False), use_cache=False)
    for i, r in enumerate(d.memory.requests.values()):
        assert (r.external_id, r.labels, r.opened["tenant"]) == (f"r{i}", {"n": str(i)}, "t")
        assert (r.opened["adapter"], r.opened["opt_in"], r.opened["trace_parent"]) == ("lora", i != 1, "00-1-2-3")


def test_requests_without_a_name_get_one_of_their_own(llama: LlamaForCausalLM) -> None:
    with Driver(llama, TAPS) as d, torch.no_grad():
        for _ in range(2):
            llama(**padded(PROMPTS, left=False), use_cache=False)
    assert len({r.external_id for r in d.memory.requests.values()}) == 6


class Tuned(torch.nn.Linear):
    """Stands for a layer with adapters, which PEFT makes."""

    active_adapters = property(lambda self: self.chosen)
    disable_adapters = property(lambda self: not self.chosen)


def test_the_active_adapter_is_named(llama: LlamaForCausalLM) -> None:
    model = copy.deepcopy(llama)
    layer = model.model.layers[0].self_attn.q_proj
    layer.__class__, layer.chosen = Tuned, ["french"]
    one, ids = Naming(), torch.tensor([PROMPTS[0]])
    with Driver(model, TAPS, one) as d, torch.no_grad():
        model(ids, use_cache=False)
        layer.chosen = []
        model(ids, use_cache=False)
        layer.chosen = ["a", "b"]
        model.generate(ids, max_new_tokens=2, pad_token_id=0)
        for names in (["x", "__base__"], ["x"] * 3):  # PEFT tells its layers like this
            told = functools.partial(lambda *_, adapter_names: None, adapter_names=names)
            hook = layer.register_forward_pre_hook(told)
            model(ids.repeat(2, 1), use_cache=False)
            model.generate(ids.repeat(2, 1), max_new_tokens=2, pad_token_id=0)
            hook.remove()
    assert [r.opened["adapter"] for r in d.memory.requests.values()] == ["french", "", "a+b", "x", "", "x", ""]
    assert set(d.skipped) == {"adapter_names names 3 rows and the call has 2 prompts"}


def test_detaching_leaves_the_model_as_it_was(llama: LlamaForCausalLM) -> None:
    own = llama.prepare_inputs_for_generation
    llama.__dict__["prepare_inputs_for_generation"] = own  # as some libraries do
    before = dict(llama.__dict__)
    with Driver(llama, TAPS):
        assert set(WRAPPED) <= set(llama.__dict__)
    assert llama.__dict__ == before
    del llama.__dict__["prepare_inputs_for_generation"]
    with Driver(llama, TAPS):
        pass
    assert not set(WRAPPED) & set(llama.__dict__)


def test_a_copy_of_an_attached_model_is_a_model_of_its_own(llama: LlamaForCausalLM) -> None:
    ids = torch.tensor([PROMPTS[0]])
    with Driver(llama, [], Naming(requests=["r0"])) as d, torch.no_grad():
        d._handles.pop().remove()  # a real capture's hooks do not survive a copy
        d._handles.pop().remove()
        twin = copy.deepcopy(llama)
        file = io.BytesIO()
        torch.save(llama, file)
        file.seek(0)
        loaded = torch.load(file, weights_only=False)
        for other in (twin, loaded):
            other.model.embed_tokens.weight.data += 1
            assert other.generate.__self__ is other
            other.generate(ids, max_new_tokens=2, pad_token_id=0)
        assert not d.memory.requests
        assert d.identity.ranges(twin, (), {"input_ids": ids}) is None


def test_a_model_that_raises_leaves_no_sequence_open(llama: LlamaForCausalLM) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("out of memory")

    handle = llama.model.layers[1].register_forward_hook(broken)
    with Driver(llama, TAPS, NAMES) as d, torch.no_grad():
        with pytest.raises(RuntimeError, match="out of memory"):
            llama.generate(**padded(PROMPTS, left=True), max_new_tokens=3, pad_token_id=0)
        assert {r.finish for r in d.memory.requests.values()} == {Finish.ERROR}
        handle.remove()
        llama.generate(**padded(PROMPTS, left=True), max_new_tokens=3, pad_token_id=0)
    assert len(d.memory.requests) == 6 and d.memory.rows


# The small parts.


def test_masks_become_runs() -> None:
    assert runs([0, 0, 1, 1]) == [(2, 0, 2)]
    assert runs([1, 1, 0]) == [(0, 0, 2)]
    assert runs([1, 0, 1, 1, 0, 1]) == [(0, 0, 1), (2, 1, 2), (5, 3, 1)]
    assert runs([]) == runs([0, 0]) == []
    assert clip([(2, 0, 4)], 3, 5) == [(3, 1, 2)] and clip([(2, 0, 4)], 6, 9) == []


def test_passes_count_how_often_a_position_was_computed() -> None:
    track = Track(7, {}, 0, 3, 0)

    def take(position: int, count: int, sampled: int = 0) -> list[tuple[int, ...]]:
        found = track.take(position, count, 100, Phase.DECODE, Phase.RECOMPUTE, sampled)
        assert all(r.phase == (Phase.RECOMPUTE if r.pass_ else Phase.DECODE) for r in found)
        return [(r.position, r.count, r.first_row, r.pass_, int(r.sampled)) for r in found]

    assert take(0, 3, 1) == [(0, 3, 100, 0, 1)]
    assert take(3, 4, 3) == [(3, 2, 100, 0, 1), (5, 1, 102, 0, 1), (6, 1, 103, 0, 1)]
    assert take(5, 3) == [(5, 2, 100, 1, 0), (7, 1, 102, 0, 0)]
    assert take(0, 1) == [(0, 1, 100, 1, 0)] and take(8, 0) == []
    with pytest.raises(Unidentified, match="position 9 follows 8 known tokens"):
        take(9, 1)


def test_an_amendment_is_cut_where_the_ring_has_a_bound() -> None:
    class Recorder:
        sizes: list[int] = []

        def amend(self, step: int, ranges: list[object]) -> None:
            self.sizes.append(len(ranges))

    book = Book(Recorder())
    book.reject(3, [(1, p, 1, 0) for p in range(5000)])
    book.reject(-1, [(1, 0, 1, 0)])  # its step was never written
    assert Recorder.sizes == [4096, 904]


def test_what_a_cache_looked_like_is_remembered_weakly() -> None:
    class Layer:
        keys = torch.zeros(2)

    class Cache:
        layers = [Layer()]

    cache = Cache()
    kept = Kept(cache, [], 1)
    assert kept.untouched(cache)
    Cache.layers = [Layer(), Layer()]
    assert not kept.untouched(cache)
