"""Caffe's files, written here by the protocol's own rules."""

from __future__ import annotations

import struct
import tracemalloc

import numpy as np
import pytest

import weights_convert
from tests.weights_convert import toys
from tests.weights_convert.trained.test_deeplab import fresh_model, published
from weights_convert import DEEPLAB, CheckpointError
from weights_convert.__main__ import main
from weights_convert.formats.caffe import read_caffe
from weights_convert.trained.deeplab import from_published

COUNT = np.float32(999.98)  # of the moving averages, as Caffe keeps it
BRANCHES = {"shortcut": "1", "reduce": "2a", "conv3x3": "2b", "increase": "2c"}


def varint(value):
    out = b""
    while value >= 0x80:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def field(number, content):
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    return varint(number << 3 | 2) + varint(len(content)) + content


def blob(array):
    shape = field(7, field(1, b"".join(varint(n) for n in array.shape)))
    return shape + field(5, np.asarray(array, "<f4").tobytes())


def layer(name, *arrays):
    message = field(1, name.encode()) + field(2, b"Some") + field(10, 1)
    # A loss weight (4 bytes) and what else a layer says is passed over.
    message += varint(5 << 3 | 5) + struct.pack("<f", 1.0)
    return field(100, message + b"".join(field(7, blob(array)) for array in arrays))


def caffe_name(unit):
    """`res`, `bn` or `scale` in place of {} in a unit's name."""
    if unit == "layer1.conv1":
        return None
    stage, block, branch = unit.removeprefix("layer").split(".")
    place = int(block.removeprefix("block"))
    # The published nets count a, b1, b2, ... where blocks are many, otherwise a, b, c.
    letters = f"b{place - 1}" if stage in "34" and place > 1 else "abc"[place - 1]
    return f"{{}}{stage}{letters}_branch{BRANCHES[branch]}"


def caffemodel(weights, *, aspp=True):
    """A state dict with "base." as Caffe would have it, with copies for the other scales."""
    out = field(1, b"deeplab") + layer("data")
    for key in weights:
        value = weights[key]
        unit = key.removeprefix("base.").removesuffix(".conv.weight")
        if key.endswith(".conv.weight"):
            name = caffe_name(unit)
            norm = {n: weights[f"base.{unit}.bn.{n}"] for n in
                    ("weight", "bias", "running_mean", "running_var")}  # fmt: skip
            names = ["conv1", "bn_conv1", "scale_conv1"]
            if name:
                names = [name.format(kind) for kind in ("res", "bn", "scale")]
            opt_state = [norm[n] * COUNT for n in ("running_mean", "running_var")]
            out += layer(names[0], value) + layer(names[1], *opt_state, COUNT.reshape(1))
            out += layer(names[2], norm["weight"], norm["bias"])
            out += layer(f"res075_{names[0]}", value) + layer(f"res05_{names[1]}", value)
        elif aspp and ".aspp." in key and key.endswith("weight"):
            bias = weights[key.replace("weight", "bias")]
            out += layer(f"fc1_voc12_c{key.split('.c')[1][0]}", value, bias)
    if not aspp:
        out += layer("fc1_coco", np.zeros((91, 256, 1, 1)), np.zeros(91))
    return out


def close(arrays, expected):
    """Equal but for statistics, which were multiplied and divided again."""
    assert set(arrays) == set(expected)
    for key, value in expected.items():
        if key.endswith((".mean", ".var")):
            np.testing.assert_allclose(arrays[key], value, rtol=1e-6, err_msg=key)
        else:
            np.testing.assert_array_equal(arrays[key], value, err_msg=key)


def test_a_trained_net(tmp_path, capsys):
    path = tmp_path / "train2_iter_20000.caffemodel"
    path.write_bytes(caffemodel(published()))
    trained = weights_convert.load_trained(path, DEEPLAB)
    assert trained.record["kind"] == "caffemodel"
    assert trained.record["class_count"] == 4
    close(trained.arrays, from_published(published(), "file"))
    ours = tmp_path / "ours.safetensors"
    assert main([str(path), "-o", str(ours)]) == 0
    assert "DeepLabV2, ResNet-17, 4 classes" in capsys.readouterr().out
    toys.assert_same(
        weights_convert.load_trained(ours, DEEPLAB).arrays,
        {key: np.asarray(value) for key, value in trained.arrays.items()},
    )
    assert main(["--inspect", str(path)]) == 0
    assert "layer3.block2.conv3x3.conv.weight" in capsys.readouterr().out


