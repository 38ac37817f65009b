"""WeCLIP's augmentation and scores against the published code: `augment*` and `metrics*` cases.

Driven by the cases' json; the draws are those that the published code made.
"""

from __future__ import annotations

import re

import numpy as np

from clipseg_jax.core.metrics import SegmentationMetrics, confusion_matrix
from clipseg_jax.ops.image import IMAGENET_MEAN, IMAGENET_STD, network_input
from input_pipeline.batches.weclip_views import random_placement_view
from tests import seeded
from tests.parity import cases

FOLDER = "weclip"
ONLY = ("augment", "metrics")


def test_case(path):
    case, arrays = cases.load(path)
    {"augment": check_augment, "metrics": check_metrics}[case["case"].split("_")[0]](case, arrays)


class Recorded:
    """Hands out recorded draws in their order, by the functions that a generator has."""

    def __init__(self, draws):
        self.draws = iter(draws)

    def take(self, name):
        found, value = next(self.draws)
        assert found == name
        return value

    def uniform(self, low, high):
        value = self.take("scale")
        assert low <= value <= high
        return value

    def random_sample(self):
        return self.take("flip_u")

    def randint(self, bound):
        found, value = next(self.draws)
        assert found in ("pad", "crop_start")
        assert 0 <= value < bound
        return int(value)


def check_augment(case, arrays):
    told = case["inputs"]
    image = seeded.image(*numbers(told["image"]))
    crop_hw = (told["crop_size"], told["crop_size"])
    for i, draws in enumerate(case["config"]["draws"]):
        rng = Recorded(draws)
        made, label = random_placement_view(
            image,
            np.zeros(image.shape[:2], np.int16),
            rng,
            ratio_range=tuple(told["rescale_range"]),
            crop_hw=crop_hw,
        )
        assert next(rng.draws, None) is None
        # Pillow's resize is the same in all its versions of late; the json would allow one level.
        np.testing.assert_array_equal(made, arrays[f"crop{i}"], err_msg=f"crop{i}")
        rows, columns = (np.flatnonzero((label == 0).any(axis)) for axis in (1, 0))
        box = [rows[0], rows[-1] + 1, columns[0], columns[-1] + 1]
        # Theirs counts the far ends from the larger picture's origin; nothing reads it.
        theirs = np.minimum(arrays[f"box{i}"], crop_hw[0])
        np.testing.assert_array_equal(box, theirs, err_msg=f"box{i}")
        # As the task does it: the black padding is normalised like the picture.
        pixels = network_input(made[None], np.array([crop_hw]), IMAGENET_MEAN, IMAGENET_STD)
        step = int(re.search(r"::(\d+)", case["arrays"][f"norm{i}_sub"]["meaning"]).group(1))
        picked = cases.nchw(pixels)[0][:, ::step, ::step]
        cases.near(picked, arrays[f"norm{i}_sub"], share=cases.ULPS, name=f"norm{i}")


def numbers(text):
    """The integers in "seeded.function(1,2,3)"."""
    return map(int, re.search(r"\(([\d,\s]+)\)", text).group(1).split(","))


def check_metrics(case, arrays):
    told = case["inputs"]
    classes, total = told["num_classes"], 0
    count = int(re.search(r"for i in 0\.\.(\d+)", told["gt"]).group(1)) + 1
    for i in range(count):
        truth, found = (seeded_map(told[name], i) for name in ("gt", "pred"))
        total += np.asarray(confusion_matrix(truth, found, classes))
    np.testing.assert_array_equal(total, arrays["hist"])
    made = SegmentationMetrics.from_confusion(total)
    scores = made.all_accuracy, np.nanmean(made.accuracy), made.miou_of_labelled
    np.testing.assert_allclose(scores, arrays["scores"], rtol=1e-12)


def seeded_map(text, i):
    """ "seeded.label_map(60+7*i,80,7,31+i)" for one i; the arguments are sums of such terms."""
    inner = re.search(r"label_map\((.*?)\)", text).group(1)
    return seeded.label_map(*(evaluated(part, i) for part in inner.split(",")))


def evaluated(term, i):
    if term == "None":
        return None
    return sum(
        int(np.prod([i if factor == "i" else int(factor) for factor in part.split("*")]))
        for part in term.split("+")
    )
