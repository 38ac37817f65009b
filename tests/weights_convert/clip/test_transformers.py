"""Directories of transformers and OpenCLIP give the features that those programs compute."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import weights_convert
from clipseg_jax.models.clip import SigLIPVision
from tests import seeded
from tests.golden.transformers import make_clip
from tests.weights_convert import toys
from weights_convert.clip.build import flat_arrays
from weights_convert.formats.safetensors import write

GOLDEN = dict(np.load(make_clip.HERE / "clip.npz"))
SHAPES = json.loads((make_clip.HERE / "clip.json").read_text())
CASES = pytest.mark.parametrize("name", make_clip.CONFIGS)


def state_dict(name):
    weights = seeded.state_dict(SHAPES[name], 7)
    return {key: np.asarray(value) for key, value in weights.items()}


def directory(name, folder):
    config = make_clip.CONFIGS[name]
    own = "open_clip_" if "model_cfg" in config else ""
    (folder / f"{own}config.json").write_text(json.dumps(config))
    with (folder / f"{own}model.safetensors").open("wb") as file:
        write(file, state_dict(name), {"format": "pt"})
    return folder


def outputs(name, model):
    """What `make_clip.run` gives of a case, by our towers."""
    config = make_clip.CONFIGS[name]
    visual, texts = model.visual, jnp.asarray(make_clip.ids(config))
    out = {"text": model.text(texts)}
    last = f"block{visual.cfg.layers - 1}"
    for i, image in enumerate(make_clip.images(config)):
        patch = visual.cfg.patch_px  # transformers drops what is no whole patch, we pad it
        h, w = (side // patch * patch for side in image.shape[1:3])
        pooled, kept = visual(jnp.asarray(image[:, :h, :w]), read=[last])
        out[f"image{i}"], tokens = pooled, kept[last]
        out[f"tokens{i}"] = visual.ln_post(tokens) if isinstance(visual, SigLIPVision) else tokens
        if i == 0:
            out["logits"] = model(jnp.asarray(image[:, :h, :w]), texts)
    return out


def assert_equal(found, expected, keys=None):
    for key in keys or expected:
        value = expected[key]
        assert found[key].shape == value.shape, key
        np.testing.assert_allclose(
            found[key], value, rtol=0, atol=1e-5 * max(1, np.abs(value).max()), err_msg=key
        )


def golden(name):
    start = f"{name}."
    return {k.removeprefix(start): v for k, v in GOLDEN.items() if k.startswith(start)}


@CASES
def test_features_are_those_of_the_other_program(name, tmp_path, caplog):
    with jax.default_matmul_precision("highest"):
        loaded = weights_convert.load_clip(directory(name, tmp_path))
        found = outputs(name, loaded.model)
    assert not [r for r in caplog.records if "assumed:" in r.getMessage()]  # nothing is a guess
    assert_equal(found, golden(name))


@CASES
def test_goldens_are_those_of_the_installed_program(name):
    pytest.importorskip("torch")
    pytest.importorskip("open_clip" if name.startswith("open") else "transformers")
    found, shapes = make_clip.run(name)
    assert {key: list(shape) for key, shape in shapes.items()} == SHAPES[name]
    assert_equal(found, golden(name))


@pytest.mark.parametrize("name", ["clip_14", "clip_32", "open_clip_g", "siglip2", "naflex"])
def test_converted_and_exported_it_is_the_same(name, tmp_path):
    (tmp_path / "source").mkdir()
    source = directory(name, tmp_path / "source")
    converted = weights_convert.convert(source)
    path = weights_convert.save_converted(tmp_path / "c.safetensors", converted)
    stored = weights_convert.load_clip(path)
    exported = weights_convert.export(converted, tmp_path / "hf", "huggingface")
    config = converted.record["config"]
    assert weights_convert.convert(exported).record["config"] == config == stored.meta["config"]
    expected = {k: np.asarray(v) for k, v in flat_arrays(stored.model).items()}
    again = weights_convert.load_clip(exported).model
    toys.assert_same({k: np.asarray(v) for k, v in flat_arrays(again).items()}, expected)
    if not name.startswith("open"):  # bit for bit
        toys.assert_same(
            weights_convert.read_state_dict(exported / "model.safetensors"), state_dict(name)
        )


@pytest.mark.parametrize("name", ["clip_14", "open_clip_g", "siglip_14", "siglip2", "naflex"])
def test_transformers_reads_what_is_exported(name, tmp_path):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    (tmp_path / "source").mkdir()
    converted = weights_convert.convert(directory(name, tmp_path / "source"))
    exported = weights_convert.export(converted, tmp_path / "hf", "huggingface")
    model = transformers.AutoModel.from_pretrained(exported).eval()
    assert_equal(golden(name), make_clip.features(model, make_clip.CONFIGS[name]), golden(name))


def test_the_widths_of_perceptrons_are_those_of_the_weights(tmp_path):
    converted = weights_convert.convert(directory("open_clip_g", tmp_path))
    towers = converted.record["config"]
    assert (towers["vision"]["mlp_width"], towers["text"]["mlp_width"]) == (192, None)
    assert towers["vision"]["heads"] == 4
