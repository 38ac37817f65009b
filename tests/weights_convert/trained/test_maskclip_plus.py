"""MaskCLIP+'s files in and out: all keys at full size, toys bit for bit, what users may confuse."""

from __future__ import annotations

import functools
import json

import numpy as np
import pytest
from flax import nnx

import weights_convert
from clipseg_jax.core.modules import abstract
from clipseg_jax.methods.maskclip_plus.model import MaskCLIPPlus, make_student
from clipseg_jax.models.resnet import RESNET50, DilatedResNet, DilatedResNetConfig
from tests import seeded
from tests.weights_convert import toys
from weights_convert import MASKCLIP_PLUS, CheckpointError
from weights_convert.__main__ import main
from weights_convert.clip.build import flat_arrays, install
from weights_convert.formats.converted import Converted
from weights_convert.formats.torch_writer import write_torch
from weights_convert.trained.kinds import format_of
from weights_convert.trained.maskclip_plus.published import from_published, to_published

SHAPES = json.loads((toys.GOLDEN / "maskclip/shapes.json").read_text())
TRAINED = [name for name in SHAPES if name.startswith("maskclip_plus")]
NAMES = ["background", "cat", "dog", "tree"]
GUIDE = ("decode_head.clip.", "decode_head.proj.", *(f"decode_head.{p}_proj." for p in "qkvc"))


def zeros(of):
    """Arrays of these shapes that take no memory."""
    return {
        key: np.broadcast_to(np.int64(0) if "num_batches" in key else np.float32(0), shape)
        for key, shape in of.items()
    }


@pytest.mark.parametrize("name", TRAINED)
def test_every_key_of_a_trained_file(name):
    shapes = {key: tuple(shape) for key, shape in SHAPES[name].items()}
    arrays, sizes = from_published(zeros(shapes), "file")
    deep, vit = "deeplabv3plus" in name, "vit16" in name
    assert sizes == {
        "decoder": "deeplabv3plus" if deep else "deeplabv2",
        "blocks": [3, 4, 6 if vit else 23, 3],
        "width": 64,
        "variant": "v1c",
        "background": deep,
    }
    record = {"student": sizes, "steps": 0}
    guide = "ViT-B/16" if vit else "RN50x16" if "r50x16" in name else "RN50"
    clip = zeros(json.loads((toys.GOLDEN / "clip/shapes.json").read_text())[guide])
    back = to_published(Converted(arrays, record), clip)
    assert {key: value.shape for key, value in back.items()} == shapes
    alone = to_published(Converted(arrays, record))
    assert alone.keys() == {key for key in shapes if not key.startswith(GUIDE)}


def filled(model):
    """The shapes with zeros in them; random numbers would have to be compiled."""
    shapes = {path: leaf.shape for path, leaf in flat_arrays(model).items()}
    install(model, {path: np.zeros(shape, np.float32) for path, shape in shapes.items()})
    return model


def toy(decoder="deeplabv3plus", background=True, variant="v1c", **more):
    """A model as shapes."""
    cfg = DilatedResNetConfig((1, 2, 1, 1), 8, variant=variant, **more)

    def make(rngs):
        student = make_student(decoder, cfg, toys.EMBED, rngs=rngs)
        rows = np.zeros((len(NAMES) - background, toys.EMBED), np.float32)
        return MaskCLIPPlus(student, rows, background=background, rngs=rngs)

    return abstract(make)


@functools.cache
def published(decoder="deeplabv3plus", background=True, variant="v1c"):
    """A toy's state dict as mmsegmentation saves it, without a guide."""
    model = toy(decoder, background, variant)
    shapes = {path: tuple(leaf.shape) for path, leaf in flat_arrays(model).items()}
    sizes = {"decoder": decoder, "variant": variant, "background": background}
    stored = to_published(Converted(zeros(shapes), {"student": sizes, "steps": 7}))
    out = seeded.state_dict({key: value.shape for key, value in stored.items()}, 3)
    return out | {"decode_head._iter_counter": np.asarray(7, np.int64)}


def written(path, state, **meta):
    return write_torch(path, {"meta": meta, "state_dict": state, "optimizer": {"lr": 0.1}})


@pytest.fixture
def raw(tmp_path):
    return written(tmp_path / "iter_7.pth", published(), CLASSES=tuple(NAMES), iter=7)


