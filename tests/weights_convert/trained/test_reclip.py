"""ReCLIP's files in and out: all keys at full size, toys bit for bit, what users may confuse."""

from __future__ import annotations

import functools
import json
import re

import jax
import numpy as np
import pytest
from flax import nnx

import weights_convert
from clipseg_jax.core.modules import abstract
from clipseg_jax.methods.reclip.distill_model import Distillation
from clipseg_jax.methods.reclip.heads import BiasDecoder, PositionNet
from clipseg_jax.methods.reclip.model import (
    ReCLIP,
    ReCLIPConfig,
    ReferencePrompt,
    frozen_reference,
    reclip_image_tower,
)
from clipseg_jax.models.deeplab import DeepLab
from clipseg_jax.models.resnet import DilatedResNet, DilatedResNetConfig
from tests.weights_convert import toys
from weights_convert import RECLIP, CheckpointError
from weights_convert.__main__ import main
from weights_convert.clip.build import flat_arrays
from weights_convert.formats.torch_writer import write_torch
from weights_convert.trained.imagenet import OPEN_MMLAB, load_imagenet
from weights_convert.trained.kinds import format_of
from weights_convert.trained.reclip.format import METHODS as METHOD_NAMES
from weights_convert.trained.reclip.format import stored_arrays
from weights_convert.trained.reclip.keys import DISTILLATION, FLOAT32_ONLY, RECTIFICATION
from weights_convert.trained.reclip.published import from_published, recognise, to_published

GOLDEN = toys.GOLDEN / "reclip"
NAMES = ["cat", "dog", "tree", "house", "sky"]
STUDENT = DilatedResNetConfig(blocks=(1, 2, 1, 1), width=8)
METHODS = [pytest.param(False, id="reclip"), pytest.param(True, id="reclip++")]
STAGES = ["rectification", "distillation"]


def shapes(name):
    return {k: tuple(s) for k, s in json.loads((GOLDEN / name).read_text())["shapes"].items()}


def zeros(of):
    """Arrays of these shapes that take no memory."""
    return {
        key: np.broadcast_to(np.int64(0) if "num_batches" in key else np.float32(0), shape)
        for key, shape in of.items()
    }


@pytest.fixture(scope="module")
def full_clip():
    clip_shapes = json.loads((toys.GOLDEN / "clip" / "shapes.json").read_text())["ViT-B/16"]
    return zeros({key: tuple(shape) for key, shape in clip_shapes.items()})


@pytest.mark.parametrize("method", ["ReCLIP", "RECLIPPP"])
def test_every_key_of_a_distilled_file(method, full_clip):
    file_shapes = shapes(f"distill_shapes_{method}.json")
    recognised = recognise(zeros(file_shapes))
    assert (recognised.stage, recognised.plus_plus) == ("distillation", method == "RECLIPPP")
    arrays = from_published(recognised, "file")
    back = to_published(arrays, "distillation", full_clip, half=False)
    assert {key: value.shape for key, value in back.items()} == file_shapes
    halved = to_published(arrays, "distillation", full_clip)
    assert set(back) - set(halved) == {"decode_head.clip.proj"}


@pytest.mark.parametrize(("method", "count"), [("ReCLIP", 647), ("RECLIPPP", 614)])
def test_every_key_of_a_rectified_file(method, count, full_clip):
    file_shapes = shapes(f"rect_shapes_{method}.json")
    arrays = from_published(recognise(zeros(file_shapes | {"vit.cls_token": (1, 1, 768)})), "file")
    back = to_published(arrays, "rectification", full_clip)
    assert len(back) == count
    assert all(key.startswith("module.") for key in back)
    stripped = {key.removeprefix("module."): value for key, value in back.items()}
    assert {key: stripped[key].shape for key in file_shapes} == file_shapes
    half = {key for key, value in stripped.items() if value.dtype == np.float16}
    assert half == {"clip.visual.proj", "clip.text_projection"}
    whole = to_published(arrays, "rectification", full_clip, half=False)
    assert {key.removeprefix("module.") for key in set(whole) - set(back)} == set(FLOAT32_ONLY[:2])
    for written in (back, whole):
        recognised = recognise(written)
        assert (recognised.stage, recognised.plus_plus) == ("rectification", method == "RECLIPPP")
        toys.assert_same(from_published(recognised, "file"), arrays)


@functools.cache
def clip_and_weights():
    weights = toys.vit()
    return weights_convert.clip_from_state_dict(weights), weights


