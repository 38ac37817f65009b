"""DeepLabV2's files in and out: all keys at full size, toys bit for bit, what users may confuse."""

from __future__ import annotations

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest
from flax import nnx

import weights_convert
from clipseg_jax.core.modules import abstract, initialised
from clipseg_jax.models.deeplab_v2 import BACKBONE, DeepLabV2
from tests import seeded
from tests.weights_convert import toys
from weights_convert import DEEPLAB, CheckpointError
from weights_convert.__main__ import main
from weights_convert.clip.build import flat_arrays
from weights_convert.formats.converted import Converted
from weights_convert.formats.torch_writer import write_torch
from weights_convert.trained.deeplab import from_published, to_published
from weights_convert.trained.kinds import format_of

GOLDEN = toys.GOLDEN / "deeplab"
NAMES = ["background", "cat", "dog", "tree"]
TOY = dataclasses.replace(BACKBONE, blocks=(1, 2, 1, 1), width=8)


def keys_of(name):
    return {key: tuple(shape) for key, shape in json.loads((GOLDEN / name).read_text()).items()}


def zeros(of):
    """Arrays of these shapes that take no memory."""
    return {
        key: np.broadcast_to(np.int64(0) if "num_batches" in key else np.float32(0), shape)
        for key, shape in of.items()
    }


def test_every_key_of_a_trained_file():
    shapes = keys_of("deeplabv2_msc_keys.json")
    assert len(shapes) == 632
    arrays = from_published(zeros(shapes), "file")
    model = abstract(lambda rngs: DeepLabV2(21, rngs=rngs))
    model_shapes = {path: leaf.shape for path, leaf in flat_arrays(model).items()}
    assert {path: value.shape for path, value in arrays.items()} == model_shapes
    back = to_published(arrays)
    assert {key: value.shape for key, value in back.items()} == shapes
    assert {v.dtype for k, v in back.items() if "num_batches" in k} == {np.dtype(np.int64)}


@functools.cache
def published():
    """A toy's state dict as deeplab-pytorch saves it."""
    model = abstract(lambda rngs: DeepLabV2(len(NAMES), TOY, rngs=rngs))
    shapes = {path: tuple(leaf.shape) for path, leaf in flat_arrays(model).items()}
    stored_shapes = {key: value.shape for key, value in to_published(zeros(shapes)).items()}
    return seeded.state_dict(stored_shapes, 3)


def initial_of(weights):
    """The backbone's names without "base.", another classifier beside them."""
    backbone = {
        key.removeprefix("base."): value for key, value in weights.items() if ".aspp." not in key
    }
    return backbone | {"fc.weight": np.zeros((91, 256, 1, 1), np.float32), "fc.bias": np.zeros(91)}


@pytest.fixture
def raw(tmp_path):
    return write_torch(tmp_path / "checkpoint_final.pth", published())


def test_there_and_back_bit_for_bit(raw, tmp_path):
    trained = weights_convert.load_trained(raw, DEEPLAB, classes=NAMES)
    assert trained.record["class_count"] == 4
    assert trained.record["classes"] is None
    assert trained.record["blocks"] == [1, 2, 1, 1]
    model = weights_convert.build_deeplab(trained)
    assert model.backbone.cfg == TOY
    toys.assert_same({k: np.asarray(v) for k, v in flat_arrays(model).items()}, trained.arrays)
    back = weights_convert.export_trained(trained, tmp_path / "back.pth", DEEPLAB)
    toys.assert_same(weights_convert.read_state_dict(back), published())

    ours = weights_convert.save_trained(
        tmp_path / "ours.safetensors", DEEPLAB, model, classes=NAMES, details={"step": 7}
    )
    loaded = weights_convert.load_trained(ours, DEEPLAB, classes=NAMES)
    assert loaded.record["classes"] == NAMES
    assert loaded.record["step"] == 7
    toys.assert_same(loaded.arrays, {k: np.asarray(v) for k, v in trained.arrays.items()})
    half = weights_convert.build_deeplab(loaded, dtype="bfloat16")
    assert half.backbone.cfg.dtype == "bfloat16"
    back = weights_convert.export_trained(loaded, tmp_path / "again.pth", DEEPLAB)
    toys.assert_same(weights_convert.read_state_dict(back), published())