@pytest.mark.parametrize(
    ("decoder", "background", "variant"),
    [("deeplabv3plus", True, "v1c"), ("deeplabv2", False, "v1c"), ("deeplabv2", True, "v1")],
)
def test_there_and_back_bit_for_bit(decoder, background, variant, tmp_path):
    theirs = published(decoder, background, variant)
    clip = toys.vit()
    raw = written(tmp_path / "iter_7.pth", theirs, CLASSES=tuple(NAMES), iter=7)
    trained = weights_convert.load_trained(raw, MASKCLIP_PLUS, classes=NAMES)
    assert trained.record["classes"] == NAMES
    assert trained.record["steps"] == 7
    model = weights_convert.build_maskclip_plus(trained)
    assert model.teacher is None
    assert model.student.backbone.cfg == toy(decoder, background, variant).student.backbone.cfg
    toys.assert_same({k: np.asarray(v) for k, v in flat_arrays(model).items()}, trained.arrays)
    back = weights_convert.export_trained(trained, tmp_path / "back.pth", MASKCLIP_PLUS)
    toys.assert_same(weights_convert.read_state_dict(back), theirs)

    ours = weights_convert.save_trained(
        tmp_path / "ours.safetensors",
        MASKCLIP_PLUS,
        model,
        classes=NAMES,
        details={"steps": 7, "setting": "zero_shot"},
    )
    loaded = weights_convert.load_trained(ours, MASKCLIP_PLUS, classes=NAMES)
    assert loaded.record["setting"] == "zero_shot"
    toys.assert_same(loaded.arrays, {k: np.asarray(v) for k, v in trained.arrays.items()})
    assert weights_convert.build_maskclip_plus(loaded, dtype="bfloat16").student.features == 32
    # With its guide, as the published code's own files; reading leaves that out.
    back = weights_convert.export_trained(loaded, tmp_path / "again.pth", MASKCLIP_PLUS, clip=clip)
    state = weights_convert.read_state_dict(back)
    toys.assert_same({k: v for k, v in state.items() if not k.startswith(GUIDE)}, theirs)
    np.testing.assert_array_equal(
        state["decode_head.proj.weight"][:, :, 0, 0], clip["visual.proj"].T
    )
    again = weights_convert.load_trained(back, MASKCLIP_PLUS, classes=NAMES)
    toys.assert_same(dict(again.arrays), dict(trained.arrays))


def test_sizes_that_no_key_tells_are_kept(tmp_path):
    """Strides and dilations of our own runs."""
    cfg = DilatedResNetConfig((1, 1, 1, 1), 8, strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2))
    student = filled(abstract(lambda rngs: make_student("deeplabv2", cfg, 4, rngs=rngs)))
    rows = np.eye(4, dtype=np.float32)
    model = MaskCLIPPlus(student, rows, rngs=nnx.Rngs(0))
    path = weights_convert.save_trained(
        tmp_path / "s.safetensors", MASKCLIP_PLUS, model, classes=NAMES, details={"steps": 1}
    )
    loaded = weights_convert.load_trained(path, MASKCLIP_PLUS)
    assert weights_convert.build_maskclip_plus(loaded).student.backbone.cfg == cfg


def test_layouts():
    """What each name holds."""
    theirs = published()
    ours, _ = from_published(theirs, "file")
    head = "decode_head.decode_module"
    pairs = {
        "student.backbone.stem.1.conv.kernel": "backbone.stem.3.weight",
        "student.backbone.layers.1.1.conv2.kernel": "backbone.layer2.1.conv2.weight",
        "student.backbone.layers.2.0.shortcut_conv.kernel": "backbone.layer3.0.downsample.0.weight",
        "student.image_pool.conv.kernel": f"{head}.image_pool.1.conv.weight",
        "student.aspp.0.conv.kernel": f"{head}.aspp_modules.0.conv.weight",
        "student.aspp.2.depthwise.conv.kernel": f"{head}.aspp_modules.2.depthwise_conv.conv.weight",
        "student.aspp.3.pointwise.conv.kernel": f"{head}.aspp_modules.3.pointwise_conv.conv.weight",
        "student.low_level.conv.kernel": f"{head}.c1_bottleneck.conv.weight",
        "student.decoder.1.pointwise.conv.kernel": (
            f"{head}.sep_bottleneck.1.pointwise_conv.conv.weight"
        ),
    }
    for path, key in pairs.items():
        expected = theirs[key].transpose(2, 3, 1, 0)
        np.testing.assert_array_equal(ours[path], expected, err_msg=path)
    pairs = {
        "student.bottleneck.norm.var": f"{head}.bottleneck.bn.running_var",
        "student.decoder.0.depthwise.norm.mean": (
            f"{head}.sep_bottleneck.0.depthwise_conv.bn.running_mean"
        ),
        "text_embeddings": "decode_head.text_embeddings",
        "background_embedding": "decode_head.bg_embeddings",
    }
    for path, key in pairs.items():
        np.testing.assert_array_equal(ours[path], theirs[key], err_msg=path)


def test_all_faults_at_once(tmp_path):
    bad = dict(published())
    head = "decode_head.decode_module"
    del bad[f"{head}.bottleneck.bn.running_mean"]
    bad["decode_head.conv_seg.weight"] = np.zeros(3, np.float32)
    bad[f"{head}.aspp_modules.0.bn.bias"] = np.zeros(7, np.float32)
    with pytest.raises(CheckpointError) as caught:
        weights_convert.load_trained(written(tmp_path / "bad.pth", bad), MASKCLIP_PLUS)
    assert [line.strip() for line in str(caught.value).splitlines()[1:-1]] == [
        f"- {head}.bottleneck.bn.running_mean: missing",
        "+ decode_head.conv_seg.weight (3,): unexpected",
        f"~ {head}.aspp_modules.0.bn.bias: shape (7,), expected (32,)",
    ]


