"""MaskCLIP against the published code: every case in the `maskclip` folder of goldens.

Cases are recognised by the start of their name; everything else is read from their json.
Training cases (`train_*`) belong to MaskCLIP+.
"""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import weights_convert
from clipseg_jax.core.metrics import SegmentationMetrics, confusion_matrix
from clipseg_jax.inference import (
    InferenceConfig,
    image_scores,
    label_maps,
    make_segment_fn,
    network_sizes,
)
from clipseg_jax.methods.maskclip import task as maskclip
from clipseg_jax.methods.maskclip.model import MaskCLIPConfig
from clipseg_jax.models.clip import ModifiedResNet, Tokenizer
from clipseg_jax.models.clip.dense import dense_features
from clipseg_jax.ops.image import IMAGENET_MEAN, IMAGENET_STD, normalize
from clipseg_jax.ops.window import compose_resize
from clipseg_jax.prompts import class_embeddings, templates, text_encoder
from input_pipeline.datasets.images import reduce_zero_label
from tests import seeded
from tests.parity import cases
from tests.parity.maskclip_data_cases import check_corruptions, check_pipeline

FOLDER = "maskclip"
LONG = ("dense_rn50x16",)  # RN50 takes the same path
NOT_HERE = ("train_",)  # stems of cases that belong to MaskCLIP+
COSINE = 1e-6  # rounding of a product of unit vectors, however small it is
# The choices in which MaskCLIP's towers differ from OpenAI's (spec maskclip, section 4).
TOWER = {
    "vit": {"activation": "gelu", "norm_eps": 1e-6, "position_keep_count": True},
    "rn": {},
}


def test_case(path, goldens):
    checks = {
        "dense": check_dense,
        "slide_and_aug": check_slide_and_aug,
        "prompt_ensemble": check_prompt_ensemble,
        "metrics": check_metrics,
        "pipeline": lambda case, arrays, _: check_pipeline(case, arrays, seeded),
        "corruptions": lambda case, arrays, _: check_corruptions(case, arrays, seeded),
    }
    found = [check for stem, check in checks.items() if path.stem.startswith(stem)]
    assert found, f"no check for a case named {path.stem}"
    case, arrays = cases.load(path)
    found[0](case, arrays, goldens)


def build(case, goldens):
    """The seeded image tower that a case describes, with MaskCLIP's choices."""
    name = cases.model_name(case["weights"])
    weights = cases.weights(case["weights"], cases.shapes(goldens, name, "clip"))
    clip = weights_convert.clip_from_state_dict(weights)
    choices = TOWER["rn" if isinstance(clip.visual, ModifiedResNet) else "vit"]
    return weights_convert.with_config(clip, clip.cfg.replace(**choices))


def inference(**choices):
    return InferenceConfig(mean=IMAGENET_MEAN, std=IMAGENET_STD, **{"scale_px": None, **choices})


def check_dense(case, arrays, goldens):
    clip = build(case, goldens)
    seed = int(re.search(r"seeded\.image\(h,w,(\d+)\)", case["input"]).group(1))
    factor = float(re.search(r"int\(([\d.]+)\*h\)", case["original_size_rule"]).group(1))
    text = jnp.asarray(arrays["text_embeddings"])
    choices = {}  # by the name of logits, without their size
    for name in arrays:
        if found := re.fullmatch(r"(logits(?:_\w+)?)_\d+x\d+", name):
            cfg = MaskCLIPConfig(attn_pooling="attnpool" in name, **thresholds(case, name))
            assert choices.setdefault(found[1], cfg) == cfg
    # Padded, as in evaluation: what lies beyond the real pixels must not matter.
    bucket = max(h for h, _ in case["sizes"]) + 21, max(w for _, w in case["sizes"]) + 37

    @jax.jit
    def scores(visual, padded, sizes):
        """Views of all choices, which have most of the network in common."""
        views = {}
        for name, cfg in choices.items():
            task = maskclip.build(visual, text, cfg)
            views[name] = image_scores(
                task, task.model, padded, sizes, sizes, bucket, inference(), rescale=False
            )
        return views

    for h, w in case["sizes"]:
        image = seeded.image(h, w, seed)
        size = f"{h}x{w}"
        check_features(clip.visual, image, case, arrays, size)
        padded = np.full((1, *bucket, 3), 77, np.uint8)
        padded[0, :h, :w] = image
        views = scores(clip.visual, jnp.asarray(padded), jnp.asarray([[h, w]]))
        original = int(factor * h), int(factor * w)
        for name, view in views.items():
            name = f"{name}_{size}"
            label = name.replace("logits", "label")
            check_logits(view, (h, w), original, arrays, name, label if label in arrays else None)


