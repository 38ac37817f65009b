"""Small tokenizers of SigLIP's two kinds, and what transformers makes of texts with them.

    python -m tests.golden.transformers.make_tokenizers

It needs sentencepiece (0.2.3), protobuf and transformers (5.23). It writes spiece.model, trained on
this repository's prompts, tokenizer.json with byte pairs in Gemma's manner, and tokenizers.json:
ids of `TEXTS` by both.
"""

from __future__ import annotations

import io
import json
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
TEXTS = [
    "a photo of a cat.", "A Photo of the (large) CAT!!", "tv monitor", "wood", "don't",
    "itap of my traffic-light", "caf\u00e9 \u732b \u732b\u732b naive", "x" * 40, "3 dogs & 2 cats",
]  # fmt: skip
_SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]


def corpus() -> list[str]:
    """Lines to train on."""
    sets = json.loads((ROOT / "clipseg_jax" / "prompt_templates.json").read_text())
    words = "cat dog aeroplane bicycle bird boat bottle bus car chair sofa train person plant tree"
    lines = [line for name in sorted(sets) for line in sets[name]]
    return [line.format(w).lower() for line in lines for w in words.split()]


def main() -> None:
    """Writes the three files."""
    import sentencepiece
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import Siglip2Tokenizer
    from transformers.models.siglip.tokenization_siglip import SiglipTokenizer

    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()), model_writer=written, vocab_size=105, pad_id=0, eos_id=1,
        unk_id=2, bos_id=-1, model_type="unigram", normalization_rule_name="identity",
    )  # fmt: skip
    (HERE / "spiece.model").write_bytes(written.getvalue())
    unigrams = SiglipTokenizer(str(HERE / "spiece.model"))

    trained = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    trained.normalizer = normalizers.Replace(" ", "\u2581")
    # In training alone: so that no merge crosses words, as in Gemma's.
    trained.pre_tokenizer = pre_tokenizers.Split("\u2581", "merged_with_next")
    special = [*_SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special)
    trained.train_from_iterator(corpus(), trainer)
    content = json.loads(trained.to_str())
    vocabulary, merges = content["model"]["vocab"], content["model"]["merges"]
    pairs = Siglip2Tokenizer(vocab=vocabulary, merges=[tuple(pair) for pair in merges])
    content = json.loads(pairs._tokenizer.to_str())
    content["added_tokens"] = [
        {"id": i, "content": each, "special": True} for i, each in enumerate(_SPECIAL)
    ]
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False)
    (HERE / "tokenizer.json").write_text(text, encoding="utf-8")

    ids = {
        "spiece.model": [unigrams(text)["input_ids"] for text in TEXTS],
        "tokenizer.json": [pairs.encode(text, add_special_tokens=False) for text in TEXTS],
    }
    (HERE / "tokenizers.json").write_text(json.dumps(ids) + "\n")


if __name__ == "__main__":
    main()
