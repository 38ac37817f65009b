"""From scores of text rows to labels, as published: PAMR, synonyms, thresholds, areas."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clipseg_jax.inference_config import InferenceConfig
from clipseg_jax.labels import Guide, label_maps, large_labels, refine
from clipseg_jax.ops.image import normalize
from clipseg_jax.ops.pamr import PAMRConfig, pamr
from clipseg_jax.ops.window_scores import resized_maps
from tests import seeded
from tests.parity import cases
from tests.parity.readouts_compare import near, pick

MEAN, STD = (122.771, 116.746, 104.094), (68.501, 66.632, 70.323)  # spec readouts, section 2


def class_maps(
    scores: Any,
    query_idx: Sequence[int],
    *,
    logit_scale: float,
    prob_thd: float = 0.0,
    area_thd: float | None = None,
    pamr_steps: int = 0,
    network: np.ndarray | None = None,
    size: tuple[int, int] | None = None,
    divided: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Class scores (k, h, w) and labels (h, w) of text rows' scores (q, h', w'), by our label step.

    Args:
      scores: of an image, at full size or, with `size`, to be resized to it.
      query_idx: class of each text row.
      logit_scale, prob_thd, area_thd: the published code's names.
      pamr_steps: of PAMR with dilations 8 and 16, which follows `network`; 0: off.
      network: normalised image (h'', w'', 3) at the network.
      size: (height, width) of the result; None: that of the scores.
      divided: class scores are divided by their sum, as NACLIP and ResCLIP report them.
    """
    maps = jnp.moveaxis(jnp.asarray(scores), 0, -1)[None]
    size = maps.shape[1:3] if size is None else tuple(size)
    sizes = jnp.asarray([size])
    rows = tuple(int(label) for label in query_idx)
    cfg = InferenceConfig(
        mean=MEAN,
        std=STD,
        embedding_labels=rows,
        temperature=float(logit_scale),
        background_threshold=float(prob_thd),
        area_threshold=float(area_thd or 0),
        refine=PAMRConfig(steps=pamr_steps) if pamr_steps else None,
    )
    pixels = jnp.zeros((1, 1, 1, 3)) if network is None else jnp.asarray(network)[None]

    @jax.jit
    def run(maps: jax.Array, pixels: jax.Array) -> tuple[jax.Array, ...]:
        view = resized_maps(maps, jnp.asarray([maps.shape[1:3]]), sizes, size)
        guide = Guide(jnp.zeros((1, *size, 3), jnp.uint8), pixels, jnp.asarray([pixels.shape[1:3]]))
        labels, best = label_maps([view], cfg, sizes=sizes, guide=guide)
        if cfg.refine is not None:
            view = refine([view], sizes, guide, cfg)
        probabilities = jax.nn.softmax(cfg.temperature * view.at(view.rows), axis=-1)
        of_class = jnp.asarray(rows)[:, None] == jnp.arange(max(rows) + 1)
        classes = jnp.max(jnp.where(of_class, probabilities[..., None], 0), axis=-2)
        if cfg.area_threshold:
            first = jnp.argmax(classes, axis=-1)
            alive = large_labels(first, sizes, max(rows) + 1, cfg.area_threshold)
            classes = classes * alive[:, None, None]
        return classes[0], labels[0], best[0]

    classes, labels, best = (np.asarray(x) for x in run(maps, pixels))
    np.testing.assert_allclose(best, classes.max(axis=-1), rtol=1e-6)
    if divided:
        classes = classes / classes.sum(axis=-1, keepdims=True)
    return np.moveaxis(classes, -1, 0), labels


def check_postprocess(case, arrays, goldens):
    scores = arrays["scores"]
    image = seeded.image(*scores.shape[1:], case["image_seed"])
    images = normalize(jnp.asarray(image)[None], MEAN, STD)
    checked = {name for name, about in case["arrays"].items() if "INPUT" in about["meaning"]}
    assert not checked & {name for name in arrays if name.startswith(("pamr", "prob", "label"))}
    for name, about in case["arrays"].items():
        meaning = about["meaning"]
        if name.startswith("pamr"):
            steps = int(re.search(r"(\d+) iterations", meaning)[1])
            listed = re.search(r"dilations \(?((?:\d+(?:, | and )?)+)", meaning)[1]
            cfg = PAMRConfig(steps, tuple(map(int, re.findall(r"\d+", listed))))
            source = arrays["scores_small"] if "scores_small" in meaning else scores
            made = jax.jit(pamr, static_argnums=2)(images, jnp.asarray(source)[None], cfg)[0]
            slices = pick(case, name)
            if slices == (...,) and made.shape != arrays[name].shape:  # not said by all
                slices = np.s_[..., ::2, ::2]
            near(made[slices], arrays[name], case, name=name)
            checked.add(name)
        elif name.startswith("prob_"):
            label = name.replace("prob_", "label_")
            options, others = (
                ast.literal_eval(re.search(r"\{.*\}", case["arrays"][each]["meaning"])[0])
                for each in (name, label)
            )
            assert options == others
            classes, labels = class_maps(scores, arrays["query_idx"], **options)
            near(classes[pick(case, name)], arrays[name], case, name=name)
            cases.same_labels(labels, arrays[label], share=1.0, name=label)
            checked |= {name, label}
    assert checked == set(arrays), "every array is compared"


CHECKS = {"postprocess": check_postprocess}
