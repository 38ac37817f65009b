"""ReCLIP's preprocessing against the published code: case `preprocess` of the `reclip` goldens.

Goes through `input_pipeline` and, for what the device does, `ops.image`; driven by the case's json.
"""

from __future__ import annotations

import re

import numpy as np

from clipseg_jax.ops.image import IMAGENET_MEAN, IMAGENET_STD, network_input, normalize
from input_pipeline.batches import transforms
from input_pipeline.datasets.images import reduce_zero_label
from tests import seeded
from tests.parity import cases

FOLDER = "reclip"
ONLY = ("preprocess",)
# Four units in the last place of what normalised pixels can be, 2.7 at most; the json allows 0.02
# at 99.5 % of the pixels, and one grey level is 0.014 or more.
ATOL = 1e-6
STATISTICS = {
    "imagenet": (IMAGENET_MEAN, IMAGENET_STD),
    # As the published configs round them.
    "clip": ((122.771, 116.746, 104.094), (68.501, 66.632, 70.323)),
}


def test_case(path):
    case, arrays = cases.load(path)
    image = seeded.image(*numbers(case["inputs"]["image"], "image"))
    label = seeded.label_map(*numbers(case["inputs"]["label"], "label_map"))
    cfg = case["config"]
    for i, run in enumerate(case["runs"]):
        check_run(cfg, run, image, label, arrays[f"image{i}"], arrays[f"label{i}"], case, i)
    check_validation(cfg, case, image, arrays["val_image"])


def numbers(text, function):
    """The integers in "... seeded.function(1, 2, 3) ..."."""
    return map(int, re.search(rf"seeded\.{function}\(([\d, ]+)\)", text).group(1).split(","))


def check_run(cfg, run, image, label, expected, expected_label, case, i):
    ids = label.astype(np.int32)
    if run["reduce_zero_label"]:
        ids = reduce_zero_label(ids, cfg["IGNORE_INDEX"])
    if run["unlabeled"]:
        ids = transforms.suppress(ids, range(cfg["NUM_CLASSES"]))

    rng = np.random.RandomState(run["numpy_seed"])
    scale = transforms.random_scale(rng, cfg["SCALE"], tuple(cfg["RATIO_RANGE"]))
    size = transforms.rescaled_size(*image.shape[:2], scale)
    assert list(size[::-1]) == run["new_size_wh"]

    crop_hw = tuple(cfg["CROP_SIZE"])
    view, ids = transforms.random_view(
        image,
        ids.astype(np.int16),  # as `training` hands it over
        np.random.RandomState(run["numpy_seed"]),
        scale=cfg["SCALE"],
        crop_hw=crop_hw,
        ratio_range=tuple(cfg["RATIO_RANGE"]),
        cat_max_ratio=cfg["CAT_MAX_RATIO"],
        ignore_label=cfg["IGNORE_INDEX"],
        saturation_wrap=True,
    )
    top, bottom, left, right = run["crop_bbox_y1y2x1x2"]
    real = min(bottom, size[0]) - top, min(right, size[1]) - left
    assert view.shape == (*real, 3)
    padded, ids = transforms.pad(view, ids, crop_hw, ignore_label=cfg["IGNORE_INDEX"])
    np.testing.assert_array_equal(ids, expected_label, err_msg=f"label{i}")

    # Normalised on the device, where the padding becomes 0 again.
    made = network_input(padded[None], np.array([real]), *STATISTICS[run["norm"]])
    picked = np.asarray(made)[0].transpose(2, 0, 1)[steps(case, f"image{i}")]
    cases.close(picked, expected, absolute=ATOL, name=f"image{i}")


def check_validation(cfg, case, image, expected):
    size = transforms.rescaled_size(*image.shape[:2], cfg["SCALE"])
    assert [3, *size] == case["val_shape"]
    resized = transforms.resize(image, size)
    worst = {}
    for name, statistics in STATISTICS.items():
        made = np.asarray(normalize(resized, *statistics)).transpose(2, 0, 1)
        worst[name] = np.abs(made[steps(case, "val_image")] - expected).max()
    # The json doesn't say whose statistics these are.
    assert min(worst.values()) <= ATOL, worst


def steps(case, name):
    return cases.steps(case["arrays"][name]["what"])