def thresholds(case, name):
    """The refinement thresholds in the description of an array."""
    found = re.findall(r"(ks_thresh|pd_thresh)=([\d.]+)", case["arrays"][name]["meaning"])
    return {key.replace("thresh", "threshold"): float(value) for key, value in found}


def check_features(visual, image, case, arrays, size):
    """Every dense read-out whose name is in the case: v, k, x, feat, layer{i}, kproj."""
    pixels = normalize(jnp.asarray(image)[None], IMAGENET_MEAN, IMAGENET_STD)
    dense, more = parts(visual, pixels)
    made = {"feat": cases.nchw(dense.features), "v": cases.nchw(dense.tokens)}
    if isinstance(visual, ModifiedResNet):
        made["kproj"] = cases.nchw(dense.keys)
    else:
        made["k"] = np.asarray(dense.keys).reshape(1, -1, dense.keys.shape[-1])
    made |= {name: cases.nchw(value) for name, value in more.items()}
    for name, value in made.items():
        key = f"{name}_{size}"
        if key in arrays:
            picked = value[pick(case["arrays"][key]["meaning"])]
            cases.near(picked, arrays[key], name=key)


@jax.jit
def parts(visual, pixels):
    """Dense features, and what they are made of: a ResNet's stages, a ViT's last block."""
    dense = dense_features(visual, pixels)
    if isinstance(visual, ModifiedResNet):
        return dense, visual.stages(pixels)[0]
    last = f"block{visual.cfg.layers - 1}"
    x = visual.ln_post(visual(pixels, read=[last])[1][last][:, 1:])
    return dense, {"x": x.reshape(1, *dense.real.shape[1:], -1)}


def pick(meaning):
    """The slices of an array's meaning, written "[:, ::5, ::32]" or "channels ::32"."""
    if channels := re.search(r"channels ::(\d+)", meaning):
        return (slice(None), slice(None, None, int(channels.group(1))))
    return cases.steps(meaning)


def check_logits(view, size, original, arrays, name, label):
    grid = arrays[name].shape[2:]
    logits = cases.nchw(view.logits)[:, :, : grid[0], : grid[1]]
    if "_ks" in name:  # 100 times a cosine, smoothed
        cases.near(logits, arrays[name], name=name)
    else:
        cases.close(logits, arrays[name], absolute=COSINE, name=name)
    if label:
        made = labels_at(view, size, original, inference())
        cases.same_labels(made, arrays[label], name=label)


@functools.partial(jax.jit, static_argnums=(2, 3))
def labels_at(view, network, original, cfg):
    """Labels of scores at the network's size, resized once more to the original's."""
    rows, columns = (
        compose_resize(m, jnp.asarray(network)[i, None], jnp.asarray([original[i]]), original[i])
        for i, m in enumerate((view.rows, view.columns))
    )
    return label_maps([view._replace(rows=rows, columns=columns)], cfg)[0][0]


