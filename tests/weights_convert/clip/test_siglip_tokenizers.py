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
