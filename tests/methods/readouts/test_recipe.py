"""Every recipe of a read-out, whole, on small folders in the published layouts; every method."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipseg_jax import main
from clipseg_jax.core.config_show import shown
from clipseg_jax.methods.readouts import recipe
from clipseg_jax.stages import clip, preflight
from clipseg_jax.stages.clip import row_labels, row_words
from configs import (
    ade20k_readout,
    cityscapes_readout,
    coco_object_readout,
    coco_stuff_readout,
    context59_readout,
    context60_readout,
    demo_readout,
    voc20_readout,
    voc21_readout,
)
from configs.base import readouts
from input_pipeline.datasets import catalog
from input_pipeline.prepare import __main__ as prepare
from tests import folders, seeded
from tests.input_pipeline.prepare import prepared
from tests.weights_convert import toys
from weights_convert.formats import torch_writer


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A CLIP of twelve narrow layers that reads every name, and a DINO of two."""
    folder = tmp_path_factory.mktemp("weights")
    shapes = toys.vit_shapes(width=64, layers=12, patch=16, vocabulary=49408, layers_of_text=1)
    folders.write_clip(folder / "clip.safetensors", shapes)
    torch_writer.write_torch(folder / "dino.pth", seeded.state_dict(dino_shapes(), 3))
    return folder


def dino_shapes(width=64, layers=2, patch=8, grid=4):
    """Spec readouts, section 12: the keys of a DINO's file."""
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 1 + grid**2, width),
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    for i in range(layers):
        for name, rows, columns in (
            ("attn.qkv", 3 * width, width),
            ("attn.proj", width, width),
            ("mlp.fc1", 4 * width, width),
            ("mlp.fc2", width, 4 * width),
        ):
            shapes[f"blocks.{i}.{name}.weight"] = (rows, columns)
            shapes[f"blocks.{i}.{name}.bias"] = (rows,)
        for name in ("norm1", "norm2"):
            shapes |= {f"blocks.{i}.{name}.{leaf}": (width,) for leaf in ("weight", "bias")}
    return shapes


def write_coco_object(root):
    """COCO-Stuff's raw maps, from which the command makes the labels."""
    folders.write_coco_stuff(root, train=0, val=2)
    for label in (root / "annotations/val2017").iterdir():
        raw = seeded.label_map(72, 96, 171, 1)
        label.unlink()
        Image.fromarray(raw.astype(np.uint8)).save(
            label.with_name(label.name.replace("_labelTrainIds", ""))
        )
    # The number of images is not the published one.
    assert prepare.main(["coco_object", "--root", str(root), "--write"]) == 1
    return root


WRITE = {
    "voc": lambda root: folders.write_voc(root, train=0, val=2),
    "context": lambda root: folders.write_context(root, train=0, val=2),
    "coco_object": write_coco_object,
    "coco_stuff": lambda root: folders.write_coco_stuff(root, train=0, val=2),
    "cityscapes": lambda root: prepared.whole(root, "cityscapes"),
    "ade20k": lambda root: prepared.whole(root, "ade20k"),
}
# Every dataset, and every method at least once; numbers of text rows as published.
RUNS = [
    (voc21_readout, "scclip", "voc", 56, {}),
    (voc20_readout, "naclip", "voc", 30, {"inference.refine": "pamr"}),
    (context60_readout, "resclip", "context", 60, {}),
    (context59_readout, "clip", "context", 59, {}),
    (coco_object_readout, "sclip", "coco_object", 113, {}),
    (cityscapes_readout, "clearclip", "cityscapes", 19, {}),
    (ade20k_readout, "proxyclip", "ade20k", 150, {}),
    (coco_stuff_readout, "value", "coco_stuff", 171, {}),
]


def small(config, weights, root):
    """Less of everything, in the published order of sizes; the windows still overlap."""
    config.clip.weights = str(weights / "clip.safetensors")
    config.dataset.root = str(root)
    config.text.templates = "single"
    config.inference.scale_px = (512, 128)
    config.inference.crop_px, config.inference.stride_px = (112, 112), (56, 56)
    if config.inference.pad_to_px == 16:
        config.inference.crop_px = (104, 104)  # is padded
    config.run.devices, config.run.batch_size = 1, 2
    if config.read_out.name == "proxyclip":
        config.dino.weights = str(weights / "dino.pth")
    return config


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "method", "layout", "rows", "settings"),
    RUNS,
    ids=[f"{m.__name__.partition('.')[2]}-{x[0]}" for m, *x in RUNS],
)
def test_the_whole_recipe(module, method, layout, rows, settings, weights, tmp_path):
    config = small(module.get_config(method), weights, WRITE[layout](tmp_path / "data"))
    config.update_from_flattened_dict(settings)
    config.run.predictions = True
    records = main.run(config, tmp_path / "work")
    assert tuple(records) == ("data", "text", "evaluate")
    assert records["text"]["rows"] == rows
    metrics = json.loads((tmp_path / "work/metrics.json").read_text())
    assert metrics["skipped"] == []
    assert 0 <= metrics["mIoU"] < 100
    dataset = catalog.BY_NAME[config.dataset.name]
    assert set(metrics["classes"]) == set(dataset.class_names)
    for path in (tmp_path / "work/predictions").rglob("*.png"):
        labels = np.asarray(Image.open(path))
        assert labels.max() < dataset.num_classes


