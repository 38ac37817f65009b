"""Key tables: every variant there and back bit for bit, MaskCLIP's names, all faults at once."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

import weights_convert
from tests import seeded
from tests.weights_convert import toys
from weights_convert import CheckpointError
from weights_convert.clip import layouts as names
from weights_convert.clip.build import config_of, expected_shapes
from weights_convert.clip.keys import OPENAI, RELEASED
from weights_convert.clip.maskclip_keys import RESNET_WEIGHTS, VIT_WEIGHTS
from weights_convert.mapping import KeyMap, Rule

SHAPES = json.loads((toys.GOLDEN / "clip" / "shapes.json").read_text())
DEEPEST = 2  # blocks with values in each stack: further ones differ from them by their number


@pytest.mark.parametrize("variant", sorted(SHAPES))
def test_variant_keys_and_shapes(variant):
    """Every key of the whole model, from a checkpoint that takes no memory."""
    shapes = {key: tuple(shape) for key, shape in SHAPES[variant].items()}
    shapes = {k: s for k, s in shapes.items() if not k.endswith("num_batches_tracked")}
    empty = {key: np.broadcast_to(np.float32(0), shape) for key, shape in shapes.items()}
    assert expected_shapes(config_of(empty)) == shapes


@pytest.mark.parametrize("variant", sorted(SHAPES))
@pytest.mark.slow
def test_variant_there_and_back(variant):
    """Values are patterns and not normal numbers, which would take longer than all else."""
    deep = re.compile(r"(?:resblocks|layer\d)\.(\d+)\.")
    shapes = {
        key: tuple(shape)
        for key, shape in SHAPES[variant].items()
        if not (match := deep.search(key)) or int(match[1]) < DEEPEST
    }
    pattern = seeded.tensor("pattern.weight", (99991, 1), 3)[:, 0]
    weights = {
        key: np.zeros(shape, np.int64)
        if key.endswith("num_batches_tracked")
        else np.resize(np.roll(pattern, n), shape)
        for n, (key, shape) in enumerate(shapes.items())
    }
    clip = weights_convert.clip_from_state_dict(weights)
    toys.assert_same(weights_convert.clip_to_state_dict(clip), weights)


@pytest.mark.parametrize("make", [toys.vit, toys.resnet])
def test_seeded_toy_there_and_back(make):
    weights = make()
    clip = weights_convert.clip_from_state_dict(weights)
    toys.assert_same(weights_convert.clip_to_state_dict(clip), weights)
    visual = {key: value for key, value in weights.items() if key.startswith("visual.")}
    tower = weights_convert.clip_from_state_dict(visual)
    assert tower.cfg.text is None
    toys.assert_same(weights_convert.clip_to_state_dict(tower), visual)


def test_linear_and_convolution_layouts():
    weights = toys.vit()
    clip = weights_convert.clip_from_state_dict(weights)
    np.testing.assert_array_equal(
        clip.visual.transformer.resblocks[1].mlp.c_fc.kernel[...],
        weights["visual.transformer.resblocks.1.mlp.c_fc.weight"].T,
    )
    np.testing.assert_array_equal(
        clip.visual.conv1.kernel[...], weights["visual.conv1.weight"].transpose(2, 3, 1, 0)
    )
    np.testing.assert_array_equal(clip.visual.proj[...], weights["visual.proj"])


@pytest.mark.parametrize(("model", "variant"), [("ViT16", "ViT-B/16"), ("RN50", "RN50")])
def test_maskclip_names(model, variant):
    golden = json.loads((toys.GOLDEN / "maskclip" / "converter_keys.json").read_text())[model]
    source = {k: np.broadcast_to(np.float16(0), shape) for k, shape in SHAPES[variant].items()}
    content = names.to_maskclip(source)
    arrays = {
        f"{group}/{leaf}": v for group, leaves in content.items() for leaf, v in leaves.items()
    }
    assert set(arrays) == set(golden["keys"])
    for key, row in golden["keys"].items():
        assert list(arrays[key].shape) == row["shape"], key
        assert arrays[key].dtype == np.float32, key
    tower = names.to_maskclip(source, backbone=True)["state_dict"]
    assert set(tower) == {f"backbone.{key}" for key in content["clip"]}


def test_maskclip_keys_come_from_the_told_sources():
    golden = json.loads((toys.GOLDEN / "maskclip" / "converter_keys.json").read_text())
    for table, keys in ((VIT_WEIGHTS, golden["ViT16"]), (RESNET_WEIGHTS, golden["RN50"])):
        for key, row in keys["keys"].items():
            assert table.right(key.replace("/", "."))[0] == row["source"]


def test_all_faults_at_once():
    weights = toys.vit()
    weights["visual.ln_post.extra"] = np.zeros(3, np.float32)
    weights["ln_final.bias"] = weights["ln_final.bias"][None]
    weights["visual.transformer.resblocks.1.mlp.c_fc.bias"] = np.zeros(7, np.float32)
    del weights["visual.ln_pre.bias"], weights["transformer.resblocks.0.ln_1.weight"]
    with pytest.raises(CheckpointError) as caught:
        weights_convert.clip_from_state_dict(weights)
    lines = str(caught.value).splitlines()
    assert "nothing was loaded" in lines[0]
    assert [line.strip() for line in lines[1:-1]] == [
        "- transformer.resblocks.0.ln_1.weight: missing",
        "- visual.ln_pre.bias: missing",
        "+ visual.ln_post.extra (3,): unexpected",
        "~ ln_final.bias: shape (1, 64), expected (64,)",
        "~ visual.transformer.resblocks.1.mlp.c_fc.bias: shape (7,), expected (512,)",
    ]


# Sizes are read from these; the others are checked by the loop that checks them all.
TELLING = {
    "visual.proj",
    "visual.conv1.weight",
    "visual.positional_embedding",
    "visual.transformer.resblocks.1.attn.in_proj_weight",
    "visual.layer1.0.conv1.weight",
    "visual.attnpool.positional_embedding",
    "visual.attnpool.c_proj.weight",
    "text_projection",
    "positional_embedding",
    "token_embedding.weight",
    "ln_final.weight",
}


@pytest.mark.parametrize("make", [toys.vit, toys.resnet])
def test_required_keys_missing_or_of_another_rank(make):
    """The error names the key, also when the model's sizes are read from it."""
    weights = make()
    for key in sorted(TELLING & set(weights)):
        others = {k: v for k, v in weights.items() if k != key}
        with pytest.raises(CheckpointError, match=key.replace(".", r"\.")):
            weights_convert.clip_from_state_dict(others)
        for wrong in (weights[key].reshape(-1, 1), weights[key].reshape(-1)[0]):
            if wrong.ndim != weights[key].ndim:
                with pytest.raises(CheckpointError):
                    weights_convert.clip_from_state_dict({**others, key: np.asarray(wrong)})


def test_no_clip():
    with pytest.raises(CheckpointError, match=r"not the weights of a CLIP|no CLIP"):
        weights_convert.clip_from_state_dict({"fc.weight": np.zeros((2, 2))})
    with pytest.raises(CheckpointError):
        weights_convert.clip_from_state_dict({})


def test_table_rows_are_exclusive():
    for shapes in SHAPES.values():
        for key in shapes:
            if not names.is_carried(key):
                assert OPENAI.left(OPENAI.right(key)[0])[0] == key
    twice = KeyMap([Rule("a.{i}", "b.{i}"), Rule("a.{n:[0-9]}", "c.{n:[0-9]}")])
    with pytest.raises(AssertionError, match="several rules"):
        twice.right("a.1")


def test_released_models_are_the_nine():
    assert {model for model, _ in RELEASED.values()} == set(SHAPES)
