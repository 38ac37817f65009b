"""DINO's files in and out: every layout bit for bit, and what users may confuse."""

from __future__ import annotations

import json

import jax.numpy as jnp
import numpy as np
import pytest

import weights_convert
from tests.weights_convert import toys as clip_toys
from tests.weights_convert.dino import toys
from weights_convert import CheckpointError
from weights_convert.__main__ import main
from weights_convert.formats.safetensors import write
from weights_convert.formats.torch_writer import write_torch

IMAGE = np.random.RandomState(0).standard_normal((1, 12, 12, 3)).astype(np.float32)


def features(path, **options):
    return np.asarray(weights_convert.load_dino(path, **options)(jnp.asarray(IMAGE)))


@pytest.mark.parametrize("kind", toys.KINDS)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_both_ways(kind, dtype, tmp_path, capsys):
    weights = toys.state_dict(dtype=dtype, **toys.KINDS[kind])
    source = write_torch(tmp_path / "dino.pth", weights)
    stored, folder = tmp_path / "stored.safetensors", tmp_path / "hf"
    back = tmp_path / "back.pth"
    assert main([str(source), "-o", str(stored)]) == 0
    assert main([str(stored), "--export", str(folder), "--to", "dino_huggingface"]) == 0
    assert main([str(folder), "--export", str(back), "--to", "dino"]) == 0
    clip_toys.assert_same(weights_convert.read_state_dict(back), weights)
    out = capsys.readouterr().out
    assert f"{'DINOv2' if toys.KINDS[kind] else 'DINO'}, patch 4, width 64, 2 layers" in out
    expected = features(source)
    for path in (stored, folder, back, folder / "model.safetensors"):
        np.testing.assert_array_equal(features(path), expected)
        assert main([str(path), "--inspect"]) == 0
        assert "patch 4, width 64" in capsys.readouterr().out


def test_full_checkpoints_of_training(tmp_path):
    teacher, student = toys.state_dict(seed=1), toys.state_dict(seed=2)
    head = {"head.mlp.0.weight": np.zeros((2, 64), np.float32)}

    def prefixed(prefix, weights):
        named = {f"backbone.{key}": value for key, value in weights.items()} | head
        return {prefix + key: value for key, value in named.items()}

    content = {
        "student": prefixed("module.", student),
        "teacher": prefixed("", teacher),
        "optimizer": {"state": {0: {"exp_avg": np.zeros(3, np.float32)}}},
        "epoch": 3,
    }
    both = write_torch(tmp_path / "both.pth", content)
    alone = write_torch(tmp_path / "alone.pth", {"student": content["student"]})
    for path, weights in ((both, teacher), (alone, student)):
        plain = write_torch(tmp_path / "plain.pth", weights)
        np.testing.assert_array_equal(features(path), features(plain))
    twice = {f"a{n}.module.{key}": value for n in (1, 2) for key, value in teacher.items()}
    with pytest.raises(CheckpointError, match="no DINO among"):
        weights_convert.dino_from_state_dict(twice)
    twice = {f"{name}.{key}": v for name in ("module", "backbone") for key, v in teacher.items()}
    with pytest.raises(CheckpointError, match="2 towers, below 'module', 'backbone'"):
        weights_convert.dino_from_state_dict(twice)


def test_heads(tmp_path):
    source = write_torch(tmp_path / "dino.pth", toys.state_dict())
    assert weights_convert.load_dino(source).cfg.heads == 1
    two = weights_convert.load_dino(source, heads=2)
    assert two.cfg.heads == 2
    assert not np.allclose(features(source), features(source, heads=2))
    stored = tmp_path / "two.safetensors"
    assert main([str(source), "-o", str(stored), "--heads", "2,2"]) == 0
    assert weights_convert.load_dino(stored).cfg.heads == 2
    converted = weights_convert.convert_dino(stored)
    weights_convert.export_dino(converted, tmp_path / "hf", "dino_huggingface")
    assert weights_convert.load_dino(tmp_path / "hf").cfg.heads == 2
    assert weights_convert.load_dino(tmp_path / "hf", heads=4).cfg.heads == 4
    with pytest.raises(CheckpointError, match="3 heads don't divide width 64"):
        weights_convert.load_dino(source, heads=3)
    for wrong in (0, True, "2", (2, 2)):
        for path in (source, stored):
            with pytest.raises(ValueError, match=r"heads is .*; give a whole number of at least 1"):
                weights_convert.load_dino(path, heads=wrong)
    narrow = toys.state_dict(width=48)
    with pytest.raises(CheckpointError, match="width 48 is no multiple of 64"):
        weights_convert.dino_from_state_dict(narrow)
    assert weights_convert.dino_from_state_dict(narrow, heads=3).cfg.heads == 3


def test_dtype(tmp_path):
    source = write_torch(tmp_path / "dino.pth", toys.state_dict())
    tower = weights_convert.load_dino(source, dtype="bfloat16")
    half, whole = tower(jnp.asarray(IMAGE)), features(source)
    assert half.dtype == jnp.float32
    assert tower.norm.scale[...].dtype == jnp.float32
    worst = float(np.max(np.abs(half - whole)))
    assert 1e-4 < worst < 0.2
    with pytest.raises(ValueError, match="dtype 'int8'"):
        weights_convert.load_dino(source, dtype="int8")