def random_arrays(model, seed):
    """Values of their own for everything that a result keeps."""
    rng = np.random.default_rng(seed)
    return {
        path: rng.standard_normal(value.shape).astype(np.float32)
        for path, value in stored_arrays(model).items()
    }


@functools.cache
def model_of(stage, plus_plus):
    """A toy model whose trained parts have values of their own."""
    clip, _ = clip_and_weights()
    kind = BiasDecoder if plus_plus else PositionNet
    rows = np.eye(len(NAMES), toys.EMBED, dtype=np.float32)
    model = ReCLIP(
        reclip_image_tower(clip.visual, "gelu"),
        rows,
        ReferencePrompt(clip.text, [[1, 599, 0]] * len(NAMES)),
        kind(128, toys.EMBED, len(NAMES), rngs=nnx.Rngs(0)),
        ReCLIPConfig(plus_plus=plus_plus),
    )
    if stage == "distillation":
        student = DeepLab(STUDENT, toys.EMBED, rngs=nnx.Rngs(0))
        model = Distillation(student, frozen_reference(model))
    weights_convert.install(model, random_arrays(model, 5 + plus_plus))
    return model


def visual_of(model):
    return model.teacher.visual if isinstance(model, Distillation) else model.visual


def save(path, model):
    details = {"revision": "2024", "clip_sha256": "0" * 64}
    return weights_convert.save_trained(path, RECLIP, model, classes=NAMES, details=details)


def load(path, stage, plus_plus, *, revision=None, classes=NAMES, visual=None):
    expected = {"stage": stage, "method": METHOD_NAMES[plus_plus]}
    expected |= {"revision": revision} if revision else {}
    return weights_convert.load_trained(
        path, RECLIP, classes=classes, expected=expected, visual=visual
    )


@pytest.mark.parametrize("plus_plus", METHODS)
@pytest.mark.parametrize("stage", STAGES)
def test_there_and_back_bit_for_bit(stage, plus_plus, tmp_path):
    model, (_, weights) = model_of(stage, plus_plus), clip_and_weights()
    kept = stored_arrays(model)
    assert len(kept) == len(random_arrays(model, 0))
    ours = save(tmp_path / "ours.safetensors", model)
    loaded = load(ours, stage, plus_plus, revision="2024", visual=visual_of(model))
    toys.assert_same(loaded.arrays, kept)

    raw = weights_convert.export_trained(loaded, tmp_path / "best_weight.pth", RECLIP, clip=weights)
    table = DISTILLATION if stage == "distillation" else RECTIFICATION
    trained = {path: v for path, v in kept.items() if table.left(path) is not None}
    assert set(kept) - set(trained) <= {"teacher.text_embeddings", "teacher.reference.rows"}
    again = load(raw, stage, plus_plus, revision="2024", visual=visual_of(model))
    toys.assert_same(again.arrays, trained)
    assert again.record["class_count"] == 5
    assert again.record["revision"] == "2024"
    assert again.record["classes"] is None
    assert again.record["clip_mark"] == loaded.record["clip_mark"]
    once_more = weights_convert.export_trained(again, tmp_path / "again.pth", RECLIP, clip=weights)
    toys.assert_same(
        weights_convert.read_state_dict(once_more), weights_convert.read_state_dict(raw)
    )

    other = nnx.merge(*nnx.split(model), copy=True)
    weights_convert.install(other, random_arrays(other, 99))
    weights_convert.install(other, again.arrays)
    toys.assert_same({path: stored_arrays(other)[path] for path in trained}, trained)


