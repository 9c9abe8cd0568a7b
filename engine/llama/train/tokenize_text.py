"""Trains the byte-level BPE on the corpus and writes it as token ids.

    python tokenize_text.py TEXT OUT     # TEXT: the folder that corpus.py wrote

Writes OUT/tokenizer.json (Hugging Face format, 4096 tokens) and OUT/tokens.npz with, for each language, LANG_train
and LANG_heldout: uint16 ids, each document followed by <|endoftext|>. Every 25th document is held out.
"""

import sys
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

VOCABULARY = 4096
END_OF_TEXT = "<|endoftext|>"
HELD_OUT_ONE_IN = 25


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    text, out = Path(sys.argv[1]), Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    docs = {p.stem: p.read_text(encoding="utf-8").split("\n\x1e\n") for p in sorted(text.glob("*.txt"))}

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=[END_OF_TEXT], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    # The same number of characters of each language, so that none gets longer tokens than the others.
    least = min(sum(map(len, d)) for d in docs.values())
    balanced = []
    for d in docs.values():
        chars = 0
        for document in d:
            if chars >= least:
                break
            balanced.append(document)
            chars += len(document)
    tokenizer.train_from_iterator(balanced, trainer)
    tokenizer.save(str(out / "tokenizer.json"))

    end = tokenizer.token_to_id(END_OF_TEXT)
    arrays = {}
    for language, d in docs.items():
        parts = {"train": [], "heldout": []}
        for i, encoding in enumerate(tokenizer.encode_batch(d)):
            parts["heldout" if i % HELD_OUT_ONE_IN == 0 else "train"] += encoding.ids + [end]
        for part, ids in parts.items():
            arrays[f"{language}_{part}"] = np.array(ids, dtype=np.uint16)
            print(f"{language} {part}: {len(ids)} tokens")
    np.savez_compressed(out / "tokens.npz", **arrays)


if __name__ == "__main__":
    main()
