"""CLIP-RC's sliding windows against the published code: resize, scores, label maps, areas."""

from __future__ import annotations

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np

from clipseg_jax.core.metrics import confusion_matrix
from clipseg_jax.inference import (
    InferenceConfig,
    image_scores,
    make_segment_fn,
    network_shapes,
    network_sizes,
)
from clipseg_jax.methods.clip_rc import task as clip_rc
from clipseg_jax.ops.image import IMAGENET_MEAN, IMAGENET_STD, opencv_resize
from clipseg_jax.ops.resize import resize
from clipseg_jax.ops.window import count_windows
from input_pipeline.datasets.images import reduce_zero_label
from tests import seeded
from tests.parity import cases
from tests.parity import clip_rc_models as models

FOLDER = models.FOLDER
ONLY = ("slide",)
SLOW = ("slide",)


def test_case(path, goldens):
    case, arrays = cases.load(path)
    image, truth = inputs(case)
    about = case["reference_config"]
    model = models.model(case, goldens)
    tasks = {
        setting: clip_rc.build(
            model, clip_rc.CLIPRCTaskConfig(setting=setting, seen=tuple(about["base_class"]))
        )
        for setting in ("inductive", "transductive")
    }
    cfg = InferenceConfig(
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        scale_px=(100_000, case["resize"]["min_size"]),
        mode="slide",
        crop_px=tuple(about["crop_size"]),
        stride_px=tuple(about["stride"]),
    )
    check_resize(case, arrays, image, cfg)
    check_scores(case, arrays, image.shape[:2], tasks, cfg)
    check_image(case, arrays, image, tasks["inductive"], cfg)
    check_areas(case, arrays, truth)


def inputs(case):
    """The image, and the truth as it is scored."""
    made = []
    for kind in ("image", "label_map"):
        found = re.search(rf"seeded\.{kind}\(([\d,]+),seed=(\d+)\+(\d+)\)", case["inputs"])
        *sizes, seed, more = [*found.group(1).split(","), found.group(2), found.group(3)]
        made.append(getattr(seeded, kind)(*map(int, sizes), int(seed) + int(more)))
    image, truth = made
    return image, reduce_zero_label(truth) if case["reduce_zero_label"] else truth


def check_resize(case, arrays, image, cfg):
    (size,) = network_sizes(image.shape[:2], cfg)
    assert list(size) == case["resize"]["result_hw"]
    windows = [count_windows(*n) for n in zip(size, cfg.crop_px, cfg.stride_px, strict=True)]
    assert windows[0] * windows[1] == case["windows"]
    made = opencv_resize(
        jnp.asarray(image)[None], jnp.asarray([image.shape[:2]]), jnp.asarray([size]), size
    )[0]
    np.testing.assert_array_equal(made, arrays["resized_rgb"])


def check_scores(case, arrays, image_hw, tasks, cfg):
    """From the resized image: scores of both kinds of models, and their labels."""
    resized = jnp.asarray(arrays["resized_rgb"])[None]
    shape = resized.shape[1:3]
    sizes, task = jnp.asarray([shape]), tasks["inductive"]
    cfg = dataclasses.replace(cfg, scale_px=None)

    @jax.jit
    def run(model):
        view = image_scores(task, model, resized, sizes, sizes, shape, cfg, rescale=False)
        maps = [
            view._replace(pixel_scores=each.pixel_scores).at(view.rows) for each in tasks.values()
        ]
        return maps[0], [jnp.argmax(resize(each, image_hw), axis=-1)[0] for each in maps]

    scores, labels = run(task.model)
    thin = models.thinned(cases.nchw(scores), case["arrays"]["logits"]["meaning"])
    cases.near(thin, arrays["logits"], share=1e-5, name="scores")
    for made, name in zip(labels, ("label_inductive", "label_self_training"), strict=True):
        cases.same_labels(made, arrays[name], name=name)


def check_image(case, arrays, image, task, cfg):
    """As evaluation does it, from the image itself: one view, then scales and mirror images."""
    told = case["arrays"]["label_aug_test"]["meaning"]
    ratios = re.search(r"img_ratios \[([\d., ]+)\]", told).group(1)
    several = dataclasses.replace(
        cfg, ratios=tuple(map(float, ratios.split(","))), flip="horizontal flip" in told
    )
    padded = np.pad(image, ((0, 12), (0, 9), (0, 0)))[None]
    for name, own in (("label_inductive", cfg), ("label_aug_test", several)):
        state, segment = make_segment_fn(task, own)
        sizes = network_sizes(image.shape[:2], own)
        bucket = tuple(-(-side // 16) * 16 + 16 for side in sizes[0])
        shapes = tuple(sizes) if own is several else network_shapes(bucket, own)
        labels, _ = jax.jit(segment, static_argnums=4)(
            state, padded, jnp.asarray([image.shape[:2]]), jnp.asarray([sizes]), shapes
        )
        made = np.asarray(labels)[0, : image.shape[0], : image.shape[1]]
        cases.same_labels(made, arrays[name], name=name)


def check_areas(case, arrays, truth):
    counts = np.asarray(
        confusion_matrix(truth, arrays["label_inductive"], arrays["eval_areas"].shape[1])
    )
    hit, of_truth, of_labels = np.diag(counts), counts.sum(1), counts.sum(0)
    made = np.stack([hit, of_truth + of_labels - hit, of_labels, of_truth])
    np.testing.assert_array_equal(made, arrays["eval_areas"])
