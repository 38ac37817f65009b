"""DeepLabV2 against the published code: all cases of the `deeplab` goldens.

Everything is read from the case's json; weights pass through the converter's key map.
"""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax

from clipseg_jax.core.metrics import SegmentationMetrics, confusion_matrix
from clipseg_jax.core.optim import Group, OptimConfig, learning_rate, optimizer
from clipseg_jax.inference import InferenceConfig, image_scores, label_maps
from clipseg_jax.methods.clip_es import student_task as deeplab
from clipseg_jax.models.deeplab_v2 import MEAN, SCALES, STD, scaled_images
from clipseg_jax.ops.crf import DEEPLAB, dense_crf, unary_from_softmax, wrapped_image
from clipseg_jax.ops.cross_entropy import downsample_labels
from clipseg_jax.ops.image import network_input, normalize
from clipseg_jax.train_step import TrainState, make_update, split_model
from input_pipeline.batches.deeplab_views import multi_scale_crop
from tests import seeded
from tests.parity import cases
from tests.parity import deeplab_models as models
from weights_convert.trained.deeplab import to_published

FOLDER = models.FOLDER
SLOW = ("forward",)
LONG = ("train",)  # ResNet-101 at three scales, three updates: minutes of compiling
FEATURES = 8e-6  # of the array's largest value: the rounding of 101 layers


def test_case(path, goldens):
    case, arrays = cases.load(path)
    checks = {
        "forward": check_forward,
        "train": check_train,
        "labels_schedule": check_labels_schedule,
        "augment": check_augment,
        "metric": check_metric,
    }
    checks[next(stem for stem in checks if path.stem.startswith(stem))](case, arrays, goldens)


def chw(x):
    """(1, h, w, c) -> (c, h, w)."""
    return np.moveaxis(np.asarray(x)[0], -1, 0)


def check_forward(case, arrays, goldens):
    """From the image in a padded batch to scores and labels at its own size."""
    told = case["inputs"]["image"]
    models.check_mean(told)
    image = seeded.image(*models.numbers(told, "image"))
    height, width = image.shape[:2]
    task = deeplab.build(models.model(case["weights"], goldens))
    shape = (height + 15, width + 12)
    padded = np.full((1, *shape, 3), 99, np.uint8)
    padded[0, :height, :width] = image
    sizes = jnp.asarray([(height, width)])
    cfg = InferenceConfig(mean=MEAN, std=STD, scale_px=None)

    @jax.jit
    def run(model, padded):
        view = image_scores(task, model, padded, sizes, sizes, shape, cfg)
        upsampled = jnp.einsum("brg,bgkc,bwk->brwc", view.rows, view.logits, view.columns)
        pixels = normalize(padded, MEAN, STD)
        stages = (model.backbone.begin(pixels, sizes, train=False)[0],)
        stages += model.backbone(pixels, sizes, train=False)
        small = [scaled_images(pixels, scale) for scale in SCALES]
        prob = jax.nn.softmax(upsampled, axis=-1)
        return stages, small, model(pixels, sizes), view.logits, prob, label_maps([view], cfg)[0]

    stages, small, outputs, highest, prob, labels = run(task.model, jnp.asarray(padded))
    made = {f"full_layer{i}": chw(stage) for i, stage in enumerate(stages, 1)}
    made["full_aspp"] = chw(outputs[0])
    for scale, pixels, logits in zip(SCALES, small, outputs[1:], strict=False):
        made[f"input_{scale}"] = chw(pixels)[::-1]  # published: BGR
        made[f"logits_{scale}"] = chw(logits)
    made["logits_max"] = chw(highest)
    made["prob"] = chw(prob)[:, :height, :width]
    about = {name: what["meaning"] for name, what in case["arrays"].items()}
    for name, value in made.items():
        expected = arrays[name]
        if thinned := re.search(r"channels ::(\d+)", about[name]):
            value = value[:: int(thinned.group(1))]
        elif "::" in about[name]:
            step = int(re.search(r"::(\d+)", about[name]).group(1))
            real = int(height * _scale(name)), int(width * _scale(name))
            value = value[:, : real[0] : step, : real[1] : step]
        value = value[:, : expected.shape[1], : expected.shape[2]]
        share = cases.ULPS if name.startswith("input_") else FEATURES
        cases.near(value, expected, share=share, name=name)
    label = labels[0, :height, :width]
    cases.same_labels(label, arrays["label"], name="label")
    check_crf(image, made["prob"], arrays)
    rows, columns = arrays["logits_max"].shape[1:]
    assert not np.any(np.asarray(highest)[0, rows:])
    assert not np.any(np.asarray(highest)[0, :, columns:])


