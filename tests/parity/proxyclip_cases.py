"""DINO towers and ProxyCLIP against the published code: the checks of `test_readouts`."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np

import weights_convert
from clipseg_jax.inference import InferenceConfig, image_scores, label_maps
from clipseg_jax.methods.readouts.proxy import ProxyCLIP, ProxyConfig, build_proxy, dino_input
from clipseg_jax.ops.image import IMAGENET_MEAN, IMAGENET_STD, normalize
from clipseg_jax.ops.resize import resize
from clipseg_jax.ops.window import compose_resize
from tests import seeded
from tests.parity import cases

FOLDER = "readouts"
# Of CLIP's tower (spec readouts, section 2); activation and epsilon are OpenAI's.
TOWER = {"pad_to_patch": False, "position_keep_count": True}


def tower(case, about, key, goldens):
    """The seeded DINO that a case describes: `about` its sizes, `key` its name in shapes.json."""
    text = case["proxy_weights"] if "proxy_weights" in case else case["weights"]
    pattern, factor = re.search(r"every ([\w.*]+) times ([\d.]+)", text).groups()
    pattern = re.escape(pattern).replace(r"\*", r"\d+")
    weights = {}
    for name, shape in cases.shapes(goldens, key, FOLDER).items():
        weights[name] = seeded.tensor(name, shape, case["proxy_seed"])
        if re.fullmatch(pattern, name):
            weights[name] = weights[name] * np.float32(factor)
    dino = weights_convert.dino_from_state_dict(weights, heads=about["heads"])
    cfg = dino.cfg
    sizes = (cfg.image_px, cfg.patch_px, cfg.width, cfg.layers, cfg.registers)
    wanted = [about[name] for name in ("image", "patch", "width", "depth")]
    assert sizes == (*wanted, about.get("registers", 0))
    assert cfg.layer_scale == (about["kind"] == "dinov2")
    return dino


def share(case):
    """The tolerance of a case's floats, as a share of the largest value."""
    return float(re.search(r"abs ([\d.e-]+) times absmax", case["tolerance"]).group(1))


def check_towers(case, arrays, goldens):
    for name, about in case["models"].items():
        dino = tower(case, about, about["shapes_key"], goldens)
        image = seeded.image(*about["size"], case["image_seed"])
        pixels = normalize(jnp.asarray(image)[None], IMAGENET_MEAN, IMAGENET_STD)
        cases.near(jax.jit(dino)(pixels)[0], arrays[name], name=name, share=share(case))


def proxyclip(case, arrays, goldens):
    """The model that a case describes."""
    weights = cases.weights(case["weights"], cases.shapes(goldens, case["shapes_key"], FOLDER))
    clip = weights_convert.clip_from_state_dict(weights)
    clip = weights_convert.with_config(clip, clip.cfg.replace(**TOWER))
    dino = tower(case, case["proxy_model"], case["proxy_shapes_key"], goldens)
    cfg = ProxyConfig(beta=case["config"]["beta"], gamma=case["config"]["gamma"])
    return ProxyCLIP(clip.visual, dino, arrays["text"], cfg)


def constants(case):
    """Mean and standard deviation of RGB in a case's "input" text."""
    found = re.findall(r"\(([\d.]+),([\d.]+),([\d.]+)\)", case["input"])
    return [tuple(map(float, numbers)) for numbers in found]


def check_proxyclip(case, arrays, goldens):
    model = proxyclip(case, arrays, goldens)
    windows = [tuple(size) for size in case.get("sizes", [])]  # of the full size: no size in names
    for size in windows:
        check_window(model, case, arrays, size, "")
    for name in arrays:
        if dense := re.fullmatch(r"dense_(\d+)x(\d+)", name):
            check_window(model, case, arrays, tuple(map(int, dense.groups())), "_{}x{}")
        elif slide := re.fullmatch(r"slide_(\d+)x(\d+)", name):
            check_slide(model, case, arrays, tuple(map(int, slide.groups())))


