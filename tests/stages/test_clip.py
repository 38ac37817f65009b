"""A recipe's CLIP: its choices, weights that are not there, stored embeddings that are damaged."""

from __future__ import annotations

import importlib

import numpy as np
import pytest

import weights_convert
from clipseg_jax.stages import clip
from tests.weights_convert import toys
from weights_convert.formats.torch_writer import write_torch

METHODS = ("maskclip", "maskclip_plus", "reclip", "clip_es", "weclip", "clip_rc")
RECIPES = [*(f"voc_{method}" for method in METHODS), "voc21_readout"]


def recipe(name):
    return importlib.import_module(f"configs.{name}").get_config()


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_takes_activation_and_heads(name, tmp_path, caplog):
    config = recipe(name)
    config.clip.weights = str(write_torch(tmp_path / "a.pt", toys.vit()))
    of_both = "trained_activation" if "trained_activation" in config.clip else "activation"
    assert config.clip[of_both] is config.clip.heads is None
    config.clip[of_both], config.clip.heads = "gelu", (4, 2)
    loaded = clip.load_clip(config).model.cfg
    assert loaded.text.activation == loaded.vision.activation == "gelu"
    assert (loaded.vision.heads, loaded.text.heads) == (4, 2)
    assert not caplog.records


def test_choices_of_the_image_tower(tmp_path):
    """MaskCLIP's are its own; the read-outs leave activation and eps as the weights have them."""
    path = str(write_torch(tmp_path / "a.pt", toys.vit()))
    towers = {}
    for name in ("voc_maskclip", "voc21_readout"):
        config = recipe(name)
        config.clip.weights = path
        towers[name] = clip.with_choices(clip.load_clip(config).model, config).cfg
    theirs, ours = (tower.vision for tower in towers.values())
    assert (theirs.activation, theirs.norm_eps, theirs.pad_to_patch) == ("gelu", 1e-6, True)
    assert (ours.activation, ours.norm_eps, ours.pad_to_patch) == ("quick_gelu", 1e-5, False)
    assert (theirs.position_offset, ours.position_offset) == (0.0, 0.1)
    assert theirs.position_keep_count
    assert ours.position_keep_count
    assert len({tower.text for tower in towers.values()}) == 1


def test_weights_are_checked_without_being_read(tmp_path, monkeypatch):
    config = recipe("voc_clip_es")
    with pytest.raises(ValueError, match=r"no CLIP weights; pass --config\.clip\.weights"):
        clip.check_weights(config)
    config.clip.weights = str(tmp_path / "misspelt.pt")
    with pytest.raises(FileNotFoundError, match=r"--config\.clip\.weights: no checkpoint at .*mis"):
        clip.check_weights(config)
    monkeypatch.setattr(weights_convert, "load_clip", None)
    path = write_torch(tmp_path / "a.pt", toys.vit())
    config.clip.weights = str(path)
    assert clip.check_weights(config) == path
    config.clip.activation = "relu"
    with pytest.raises(ValueError, match="activation 'relu'; choose one of"):
        clip.check_weights(config)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.full((20, 4), np.nan, np.float32), "NaN or infinite"),
        (np.ones((19, 4), np.float32), r"float32 \(19, 4\) for 20 prompts"),
        (np.ones(20, np.float32), r"float32 \(20,\) for 20 prompts"),
        (np.ones((20, 4), np.int32), r"int32 \(20, 4\) for 20 prompts"),
        (b"\x93NUMPY damaged", "is damaged"),
    ],
)
def test_stored_embeddings_are_checked(rows, message, tmp_path):
    path = tmp_path / clip.EMBEDDINGS
    if isinstance(rows, bytes):
        path.write_bytes(rows)
    else:
        np.save(path, rows)
    with pytest.raises(ValueError, match=message) as caught:
        clip.read_embeddings(recipe("voc_maskclip"), tmp_path)
    assert str(path) in str(caught.value)