def check_crf(image, prob, arrays):
    """Labels after the CRF on the image that the published command gives it."""
    seen = wrapped_image(jnp.asarray(image))
    np.testing.assert_array_equal(seen[::3, ::3], arrays["crf_image"])
    energies = unary_from_softmax(jnp.moveaxis(jnp.asarray(prob), 0, -1)[None])
    marginals = jax.jit(dense_crf, static_argnums=2)(energies, seen[None], DEEPLAB)
    labels = jnp.argmax(marginals, axis=-1)[0]
    cases.same_labels(labels, arrays["crf_label"], name="crf_label")


def _scale(name):
    return float(name.removeprefix("input_")) if name.startswith("input_") else 1.0


def check_train(case, arrays, goldens):
    """The real update: accumulated sub-batches, the published groups, three steps."""
    told, about = case["config"], {k: v["meaning"] for k, v in case["arrays"].items()}
    iterations, parts, _ = arrays["losses"].shape
    task = deeplab.build(models.model(case["weights"], goldens))
    owned = [p for p in published(split_model(task).params) if p in case["parameter_names"]]
    assert sorted(owned) == sorted(n for n in case["parameter_names"] if ".bn." not in n)
    rates = [told["lr"] * factor for factor in (1.0, *(g.rate for g in deeplab.groups()))]
    np.testing.assert_allclose(rates, told["groups"], rtol=1e-12)
    decays = [told["weight_decay"][0], *(g.weight_decay for g in deeplab.groups())]
    assert [d if d is not None else told["weight_decay"][0] for d in decays] == told["weight_decay"]

    # The goldens look at the norms' gradients as well: they are computed, and move nothing.
    task = task._replace(trainable=lambda path: True)
    unmoved = Group(r"norm\d?\.", rate=0.0, weight_decay=0.0)
    optim = OptimConfig(
        learning_rate=told["lr"],
        schedule="constant",
        momentum=told["momentum"],
        weight_decay=told["weight_decay"][0],
        groups=(unmoved, *deeplab.groups()),
    )
    tx = optax.chain(_keep(), optimizer(optim, iterations))
    split = split_model(task)
    update = make_update(task, split, tx, accumulate_steps=parts)
    update = jax.jit(update, donate_argnums=0)
    zero = jnp.zeros((), jnp.int32)
    state = TrainState(zero, split.params, split.stats, tx.init(split.params), zero)
    state = jax.tree.map(jnp.copy, state)  # each its own memory, which the steps reuse
    start = published(split.params)
    # The published loop clears the gradients of what its optimiser owns; the norms' add up.
    unowned = dict.fromkeys((n for n in case["parameter_names"] if n not in owned), 0.0)
    for step in range(iterations):
        state, metrics = update(state, split.frozen, batch(case, step, parts))
        losses = [float(metrics[f"loss_{name}"]) for name in deeplab.OUTPUTS]
        bound = 1e-5 if step == 0 else 1e-4
        expected = arrays["losses"][step].mean(axis=0)
        np.testing.assert_allclose(losses, expected, rtol=bound, err_msg=f"losses of step {step}")
        np.testing.assert_allclose(metrics["loss"], expected.sum(), rtol=bound)
        gradient = published(state.opt_state[0])
        unowned = {name: total + gradient[name] for name, total in unowned.items()}
        gradient |= unowned
        norms = [np.linalg.norm(gradient[name]) for name in case["parameter_names"]]
        worst = models.relative(norms, arrays["grad_norms"][step])
        assert worst <= (3e-3 if step == 0 else 1e-2), f"gradient norms of step {step}: {worst:.1e}"
        for name in [n for n in arrays if n.startswith("grad0/") and step == 0]:
            value = gradient[name.removeprefix("grad0/")][models.picked(about[name])]
            bound = 5e-3 * np.abs(arrays[name]).max()
            cases.close(value, arrays[name], absolute=bound, name=name)
        made = published(state.params)
        prefix = f"after{step + 1}/"
        for name in [n for n in arrays if n.startswith(prefix)]:
            key, part = name.removeprefix(prefix), models.picked(about[name])
            moved = np.abs(arrays[name] - start[key][part]).max()
            value = made[key][part]
            cases.close(value, arrays[name], absolute=1e-7 + 5e-3 * moved, name=name)


def _keep():
    """A transformation whose state is the last gradient."""
    return optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params), lambda g, state, params=None: (g, g)
    )


def published(tree):
    """Parameters as a nested dictionary, by published key and in PyTorch's layout."""
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return to_published(
        {".".join(str(part.key) for part in path): np.asarray(leaf) for path, leaf in flat}
    )