def check_window(model, case, arrays, size, ending):
    """Proxy features, dense features and cosines of a window, and the label map if there is one."""
    ending = ending.format(*size)
    image = jnp.asarray(seeded.image(*size, case["image_seed"]))[None]
    pixels = normalize(image, *constants(case))

    @jax.jit
    def run(model, pixels):
        return model.dino(dino_input(pixels)), model.features(pixels), model(pixels)

    proxy, dense, cosines = run(model, pixels)
    made = {"proxy": proxy[0], "dense": dense[0], "logits": jnp.moveaxis(cosines[0], -1, 0)}
    made["up"] = jnp.moveaxis(resize(jnp.moveaxis(made["logits"], 0, -1)[None], size)[0], -1, 0)
    for name, value in made.items():
        if name + ending in arrays:
            check_array(value, case, arrays, name + ending)
    if "label" in arrays:
        original = arrays["label"].shape
        view = window_scores(model, case, image, size, mode="whole")
        labels = np.argmax(at_size(view, size, original), axis=-1)
        cases.same_labels(labels, arrays["label"], name="label", share=label_share(case))


def check_slide(model, case, arrays, size):
    """Averaged scores of windows, class scores and labels."""
    config, ending = case["config"], f"_{size[0]}x{size[1]}"
    image = jnp.asarray(seeded.image(*size, config["slide_image_seed"]))[None]
    crop, stride = tuple(config["crop"]), tuple(config["stride"])
    view = window_scores(model, case, image, size, mode="slide", crop_px=crop, stride_px=stride)
    scores = jnp.moveaxis(at_size(view, size, size), -1, 0)
    check_array(scores, case, arrays, f"slide{ending}")

    label, classes = f"label{ending}", arrays["query_idx"]
    original = arrays[label].shape
    rows = jax.nn.softmax(config["logit_scale"] * at_size(view, size, original), axis=-1)
    probability = [jnp.max(rows[..., classes == k], axis=-1) for k in range(1 + classes.max())]
    check_array(jnp.stack(probability), case, arrays, f"prob{ending}")

    cfg = inference(
        case,
        temperature=float(config["logit_scale"]),
        embedding_labels=tuple(int(k) for k in classes),
        background_threshold=config["prob_thd"],
    )
    labels, _ = label_maps([resized(view, size, original)], cfg)
    cases.same_labels(labels[0], arrays[label], name=label, share=label_share(case))


def inference(case, **choices):
    mean, std = constants(case)
    return InferenceConfig(mean=mean, std=std, scale_px=None, **choices)


def window_scores(model, case, image, size, **choices):
    """Scores of an image (1, h, w, 3) of a size, by the real windows."""
    task = build_proxy(model.visual, model.dino, model.text_embeddings[...], model.cfg)
    cfg, sizes = inference(case, **choices), jnp.asarray([size])

    @jax.jit
    def run(model, image):
        return image_scores(task, model, image, sizes, sizes, size, cfg, rescale=False)

    return run(task.model, image)


def resized(view, size, original):
    """The same scores, resized once more from the network's size to the original's."""
    rows, columns = (
        compose_resize(m, jnp.asarray([size[i]]), jnp.asarray([original[i]]), original[i])
        for i, m in enumerate((view.rows, view.columns))
    )
    return view._replace(rows=rows, columns=columns)


def at_size(view, size, original):
    """Scores (h, w, q) at the original size."""
    view = view if size == original else resized(view, size, original)
    return jnp.einsum("brg,bgkc,bwk->brwc", view.rows, view.logits, view.columns)[0]


def check_array(actual, case, arrays, name):
    """Compares the entries that a case stores, at its tolerance.

    A patch within rounding of the cut may fall on its other side, so that a few entries may differ
    more (spec readouts, section 11).
    """
    steps = re.findall(r"[\[(]([^\[\]()]*::\d+[^\[\]()]*)[\])]", case["arrays"][name]["meaning"])
    parts = steps[-1].split(",") if steps else []
    picks = [re.search(r"::(\d+)", part) for part in parts]
    actual = np.asarray(actual)[tuple(slice(None, None, int(m[1]) if m else None) for m in picks)]
    expected = arrays[name]
    top = float(np.max(np.abs(expected)))
    numbers = re.search(
        r"at least ([\d.]+) % of the entries, ([\d.e-]+) times absmax for all", case["tolerance"]
    )
    within, everywhere = float(numbers[1]) / 100, float(numbers[2])
    cases.near(actual, expected, name=name, share=everywhere)
    close = float(np.mean(np.abs(actual - expected) <= share(case) * top))
    assert close >= within, f"{name}: {close:.4f} of the entries within the tolerance"


def label_share(case):
    """The share of pixels that must have equal labels."""
    return float(re.search(r"at least ([\d.]+) % of pixels equal", case["tolerance"])[1]) / 100


CHECKS = {"proxyclip_": check_proxyclip, "dino_towers": check_towers}