def test_layouts_of_the_published_files():
    """What each name holds: the class token, the twins, convolutions, the prompt."""
    model, (_, weights) = model_of("rectification", False), clip_and_weights()
    stored = stored_arrays(model)
    written = {
        key.removeprefix("module."): value
        for key, value in to_published(stored, "rectification", weights).items()
    }
    np.testing.assert_array_equal(written["vit.cls_token"][0, 0], stored["visual.class_embedding"])
    np.testing.assert_array_equal(written["vit.class_embedding"], weights["visual.class_embedding"])
    np.testing.assert_array_equal(
        written["text_encoder.prompt_token"][0], stored["reference.prompt"]
    )
    np.testing.assert_array_equal(
        written["proj_net.3.weight"], stored["head.conv2.kernel"].transpose(3, 2, 0, 1)
    )
    np.testing.assert_array_equal(written["norm3.running_var"], stored["head.norm3.var"])
    np.testing.assert_array_equal(written["conv1.bias"], written["proj_net.0.bias"])
    np.testing.assert_array_equal(written["proj.weight"][..., 0, 0], weights["visual.proj"].T)
    model = model_of("distillation", True)
    written = to_published(stored_arrays(model), "distillation", weights)
    np.testing.assert_array_equal(
        written["decode_head.pe_proj_res.weight"][..., 0, 0],
        np.asarray(model.teacher.head.pe_proj.kernel).T,
    )
    np.testing.assert_array_equal(
        written["backbone.res_layers.1.0.downsample.1.running_mean"],
        model.student.backbone.layers[1][0].shortcut_norm.mean[...],
    )
    np.testing.assert_array_equal(
        written["backbone.stem.3.weight"],
        np.asarray(model.student.backbone.stem[1].conv.kernel).transpose(3, 2, 0, 1),
    )


@pytest.fixture
def published():
    """A published rectification file's keys without prefix, free to be changed."""
    _, weights = clip_and_weights()
    written = to_published(
        stored_arrays(model_of("rectification", False)), "rectification", weights
    )
    return {key.removeprefix("module."): value for key, value in written.items()}


def test_all_faults_at_once(published, tmp_path):
    del published["proj_net.4.weight"], published["vit.cls_token"]
    published["proj_net.8.weight"] = np.zeros(3, np.float32)
    published["clip.visual.unheard_of"] = np.zeros(3, np.float32)
    published["proj_net.1.bias"] = np.zeros(7, np.float32)
    path = write_torch(tmp_path / "bad.pth", published)
    with pytest.raises(CheckpointError) as caught:
        weights_convert.load_trained(path, RECLIP)
    assert [line.strip() for line in str(caught.value).splitlines()[1:-1]] == [
        "- proj_net.4.weight: missing",
        "- vit.cls_token: missing",
        "+ clip.visual.unheard_of (3,): unexpected",
        "+ proj_net.8.weight (3,): unexpected",
        "~ proj_net.1.bias: shape (7,), expected (32,)",
    ]


def test_copies_that_differ(published, tmp_path):
    published["conv2.weight"] = published["conv2.weight"] + 1
    path = write_torch(tmp_path / "bad.pth", published)
    with pytest.raises(CheckpointError, match=r"~ conv2\.weight: differs from proj_net\.3\.weight"):
        weights_convert.load_trained(path, RECLIP)


def test_what_tells_the_sizes_is_missing(published, tmp_path):
    for key in ("text_encoder.prompt_token", "proj_net.0.weight", "proj_net.6.bias"):
        others = {k: v for k, v in published.items() if k != key}
        path = write_torch(tmp_path / "bad.pth", others)
        with pytest.raises(CheckpointError, match=key.replace(".", r"\.") + " is missing"):
            weights_convert.load_trained(path, RECLIP)


def test_frozen_copies_may_be_left_out(published, tmp_path):
    needed = {
        key: value
        for key, value in published.items()
        if key.startswith(("proj_net.", "text_encoder.prompt")) or key == "vit.cls_token"
    }
    loaded = weights_convert.load_trained(write_torch(tmp_path / "small.pth", needed), RECLIP)
    toys.assert_same(loaded.arrays, stored_arrays(model_of("rectification", False)))
    assert loaded.record["clip_mark"] is None


