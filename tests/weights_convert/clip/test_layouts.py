"""Where a CLIP lies in a file; other models, impossible sizes, numbers that are not finite."""

from __future__ import annotations

import logging

import ml_dtypes
import numpy as np
import pytest

import weights_convert
from tests.weights_convert import toys
from weights_convert import CheckpointError
from weights_convert.clip import layouts
from weights_convert.clip.build import config_of
from weights_convert.formats.reader import tensors
from weights_convert.formats.torch_writer import write_torch

SMALL = {"layers": 1, "layers_of_text": 1}


def prefixed(prefix, arrays):
    return {f"{prefix}{key}": value for key, value in arrays.items()}


WEIGHTS = toys.vit(**SMALL)
HUGGINGFACE = layouts.to_huggingface(WEIGHTS)
OTHERS = {"head.weight": np.ones((2, 3), np.float32), "decoder.bias": np.ones(2, np.float32)}
MOMENTS = {"optimizer": {"exp_avg": prefixed("module.", WEIGHTS)}}


@pytest.mark.parametrize("weights", [WEIGHTS, HUGGINGFACE], ids=["openai", "huggingface"])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda w: {"model_state_dict": w, "epoch": 3},
        lambda w: {"state_dict": prefixed("clip_model.", w) | OTHERS},
        lambda w: {"state_dict": prefixed("module.model.clip.", w) | prefixed("module.", OTHERS)},
        lambda w: {"weights": {"student": prefixed("backbone.", w)}} | OTHERS,
        lambda w: {"state_dict": w, "rng_state": np.zeros(4, np.uint8), **MOMENTS},
        lambda w: {"network": prefixed("_orig_mod.", w)},
    ],
)
def test_a_clip_is_found_below_one_key_or_prefix(weights, wrap, caplog):
    named = layouts.identify(wrap(weights))
    assert named.stored.keys() == weights.keys()
    told = "2 tensors beside it are left out, such as" in caplog.text
    assert told == any("head.weight" in key for key in tensors(wrap(weights)))


def test_several_clips_are_named(caplog):
    several = {"student": WEIGHTS, "teacher": WEIGHTS}
    with pytest.raises(CheckpointError, match="2 CLIPs, below 'student', 'teacher'; save"):
        layouts.identify(several)
    with caplog.at_level(logging.WARNING):
        named = layouts.identify({"state_dict": WEIGHTS, "state_dict_ema": WEIGHTS})
    assert named.stored.keys() == WEIGHTS.keys()
    assert "below 'state_dict' is read; others lie below 'state_dict_ema'" in caplog.text


@pytest.mark.parametrize(
    ("key", "model"),
    [
        ("bert.encoder.layer.0.output.dense.weight", "Chinese-CLIP"),
        ("text_model.encoder.layer.0.output.dense.weight", "Chinese-CLIP"),
        ("visual.trunk.blocks.0.attn.qkv.weight", "timm"),
        ("visual.blocks.0.attn.q_proj.weight", "EVA-CLIP"),
        ("visual_encoder.blocks.0.attn.qkv.weight", "BLIP"),
        ("text_decoder.resblocks.0.ln_1.weight", "CoCa"),
        ("text.transformer.embeddings.word_embeddings.weight", "another text tower"),
    ],
)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_other_models_are_named(key, model, prefix):
    tensors = prefixed(prefix, {"visual.conv1.weight": np.ones((8, 3, 4, 4)), key: np.ones(2)})
    with pytest.raises(CheckpointError, match=f"the weights of .*{model}.* only CLIP"):
        layouts.identify(tensors)


def sized(**shapes):
    arrays = {key: np.broadcast_to(np.float32(0), value.shape) for key, value in WEIGHTS.items()}
    for key, shape in shapes.items():
        arrays[key.replace("__", ".")] = np.broadcast_to(np.float32(0), shape)
    return arrays


def renumbered(number):
    old = "visual.transformer.resblocks.0."
    return {
        key.replace(old, f"visual.transformer.resblocks.{number}."): value
        for key, value in WEIGHTS.items()
    }


@pytest.mark.parametrize(
    "weights",
    [
        renumbered(3_000_000),
        renumbered("9" * 6000),
        sized(visual__conv1__weight=(128, 3, 0, 0)),
        sized(visual__conv1__weight=(0, 3, 8, 8)),
        sized(visual__conv1__weight=(128, 3)),
        sized(visual__proj=(128, 0)),
        sized(visual__positional_embedding=(1, 128)),
        sized(visual__positional_embedding=(0, 128)),
        sized(token_embedding__weight=(0, 64)),
        sized(ln_final__weight=()),
    ],
)
def test_sizes_of_no_model_are_one_line(weights):
    with pytest.raises(CheckpointError, match="not the weights of a CLIP") as caught:
        config_of(weights)
    assert len(str(caught.value)) < 300


BAD = {
    "1 NaN": lambda x: np.where(np.arange(x.size).reshape(x.shape) == 5, np.nan, x),
    f"{128 * toys.EMBED} infinite": lambda x: (x * 0 + 1e9).astype(np.float16),
    "infinite": lambda x: x.astype(np.float64) * 0 + 1e300,
}


@pytest.mark.parametrize("fault", BAD)
@pytest.mark.filterwarnings("ignore:overflow")
def test_weights_that_are_not_finite_are_named_and_counted(fault, tmp_path):
    weights = WEIGHTS | {"visual.proj": BAD[fault](WEIGHTS["visual.proj"])}
    path = write_torch(tmp_path / "a.pt", weights)
    with pytest.raises(CheckpointError, match=rf"a\.pt: visual\.proj holds .*{fault}"):
        weights_convert.load_clip(path)


def test_a_converted_file_is_checked_as_well(tmp_path):
    converted = weights_convert.convert(write_torch(tmp_path / "a.pt", WEIGHTS))
    bias = "visual.ln_post.bias"
    converted.arrays[bias] = converted.arrays[bias] * np.float32("nan")
    path = weights_convert.save_converted(tmp_path / "c.safetensors", converted)
    with pytest.raises(CheckpointError, match=rf"{bias} holds 128 NaN"):
        weights_convert.load_clip(path)


def test_weights_of_whole_numbers_are_no_weights(tmp_path):
    weights = WEIGHTS | {"visual.proj": np.ones((128, toys.EMBED), np.int8)}
    with pytest.raises(CheckpointError, match=r"visual\.proj is of int8; quantised"):
        weights_convert.load_clip(write_torch(tmp_path / "a.pt", weights))
    half = {key: value.astype(ml_dtypes.bfloat16) for key, value in WEIGHTS.items()}
    weights_convert.load_clip(write_torch(tmp_path / "b.pt", half))
