"""Writes what Hugging Face computes with the trained weights, for the Go tests to compare with.

    python fixture.py MODEL OUT          # MODEL: the folder that train.py wrote
    python fixture.py --tokenizer tokenizer.json OUT   # the tokenizer vectors alone

The first form needs torch, transformers, tokenizers and safetensors; the second tokenizers alone.

OUT/fixture.safetensors holds, for each text named t0, t1, ... and computed on the CPU in float32 with eager attention:

    tN.tokens [n] I32
    tN.greedy [40] I32: the greedy continuation
    tN.margin [40] F32: at each of its steps, the best logit minus the second best
    tN.embed [n, d], tN.L.resid_post [n, d] for each layer L, tN.final_ln [n, d]
    tN.final_logits [4, vocabulary]: of the last 4 tokens

The last text has in the first and the last layer also: ln1, ln2 (the norms' outputs), q [n, heads, head_dim], k and v
[n, kv_heads, head_dim] (the projections' outputs, before the rotary embedding), z [n, heads, head_dim] (the heads'
outputs before o_proj), attn_out, mlp_out (the branches before they are added), resid_mid, and mlp_post
[n, intermediate] (silu(gate) * up).

OUT/tokenizer_vectors.json holds {"encode": [{"text", "ids", "decoded"}], "decode": [{"ids", "decoded"}]}: special
tokens are kept in decoded text, and bytes that are not UTF-8 become U+FFFD.
"""

import argparse
import json
import random
from pathlib import Path

TEXTS = [
    "The package manager keeps a list of the files that every package installs, "
    "so that none of them is lost when it is removed.",
    "Le noyau fournit un fichier de périphérique accessible en mode bloc, "
    "ce qui permet à l'administrateur de choisir la taille.",
    "Die Paketverwaltung prüft zuerst, ob alle Abhängigkeiten erfüllt sind, "
    "und lädt dann die fehlenden Dateien herunter.",
    "naïve café — Größe: 42 Ko, 日本語 🙂 e\u0301!\n\tthe last line of <a file>, whose name isn't known; fin.",
]
LENGTH = 36
CONTINUATION = 40


def hidden_states(folder: Path, out: Path):
    import torch
    from safetensors.torch import save_file
    from tokenizers import Tokenizer
    from transformers import LlamaForCausalLM

    torch.manual_seed(1)
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    heads, kv_heads = model.config.num_attention_heads, model.config.num_key_value_heads
    layers = len(model.model.layers)
    seen = {}

    def keep(name, shape=None):
        def hook(_module, _inputs, output):
            value = (output[0] if isinstance(output, tuple) else output)[0].detach()
            seen[name] = value.reshape(value.shape[0], *shape, -1) if shape else value
        return hook

    def keep_input(name, shape=None):
        def hook(_module, inputs):
            value = inputs[0][0].detach()
            seen[name] = value.reshape(value.shape[0], *shape, -1) if shape else value
        return hook

    model.model.embed_tokens.register_forward_hook(keep("embed"))
    model.model.norm.register_forward_hook(keep("final_ln"))
    for i, layer in enumerate(model.model.layers):
        layer.register_forward_hook(keep(f"{i}.resid_post"))
        layer.input_layernorm.register_forward_hook(keep(f"{i}.ln1"))
        layer.self_attn.q_proj.register_forward_hook(keep(f"{i}.q", [heads]))
        layer.self_attn.k_proj.register_forward_hook(keep(f"{i}.k", [kv_heads]))
        layer.self_attn.v_proj.register_forward_hook(keep(f"{i}.v", [kv_heads]))
        layer.self_attn.o_proj.register_forward_pre_hook(keep_input(f"{i}.z", [heads]))
        layer.self_attn.o_proj.register_forward_hook(keep(f"{i}.attn_out"))
        layer.post_attention_layernorm.register_forward_pre_hook(keep_input(f"{i}.resid_mid"))
        layer.post_attention_layernorm.register_forward_hook(keep(f"{i}.ln2"))
        layer.mlp.down_proj.register_forward_pre_hook(keep_input(f"{i}.mlp_post"))
        layer.mlp.down_proj.register_forward_hook(keep(f"{i}.mlp_out"))

    tensors = {}
    for n, text in enumerate(TEXTS):
        ids = tokenizer.encode(text).ids[:LENGTH]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
        tensors[f"t{n}.tokens"] = torch.tensor(ids, dtype=torch.int32)
        tensors[f"t{n}.final_logits"] = logits[-4:]
        for name, value in seen.items():
            layer = name.split(".")[0]
            inner = layer in ("0", str(layers - 1)) and n == len(TEXTS) - 1
            if "." not in name or name.endswith(".resid_post") or inner:
                tensors[f"t{n}.{name}"] = value.float()
        # Without a cache: every step recomputes the whole text, which is slow and leaves nothing to get wrong.
        margins, continuation = [], list(ids)
        for _ in range(CONTINUATION):
            with torch.no_grad():
                last = model(input_ids=torch.tensor([continuation]), use_cache=False).logits[0, -1]
            best = last.topk(2)
            margins.append(float(best.values[0] - best.values[1]))
            continuation.append(int(best.indices[0]))
        tensors[f"t{n}.greedy"] = torch.tensor(continuation[len(ids):], dtype=torch.int32)
        tensors[f"t{n}.margin"] = torch.tensor(margins)
        print(f"t{n}: {len(ids)} tokens, least margin {min(margins):.4f}: {tokenizer.decode(continuation)!r}")
    save_file({name: value.contiguous().clone() for name, value in tensors.items()}, str(out / "fixture.safetensors"))