def test_all_wrong_keys_at_once(tmp_path):
    weights = toys.state_dict(v2=True)
    del weights["blocks.0.norm1.weight"], weights["mask_token"]
    weights["blocks.1.extra"] = np.zeros(2, np.float32)
    weights["norm.bias"] = np.zeros(3, np.float32)
    with pytest.raises(CheckpointError) as raised:
        weights_convert.load_dino(write_torch(tmp_path / "a.pth", weights))
    message = str(raised.value)
    for line in ("- blocks.0.norm1.weight", "+ blocks.1.extra", "~ norm.bias: shape (3,)"):
        assert line in message
    assert "mask_token" not in message


def test_all_wrong_keys_of_hugging_face(tmp_path):
    source = write_torch(tmp_path / "dino.pth", toys.state_dict())
    folder = tmp_path / "hf"
    weights_convert.export_dino(weights_convert.convert_dino(source), folder, "dino_huggingface")
    path = folder / "model.safetensors"
    arrays = {key: np.array(v) for key, v in weights_convert.read_state_dict(path).items()}
    layer = "encoder.layer.0."
    del arrays[f"{layer}attention.attention.key.weight"], arrays["layernorm.weight"]
    arrays |= {"pooler.dense.weight": np.zeros((2, 2), np.float32), "extra": np.zeros(2)}
    with path.open("wb") as file:
        write(file, arrays, {})
    with pytest.raises(CheckpointError) as raised:
        weights_convert.load_dino(folder)
    message = str(raised.value)
    for line in (f"- {layer}attention.attention.key.weight", "- layernorm.weight", "+ extra"):
        assert line in message
    assert "pooler" not in message
    assert "attention.query" not in message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 32}, "hidden_size is 32, the weights have 64"),
        ({"patch_size": 16}, "patch_size is 16, the weights have 4"),
        ({"hidden_act": "quick_gelu"}, "'quick_gelu'; only gelu"),
        ({"layer_norm_eps": 2}, "layer_norm_eps is 2"),
        ({"num_attention_heads": 5}, "5 heads don't divide width 64"),
        ({"model_type": "clip"}, "a model of type 'clip'"),
        ({"model_type": ["vit"]}, r"a model of type \['vit'\]"),
    ],
)
def test_config_json(change, message, tmp_path):
    source = write_torch(tmp_path / "dino.pth", toys.state_dict())
    folder = tmp_path / "hf"
    weights_convert.export_dino(weights_convert.convert_dino(source), folder, "dino_huggingface")
    path = folder / "config.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"layer_norm_eps": 1e-3}))
    assert weights_convert.load_dino(folder).cfg.norm_eps == 1e-3
    path.write_text(json.dumps(content | change))
    with pytest.raises(CheckpointError, match=message):
        weights_convert.load_dino(folder)


def test_a_clip_and_a_dino_are_told_apart(tmp_path, capsys):
    clip = write_torch(tmp_path / "clip.pt", clip_toys.as_released(clip_toys.vit()))
    dino = write_torch(tmp_path / "dino.pth", toys.state_dict())
    stored_clip, stored_dino = tmp_path / "clip.safetensors", tmp_path / "dino.safetensors"
    assert main([str(clip), "-o", str(stored_clip)]) == 0
    assert main([str(dino), "-o", str(stored_dino)]) == 0
    hf = tmp_path / "hf"
    assert main([str(dino), "--export", str(hf), "--to", "dino_huggingface"]) == 0
    for path, message in ((clip, "of a CLIP, which load_clip reads"), (stored_clip, "CLIP 2")):
        with pytest.raises(CheckpointError, match=message):
            weights_convert.load_dino(path)
    for path, message in (
        (dino, "DINO, which load_dino reads"),
        (stored_dino, "DINO 1"),
        (hf, "model of type 'vit'"),
    ):
        with pytest.raises(CheckpointError, match=message):
            weights_convert.load_clip(path)
    capsys.readouterr()
    assert main([str(clip), "--export", str(tmp_path / "x"), "--to", "dino"]) == 2
    assert "of a CLIP" in capsys.readouterr().err
    assert main([str(dino), "--export", str(tmp_path / "x"), "--to", "openai"]) == 2
    assert "load_dino" in capsys.readouterr().err
    assert main([str(dino), "-o", str(tmp_path / "x"), "--activation", "gelu"]) == 2
    assert "--activation is not for DINOs" in capsys.readouterr().err


def test_what_is_not_finite(tmp_path):
    weights = toys.state_dict()
    weights["norm.bias"][3] = np.nan
    source = write_torch(tmp_path / "dino.pth", weights)
    with pytest.raises(CheckpointError, match="holds 1 NaN of 64"):
        weights_convert.load_dino(source)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": 3}, "blocks.2.norm1.scale: missing"),
        ({"layers": 9000}, "9000 blocks for 30 arrays"),
        ({"heads": 7}, "7 heads don't divide"),
        ({"mlp": "relu"}, "config.mlp is relu"),
    ],
)
def test_records_are_checked(change, message, tmp_path):
    converted = weights_convert.convert_dino(write_torch(tmp_path / "a.pth", toys.state_dict()))
    config = converted.record["config"] | change
    path = tmp_path / "a.safetensors"
    changed = converted._replace(record=converted.record | {"config": config})
    weights_convert.save_converted(path, changed)
    with pytest.raises(CheckpointError, match=message):
        weights_convert.load_dino(path)
