"""Checks of the read-outs of CLIP alone; what a case has is read from its json and arrays."""

from __future__ import annotations

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import weights_convert
from clipseg_jax.inference import InferenceConfig, image_scores
from clipseg_jax.methods.readouts.feedback import (
    FeedbackConfig,
    feedback_matrix,
    patch_classes,
    temporary_probabilities,
)
from clipseg_jax.methods.readouts.model import ReadOutModel
from clipseg_jax.models.clip import VisionTransformer, ViTConfig
from clipseg_jax.models.clip.calibration import outlier_scores, outliers
from clipseg_jax.models.clip.dense import dense_features, encode, read
from clipseg_jax.models.clip.last_block import neighbour_map
from clipseg_jax.models.clip.read_outs import READ_OUTS, VALUE, ReadOut
from clipseg_jax.ops.image import normalize
from clipseg_jax.ops.resize import resize
from clipseg_jax.ops.window import compose_resize
from clipseg_jax.task import Task
from tests import seeded
from tests.parity import cases
from tests.parity.readouts_compare import near, pick
from tests.parity.readouts_postprocess_cases import class_maps

# The published preprocessing (spec readouts, section 2).
MEAN, STD = (122.771, 116.746, 104.094), (68.501, 66.632, 70.323)
TOWER = {"position_keep_count": True, "position_offset": 0.1, "pad_to_patch": False}
RULE = "int(1.37*h), int(1.37*w)"
SAME_LABELS = 0.998  # of every case's json; scores are equal to rounding in many pixels
DIVIDED = ("naclip", "resclip")  # they report class scores divided by their sum


def image_tower(case, goldens):
    """The seeded ViT that a case describes."""
    shapes = cases.shapes(goldens, case["shapes_key"], "readouts")
    weights = cases.weights(case["weights"], shapes)
    clip = weights_convert.clip_from_state_dict(weights)
    return weights_convert.with_config(clip, clip.cfg.replace(**TOWER)).visual


def check_read_out(case, arrays, goldens):
    """One of the papers: dense features, cosines, windows, class scores and labels."""
    method = case["case"].split("_")[0]
    visual = image_tower(case, goldens)
    model = ReadOutModel(visual, arrays["text"], *of_case(method, case["config"]))
    checked = {"text", "query_idx", "text_whole"}
    for h, w in case["sizes"]:
        pixels = network_input(h, w, case["image_seed"])
        checked |= check_window(model, pixels, case, arrays)
    for name in arrays:
        if found := re.fullmatch(r"neighbours_(\d+)x(\d+)_std([\d.]+)", name):
            grid = int(found[1]), int(found[2])
            near(neighbour_map(grid, float(found[3]))[0], arrays[name], case, name=name)
            checked.add(name)
    config = case["config"]
    windows = {"mode": "slide", "crop_px": config.get("crop"), "stride_px": config.get("stride")}
    if method == "clearclip":
        windows["pad_to_px"] = visual.cfg.patch_px
    images = {"slide": (case.get("slide_size"), config.get("slide_image_seed"))}
    images["padded"] = (config.get("padded_size"), config.get("padded_image_seed"))
    for size, seed in images.values():
        if size is not None:
            checked |= check_windows(model, seeded.image(*size, seed), windows, case, arrays)
    if "whole_size" in case:
        model = ReadOutModel(visual, arrays["text_whole"], *of_case(method, config))
        checked |= check_whole_image(model, method, case, arrays)
    assert checked >= set(arrays), f"not compared: {sorted(set(arrays) - checked)}"


def of_case(method, config):
    """The read-out and the feedback that a case's "config" describes."""
    read_out, feedback = READ_OUTS[method], None
    if method == "scclip" and "beta" in config:
        calibration = dataclasses.replace(
            read_out.calibration,
            threshold=config["beta"],
            similarity=config["similarity_block_output"],
            aggregate=config["aggregate_block_output"],
            fused=(config["fused_block_outputs"][0], config["fused_block_outputs"][-1]),
            class_share=config["res_cls"],
            neighbours=config["neighbours"],
            outliers=config["contamination"],
        )
        read_out = dataclasses.replace(read_out, calibration=calibration)
    if method == "resclip":
        gain, share = config["rcs_weights"]
        blocks = [index + 1 for index in config.get("rcs_blocks_0based", (5, 6, 7, 8))]
        read_out = dataclasses.replace(
            read_out,
            gain=gain,
            neighbours=float(config["gaussian_std"]),
            cross=share,
            cross_blocks=tuple(blocks),
        )
        gain, share = config["sfr_weights"]
        feedback = FeedbackConfig(config["temp_thd"], gain, share, config["logit_scale"])
    return read_out, feedback


