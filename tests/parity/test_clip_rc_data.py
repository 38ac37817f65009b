"""CLIP-RC's augmentation and scores against the published code; driven by the case's json.

No network here: the augmentation goes through `input_pipeline` alone.
"""

from __future__ import annotations

import re

import numpy as np

from clipseg_jax.core.metrics import SegmentationMetrics, confusion_matrix
from clipseg_jax.evaluate import Progress, report
from input_pipeline.batches import transforms
from input_pipeline.datasets.images import reduce_zero_label
from tests import seeded
from tests.parity import cases
from tests.parity.maskclip_data_cases import Recorder, normalized

FOLDER = "clip_rc"
ONLY = ("augment", "metrics")
IMG_SCALE = (2048, 512)  # spec clip_rc, section 9.3: the same in every case
NORMALISED = 1e-6  # four units in the last place of what normalised pixels can be, 2.7 at most


def test_case(path):
    case, arrays = cases.load(path)
    {"augment": check_augment, "metrics": check_metrics}[path.stem](case, arrays)


def made(text):
    """What "seeded.image(375,500,seed=27)" and the like say."""
    name, numbers = re.fullmatch(r"seeded\.(\w+)\((.*)\)", text).groups()
    return getattr(seeded, name)(*(int(part.split("=")[-1]) for part in numbers.split(",")))


def check_augment(case, arrays):
    """Each step with the recorded draws, then all of them together."""
    for sample in case["samples"]:
        prefix = f"s{sample['sample']}_"
        expected = {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
        image, label = made(sample["image"]), made(sample["labels"])
        crop_hw = expected["gt"].shape
        (step,) = {
            int(n) for n in re.findall(r"::(\d+)", case["arrays"][f"{prefix}img"]["meaning"])
        }
        thin = (slice(None, None, step),) * 2
        told = {each["step"]: each for each in sample["steps"]}
        rng = Recorder(sample["numpy_seed"])

        size = transforms.rescaled_size(*label.shape, transforms.random_scale(rng, IMG_SCALE))
        resized, ids = transforms.resize(image, size), transforms.resize_label(label, size)
        assert list(resized.shape) == told["Resize"]["img_shape"]
        np.testing.assert_array_equal(resized[thin], expected["Resize"])
        np.testing.assert_array_equal(ids[thin], expected["gt_Resize"])
        cropped, ids = transforms.random_crop(resized, ids, rng, crop_hw)
        assert list(cropped.shape) == told["RandomCrop"]["img_shape"]
        flipped, ids = transforms.flip(cropped, ids, rng)
        assert np.array_equal(flipped, cropped[:, ::-1]) == sample["flip"]
        distorted, view_ids = transforms.distort_colours(flipped, rng), ids
        np.testing.assert_array_equal(distorted[thin], expected["PhotoMetricDistortion"])
        final, ids = transforms.pad(normalized(distorted), ids, crop_hw)
        assert list(final.shape) == told["Pad"]["img_shape"]
        cases.close(final[thin], expected["img"], absolute=NORMALISED, name="img")
        np.testing.assert_array_equal(ids, expected["gt"])
        rng.check([draw for each in sample["steps"] for draw in each["draws"]])

        whole, whole_ids = transforms.random_view(
            image,
            label,
            np.random.RandomState(sample["numpy_seed"]),
            scale=IMG_SCALE,
            crop_hw=crop_hw,
        )
        np.testing.assert_array_equal(whole, distorted)
        np.testing.assert_array_equal(whole_ids, view_ids)


def check_metrics(case, arrays):
    """All figures of the published evaluation, unrounded and as reported."""
    truth = arrays["gt"]
    if case["reduce_zero_label"]:
        truth = reduce_zero_label(truth)
    classes = len(case["seen_idx"]) + len(case["unseen_idx"])
    counts = np.asarray(confusion_matrix(truth, arrays["pred"], classes))
    metrics = SegmentationMetrics.from_confusion(counts)
    for values, name in ((metrics.iou, "iou"), (metrics.accuracy, "acc")):
        np.testing.assert_allclose(np.nan_to_num(values, nan=-1), arrays[name], rtol=1e-12)
    expected = case["results"]
    unseen = case["unseen_idx"]
    found = metrics.zero_shot(unseen)
    keys = ("pAcc", "mIoU_seen", "mIoU_unseen", "hIoU")
    np.testing.assert_allclose(100 * np.asarray(found), [expected[k] for k in keys], rtol=1e-12)

    names = [f"class {i}" for i in range(classes)]
    figures = report(Progress(counts, images=len(truth)), names, published="hIoU", unseen=unseen)
    for key, value in expected["reported_eval_dict"].items():
        assert abs(figures[key] / 100 - value) < 1e-9, key
    told = [figures[key] for key in ("pAcc", "mIoU(S)", "mIoU(U)", "hIoU")]
    assert told == [round(expected[key], 2) for key in keys]
    assert abs(figures["mIoU"] - expected["mIoU"]) < 0.005
    assert figures["unseen"] == [names[i] for i in unseen]
