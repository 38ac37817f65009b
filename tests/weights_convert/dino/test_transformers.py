"""Hugging Face's DINOs give the features that `transformers` computes: stored ones, and live ones.

At other sizes than the stored one `transformers` resizes the positions of towers without registers
to the exact grid; the authors, and our towers, to one larger by 0.1 patches.
"""

from __future__ import annotations

import json

import jax.numpy as jnp
import numpy as np
import pytest

import weights_convert
from tests.golden.transformers import make_dino
from tests.parity import cases
from weights_convert.formats.safetensors import write

GOLDEN = json.loads((make_dino.FOLDER / "dino.json").read_text())


def features(dino, size):
    return dino(jnp.asarray(make_dino.pixels(size))[None])[0]


@pytest.mark.parametrize("name", GOLDEN["models"])
def test_stored_features(name, tmp_path):
    case = GOLDEN["models"][name]
    (tmp_path / "config.json").write_text(json.dumps(case["config"]))
    weights = {
        key: make_dino.weight(key, shape, GOLDEN["seed"]) for key, shape in case["shapes"].items()
    }
    with (tmp_path / "model.safetensors").open("wb") as file:
        write(file, weights, {"format": "pt"})
    dino = weights_convert.load_dino(tmp_path)
    with np.load(make_dino.FOLDER / "dino.npz") as arrays:
        for size in case["sizes"]:
            array = f"{name}_{size[0]}x{size[1]}"
            cases.near(features(dino, size), arrays[array], name=array)


@pytest.mark.parametrize("name", make_dino.MODELS)
def test_live_features(name, tmp_path):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    kind, options, sizes = make_dino.MODELS[name]
    model = make_dino.saved(kind, options, tmp_path / "theirs")
    dino = weights_convert.load_dino(tmp_path / "theirs")
    for size in sizes:
        cases.near(features(dino, size), make_dino.features(model, size), name=name)
    # Back: every key is there, and none that it does not know.
    converted = weights_convert.convert_dino(tmp_path / "theirs")
    weights_convert.export_dino(converted, tmp_path / "ours", "dino_huggingface")
    pooling = {"add_pooling_layer": False} if kind == "ViT" else {}
    again, report = getattr(transformers, f"{kind}Model").from_pretrained(
        tmp_path / "ours", output_loading_info=True, **pooling
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    for size in sizes:
        np.testing.assert_array_equal(
            make_dino.features(again.eval(), size), make_dino.features(model, size)
        )
