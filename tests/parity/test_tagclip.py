"""TagCLIP against its published code: every case in the `tagclip` folder of goldens."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from clipseg_jax.methods.clip_es.model import CLIPESConfig
from clipseg_jax.methods.tagclip import model as tagclip
from clipseg_jax.methods.tagclip.metrics import (
    average_precision,
    relative_tags,
    tag_metrics,
    top_tags,
)
from clipseg_jax.methods.tagclip.model import TagCLIP, TagCLIPConfig
from clipseg_jax.models.clip import Tokenizer
from clipseg_jax.ops.image import CLIP_MEAN, CLIP_STD, normalize
from clipseg_jax.prompts import class_embeddings, templates
from clipseg_jax.stages.label_list import label_line
from input_pipeline.datasets.class_sets import prompt_set
from tests import seeded
from tests.parity import cases, clip_es_models

FOLDER = "tagclip"
SLOW = ("scores_cocostuff",)  # looks at 45 crops
SETS = {
    "voc": ("voc", TagCLIPConfig()),
    "coco2014": ("coco", TagCLIPConfig()),
    "coco2017": ("coco", TagCLIPConfig()),
    "cocostuff": (
        "coco_stuff",
        TagCLIPConfig(affinity_blocks=tuple(range(11)), relative_threshold=0.1),
    ),
}


def test_case(path, goldens):
    checks = {
        "cam_voc_variant": check_cam_variant,
        "metrics": check_metrics,
        "reid_early_stop": check_early_stop,
        "scores": check_scores,
        "text_ensemble": check_text_ensemble,
    }
    found = [check for stem, check in checks.items() if path.stem.startswith(stem)]
    assert found, f"no check for a case named {path.stem}"
    case, arrays = cases.load(path)
    found[0](case, arrays, goldens)


@functools.partial(jax.jit, static_argnums=0)
def local(graph, state, images, sizes):
    model = nnx.merge(graph, state)
    found = model.local(normalize(images, CLIP_MEAN, CLIP_STD), sizes)
    shape = model.visual.grid_shape(*images.shape[1:3])
    return found, model.candidates(found.refined, found.grids, shape)


@functools.partial(jax.jit, static_argnums=0)
def reidentify(graph, state, images, refined, grids, scores, candidates):
    model = nnx.merge(graph, state)
    shape = model.visual.grid_shape(*images.shape[1:3])
    images = normalize(images, CLIP_MEAN, CLIP_STD)
    scores = model.reidentify(images, refined, grids, shape, scores, candidates)
    return scores, tagclip.choose_tags(scores, model.cfg.relative_threshold)


def text_rows(text):
    name, *numbers = re.search(r"unit_rows\('(\w+)', ?(\d+), ?(\d+), ?(\d+)\)", text).groups()
    return seeded.unit_rows(name, *map(int, numbers))


def check_scores(case, arrays, goldens):
    dataset = case["config"]["dataset"]
    name, cfg = next(entry for stem, entry in SETS.items() if dataset.startswith(stem))
    assert cfg.relative_threshold == case["config"]["relative_threshold"]
    rows, classes = text_rows(case["inputs"]["text"]), len(arrays["maxes_0"])
    words = prompt_set(name, synonyms=False)
    assert (classes, len(rows)) == (len(words.names), len(words.names + words.background))
    model = TagCLIP(
        clip_es_models.clip_of(goldens, case).visual, rows[:classes], rows[classes:], cfg
    )
    pictures = [clip_es_models.resized(clip_es_models.picture(t)) for t in case["inputs"]["images"]]
    images, sizes = clip_es_models.batch(pictures)
    split = nnx.split(model)
    found, (maxes, candidates) = local(*split, images, sizes)
    scores, tags = reidentify(*split, images, found.refined, found.grids, maxes, candidates)

    shape = (images.shape[1] // clip_es_models.PATCH, images.shape[2] // clip_es_models.PATCH)
    truth = np.zeros((len(pictures), classes), int)
    for i, about in enumerate(case["per_image"]):
        own = clip_es_models.own_patches(tuple(about["grid"]), shape)
        affinity = np.asarray(found.affinity[i])[np.ix_(own, own)]

        def expect(actual, name, *, absolute, i=i):
            cases.close(actual, arrays[f"{name}_{i}"], absolute=absolute, name=f"{name}_{i}")

        tokens = np.concatenate([[0], own + 1])
        expect(np.asarray(found.features)[i, tokens][::16], "feats", absolute=2e-5)
        # Weights that equal their block's mean to rounding may vote either way.
        flipped = np.abs(affinity[::8] - arrays[f"attn_{i}"]) > 1.5e-5
        assert flipped.sum() <= max(2, 1e-4 * flipped.size), f"{flipped.sum()} affinities differ"
        n = len(own)
        votes = np.unpackbits(arrays[f"attn_cnt_{i}"])[: -(-n // 4) * n].reshape(-1, n) > 0
        assert np.sum((affinity[::4] > 0) != votes) <= max(2, 1e-4 * votes.size)
        # Logits are features times 100: their 1e-5 is 1e-3 of a probability, of at most 1.
        expect(np.asarray(found.coarse)[i, own][::3], "coarse", absolute=2e-4)
        for part, name in ((found.propagated, "pre"), (found.refined, "refined")):
            expect(np.asarray(part)[i, own][::3], name, absolute=2e-5)
        expect(maxes[i], "maxes", absolute=2e-5)
        assert np.flatnonzero(candidates[i]).tolist() == about["candidates_in_order"]
        # Likewise: where half the probability is at stake, the original is 2e-4 off its float64.
        expect(scores[i], "scores", absolute=1e-3)
        line = label_line(f"{dataset}_{i}", np.flatnonzero(tags[i]).tolist())
        assert line == case["saved_lines"][i] + "\n"
        truth[i, [int(c) for c in case["inputs"]["labels"][i]]] = 1

    scores = np.asarray(scores)
    figures = tag_metrics(relative_tags(scores, cfg.relative_threshold), truth)
    printed = re.findall(r": ([\d.]+|nan)", case["printed"])
    ours = [average_precision(scores, truth).mean(), *figures]
    assert printed[:4] == [f"{value:.6f}" for value in ours]


def check_early_stop(case, arrays, goldens):
    inputs = case["inputs"]
    rows, classes = text_rows(inputs["text"]), inputs["num_classes"]
    visual = clip_es_models.clip_of(goldens, case).visual
    image = clip_es_models.picture(inputs["image"])
    images, _ = clip_es_models.batch([image])
    shape = (images.shape[1] // clip_es_models.PATCH, images.shape[2] // clip_es_models.PATCH)
    grid = tuple(side // clip_es_models.PATCH for side in image.shape[:2])
    refined = np.full((1, shape[0] * shape[1], len(rows)), 7.0, np.float32)
    refined[0, clip_es_models.own_patches(grid, shape)] = arrays["logits"]
    model = TagCLIP(visual, rows[:classes], rows[classes:])
    grids = jnp.asarray([grid])
    maxes, candidates = model.candidates(jnp.asarray(refined), grids, shape)
    cases.close(maxes[0], arrays["maxes"], absolute=1e-7, name="maxes")
    assert np.flatnonzero(candidates[0]).tolist() == [0, 2, 3]
    given = images, jnp.asarray(refined), grids, maxes, candidates
    scores, _ = reidentify(*nnx.split(model), *given)
    cases.close(scores[0], arrays["scores"], absolute=1e-5, name="scores")


def check_cam_variant(case, arrays, goldens):
    inputs, config = case["inputs"], case["config"]
    # On VOC TagCLIP's CAMs leave out the last block.
    cfg = CLIPESConfig(affinity_blocks=(4, 5, 6, 7, 8, 9, 10))
    assert cfg.box_threshold == config["box_threshold"]
    labels = [int(word) for word in inputs["split_line"].split()[1:]]
    found = clip_es_models.find_cams(
        clip_es_models.clip_of(goldens, case),
        clip_es_models.text_rows(goldens, inputs["text"]),
        cfg,
        clip_es_models.picture(inputs["image"]),
        labels,
    )
    relative = clip_es_models.relative
    affinity = found.activation["affinity"][::4]
    relative(affinity, arrays["attn_mean"], name="attn_mean", share=4e-4)  # as in CLIP-ES's cases
    relative(found.cams["refined"], arrays["refined"], name="refined")
    assert labels == arrays["saved_keys"].tolist()
    saved = found.saved[:, ::2, ::2].astype(np.float64)
    cases.close(saved, arrays["saved_attn_highres"], absolute=2**-11, name="saved")


def check_text_ensemble(case, arrays, goldens):
    names, sentences = case["inputs"]["names"], templates("maskclip_85")
    tokenizer = Tokenizer.openai()
    for name, tokens in zip(names, arrays["tokens"], strict=True):
        np.testing.assert_array_equal(tokenizer([t.format(name) for t in sentences[::4]]), tokens)
    encoder = clip_es_models.encoder_of(clip_es_models.clip_of(goldens, case))
    rows = class_embeddings(names, encoder, tokenizer, prompt_templates=sentences, batch_size=64)
    cases.close(rows, arrays["features"], absolute=2e-5, name="features")


def check_metrics(case, arrays, goldens):
    scores, truth = arrays["pred"], arrays["labels"]
    cases.close(average_precision(scores, truth), arrays["ap"], absolute=1e-6, name="ap")
    tags = {"rel": relative_tags(scores, 0.5), "abs": scores > 0.5, "top3": top_tags(scores, 3)}
    checked = 0
    for name, expected in arrays.items():
        if name.startswith("f1_"):
            _, average, kind = name.split("_")
            figures = tag_metrics(tags[kind], truth, average)
            cases.close(np.asarray(figures), expected, absolute=1e-6, name=name)
            checked += 1
    assert checked >= 7