def test_initial_weights(tmp_path):
    path = tmp_path / "init.caffemodel"
    path.write_bytes(caffemodel(published(), aspp=False))
    model = fresh_model()
    done = weights_convert.load_deeplab_backbone(path, model)
    assert done.skipped == ("fc1_coco.weight", "fc1_coco.bias")
    expected = from_published(published(), "file")
    kernel = model.backbone.layers[1][1].conv2.kernel[...]
    np.testing.assert_array_equal(kernel, expected["backbone.layers.1.1.conv2.kernel"])
    with pytest.raises(CheckpointError, match="is not a trained network"):
        weights_convert.load_trained(path, DEEPLAB)


def test_blocks_and_old_shapes(tmp_path):
    path = tmp_path / "net.caffemodel"
    numbers = field(5, np.arange(6, dtype="<f4").tobytes())
    old = field(1, 1) + field(2, 1) + field(3, 2) + field(4, 3) + numbers
    message = field(100, field(1, b"res4b22_branch2c") + field(7, old))
    message += layer("bn2c_branch1", np.ones(2), np.ones(2), np.zeros(1))
    path.write_bytes(message)
    arrays = read_caffe(path)
    assert list(arrays) == [
        "layer4.block23.increase.conv.weight",
        "layer2.block3.shortcut.bn.running_mean",
        "layer2.block3.shortcut.bn.running_var",
    ]
    np.testing.assert_array_equal(
        arrays["layer4.block23.increase.conv.weight"], np.arange(6).reshape(2, 3)
    )
    np.testing.assert_array_equal(arrays["layer2.block3.shortcut.bn.running_var"], 1)


def test_damage(tmp_path):
    old_shape = field(1, 2**63)
    whole = caffemodel(published())
    path = tmp_path / "net.caffemodel"
    for content, said in [
        (whole[: len(whole) // 2], "extends beyond the end"),
        (b"PK\x03\x04 no protocol buffer", "not a readable caffemodel"),
        (b"\x0a" + b"\xff" * 40, "more than 64 bits"),
        (field(100, field(1, b"x") + field(7, blob(np.ones(4))[:-4])), "beyond the end"),
        (field(2, field(4, b"conv1") + bytes(20)), "upgrade it with Caffe's"),
        (layer("data") * 3, "holds no DeepLabV2"),
        (field(100, field(1, b"x") + field(7, field(7, field(1, b"\x01" * 40)))), "a list"),
        (field(100, field(1, b"x") + field(7, old_shape)), "as a shape|a size of"),
        (layer("\x1b[2J"), "a layer's name"),
        (layer("a", np.ones(2)) * 2, "two layers are called a"),
        (layer("a", *[np.ones(1)] * 101), "layer a has more than 100 blobs"),
        (layer("bn_conv1", np.ones(2), np.ones(2), np.full(1, np.nan)), "scale factor nan"),
        (layer("bn_conv1", np.ones(2), np.ones(2), -np.ones(1)), "scale factor -1"),
        (field(100, field(1, b"x") + field(7, field(5, bytes(7)))), "data of 7 bytes"),
    ]:
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=said) as caught:
            weights_convert.load_trained(path, DEEPLAB)
        assert ("not a readable" in str(caught.value)) == (
            "DeepLabV2" not in said and "upgrade" not in said
        )


@pytest.mark.parametrize("part", [4, 8, 400])
def test_numbers_in_parts(tmp_path, part):
    values = np.arange(30_000, dtype="<f4")
    data = values.tobytes()
    if part == 4:  # each number with its own tag
        parts = [varint(5 << 3 | 5) + data[i : i + 4] for i in range(0, len(data), 4)]
    else:
        parts = [field(5, data[i : i + part]) for i in range(0, len(data), part)]
    shape = field(7, b"".join(field(1, n) for n in (100, 300)))
    path = tmp_path / "net.caffemodel"
    path.write_bytes(field(100, field(1, b"a") + field(7, b"".join([*parts, shape]))))
    tracemalloc.start()
    try:
        arrays = read_caffe(path)
        assert tracemalloc.get_traced_memory()[1] < 3 * len(data)
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(arrays["a.weight"], values.reshape(100, 300))