def test_what_users_confuse(published, tmp_path):
    model = model_of("rectification", False)
    raw = write_torch(tmp_path / "raw.pth", published)
    ours = save(tmp_path / "ours.safetensors", model)
    stage = "rectification"
    other_clip = weights_convert.clip_from_state_dict(toys.vit(seed=2)).visual
    for path in (raw, ours):
        assert format_of(path) is RECLIP
        with pytest.raises(CheckpointError, match=r"for 5 classes, the class list has 20"):
            load(path, stage, False, classes=["x"] * 20)
        with pytest.raises(CheckpointError, match=r"is of method ReCLIP, not ReCLIP\+\+"):
            load(path, stage, True)
        with pytest.raises(CheckpointError, match="of stage rectification, not distillation"):
            load(path, "distillation", False)
        with pytest.raises(CheckpointError, match="with another CLIP"):
            load(path, stage, False, visual=other_clip)
        loaded = load(path, stage, False)
        with pytest.raises(CheckpointError, match="with another CLIP"):
            weights_convert.export_trained(
                loaded, tmp_path / "no.pth", RECLIP, clip=toys.vit(seed=2)
            )
    # Only our own file knows its revision and class names.
    assert load(raw, stage, False, revision="2025").record["revision"] == "2025"
    with pytest.raises(CheckpointError, match="is of revision 2024, not 2025"):
        load(ours, stage, False, revision="2025")
    with pytest.raises(CheckpointError, match="number 1 is 'dog', in the class list 'fox'"):
        load(ours, stage, False, classes=["cat", "fox", *NAMES[2:]])
    with pytest.raises(CheckpointError, match="is not a file of ReCLIP"):
        load(write_torch(tmp_path / "clip.pt", toys.vit()), stage, False)
    converted = weights_convert.convert(tmp_path / "clip.pt")
    weights_convert.save_converted(tmp_path / "clip.safetensors", converted)
    with pytest.raises(CheckpointError, match="of format 'clipseg_jax CLIP"):
        load(tmp_path / "clip.safetensors", stage, False)
    with pytest.raises(CheckpointError, match="of format 'clipseg_jax ReCLIP"):
        weights_convert.load_clip(ours)
    tower = {key: value for key, value in toys.vit().items() if key.startswith("visual.")}
    with pytest.raises(CheckpointError, match="text tower"):
        weights_convert.export_trained(
            load(ours, stage, False), tmp_path / "no.pth", RECLIP, clip=tower
        )


def test_install_is_all_or_nothing():
    model = nnx.merge(*nnx.split(model_of("rectification", True)), copy=True)
    before = stored_arrays(model)
    bad = random_arrays(model, 3)
    bad["head.pe_proj.bias"] = np.zeros(3, np.float32)
    bad["head.extra"] = np.zeros(2, np.float32)
    del bad["head.decoder_norm.var"]
    with pytest.raises(CheckpointError) as caught:
        weights_convert.install(model, bad, complete=("head.",))
    assert [line.strip() for line in str(caught.value).splitlines()[1:]] == [
        "- head.decoder_norm.var: missing",
        "+ head.extra (2,): unexpected",
        "~ head.pe_proj.bias: shape (3,), expected (32,)",
    ]
    toys.assert_same(stored_arrays(model), before)


def open_mmlab(net, seed=1):
    """A network's arrays as open-mmlab stores them, and the same by our paths."""
    rng = np.random.default_rng(seed)
    ours = {
        path: rng.standard_normal(leaf.shape).astype(np.float32)
        for path, leaf in flat_arrays(net).items()
    }
    theirs = OPEN_MMLAB.to_left(ours)
    theirs |= {
        key.replace("running_mean", "num_batches_tracked"): np.zeros((), np.int64)
        for key in theirs
        if key.endswith("running_mean")
    }
    return theirs | {"fc.weight": np.zeros((10, 4)), "fc.bias": np.zeros(10)}, ours


def test_imagenet_weights(tmp_path):
    net = DilatedResNet(STUDENT, rngs=nnx.Rngs(0))
    theirs, ours = open_mmlab(net)
    some = ["stem.0.weight", "stem.7.running_var", "layer2.1.bn3.bias", "layer4.0.conv2.weight"]
    some += ["layer1.0.downsample.0.weight", "layer2.0.downsample.1.weight"]
    assert set(some) <= set(theirs)
    path = write_torch(tmp_path / "resnet50_v1c.pth", {"state_dict": theirs})
    load_imagenet(path, net)
    for name, value in flat_arrays(net).items():
        fresh = {"mean": 0, "var": 1}.get(name.rsplit(".", 1)[1])
        expected = ours[name] if fresh is None else np.full(value.shape, fresh, np.float32)
        np.testing.assert_array_equal(value, expected, err_msg=name)
    load_imagenet(path, net, statistics=True)
    toys.assert_same({k: np.asarray(v) for k, v in flat_arrays(net).items()}, ours)
    deeper = DilatedResNet(DilatedResNetConfig(blocks=(1, 2, 2, 1), width=8), rngs=nnx.Rngs(0))
    with pytest.raises(CheckpointError, match=r"\(1, 2, 1, 1\) blocks .* \(1, 2, 2, 1\)"):
        load_imagenet(path, deeper)
    del theirs["stem.4.bias"]
    theirs["layer1.0.conv1.bias"] = np.zeros(3, np.float32)
    with pytest.raises(CheckpointError) as caught:
        load_imagenet(write_torch(tmp_path / "bad.pth", {"state_dict": theirs}), net)
    assert "- stem.4.bias: missing" in str(caught.value)
    assert "+ layer1.0.conv1.bias (3,): unexpected" in str(caught.value)


