"""WeCLIP's and WTCLIP's inference: image to label maps, with and without CRF, and the CAMs."""

from __future__ import annotations

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from clipseg_jax.core.metrics import SegmentationMetrics, confusion_matrix
from clipseg_jax.inference import (
    InferenceConfig,
    Scores,
    label_maps,
    make_segment_fn,
    network_shapes,
    network_sizes,
)
from clipseg_jax.labels import Guide
from clipseg_jax.methods.weclip import task as weclip
from clipseg_jax.ops.crf import CRFConfig
from clipseg_jax.ops.image import IMAGENET_MEAN, IMAGENET_STD
from clipseg_jax.ops.resize import resize
from clipseg_jax.ops.window import grid_to_image
from tests import seeded
from tests.parity import cases
from tests.parity.weclip_models import Arrays, Case, model_of, normalised, pictures
from weights_convert.clip.build import install

LABELS = 0.9997  # 99.5 % in the json; seen: 6e-5 have another
LOGITS = 6e-5  # of the largest; the case multiplies the last layer, on what all blocks have rounded


def check_infer(case: Case, arrays: Arrays) -> None:
    """The protocol whole, and its parts: logits of each view, their mean, labels, CRF."""
    model = _overridden(case, arrays)
    task = weclip.build(model)
    image, told = pictures(case), case["config"]
    size = image.shape[1:3]
    cfg = InferenceConfig(
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        scale_px=(told["resize_long"],) * 2,
        ratios=tuple(told["scales"]),
        flip=told["flip"],
        average="logits",
        temperature=1.0,
    )
    sizes = network_sizes(size, cfg)
    assert [list(own) for own in sizes] == [told["resized_hw"], told["resized_hw_075"]]
    graph, state = nnx.split(model)

    def predict(state, pixels, sizes):
        return task.predict(nnx.merge(graph, state), pixels, sizes)

    logits = _check_views(case, arrays, jax.jit(predict), state, sizes, cfg)
    one = _labels(jnp.asarray(logits[:1]), size, cfg)
    cases.same_labels(one, arrays["seg_label"], share=LABELS, name="seg_label")

    _, segment = make_segment_fn(task, cfg)
    # Padded, as batches are: it must not show.
    padded = (-(-sizes[0][0] // 16) * 16 + 16, -(-sizes[0][1] // 16) * 16)
    pixels = np.pad(image, ((0, 0), (0, 9), (0, 23), (0, 0)), constant_values=77)
    made, _ = jax.jit(segment, static_argnums=4)(
        state, pixels, jnp.asarray([size]), jnp.asarray([sizes]), network_shapes(padded, cfg)
    )
    made = made[:, : size[0], : size[1]]
    cases.same_labels(made, arrays["msc_label"], share=LABELS, name="msc_label")
    _check_scores(case, arrays, made)
    _check_crf(case, arrays, image, cfg)
    _check_cam(case, arrays, model, sizes[0])


def _overridden(case, arrays):
    """The seeded model, with the biases and the gain that the case names."""
    model = model_of(case)
    gain = float(re.search(r"weight multiplied by (\d+)", case["inputs"]["linear_pred_gain"])[1])
    classifier = model.head.decoder.classifier
    install(
        model,
        {
            "head.decoder.classifier.kernel": np.asarray(classifier.kernel[...]) * gain,
            "head.decoder.classifier.bias": arrays["linear_pred_bias_override"],
            "head.fusion.fuse.bias": arrays["linear_fuse_bias_override"],
        },
    )
    return model


def _check_views(case, arrays, predict, state, sizes, cfg):
    """Logits of the image and its mirror image at both scales, and their mean.

    Returns those of the first scale.
    """
    first = resize(normalised(pictures(case)), sizes[0])
    found = []
    for name, size, ratio in zip(("segs_cat", "segs_cat_075"), sizes, cfg.ratios, strict=True):
        view = first if ratio == 1 else resize(first, size, scale_factor=(ratio, ratio))
        both = jnp.concatenate([view, view[:, :, ::-1]])
        found.append(predict(state, both, jnp.asarray([size, size])))
        cases.near(cases.nchw(found[-1]), arrays[name], share=LOGITS, name=name)
    means = [(one[:1] + one[1:, :, ::-1]) / 2 for one in found]
    mean = (means[0] + resize(means[1], means[0].shape[1:3])) / 2
    cases.near(cases.nchw(mean), arrays["msc_segs"], share=LOGITS, name="msc_segs")
    return found[0]


def _scores(logits, size):
    """Logits (1, g, k, c), to be enlarged to `size`."""
    rows, columns = (
        grid_to_image(jnp.asarray([g]), jnp.asarray([n]), grid_length=g, length=n)
        for g, n in zip(logits.shape[1:3], size, strict=True)
    )
    return Scores(logits, rows, columns)


def _labels(logits, size, cfg):
    return label_maps([_scores(logits, size)], cfg)[0]


def _check_scores(case, arrays, labels):
    """ "scores of msc_label against the mask": accuracy, mean accuracy, mIoU."""
    classes = arrays["linear_pred_bias_override"].size
    confusion = confusion_matrix(_mask(case), labels[0], classes)
    made = SegmentationMetrics.from_confusion(np.asarray(confusion))
    scores = made.all_accuracy, np.nanmean(made.accuracy), made.miou_of_labelled
    np.testing.assert_allclose(scores, arrays["scores"], rtol=0, atol=1 - LABELS)


def _mask(case):
    """The label map that the case describes."""
    height, width, count, seed = map(
        int, re.search(r"label_map\(([\d,]+)\)", case["inputs"]["mask"])[1].split(",")
    )
    ids = np.asarray(case["inputs"]["present_classes_0based"][0])
    table = np.full(256, 255)
    table[0], table[1 : len(ids) + 1] = 0, ids + 1
    return table[seeded.label_map(height, width, count, seed)]


def _check_crf(case, arrays, image, cfg):
    """From the golden logits, so that the CRF alone is tried."""
    told, logits = case["config"]["crf"], jnp.moveaxis(jnp.asarray(arrays["msc_segs"]), 1, -1)
    crf = CRFConfig(
        theta_gamma=told["pos_xy_std"], w2=told["pos_w"], theta_alpha=told["bi_xy_std"],
        theta_beta=told["bi_rgb_std"], w1=told["bi_w"], iterations=told["iter_max"],
    )  # fmt: skip
    cfg = dataclasses.replace(cfg, refine=crf, crf_image="raw")
    size = image.shape[1:3]

    @jax.jit
    def labels(scores, image):
        guide = Guide(image, image, jnp.asarray([size]))
        return label_maps([scores], cfg, guide=guide)[0]

    made = labels(_scores(logits, size), jnp.asarray(image))
    cases.same_labels(made[0], arrays["crf_label"], share=LABELS, name="crf_label")


def _check_cam(case, arrays, model, size):
    """The pseudo label in val mode: the late phase's, at the mask's size."""
    tags = np.zeros((1, model.clip.class_embeddings.shape[0]), bool)
    tags[0, case["inputs"]["present_classes_0based"][0]] = True
    graph, state = nnx.split(model)
    resized = resize(normalised(pictures(case)), size)
    shape = arrays["cam_label"].shape[1:]

    @jax.jit
    def label(state, pixels):
        return weclip.pseudo_labels(nnx.merge(graph, state), pixels, tags, late=True, size=shape)

    made = label(state, resized)
    cases.same_labels(made, arrays["cam_label"], share=LABELS, name="cam_label")