def test_what_users_confuse(raw, tmp_path):
    trained = weights_convert.load_trained(raw, MASKCLIP_PLUS)
    assert format_of(raw) is MASKCLIP_PLUS
    with pytest.raises(CheckpointError, match="for 4 classes, the class list has 21"):
        weights_convert.load_trained(raw, MASKCLIP_PLUS, classes=["x"] * 21)
    with pytest.raises(CheckpointError, match="number 1 is 'cat', in the class list 'fox'"):
        weights_convert.load_trained(
            raw, MASKCLIP_PLUS, classes=["background", "fox", "dog", "tree"]
        )
    clip = write_torch(tmp_path / "clip.pt", toys.vit())
    assert format_of(clip) is None
    with pytest.raises(CheckpointError, match=r"holds no MaskCLIP\+ by mmsegmentation's names"):
        weights_convert.load_trained(clip, MASKCLIP_PLUS)
    other = toys.vit(embed=16)
    with pytest.raises(CheckpointError, match="embedding width is 16, the text embeddings have 32"):
        weights_convert.export_trained(trained, tmp_path / "no.pth", MASKCLIP_PLUS, clip=other)
    assert not (tmp_path / "no.pth").exists()


def test_command(raw, tmp_path, capsys):
    ours, back = tmp_path / "ours.safetensors", tmp_path / "back.pth"
    assert main([str(raw), "-o", str(ours)]) == 0
    line = "MaskCLIP+, deeplabv3plus, ResNet-17 v1c, 4 classes (background, cat, dog, ...)"
    assert line in capsys.readouterr().out
    for path in (raw, ours):
        assert main(["--inspect", str(path)]) == 0
        lines = capsys.readouterr().out.splitlines()
        facts = dict(row.split(maxsplit=1) for row in lines[:8])
        assert (facts["layout"], facts["kind"], facts["sizes"]) == ("MaskCLIP+", "torch zip", line)
    assert main([str(ours), "--export", str(back), "--to", "maskclip_plus"]) == 0
    toys.assert_same(weights_convert.read_state_dict(back), published())
    clip = write_torch(tmp_path / "clip.pt", toys.vit())
    arguments = [str(ours), "--export", str(back), "--to", "maskclip_plus", "--clip", str(clip)]
    assert main(arguments) == 0
    assert "decode_head.clip.layers.0.ln1.weight" in weights_convert.read_state_dict(back)
    capsys.readouterr()
    no = tmp_path / "no.pth"
    for argv, said in [
        ([clip, "--export", no, "--to", "maskclip_plus"], "holds no MaskCLIP+"),
        ([raw, "-o", no, "--revision", "2024"], "--revision is for ReCLIP's"),
    ]:
        assert main([str(part) for part in argv]) == 2
        assert said in capsys.readouterr().err
        assert not no.exists()


@pytest.mark.parametrize("variant", ["v1c", "v1"])
def test_imagenet_backbones(variant, tmp_path):
    """There and back, with the running statistics; a v1's names are torchvision's."""
    cfg = DilatedResNetConfig((1, 2, 1, 1), 8, variant=variant)
    net = filled(abstract(lambda rngs: DilatedResNet(cfg, rngs=rngs)))
    path = weights_convert.export_imagenet(net, tmp_path / "net.pth")
    stored = weights_convert.read_state_dict(path)
    stem = {"v1c": "stem.6.weight", "v1": "conv1.weight"}[variant]
    assert {stem, "layer2.1.bn3.running_var", "layer1.0.downsample.1.weight"} <= set(stored)
    stored = seeded.state_dict({key: value.shape for key, value in stored.items()}, 2)
    path = write_torch(tmp_path / "other.pth", stored | {"fc.weight": np.zeros((9, 256))})
    weights_convert.load_imagenet(path, net, statistics=True)
    back = weights_convert.export_imagenet(net, tmp_path / "back.pth")
    toys.assert_same(weights_convert.read_state_dict(back), stored)
    other = {"v1c": "v1", "v1": "v1c"}[variant]
    cfg = DilatedResNetConfig((1, 2, 1, 1), 8, variant=other)
    net = abstract(lambda rngs: DilatedResNet(cfg, rngs=rngs))
    with pytest.raises(CheckpointError, match=rf"\(variant '{variant}'\), the backbone is of"):
        weights_convert.load_imagenet(path, net)
    cfg = DilatedResNetConfig((1, 2, 1, 1), 8, variant="caffe")
    with pytest.raises(CheckpointError, match="variant 'caffe' have no published ImageNet weights"):
        weights_convert.load_imagenet(path, abstract(lambda rngs: DilatedResNet(cfg, rngs=rngs)))


def test_a_full_size_v1_has_torchvisions_size():
    net = abstract(
        lambda rngs: DilatedResNet(DilatedResNetConfig(RESNET50, variant="v1"), rngs=rngs)
    )
    count = sum(leaf.size for _, leaf in nnx.to_flat_state(nnx.state(net, nnx.Param)))
    assert count == 25_557_032 - 2049 * 1000  # torchvision's resnet50 but for its classifier
