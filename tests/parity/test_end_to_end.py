"""Whole recipes against what the released programs wrote on one small VOC folder.

The `e2e` folder of goldens: README.md says what is there. One checkpoint file, one folder, every
stage through `main`; what our files hold and what the published ones hold is compared.
"""

from __future__ import annotations

import functools
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from clipseg_jax import main
from clipseg_jax.core.metrics import SegmentationMetrics, confusion_on_host
from clipseg_jax.methods.clip_es.published_cams import read_cam
from clipseg_jax.stages.data import find_dataset
from configs import voc_clip_es
from tests import seeded
from tests.parity import cases, clip_es_models
from weights_convert.formats.torch_writer import write_torch

pytestmark = pytest.mark.long

FOLDER = "e2e"
_HALF = re.compile(
    r"(in_proj_weight|in_proj_bias|out_proj\.weight|out_proj\.bias|c_fc\.weight|c_fc\.bias|"
    r"c_proj\.weight|c_proj\.bias|conv1\.weight|text_projection|visual\.proj)$"
)


@pytest.fixture(scope="module")
def folder(request):
    given = request.config.getoption("goldens") / FOLDER
    return given if given.is_dir() else cases.DEFAULT / FOLDER


@pytest.fixture(scope="module")
def checkpoint(request, tmp_path_factory):
    """The seeded ViT-B/16 of README.md as a PyTorch file."""
    shapes = cases.shapes(request.config.getoption("goldens"), "ViT-B/16")
    weights = seeded.state_dict(shapes, 11)
    for key, value in weights.items():
        if key.startswith("visual.") and key.endswith("in_proj_weight"):
            rows = 2 * len(value) // 3
            value = np.concatenate([value[:rows] * np.float32(3), value[rows:]])
        weights[key] = value.astype(np.float16) if _HALF.search(key) else value
    return write_torch(tmp_path_factory.mktemp("clip") / "vit_b16.pth", weights)


def test_clip_es(folder, checkpoint, tmp_path):
    printed = json.loads((folder / "clip_es/printed.json").read_text())
    approx = functools.partial(pytest.approx, rel=0, abs=0.01)
    powers = printed["eval_cam"]["power"]
    sweep = printed["eval_cam_sweep_power_1"]
    root = shutil.copytree(folder / "VOC2012", tmp_path / "VOC2012")
    config = voc_clip_es.get_config()
    config.clip.weights, config.dataset.root = str(checkpoint), str(root)
    config.stages = ("data", "text", "cams", "evaluate_cams", "masks", "evaluate_masks")
    config.run.write_npy = True
    config.cams.thresholds = (*map(float, powers), *map(float, sweep))
    workdir = tmp_path / "workdir"
    main.run(config, workdir)

    theirs = folder / "clip_es"
    names = sorted(path.stem for path in (theirs / "cams").iterdir())
    assert names == sorted(path.stem for path in (workdir / "cams_npy").iterdir())
    pixels = different = 0
    for name in names:
        made, expected = (
            read_cam(each / f"{name}.npy") for each in (workdir / "cams_npy", theirs / "cams")
        )
        np.testing.assert_array_equal(made.classes, expected.classes, err_msg=name)
        clip_es_models.same_saved(made.maps, expected.maps)
        mask, expected_mask = (
            np.asarray(Image.open(each / f"{name}.png"))
            for each in (workdir / "masks", theirs / "masks")
        )
        assert mask.shape == expected_mask.shape, name
        pixels, different = pixels + mask.size, different + np.sum(mask != expected_mask)
    assert different <= 1e-4 * pixels, f"{different} of {pixels} pixels of the masks differ"

    # Ours are rounded to two decimals of a percent.
    found = json.loads((workdir / "metrics_cams.json").read_text())
    expected = {float(k): 100 * v for k, v in (powers | sweep).items()}
    scores = found["mIoU_of_labelled_by_threshold"]
    assert {float(k): v for k, v in scores.items()} == approx(expected)
    found = json.loads((workdir / "metrics_masks.json").read_text())
    expected = printed["eval_cam_with_crf_eval_only"]
    assert found["mIoU_of_labelled"] == approx(100 * expected["mean_iou"])
    assert found["aAcc"] == approx(100 * expected["pixel_accuracy"])
    # Single classes, from the files: a class of few pixels moves by more than the mean.
    dataset = find_dataset(config.dataset)
    confusion = np.zeros((dataset.num_classes,) * 2, np.int64)
    for name in (root / "ImageSets/Segmentation/train.txt").read_text().split():
        files = root / "SegmentationClass" / f"{name}.png", workdir / "crf" / f"{name}.png"
        truth, labels = (np.asarray(Image.open(file)) for file in files)
        confusion += confusion_on_host(truth, labels, dataset.num_classes)
    iou = 100 * SegmentationMetrics.from_confusion(confusion).iou
    assert {str(i): value for i, value in enumerate(iou) if not np.isnan(value)} == {
        k: approx(100 * v, abs=0.02) for k, v in expected["class_iou"].items()
    }
    found = json.loads((workdir / "metrics_cams.json").read_text())
    assert found["aAcc"] == approx(100 * printed["eval_cam"]["pixel_accuracy"])