def test_a_published_name_of_two_classes(weights, tmp_path):
    """COCO-Object's "bed", a class and a word of the background: equal rows in two places."""
    config = small(coco_object_readout.get_config("sclip"), weights, tmp_path)
    words, labels = row_words(config), row_labels(config)
    first, second = (i for i, word in enumerate(words) if word == "bed")
    assert labels[first] == 0
    assert catalog.COCO_OBJECT.class_names[labels[second]] == "bed"
    clip.text(config, tmp_path)
    rows = clip.read_embeddings(config, tmp_path)
    np.testing.assert_array_equal(rows[first], rows[second])
    assert not np.allclose(rows[second], rows[second + 1])
    config.text.names, config.text.background_words = "", ("wall", "bed")
    with pytest.raises(ValueError, match="class 'bed' is listed twice"):
        clip.text(config, tmp_path)


def test_every_method_and_dataset_runs():
    assert {method for _, method, *_ in RUNS} == set(readouts.CHOICES)
    files = {module.__name__.partition(".")[2] for module, *_ in RUNS}
    found = {path.stem for path in Path(demo_readout.__file__).parent.glob("*_readout.py")}
    assert files == found - {"demo_readout"}


def test_rows_and_labels():
    """Each name of a class is a row with its label; words of the user's are background."""
    config = voc21_readout.get_config("naclip")
    words, labels = row_words(config), row_labels(config)
    assert len(words) == len(labels) == 56
    assert [w for w, i in zip(words, labels, strict=True) if i == 0][:2] == ["sky", "wall"]
    assert labels[26:28] == (1, 2)
    assert sorted(set(labels)) == list(range(21))
    config.text.names = ""
    config.text.background_words = ("wall", "floor")
    assert row_labels(config) == (*range(1, 21), 0, 0)
    assert row_words(config)[:2] == ["airplane", "bicycle"]
    config.text.names = "context59"
    with pytest.raises(ValueError, match=r"text\.names=context59 has 59 classes, VOC12_21 21; "):
        row_words(config)
    demo = demo_readout.get_config("value")
    assert row_labels(demo)[:13] == (*range(1, 13), 0)


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("proxyclip", {}, r"no DINO weights; pass --config\.dino\.weights=dino_vitb8 or another"),
        ("naclip", {"read_out.name": "gem"}, r"--config\.read_out\.name is 'gem'; give 'value' or"),
        ("naclip", {"read_out.cross": 0.3}, r"cross is for resclip, not for naclip; omit it"),
        ("resclip", {"read_out.cross": 1.3}, r"read_out\.cross is 1\.3; give a number from 0 to 1"),
        ("scclip", {"read_out.feedback.enabled": True}, "feedback.enabled=True changes attention"),
        ("resclip", {"read_out.feedback.gain": 0.0}, r"feedback\.gain is 0\.0; give a number"),
        ("resclip", {"read_out.feedback.share": 2.0}, r"feedback\.share is 2\.0"),
        ("resclip", {"read_out.proxy.gamma": 0.0}, r"proxy\.gamma is 0\.0"),
        ("naclip", {"inference.refine": "pam"}, r"--config\.inference: refine is 'pam'; give ''"),
        ("naclip", {"inference.pamr.steps": -1}, r"--config\.inference: steps is -1"),
        ("naclip", {"inference.pamr.dilations": ()}, "--config.inference: dilations is empty"),
        ("naclip", {"inference.pad_to_px": -1}, r"pad_to_px is -1"),
        ("naclip", {"clip.position_offset": -50.0}, r"position_offset is -50\.0; give a number"),
        ("naclip", {"inference.area_threshold": 10.0}, r"area_threshold is 10\.0"),
        ("naclip", {"text.names": "voc"}, "No read-out names 'voc'; choose one of: voc20"),
        ("naclip", {"text.names": "ade20k"}, "has 150 classes, VOC12_21 21; choose that"),
    ],
)
def test_values_without_meaning(method, settings, message, monkeypatch):
    monkeypatch.setattr(preflight, "_check_paths", lambda *_: None)  # of data that is not here
    config = voc21_readout.get_config(method)
    config.update_from_flattened_dict(settings)
    with pytest.raises(ValueError, match=message):
        preflight.check(config, ())


def test_windows_are_padded_to_whole_patches(weights, tmp_path):
    """16 px, ClearCLIP's patch, would leave part of one of ViT-L/14 over."""
    config = small(cityscapes_readout.get_config("clearclip"), weights, tmp_path)
    config.inference.pad_to_px = 24
    clip.text(config, tmp_path)
    with pytest.raises(ValueError, match=r"pad_to_px=24 is no multiple .*, 16 px; set it to 16"):
        recipe.build(config, tmp_path)
    config.inference.pad_to_px = 32
    recipe.build(config, tmp_path)


def test_every_value_is_explained():
    """What `--show` prints of the sections that are the read-outs' own."""
    folder = Path(demo_readout.__file__).parent
    sources = [folder / name for name in ("base/loops.py", "base/readouts.py", "voc21_readout.py")]
    lines = [*shown(voc21_readout.get_config("naclip"), sources)]
    own = [line for line in lines if line.startswith(("read_out.", "inference.", "text.", "dino."))]
    assert {line.partition(".")[0] for line in own} == {"read_out", "inference", "text", "dino"}
    templates = "text.templates"  # speaks for itself
    assert not [line for line in own if "  # " not in line and not line.startswith(templates)]


def test_unknown_methods():
    with pytest.raises(ValueError, match=r"^no read-out 'gem'; choose one of clip, value, sclip, "):
        voc21_readout.get_config("gem")
    with pytest.raises(ValueError, match="proxyclip needs a DINO, and the demo has none"):
        demo_readout.get_config("proxyclip")
    assert voc21_readout.get_config().read_out.name == readouts.DEFAULT == "scclip"