def network_input(h, w, seed):
    return normalize(jnp.asarray(seeded.image(h, w, seed))[None], MEAN, STD)


def original_size(case, size):
    """The size of the labels, by the rule that the case states."""
    factor = float(re.search(r"int\(([\d.]+)\*", case.get("original_size_rule", RULE)).group(1))
    return tuple(int(factor * side) for side in size)


def check_window(model, pixels, case, arrays):
    """One window: features, cosines, and what is inside; returns the names of what it compared."""
    suffix = "_{}x{}".format(*pixels.shape[1:3])

    @jax.jit
    def run(model, pixels):
        dense = model.dense(pixels)
        cosines = model.classify(dense)
        return dense.features[0], cosines, resize(cosines, pixels.shape[1:3])

    features, cosines, up = run(model, pixels)
    made = {"dense": features, "logits": cases.nchw(cosines)[0], "up": cases.nchw(up)[0]}
    made |= inside(model, pixels)
    checked = set()
    for name, value in made.items():
        key = name + suffix
        if key not in arrays:
            continue
        value = np.asarray(value)[pick(case, key)]
        if arrays[key].dtype.kind == "f":
            near(value, arrays[key], case, name=key)
        else:
            np.testing.assert_array_equal(value, arrays[key], err_msg=key)
        checked.add(key)
    if (key := "label" + suffix) in arrays:  # to the size of the window, then to the original one
        labels = jnp.argmax(resize(up, original_size(case, pixels.shape[1:3])), axis=-1)[0]
        cases.same_labels(labels, arrays[key], name=key, share=SAME_LABELS)
        checked.add(key)
    return checked


def inside(model, pixels):
    """Intermediate results of SC-CLIP and ResCLIP by their names in the goldens."""
    read_out, visual = model.read_out, model.visual
    made = {}
    if read_out.calibration is not None:
        cfg = read_out.calibration

        @jax.jit
        def calibrate(visual, pixels):
            encoded = encode(visual, pixels, read_out=read_out)
            scores = outlier_scores(encoded.x[:, 1:], encoded.real, cfg.neighbours)
            return scores[0], outliers(scores, encoded.real, cfg.outliers)[0]

        made["lof"], found = calibrate(visual, pixels)
        made["outliers"] = np.flatnonzero(found)
    if model.feedback is not None:

        @jax.jit
        def feed_back(model, pixels):
            visual = model.visual
            dense = dense_features(visual, pixels, read_out=read_out)
            cosines = model.classify(dense)
            cfg, grid = model.feedback, cosines.shape[1:3]
            probabilities = temporary_probabilities(cosines, pixels, None, visual, cfg)
            classes = patch_classes(probabilities, cfg.threshold, visual.cfg.patch_px, grid)
            matrix = feedback_matrix(classes, jnp.asarray([grid]))[0]
            return dense.features[0], jnp.moveaxis(probabilities[0], -1, 0), classes[0], matrix

        made["dense_rcs"], made["temp"], made["patch_classes"], matrix = feed_back(model, pixels)
        made["sfr"] = np.pad(matrix, ((1, 0), (1, 0)))
    return made


def check_windows(model, image, windows, case, arrays):
    """Sliding windows of an image at network size, and labels at the original one."""
    suffix = "_{}x{}".format(*image.shape[:2])
    view, size, _ = network_scores(model, image, windows)
    name = "slide" + suffix
    near(cases.nchw(view.at(view.rows))[0][pick(case, name)], arrays[name], case, name=name)
    scores = at_size(view, size, original_size(case, image.shape[:2]))
    config = case["config"]
    options = {name: config.get(name) for name in ("logit_scale", "prob_thd", "area_thd")}
    classes, labels = class_maps(
        scores, arrays["query_idx"], divided=case["case"].startswith(DIVIDED), **options
    )
    return {name} | check_classes(classes, labels, suffix, case, arrays)


def check_whole_image(model, method, case, arrays):
    """A whole image whose sides are no multiples of the patch, with and without PAMR."""
    image = seeded.image(*case["whole_size"], case["whole_image_seed"])
    original = original_size(case, image.shape[:2])
    view, size, pixels = network_scores(model, image, {"mode": "whole"})
    scores = at_size(view, size, original)
    if method == "sclip":  # whose whole mode, which its rows don't use, resizes once
        scores = cases.nchw(resize(jax.jit(ReadOutModel.__call__)(model, pixels), original))[0]
    checked = set()
    for name in arrays:
        if not name.startswith("prob_whole"):
            continue
        classes, labels = class_maps(
            scores,
            range(len(arrays["text_whole"])),
            logit_scale=case["config"]["logit_scale"],
            pamr_steps=10 if name.endswith("_pamr") else 0,
            network=np.asarray(pixels[0]),
            divided=method in DIVIDED,
        )
        suffix = name.removeprefix("prob")
        checked |= check_classes(classes, labels, suffix, case, arrays)
    return checked