def check_slide_and_aug(case, arrays, goldens):
    clip = build(case, goldens)
    task = maskclip.build(clip.visual, jnp.asarray(arrays["text_embeddings"]), MaskCLIPConfig())
    numbers = re.search(r"seeded\.image\((\d+),(\d+),(\d+)\)", case["input"]).groups()
    image = seeded.image(*map(int, numbers))
    size = image.shape[:2]
    sizes = jnp.asarray([size])
    cfg = inference(mode="slide", crop_px=tuple(case["crop_size"]), stride_px=tuple(case["stride"]))

    @jax.jit
    def slide(model, pixels):
        view = image_scores(task, model, pixels, sizes, sizes, size, cfg, rescale=False)
        return view, jnp.einsum("brg,bgkc,bwk->brwc", view.rows, view.logits, view.columns)

    view, full = slide(task.model, jnp.asarray(image)[None])
    about = case["arrays"]["slide_logits"]["meaning"]
    picked = cases.nchw(full)[cases.steps(about)]
    cases.close(picked, arrays["slide_logits"], absolute=COSINE, name="slide_logits")
    expected = arrays["slide_label"]
    made = labels_at(view, size, expected.shape, cfg)
    cases.same_labels(made, expected, name="slide_label")

    scales = case["aug"].split("scales")[1].split("(")[0]
    ratios = tuple(float(ratio) for ratio in re.findall(r"\d+\.?\d*", scales))
    cfg = inference(ratios=ratios, flip="flipped" in case["aug"])
    state, segment = make_segment_fn(task, cfg)
    shapes = tuple(network_sizes(size, cfg))
    labels, _ = jax.jit(segment, static_argnums=4)(
        state, jnp.asarray(image)[None], sizes, jnp.asarray([shapes]), shapes
    )
    cases.same_labels(labels[0], arrays["aug_label"], name="aug_label")


def check_prompt_ensemble(case, arrays, goldens):
    shapes = cases.shapes(goldens, case["model"], "clip")
    clip = weights_convert.clip_from_state_dict(cases.weights(case["weights"], shapes))
    encoder, tokenizer = text_encoder(clip.text), Tokenizer.openai()
    for name, expected in arrays.items():
        count = name.removeprefix("rows")
        if f"templates_{count}" in case:
            set_name = re.search(r"set (\w+)", case[f"templates_{count}"]).group(1)
            chosen = templates(set_name)
        else:
            chosen = (case[f"template_{count}"],)
        rows = class_embeddings(
            case[f"classes_{count}"], encoder, tokenizer, prompt_templates=chosen
        )
        cases.near(rows, expected, name=name)


def check_metrics(case, arrays, goldens):
    classes = case["classes"]
    about = case["input"]
    seed = int(re.search(r"seeded\.label_map\(h,w,n-2,(\d+)\+i\)", about).group(1))
    extra = int(re.search(r"label_map\(h,w,C-3,\d+\+(\d+)\+i", about).group(1))
    share = float(re.search(r"rand\(h,w\)<([\d.]+)", about).group(1))
    count = jax.jit(confusion_matrix, static_argnums=2)
    for kind in ("plain", "reduce"):
        total = np.zeros((classes, classes), np.int64)
        reduce = kind == "reduce"
        for i, (h, w) in enumerate(case["images"]):
            label = seeded.label_map(h, w, classes + reduce - 2, seed + i)
            predicted = seeded.label_map(h, w, classes - 3, seed + extra + i, ignore=None)
            shifted = label.astype(int) - reduce
            hit = np.random.RandomState(seed + i).rand(h, w) < share
            hit &= (shifted >= 0) & (shifted < classes)
            predicted = np.where(hit, shifted, predicted)
            label = reduce_zero_label(label) if reduce else label
            counts = np.asarray(count(label, predicted, classes))
            total += counts
            hits, of_label, of_prediction = np.diag(counts), counts.sum(1), counts.sum(0)
            areas = {
                "intersect": hits, "label": of_label, "pred": of_prediction,
                "union": of_label + of_prediction - hits,
            }  # fmt: skip
            for name, area in areas.items():
                np.testing.assert_array_equal(area, arrays[f"{kind}_{name}"][i], err_msg=name)
        metrics = SegmentationMetrics.from_confusion(total)
        figures = {"IoU": metrics.iou, "Acc": metrics.accuracy, "Prec": metrics.precision}
        for name, values in figures.items():
            values = np.nan_to_num(values, nan=-1.0)
            cases.near(values, arrays[f"{kind}_{name}"], share=cases.ULPS, name=f"{kind} {name}")
        cases.near(metrics.all_accuracy, arrays[f"{kind}_aAcc"], share=cases.ULPS, name="aAcc")
        assert metrics.summary()["mIoU"] == pytest.approx(float(arrays[f"{kind}_mIoU_percent"]))