PLAIN = [
    "", " ", "  ", "   ", "\n", "\n\n", " \n", "\n ", "\t", "\t\t x", "\r\n", "a", " a", "a ", "  a", "a  ",
    "a  b", "a   b", "a\n\nb", "a \n b", "a\u00a0b", "a\u2003\u2003b", "\u3000", "a\u3000\u3000", "\u200b",
    "a\u200b b", "\x00", "a\x00b", "\x1f\x1c\x85", "a\x85b", "a\u2028b\u2029", "\ufeffBOM",
    "it's we're I've I'm he'll they'd 'tis don't", "IT'S WE'RE I'VE", "l'eau d'un qu'il", "'s", " 's", "''s",
    "a's's", "'re've", "\u2019s it\u2019s", "<|endoftext|>", "a<|endoftext|>b", " <|endoftext|> ",
    "<|endoftext|><|endoftext|>", "<|endoftext", "|endoftext|>", "<|endoftext|<|endoftext|>", "12",
    "1234567890", "3.14", "1,000,000", "٣٤٥", "Ⅷ ½ ²", "x²+y²", "0xDEADBEEF", "1e-5", "a1b2", "१२३",
    "for i := 0; i < n; i++ {\n\tfmt.Println(i)\n}", "#!/bin/sh\nset -e\n", "def f(x):\n    return x ** 2\n",
    "<a href=\"x\">y</a>", "{\"k\": [1, 2]}", "/usr/share/doc/*", "C:\\path\\to", "user@example.org",
    "https://example.org/a?b=c&d=%20#e", "--no-install-recommends", "a_b-c.d/e", "!!!", "...", "…", "?!?!", "🙂",
    "🙂🙂", "👩‍👩‍👧‍👦", "🏳️‍🌈", "🇫🇷🇩🇪", "👍🏽", "a🙂b", " 🙂 ", "e\u0301", "\u0301", " \u0301", "a\u0301\u0302\u0303",
    "Z͑ͫ̓ͪ̂ͫ̽͏̴̙", "ﬁ ﬀ", "ǅ ǆ", "日本語", "日本語 テキスト", "中文。", "한국어", "한국", "ภาษาไทย", "العربية", "שלום עולם",
    "مرحبا 123", "हिन्दी", "தமிழ்", "Ελληνικά", "Русский язык", "Größe", "GRÖSSE", "Straße", "ẞ", "ÄÖÜ äöü",
    "œuvre Œuvre", "ÀÉÈÊËÎÏÔÙÛÇ", "« bonjour »", "„Anführung“", "naïve", "ı İ", "\U0001d4d0\U0001d4d1",
    "\U0010ffff", "\ufffd", "\ufffe", "\U000e0041", "𐍈", "ꙮ", "\u0e33", "ᏣᎳᎩ", "ⓐ", "々", "ー", "_", "__init__",
    "snake_case_name", "camelCaseName", "A" * 300, " " * 300, "ab" * 200, "\n" * 50, "é" * 100, "🙂" * 60,
    "a" + " " * 40 + "b", "word " * 120, "-" * 100, "'" * 33, "0" * 77, "日" * 50, "\t" * 20 + "x", " \t \n \r ",
    "x \u00a0 y", "\x7f", "\u00ad", "a\u00adb",
]


def scalar(rng):
    """Any code point that is no surrogate, half of them from the lower planes."""
    some = (rng.randrange(0x110000), rng.randrange(0x3000), rng.randrange(0x250))
    return chr(rng.choice([c for c in some if not 0xD800 <= c < 0xE000]))


def tokenizer_vectors(tokenizer_path: Path, out: Path):
    from tokenizers import Tokenizer
    tokenizer = Tokenizer.from_file(str(tokenizer_path))
    rng = random.Random(7)
    texts = list(PLAIN) + TEXTS
    words = " ".join(TEXTS).split(" ")
    for _ in range(60):
        texts.append(" ".join(rng.choice(words) for _ in range(rng.randint(2, 25))))
    for _ in range(60):  # pieces of every kind, glued without order
        texts.append("".join(rng.choice(PLAIN[:140] + [" ", "  ", "\n"]) for _ in range(rng.randint(2, 9)))[:400])
    for _ in range(60):
        texts.append("".join(scalar(rng) for _ in range(rng.randint(1, 24))))
    alphabet = "ab'sé 1\n\t.\u00a0日"
    for _ in range(60):  # the borders between the classes of the pre-tokenizer
        texts.append("".join(rng.choice(alphabet) for _ in range(rng.randint(1, 24))))
    encode = []
    for text in texts:
        ids = tokenizer.encode(text).ids
        encode.append({"text": text, "ids": ids, "decoded": tokenizer.decode(ids, skip_special_tokens=False)})
    decode = []
    for _ in range(80):  # ids that no text has: their bytes need not be UTF-8
        low = rng.choice([300, 4096])
        ids = [rng.randrange(low) for _ in range(rng.randint(1, 16))]
        decode.append({"ids": ids, "decoded": tokenizer.decode(ids, skip_special_tokens=False)})
    vectors = json.dumps({"encode": encode, "decode": decode}, separators=(",", ":"))
    (out / "tokenizer_vectors.json").write_text(vectors + "\n")
    print(f"{len(encode)} texts, {sum(len(e['ids']) for e in encode)} ids, {len(decode)} id lists")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokenizer", type=Path)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.tokenizer:
        tokenizer_vectors(args.tokenizer, args.out)
    else:
        hidden_states(args.model, args.out)
        tokenizer_vectors(args.model / "tokenizer.json", args.out)


if __name__ == "__main__":
    main()