def network_scores(model, image, choices):
    """Scores of an image at network size, that size, and the normalised image."""
    task = Task(model=model, predict=lambda m, x, s: m(x, s), grid_size=model.visual.grid_sizes)
    cfg = InferenceConfig(mean=MEAN, std=STD, scale_px=None, **choices)
    size = jnp.asarray([image.shape[:2]])

    @jax.jit
    def run(model, images):
        return image_scores(task, model, images, size, size, images.shape[1:3], cfg)

    images = jnp.asarray(image)[None]
    return run(model, images), size, normalize(images, MEAN, STD)


@functools.partial(jax.jit, static_argnums=2)
def at_size(view, size, out):
    """Scores (q, *out) of a view of images of `size` (1, 2)."""
    rows, columns = (
        compose_resize(matrix, size[:, axis], jnp.asarray([out[axis]]), out[axis])
        for axis, matrix in enumerate((view.rows, view.columns))
    )
    view = view._replace(rows=rows, columns=columns)
    return jnp.moveaxis(view.at(view.rows)[0], -1, 0)


def check_classes(classes, labels, suffix, case, arrays):
    """Compares class scores (k, h, w) and labels (h, w)."""
    prob, label = "prob" + suffix, "label" + suffix
    near(classes[pick(case, prob)], arrays[prob], case, name=prob)
    cases.same_labels(labels, arrays[label], name=label, share=SAME_LABELS)
    return {prob, label}


def check_variants(case, arrays, goldens):
    """Each attention of spec readouts, section 3, with the whole block and without."""
    visual = image_tower(case, goldens)
    pixels = network_input(*case["size"], case["image_seed"])
    chosen = {name: variant(name, case["arrays"][name]["meaning"]) for name in arrays}

    @jax.jit
    def run(visual, pixels):
        encoded = encode(visual, pixels, read_out=VALUE)
        return {name: read(visual, encoded, each).features[0] for name, each in chosen.items()}

    for name, features in run(visual, pixels).items():
        near(features[pick(case, name)], arrays[name], case, name=name)


def variant(name, meaning):
    """The read-out that an array's name and meaning describe."""
    attention, block = name.rsplit("_", 1)
    found = re.search(r"std (\d+(?:\.\d+)?)", meaning)
    std = float(found.group(1)) if found and "neighbours" in attention else 0.0
    scores = {"identity": (), "qq+kk": ("qq", "kk"), "neighbours": ("norm",)}
    scores = scores.get(attention, (attention.split("+")[0],))
    whole, gain = block == "full", float(max(len(scores), 1))
    return ReadOut(scores, gain=gain, neighbours=std, residual=whole, mlp=whole)


def check_positions(case, arrays, goldens):
    """Position tables for other grids."""
    sizes = {n: tuple(map(int, re.findall(r"\d+", n))) for n in arrays}  # side, rows, columns
    # A padded batch of all: its size is that of no grid.
    bucket = tuple(max(size[i] for size in sizes.values()) + 2 for i in (1, 2))
    whole = jax.jit(VisionTransformer.positions, static_argnums=1)
    for name, expected in arrays.items():
        (side, rows, columns), width = sizes[name], expected.shape[1]
        key = "visual.positional_embedding"
        table = 50 * seeded.tensor(key, (1 + side * side, width), case["seed"])
        cfg = ViTConfig(16 * side, 16, width, layers=1, heads=1, embed_dim=width, **TOWER)
        visual = cases.zeros(lambda rngs: VisionTransformer(cfg, rngs=rngs))  # noqa: B023
        visual.positional_embedding = nnx.Param(jnp.asarray(table))
        near(whole(visual, (rows, columns))[0], expected, case, name=name)
        padded = whole(visual, bucket, jnp.asarray([[rows, columns]]))[0]
        spatial = padded[1:].reshape(*bucket, -1)[:rows, :columns]
        near(spatial.reshape(rows * columns, -1), expected[1:], case, name=name)


METHODS = ("sclip_", "naclip_", "clearclip_", "scclip_", "resclip_")
CHECKS = {name: check_read_out for name in METHODS}
CHECKS |= {"variants": check_variants, "positions": check_positions}
