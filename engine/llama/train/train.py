"""Trains the small trilingual Llama and writes it as Hugging Face files.

    python train.py DATA OUT [--minutes 6] [--dropout 0.1] [--small]

DATA is the folder that tokenize_text.py wrote. Writes OUT/config.json, OUT/model.safetensors (bf16),
OUT/generation_config.json, OUT/tokenizer.json, OUT/loss.json, OUT/loss.png and OUT/samples.txt. Needs torch,
transformers and matplotlib; a GPU makes it minutes instead of days. The weights kept are those with the lowest
held-out loss. --small runs a few steps anywhere, to try the script.
"""

import argparse
import json
import math
import shutil
import time
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

CONTEXT = 1024
BATCH = 48
PEAK_LEARNING_RATE = 2e-3
WEIGHT_DECAY = 0.1
LANGUAGES = ("en", "fr", "de")
PROMPTS = {"en": "The package manager", "fr": "Le gestionnaire de paquets", "de": "Die Paketverwaltung"}


def config():
    return LlamaConfig(vocab_size=4096, hidden_size=256, intermediate_size=704, num_hidden_layers=4,
                       num_attention_heads=8, num_key_value_heads=4, max_position_embeddings=CONTEXT, rms_norm_eps=1e-5,
                       rope_theta=10000.0, tie_word_embeddings=False, attention_bias=False, mlp_bias=False,
                       attention_dropout=0.0, bos_token_id=0, eos_token_id=0, pad_token_id=None)


def batch(data, rng, device):
    """BATCH windows of CONTEXT + 1 tokens, a third of them in each language."""
    rows = []
    for i in range(BATCH):
        tokens = data[LANGUAGES[i % 3]]
        at = int(rng.integers(0, len(tokens) - CONTEXT - 1))
        rows.append(tokens[at:at + CONTEXT + 1])
    ids = torch.from_numpy(np.stack(rows).astype(np.int64)).to(device)
    return ids[:, :-1], ids[:, 1:]


def loss_of(model, x, y):
    logits = model(input_ids=x, use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), y.flatten())


@torch.no_grad()
def held_out_loss(model, data, device, windows=24):
    model.eval()
    out = {}
    for language in LANGUAGES:
        tokens = data[language]
        count = min(windows, (len(tokens) - 1) // CONTEXT)
        ids = torch.from_numpy(np.stack([tokens[i * CONTEXT:i * CONTEXT + CONTEXT + 1] for i in range(count)])
                               .astype(np.int64)).to(device)
        out[language] = round(float(loss_of(model, ids[:, :-1], ids[:, 1:])), 4)
    model.train()
    return out


def drop_out(model, rate):
    """The corpus is seen many times over; dropout on each branch's output keeps it from being learnt by heart."""
    def hook(module, _inputs, output):
        return torch.nn.functional.dropout(output, rate, module.training)
    model.model.embed_tokens.register_forward_hook(hook)
    for layer in model.model.layers:
        layer.self_attn.o_proj.register_forward_hook(hook)
        layer.mlp.down_proj.register_forward_hook(hook)


def train(model, compiled, data, held_out, minutes, small, device):
    """Returns the loss curve; leaves the best weights by mean held-out loss in the model."""
    rng = np.random.default_rng(1)
    decay = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decay, "weight_decay": WEIGHT_DECAY}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK_LEARNING_RATE, betas=(0.9, 0.95), fused=device == "cuda")
    curve, began, step, warmup = [], None, 0, 200
    best, best_weights, loss = math.inf, None, None
    while True:
        # The clock starts after the first steps, which compile.
        began = time.time() if step == 3 else began
        progress = step / 6 if small else min(1.0, (time.time() - began) / (60 * minutes)) if began else 0.0
        if step % 200 == 0 or small or progress >= 1:
            point = {"step": step, "tokens": step * BATCH * CONTEXT,
                     "train": None if loss is None else round(loss.item(), 4),
                     "heldout": held_out_loss(model, held_out, device, 2 if small else 24)}
            curve.append(point)
            mean = sum(point["heldout"].values()) / len(LANGUAGES)
            print(json.dumps(point), "best so far" if mean < best else "", flush=True)
            if mean < best:
                best, best_weights = mean, {k: v.detach().clone() for k, v in model.state_dict().items()}
        if progress >= 1:
            model.load_state_dict(best_weights)
            return curve
        # The schedule follows the clock, so that any machine ends its training with a small learning rate.
        decayed = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress))
        rate = PEAK_LEARNING_RATE * min(1, (step + 1) / warmup) * decayed
        for group in optimizer.param_groups:
            group["lr"] = rate
        x, y = batch(data, rng, device)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
            loss = loss_of(compiled, x, y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1


def draw(curve, path):
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    curve = curve[1:]  # the first point is before any step
    x = [p["tokens"] / 1e6 for p in curve]
    fig, ax = plt.subplots(figsize=(8, 4.5), dpi=120)
    ax.plot(x, [p["train"] for p in curve], color="0.6", label="training batch")
    for language in LANGUAGES:
        ax.plot(x, [p["heldout"][language] for p in curve], label=f"held out, {language}")
    ax.set_xlabel("tokens seen, millions")
    ax.set_ylabel("cross-entropy, nats per token")
    ax.grid(alpha=0.3)
    ax.legend()
    fig.tight_layout()
    fig.savefig(path)


def sample(model, tokenizer_path, path, device):
    from tokenizers import Tokenizer
    tokenizer = Tokenizer.from_file(str(tokenizer_path))
    model.eval()
    lines = []
    torch.manual_seed(1)
    for language, prompt in PROMPTS.items():
        for temperature in (0.0, 0.7):
            ids = torch.tensor([tokenizer.encode(prompt).ids], device=device)
            how = {"do_sample": False}
            if temperature:
                how = {"do_sample": True, "temperature": temperature, "top_p": 0.95}
            out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=80, pad_token_id=0, **how)
            lines.append(f"[{language}, temperature {temperature}] {tokenizer.decode(out[0].tolist())}\n")
    path.write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=6)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--small", action="store_true")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(1)
    torch.set_float32_matmul_precision("high")
    arrays = np.load(args.data / "tokens.npz")
    model = LlamaForCausalLM(config()).to(device)
    print(f"{sum(p.numel() for p in model.parameters())} parameters on {device}", flush=True)
    drop_out(model, args.dropout)
    compiled = torch.compile(model) if device == "cuda" and not args.small else model
    curve = train(model, compiled, {l: arrays[f"{l}_train"] for l in LANGUAGES},
                  {l: arrays[f"{l}_heldout"] for l in LANGUAGES}, args.minutes, args.small, device)
    # Only the parameters are rounded: the rotary frequencies are a buffer, which stays in float32 as in inference.
    for p in model.parameters():
        p.data = p.data.to(torch.bfloat16).float()
    final = held_out_loss(model, {l: arrays[f"{l}_heldout"] for l in LANGUAGES}, device, 2 if args.small else 1000)
    perplexity = {k: round(math.exp(v), 2) for k, v in final.items()}
    print("final, bf16 weights:", final, "perplexity", perplexity, flush=True)
    losses = {"curve": curve, "final_bf16_heldout": final, "perplexity": perplexity}
    (args.out / "loss.json").write_text(json.dumps(losses, indent=1))
    shutil.copy(args.data / "tokenizer.json", args.out / "tokenizer.json")
    sample(model, args.data / "tokenizer.json", args.out / "samples.txt", device)
    model.to(torch.bfloat16).save_pretrained(args.out)
    draw(curve, args.out / "loss.png")


if __name__ == "__main__":
    main()