def test_layouts():
    """What each name holds; the first convolution's input is turned from BGR to RGB."""
    theirs = published()
    ours = from_published(theirs, "file")
    np.testing.assert_array_equal(
        ours["backbone.stem.0.conv.kernel"],
        theirs["base.layer1.conv1.conv.weight"][:, ::-1].transpose(2, 3, 1, 0),
    )
    pairs = {
        "backbone.layers.0.0.conv1.kernel": "layer2.block1.reduce.conv.weight",
        "backbone.layers.1.1.conv2.kernel": "layer3.block2.conv3x3.conv.weight",
        "backbone.layers.3.0.conv3.kernel": "layer5.block1.increase.conv.weight",
        "backbone.layers.2.0.shortcut_conv.kernel": "layer4.block1.shortcut.conv.weight",
        "aspp.2.kernel": "aspp.c2.weight",
    }
    for path, key in pairs.items():
        expected = theirs[f"base.{key}"].transpose(2, 3, 1, 0)
        np.testing.assert_array_equal(ours[path], expected, err_msg=path)
    pairs = {
        "backbone.stem.0.norm.mean": "layer1.conv1.bn.running_mean",
        "backbone.layers.1.1.norm2.var": "layer3.block2.conv3x3.bn.running_var",
        "backbone.layers.1.0.shortcut_norm.scale": "layer3.block1.shortcut.bn.weight",
        "aspp.3.bias": "aspp.c3.bias",
    }
    for path, key in pairs.items():
        np.testing.assert_array_equal(ours[path], theirs[f"base.{key}"], err_msg=path)


def test_every_key_of_the_coco_file(tmp_path):
    """At full size, nothing allocated: what is loaded, skipped and fresh."""
    shapes = keys_of("deeplabv1_coco_init_keys.json")
    trained = keys_of("deeplabv2_msc_keys.json")
    theirs = {f"base.{key}" for key in shapes if not key.startswith("fc.")}
    assert theirs == {key for key in trained if ".aspp." not in key}
    path = write_torch(tmp_path / "init.pth", zeros(shapes))
    model = abstract(lambda rngs: DeepLabV2(21, rngs=rngs))
    done = weights_convert.load_deeplab_backbone(path, model)
    assert len(done.loaded) == 5 * 104
    assert done.skipped == ("fc.weight", "fc.bias")
    assert sorted(done.unchanged) == sorted(
        f"aspp.{i}.{leaf}" for i in range(4) for leaf in ("kernel", "bias")
    )


@functools.cache
def _fresh():
    return initialised(lambda rngs: DeepLabV2(len(NAMES), TOY, rngs=rngs), 1)


def fresh_model():
    """A toy's own copy, as it is before training."""
    return nnx.merge(*nnx.split(_fresh()), copy=True)


@pytest.mark.parametrize("wrapped", [False, True])
def test_initial_weights(tmp_path, wrapped):
    model = fresh_model()
    before = {path: np.asarray(leaf) for path, leaf in flat_arrays(model).items()}
    stored = initial_of(published())
    content = {"state_dict": stored, "epoch": 3} if wrapped else stored
    done = weights_convert.load_deeplab_backbone(write_torch(tmp_path / "init.pth", content), model)
    trained = from_published(published(), "file")
    for path, value in flat_arrays(model).items():
        expected = trained[path] if path in done.loaded else before[path]
        np.testing.assert_array_equal(value, expected, err_msg=path)
    assert {path.split(".")[0] for path in done.loaded} == {"backbone"}
    assert {path.split(".")[0] for path in done.unchanged} == {"aspp"}
    assert done.skipped == ("fc.weight", "fc.bias")


def test_a_trained_file_as_initial_weights(raw):
    model = fresh_model()
    done = weights_convert.load_deeplab_backbone(raw, model)
    assert set(done.skipped) == {
        f"base.aspp.c{i}.{leaf}" for i in range(4) for leaf in ("weight", "bias")
    }
    assert not np.array_equal(
        model.aspp[0].kernel[...], from_published(published(), "file")["aspp.0.kernel"]
    )


def test_initial_weights_must_hold_the_backbone(tmp_path):
    model = fresh_model()
    before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model)))
    stored = initial_of(published())
    del stored["layer3.block2.conv3x3.bn.bias"]
    stored["layer2.block1.reduce.conv.weight"] = np.zeros((3, 3, 1, 1), np.float32)
    with pytest.raises(CheckpointError) as caught:
        weights_convert.load_deeplab_backbone(write_torch(tmp_path / "bad.pth", stored), model)
    assert [line.strip() for line in str(caught.value).splitlines()[1:-1]] == [
        "- layer3.block2.conv3x3.bn.bias: missing",
        "~ layer2.block1.reduce.conv.weight: shape (3, 3, 1, 1), expected (8, 8, 1, 1)",
    ]
    jax.tree.map(np.testing.assert_array_equal, nnx.to_pure_dict(nnx.state(model)), before)
    deep = dataclasses.replace(TOY, blocks=(1, 2, 2, 1))
    deeper = abstract(lambda rngs: DeepLabV2(4, deep, rngs=rngs))
    path = write_torch(tmp_path / "init.pth", initial_of(published()))
    with pytest.raises(CheckpointError, match=r"\(1, 2, 1, 1\) blocks .* \(1, 2, 2, 1\)"):
        weights_convert.load_deeplab_backbone(path, deeper)
    clip = write_torch(tmp_path / "clip.pt", toys.vit())
    with pytest.raises(CheckpointError, match=r"holds no DeepLabV2 by deeplab-pytorch's names"):
        weights_convert.load_deeplab_backbone(clip, model)