def test_full_size_imagenet_names():
    net = abstract(lambda rngs: DilatedResNet(DilatedResNetConfig(), rngs=rngs))
    written = {
        key: value.shape
        for key, value in OPEN_MMLAB.to_left(
            zeros({path: leaf.shape for path, leaf in flat_arrays(net).items()})
        ).items()
    }
    # The same network by ReCLIP's names.
    expected = {}
    for key, shape in shapes("distill_shapes_ReCLIP.json").items():
        if key.startswith("backbone.") and "num_batches" not in key:
            name = key.removeprefix("backbone.").replace("norm", "bn")
            for stage in range(4):
                name = name.replace(f"res_layers.{stage}.", f"layer{stage + 1}.")
            expected[name] = shape
    assert written == expected


def test_command(published, tmp_path, capsys):
    raw = write_torch(
        tmp_path / "best_weight.pth", {f"module.{k}": v for k, v in published.items()}
    )
    clip = write_torch(tmp_path / "clip.pt", toys.as_released(toys.vit()))
    ours = tmp_path / "ours.safetensors"
    assert main([str(raw), "-o", str(ours), "--revision", "2024"]) == 0
    line = "ReCLIP, rectification, revision 2024, 5 classes, names not recorded"
    assert line in capsys.readouterr().out
    for path, kind in ((raw, "torch zip"), (ours, "torch zip")):
        assert main(["--inspect", str(path)]) == 0
        lines = capsys.readouterr().out.splitlines()
        facts = dict(line.split(maxsplit=1) for line in lines[:8])
        assert facts["kind"] == kind
        assert facts["layout"] == "ReCLIP rectification"
        assert "5 classes" in facts["sizes"]
        assert any("head.conv1.kernel" in line or "proj_net.0.weight" in line for line in lines)
    back = tmp_path / "back.pth"
    arguments = ["--export", str(back), "--to", "reclip"]
    # The toy file was made with a float32 CLIP of the same first layer only up to rounding.
    assert main([str(ours), *arguments, "--clip", str(clip)]) == 2
    assert "another CLIP" in capsys.readouterr().err
    clip = write_torch(tmp_path / "clip.pt", toys.vit())
    assert main([str(ours), *arguments, "--clip", str(clip)]) == 0
    expected = {f"module.{key}": value for key, value in published.items()}
    toys.assert_same(weights_convert.read_state_dict(back), expected)


def test_command_errors(published, tmp_path, capsys, caplog):
    raw = write_torch(tmp_path / "best_weight.pth", published)
    clip = write_torch(tmp_path / "clip.pt", toys.vit())
    out = tmp_path / "out.pth"

    def fails(*argv):
        try:
            code = main([str(arg) for arg in argv])
        except SystemExit as stop:
            code = stop.code
        said = capsys.readouterr()
        assert (code, said.out, said.err.count("\n")) == (2, "", 1)
        assert not out.exists()
        return said.err

    assert "--clip" in fails(raw, "--export", out, "--to", "reclip")
    assert "--clip" in fails(clip, "--export", out, "--to", "openai", "--clip", clip)
    assert "invalid choice" in fails(raw, "-o", out, "--revision", "2023")
    assert "--revision is for ReCLIP" in fails(clip, "-o", out, "--revision", "2024")
    assert "not a file of ReCLIP" in fails(clip, "--export", out, "--to", "reclip", "--clip", clip)
    assert main([str(raw), "--export", str(out), "--to", "openai"]) == 0  # the CLIP inside it
    assert re.search(r"only the CLIP below 'clip' is read; \d+ tensors", caplog.text)


def test_a_distilled_result_needs_no_text_tower(tmp_path):
    """Text rows and reference are in our file: a model with other ones gets them back."""
    model = model_of("distillation", True)
    path = save(tmp_path / "d.safetensors", model)
    other = nnx.merge(*nnx.split(model), copy=True)
    weights_convert.install(other, {k: v * 0 for k, v in stored_arrays(model).items()})
    weights_convert.install(other, weights_convert.load_trained(path, RECLIP).arrays)
    image = jax.random.normal(jax.random.key(0), (1, 32, 32, 3))
    np.testing.assert_array_equal(other(image), model(image))
