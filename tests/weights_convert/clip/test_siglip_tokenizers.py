"""SigLIP's tokenizers: ids as transformers', from files as they are published."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.golden.transformers.make_tokenizers import HERE, TEXTS
from weights_convert import CheckpointError
from weights_convert.clip.siglip_tokenizer_files import (
    parse_tokenizer,
    tokenizer_file,
    tokenizer_of,
    tokenizer_record,
)

IDS = json.loads((HERE / "tokenizers.json").read_text())
END_AND_PAD = {"spiece.model": (1, 1), "tokenizer.json": (1, 0)}
NAMES = pytest.mark.parametrize("name", IDS)


def content(name):
    return (HERE / name).read_bytes()


@NAMES
def test_ids_are_those_of_transformers(name):
    tokenizer = parse_tokenizer(name, content(name), name)
    end, pad = END_AND_PAD[name]
    for text, expected in zip(TEXTS, IDS[name], strict=True):
        row = [*expected, end] if name == "tokenizer.json" else expected  # its own adds no end
        (ids,) = tokenizer(text)
        assert ids.tolist() == row + [pad] * (64 - len(row)), text


def unigram_json(**changes):
    """spiece.model's pieces as tokenizers writes them."""
    model = parse_tokenizer("spiece.model", content("spiece.model"), "x")._model
    names = sorted(model._ids, key=model._ids.__getitem__)
    vocab = [[name, model._scores.get(name, 0.0)] for name in names]
    special = [{"id": i, "content": names[i], "special": True} for i in range(3)]
    fields = {"type": "Unigram", "unk_id": 2, "vocab": vocab} | changes
    return {"model": fields, "added_tokens": special}


def test_unigrams_of_a_tokenizer_json_are_the_same():
    found = parse_tokenizer("tokenizer.json", json.dumps(unigram_json()).encode(), "x")
    known = parse_tokenizer("spiece.model", content("spiece.model"), "x")
    np.testing.assert_array_equal(found(TEXTS), known(TEXTS))


@NAMES
def test_texts_that_are_too_long_are_refused_or_cut(name):
    tokenizer = parse_tokenizer(name, content(name), name)
    end = END_AND_PAD[name][0]
    with pytest.raises(ValueError, match=r"text of \d+ tokens, at most 5 fit: 'a photo.*shorten"):
        tokenizer("a photo of the large cat", 5)
    (cut,) = tokenizer("a photo of the large cat", 5, truncate=True)
    assert cut[-1] == end
    assert cut[:-1].tolist() == tokenizer.encode("a photo of the large cat")[:4]
    np.testing.assert_array_equal(tokenizer("  Wood \n"), tokenizer("wood"))


@NAMES
def test_a_record_holds_the_file_itself(name, tmp_path):
    (tmp_path / name).write_bytes(content(name))
    record = tokenizer_record(tmp_path)
    assert tokenizer_file(record) == (name, content(name))
    tokenizer_of(record)
    with pytest.raises(CheckpointError, match="the record's tokenizer is damaged"):
        tokenizer_file(record | {"content": record["content"][:-8]})
    assert tokenizer_record(tmp_path / "none") is None


def damaged():
    pairs = json.loads(content("tokenizer.json"))
    yield "tokenizer.json", b"[]", "a JSON list"
    yield "tokenizer.json", b'{"model": {"type": "WordPiece"}}', "the model 'WordPiece'"
    yield "tokenizer.json", json.dumps(unigram_json(unk_id=900)).encode(), "unk_id is 900"
    yield "tokenizer.json", json.dumps(unigram_json(vocab=[["a", None]])).encode(), "score is None"
    yield "tokenizer.json", json.dumps(unigram_json(vocab=[["a", 1.0]])).encode(), "unk_id is 2"
    pairs["model"]["merges"].append(["q", "zzz"])
    yield "tokenizer.json", json.dumps(pairs).encode(), r"the merge \('q', 'zzz'\) has no id"
    pairs["model"]["merges"][-1] = ["a", "\u2581b"]
    pairs["model"]["vocab"]["a\u2581b"] = 999
    yield "tokenizer.json", json.dumps(pairs).encode(), "is of two words"
    del pairs["model"]["merges"][-1], pairs["model"]["vocab"]["<eos>"]
    pairs["added_tokens"] = []
    yield "tokenizer.json", json.dumps(pairs).encode(), "<eos> has no id"
    model = content("spiece.model")
    yield "spiece.model", model[:-1], "ends within"
    yield "spiece.model", b"", "0 pieces for unknown letters"
    yield "spiece.model", model * 2, "2 pieces for unknown letters|is listed twice"
    yield "spiece.model", b"\x0f" + model, "wire type 7"
    yield "spiece.model", b"\xff" * 12, "more than ten bytes"


@pytest.mark.parametrize(("name", "data", "message"), damaged())
def test_damaged_tokenizers_are_named_in_one_line(name, data, message, tmp_path):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(CheckpointError, match=message) as caught:
        tokenizer_record(tmp_path)
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)
