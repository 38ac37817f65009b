"""Checks of DINO towers and ProxyCLIP; what a case has is read from its json and arrays."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np

import weights_convert
from clipseg_jax.inference import InferenceConfig, image_scores
from clipseg_jax.methods.readouts.proxy import ProxyCLIP, ProxyConfig, dino_input
from clipseg_jax.methods.readouts.task import build_proxy
from clipseg_jax.ops.image import IMAGENET_MEAN, IMAGENET_STD, normalize
from clipseg_jax.ops.resize import resize
from tests import seeded
from tests.parity import cases
from tests.parity.readouts_cases import (
    MEAN,
    SAME_LABELS,
    STD,
    at_size,
    check_classes,
    image_tower,
    network_input,
    original_size,
)
from tests.parity.readouts_compare import near, pick
from tests.parity.readouts_postprocess_cases import class_maps

PAD_TO_PX = 56  # windows are padded to a multiple (spec readouts, section 6)


def dino_tower(case, about, key, goldens):
    """The seeded DINO that a case describes: `about` its sizes, `key` its name in shapes.json."""
    text = case["proxy_weights"] if "proxy_weights" in case else case["weights"]
    pattern, factor = re.search(r"every ([\w.*]+) times ([\d.]+)", text).groups()
    pattern = re.escape(pattern).replace(r"\*", r"\d+")
    weights = {}
    for name, shape in cases.shapes(goldens, key, "readouts").items():
        weights[name] = seeded.tensor(name, shape, case["proxy_seed"])
        if re.fullmatch(pattern, name):
            weights[name] = weights[name] * np.float32(factor)
    dino = weights_convert.dino_from_state_dict(weights, heads=about["heads"])
    cfg = dino.cfg
    sizes = (cfg.image_px, cfg.patch_px, cfg.width, cfg.layers, cfg.registers)
    expected = [about[name] for name in ("image", "patch", "width", "depth")]
    assert sizes == (*expected, about.get("registers", 0))
    assert cfg.layer_scale == (about["kind"] == "dinov2")
    return dino


def check_towers(case, arrays, goldens):
    for name, about in case["models"].items():
        dino = dino_tower(case, about, about["shapes_key"], goldens)
        image = seeded.image(*about["size"], case["image_seed"])
        pixels = normalize(jnp.asarray(image)[None], IMAGENET_MEAN, IMAGENET_STD)
        tokens = jax.jit(lambda dino, x: dino(x))(dino, pixels)[0]
        near(tokens[pick(case, name)], arrays[name], case, name=name)
    assert set(case["models"]) == set(arrays)


def check_proxyclip(case, arrays, goldens):
    """Proxy features, dense features, cosines, windows, class scores and labels."""
    dino = dino_tower(case, case["proxy_model"], case["proxy_shapes_key"], goldens)
    config = case["config"]
    cfg = ProxyConfig(config["beta"], config["gamma"])
    model = ProxyCLIP(image_tower(case, goldens), dino, arrays["text"], cfg)
    checked = {"text", "query_idx"} & set(arrays)
    for size in case.get("sizes", []):  # the one window of a full-size case: no size in its names
        checked |= check_window(model, tuple(size), "", case, arrays)
    for name in arrays:
        if found := re.fullmatch(r"(dense|slide)(_(\d+)x(\d+))", name):
            check = check_window if found[1] == "dense" else check_windows
            checked |= check(model, (int(found[3]), int(found[4])), found[2], case, arrays)
    assert checked == set(arrays), f"not compared: {sorted(set(arrays) - checked)}"


def check_window(model, size, suffix, case, arrays):
    """One window; returns the names of what it compared."""
    pixels = network_input(*size, case["image_seed"])

    @jax.jit
    def run(model, pixels):
        return model.dino(dino_input(pixels)), model.features(pixels), model(pixels)

    proxy, dense, cosines = run(model, pixels)
    up = resize(cosines, size)
    made = {"proxy": proxy[0], "dense": dense[0]}
    made |= {"logits": cases.nchw(cosines)[0], "up": cases.nchw(up)[0]}
    checked = {name + suffix for name in made} & set(arrays)
    for name in checked:
        value = np.asarray(made[name.removesuffix(suffix)])
        near(value[pick(case, name)], arrays[name], case, name=name)
    if (name := "label" + suffix) in arrays:
        labels = jnp.argmax(resize(up, original_size(case, size)), axis=-1)[0]
        cases.same_labels(labels, arrays[name], name=name, share=SAME_LABELS)
        checked.add(name)
    return checked


def check_windows(model, size, suffix, case, arrays):
    """Sliding windows of an image at network size, and labels at the original one."""
    config = case["config"]
    task = build_proxy(model.visual, model.dino, model.text_embeddings[...], model.cfg)
    cfg = InferenceConfig(
        mean=MEAN,
        std=STD,
        scale_px=None,
        mode="slide",
        crop_px=tuple(config["crop"]),
        stride_px=tuple(config["stride"]),
        pad_to_px=PAD_TO_PX,
    )
    sizes = jnp.asarray([size])

    @jax.jit
    def run(model, images):
        return image_scores(task, model, images, sizes, sizes, size, cfg)

    image = seeded.image(*size, config["slide_image_seed"])
    view = run(task.model, jnp.asarray(image)[None])
    name = "slide" + suffix
    near(cases.nchw(view.at(view.rows))[0][pick(case, name)], arrays[name], case, name=name)
    scores = at_size(view, sizes, original_size(case, size))
    options = {name: config[name] for name in ("logit_scale", "prob_thd")}
    classes, labels = class_maps(scores, arrays["query_idx"], **options)
    return {name} | check_classes(classes, labels, suffix, case, arrays)


CHECKS = {"proxyclip_": check_proxyclip, "dino_towers": check_towers}