def test_all_faults_at_once(tmp_path):
    bad = dict(published())
    del bad["base.layer5.block1.increase.bn.running_mean"]
    bad["base.fc.weight"] = np.zeros(3, np.float32)
    bad["base.aspp.c1.bias"] = np.zeros(7, np.float32)
    path = write_torch(tmp_path / "bad.pth", bad)
    with pytest.raises(CheckpointError) as caught:
        weights_convert.load_trained(path, DEEPLAB)
    assert [line.strip() for line in str(caught.value).splitlines()[1:-1]] == [
        "- base.layer5.block1.increase.bn.running_mean: missing",
        "+ base.fc.weight (3,): unexpected",
        "~ base.aspp.c1.bias: shape (7,), expected (4,)",
    ]


def test_what_users_confuse(raw, tmp_path):
    trained = weights_convert.load_trained(raw, DEEPLAB)
    model = weights_convert.build_deeplab(trained)
    ours = weights_convert.save_trained(
        tmp_path / "ours.safetensors", DEEPLAB, model, classes=NAMES
    )
    for path in (raw, ours):
        assert format_of(path) is DEEPLAB
        with pytest.raises(CheckpointError, match="for 4 classes, the class list has 21"):
            weights_convert.load_trained(path, DEEPLAB, classes=["x"] * 21)
    with pytest.raises(CheckpointError, match="number 1 is 'cat', in the class list 'fox'"):
        weights_convert.load_trained(ours, DEEPLAB, classes=["background", "fox", "dog", "tree"])
    initial = write_torch(tmp_path / "init.pth", initial_of(published()))
    assert format_of(initial) is None
    with pytest.raises(CheckpointError, match=r"is not a trained network: .*aspp"):
        weights_convert.load_trained(initial, DEEPLAB)
    with pytest.raises(CheckpointError, match="of format 'clipseg_jax DeepLabV2 1'"):
        weights_convert.load_clip(ours)
    clip = write_torch(tmp_path / "clip.pt", toys.vit())
    weights_convert.save_converted(tmp_path / "clip.safetensors", weights_convert.convert(clip))
    with pytest.raises(CheckpointError, match="of format 'clipseg_jax CLIP"):
        weights_convert.load_trained(tmp_path / "clip.safetensors", DEEPLAB)
    other = Converted({**trained.arrays, "aspp.1.bias": np.zeros(3, np.float32)}, {})
    with pytest.raises(CheckpointError, match=r"~ aspp\.1\.bias: shape \(3,\), expected \(4,\)"):
        weights_convert.build_deeplab(other)


def test_command(raw, tmp_path, capsys):
    ours, back = tmp_path / "ours.safetensors", tmp_path / "back.pth"
    assert main([str(raw), "-o", str(ours)]) == 0
    line = "DeepLabV2, ResNet-17, 4 classes, names not recorded"
    assert line in capsys.readouterr().out
    for path in (raw, ours):
        assert main(["--inspect", str(path)]) == 0
        lines = capsys.readouterr().out.splitlines()
        facts = dict(row.split(maxsplit=1) for row in lines[:8])
        assert facts["layout"] == "DeepLabV2"
        assert facts["kind"] == "torch zip"
        assert facts["sizes"] == line
        assert any("aspp.0.kernel" in row or "base.aspp.c0.weight" in row for row in lines)
    assert main([str(ours), "--export", str(back), "--to", "deeplab"]) == 0
    toys.assert_same(weights_convert.read_state_dict(back), published())
    clip = write_torch(tmp_path / "clip.pt", toys.vit())
    capsys.readouterr()
    for argv, said in [
        ([clip, "--export", tmp_path / "no.pth", "--to", "deeplab"], "holds no DeepLabV2"),
        ([raw, "-o", tmp_path / "no.pth", "--revision", "2024"], "--revision is for ReCLIP's"),
        ([raw, "--export", tmp_path / "no.pth", "--to", "openai"], "no CLIP among"),
    ]:
        assert main([str(part) for part in argv]) == 2
        assert said in capsys.readouterr().err
        assert not (tmp_path / "no.pth").exists()