def batch(case, step, parts):
    """The rows of an iteration, its sub-batches interleaved as `make_update` deals them."""
    told = case["inputs"]["batches"]
    size = int(re.search(r"batch (\d+)", told).group(1))
    height, width, classes, base, stride = map(
        int,
        re.search(r"seeded\.label_map\((\d+),(\d+),(\d+),(\d+)\+(\d+)\*d\+b\)", told).groups(),
    )
    assert f"seeded.image({height},{width},{base}+{stride}*d+b)" in told
    seeds = [
        base + stride * (parts * step + part) + b for b in range(size) for part in range(parts)
    ]
    return {
        "image": jnp.asarray(np.stack([seeded.image(height, width, s) for s in seeds])),
        "image_size": jnp.asarray([(height, width)] * len(seeds)),
        "label": jnp.asarray(
            np.stack([seeded.label_map(height, width, classes, s) for s in seeds]), jnp.int32
        ),
    }


def check_labels_schedule(case, arrays, goldens):
    labels = seeded.label_map(*models.numbers(case["inputs"], "label_map"))
    for name in [n for n in arrays if n.startswith("r")]:
        made = downsample_labels(jnp.asarray(labels[None]), arrays[name].shape)[0]
        np.testing.assert_array_equal(made, arrays[name], err_msg=name)
    told = re.search(
        r"base ([\d.]+), LR_DECAY (\d+), ITER_MAX (\d+), power ([\d.]+)",
        case["arrays"]["lr"]["meaning"],
    )
    base, hold, total, power = map(float, told.groups())
    cfg = OptimConfig(learning_rate=base, schedule="poly", power=power, hold_steps=int(hold))
    steps = np.arange(len(arrays["lr"]))  # ours are counted from 0, theirs from 1
    with jax.enable_x64(True):  # the formula itself; the loop runs it in float32
        exact = learning_rate(cfg, int(total))(steps.astype(np.int64))
        np.testing.assert_allclose(exact, arrays["lr"], rtol=1e-12)
    single = learning_rate(cfg, int(total))(jnp.asarray(steps, jnp.int32))
    np.testing.assert_allclose(single, arrays["lr"], rtol=cases.ULPS)


class Drawn:
    """A generator that gives what the published code drew, in its order."""

    def __init__(self, run, scales):
        self._scales, self._scale = len(scales), scales.index(run["scale"])
        self._rest = [("top", run["start_h"]), ("left", run["start_w"])]
        self._flip = run["flip_draw"]

    def randint(self, low, high=None):
        if self._scale is not None:
            assert (low, high) == (self._scales, None)
            drawn, self._scale = self._scale, None
            return drawn
        _, drawn = self._rest.pop(0)
        assert low <= drawn < high
        return drawn

    def rand(self):
        assert not self._rest
        drawn, self._flip = self._flip, None
        return drawn


def check_augment(case, arrays, goldens):
    told = case["config"]
    assert tuple(told["mean_bgr"]) == MEAN[::-1]
    samples = case["inputs"]["samples"]
    repeats = len(case["draws"]) // len(samples)
    for i, run in enumerate(case["draws"]):
        sample = samples[i // repeats]
        image = seeded.image(*models.numbers(sample, "image"))
        label = seeded.label_map(*models.numbers(sample, "label_map")).astype(np.int16)
        crop = (told["crop"], told["crop"])
        view, ids = multi_scale_crop(
            image,
            label,
            Drawn(run, told["scales"]),
            scales=told["scales"],
            crop_hw=crop,
            colour=MEAN,
            ignore_label=told["ignore"],
        )
        assert view.shape == (*crop, 3)
        np.testing.assert_array_equal(ids, arrays[f"label{i}"], err_msg=f"label{i}")
        pixels = network_input(view[None], np.asarray([crop]), MEAN, STD)
        made = chw(pixels)[::-1][cases.steps(case["arrays"][f"image{i}"]["meaning"])]
        cases.near(made, arrays[f"image{i}"], share=cases.ULPS, name=f"image{i}")


def check_metric(case, arrays, goldens):
    classes = int(re.search(r"n_class=(\d+)", case["ran"]).group(1))
    height, width, label_classes = map(
        int, re.search(r"seeded\.label_map\((\d+),(\d+),(\d+),i\)", case["inputs"]).groups()
    )
    truth = [seeded.label_map(height, width, label_classes, i) for i in range(len(arrays["pred"]))]
    confusion = np.asarray(confusion_matrix(np.stack(truth), arrays["pred"], classes), np.int64)
    made = SegmentationMetrics.from_confusion(confusion)
    present = confusion.sum(1) > 0  # published: a class without truth is in no mean
    np.testing.assert_allclose(
        np.where(np.isnan(made.iou), -1, made.iou), arrays["class_iou"], rtol=1e-12
    )
    share = confusion.sum(1) / confusion.sum()
    summary = [
        made.all_accuracy,
        made.accuracy[present].mean(),
        (share * np.nan_to_num(made.iou))[present].sum(),
        made.iou[present].mean(),
    ]
    np.testing.assert_allclose(summary, arrays["summary"], rtol=1e-12)
