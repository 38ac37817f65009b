"""Scores to labels: refinement and area threshold, on padded batches as on single images."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from clipseg_jax.inference import make_segment_fn, network_sizes
from clipseg_jax.inference_config import InferenceConfig
from clipseg_jax.labels import Guide, label_maps, large_labels, refine, sizes_within
from clipseg_jax.ops.crf import CRFConfig, dense_crf, unary_from_softmax
from clipseg_jax.ops.image import CLIP_MEAN, CLIP_STD, normalize, valid_mask
from clipseg_jax.ops.pamr import PAMRConfig, pamr
from clipseg_jax.ops.par import PARConfig, par
from clipseg_jax.ops.resize import resize
from clipseg_jax.ops.window_scores import resized_maps
from clipseg_jax.task import Task
from tests import seeded, tiny

CFG = InferenceConfig(mean=CLIP_MEAN, std=CLIP_STD, scale_px=None, temperature=20.0)
PAMR = PAMRConfig(steps=3, dilations=(1, 4))
PAR = PARConfig(iterations=3, dilations=(1, 4))
CRF = CRFConfig(iterations=2, theta_alpha=20.0)
SIZES = ((40, 52), (48, 30))
SHAPE = (48, 56)


# Whole programs: single operations would be one each.
enlarged = jax.jit(resize, static_argnums=1)
pixels_of = jax.jit(lambda images: normalize(images, CFG.mean, CFG.std))


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


@functools.cache
def inputs(classes=5):
    """Two images, and scores of each: coarse noise, enlarged."""
    rng = np.random.default_rng(0)
    images = [seeded.image(*size, i) for i, size in enumerate(SIZES)]
    scores = [
        np.asarray(enlarged(0.1 * rng.standard_normal((1, 5, 6, classes)), size))[0]
        for size in SIZES
    ]
    return images, scores


def run(cfg, images, scores, shape):
    """Labels and probabilities of images and scores, padded to `shape`."""
    sizes = jnp.asarray([image.shape[:2] for image in images])
    maps = np.full((len(images), *shape, scores[0].shape[-1]), 3.0, np.float32)
    for row, score in zip(maps, scores, strict=True):
        row[: score.shape[0], : score.shape[1]] = score

    @jax.jit
    def labels(images, maps):
        guide = Guide(images, normalize(images, cfg.mean, cfg.std), sizes)
        view = resized_maps(maps, sizes, sizes, shape)
        return label_maps([view], cfg, sizes=sizes, guide=guide)

    return [np.asarray(x) for x in labels(tiny.padded(images, shape), maps)]


@functools.cache
def plain_labels(cfg):
    """Labels of the padded batch without any choice."""
    return run(cfg, *inputs(), SHAPE)[0]


@pytest.mark.parametrize(
    "choices",
    [
        {"refine": PAMR},
        {"refine": PAR},
        {"refine": CRF, "crf_image": "raw"},
        {"refine": CRF},
        {"refine": PAMR, "refine_px": 32},
        {"refine": PAR, "refine_px": 50},
        {"refine": CRF, "refine_px": 32},
        {"area_threshold": 0.4},
        {"refine": PAMR, "area_threshold": 0.4, "background_threshold": 0.4},
    ],
    ids=str,
)
def test_a_padded_batch_equals_each_image_alone(choices):
    cfg = dataclasses.replace(CFG, embedding_labels=(0, 1, 2, 1, 3))
    images, scores = inputs()
    plain = plain_labels(cfg)
    cfg = dataclasses.replace(cfg, **choices)
    labels, best = run(cfg, images, scores, SHAPE)
    for i, (h, w) in enumerate(SIZES):
        alone = run(cfg, images[i : i + 1], scores[i : i + 1], (h, w))
        np.testing.assert_allclose(best[i, :h, :w], alone[1][0], atol=1e-5)
        assert np.mean(labels[i, :h, :w] == alone[0][0]) > 0.999
        assert np.mean(labels[i, :h, :w] == plain[i, :h, :w]) < 0.999, "the option does something"


@pytest.mark.parametrize("choice", [PAMR, PAR, CRF], ids=lambda each: type(each).__name__)
def test_what_each_refinement_takes_and_gives(choice):
    """PAMR takes scores, the others probabilities; in the end all are probabilities."""
    images, scores = inputs()
    image, score = images[0][None], scores[0][None]
    cfg = dataclasses.replace(CFG, refine=choice, crf_image="raw")
    labels, best = run(cfg, images[:1], scores[:1], SIZES[0])
    pixels, probabilities = pixels_of(image), softmax(20 * score)
    if choice is CRF:
        energies = jax.jit(unary_from_softmax)(probabilities)
        expected = jax.jit(dense_crf, static_argnums=2)(energies, image, CRF)
    elif choice is PAR:
        maps = jax.jit(par, static_argnums=2)(pixels, np.moveaxis(probabilities, -1, 1), PAR)
        expected = np.moveaxis(maps, 1, -1)
        expected /= expected.sum(-1, keepdims=True)
    else:
        maps = jax.jit(pamr, static_argnums=2)(pixels, np.moveaxis(score, -1, 1), PAMR)
        expected = softmax(20 * np.moveaxis(maps, 1, -1))
    np.testing.assert_allclose(best, np.max(expected, axis=-1), atol=1e-5)
    assert np.mean(labels == np.argmax(expected, axis=-1)) > 0.999


def area_by_hand(scores, rows, threshold, prob):
    """Spec readouts, sections 6.5 to 6.7, of one image."""
    p = softmax(20 * scores)
    count = max(rows) + 1
    classes = np.stack([p[..., np.asarray(rows) == k].max(-1) for k in range(count)], axis=-1)
    counts = np.bincount(classes.argmax(-1).ravel(), minlength=count)
    dead = counts <= threshold * counts[1:].sum()
    dead[0] = False
    classes[..., dead] = 0
    best = classes.max(-1)
    return np.where(best < prob, 0, classes.argmax(-1)), best, dead


@pytest.mark.parametrize("prob", [0.0, 0.4])
@pytest.mark.parametrize("threshold", [0.2, 0.35, 0.9])
def test_small_classes_become_the_next_best(threshold, prob):
    rows = (0, 1, 2, 1, 3, 0)
    images, scores = inputs(len(rows))
    cfg = dataclasses.replace(
        CFG, embedding_labels=rows, area_threshold=threshold, background_threshold=prob
    )
    labels, best = run(cfg, images, scores, SHAPE)
    for i, (h, w) in enumerate(SIZES):
        expected, probability, dead = area_by_hand(scores[i], rows, threshold, prob)
        assert dead.any()
        np.testing.assert_array_equal(labels[i, :h, :w], expected)
        np.testing.assert_allclose(best[i, :h, :w], probability, atol=1e-6)


def test_without_a_background_no_class_may_be_left():
    images, scores = inputs()
    cfg = dataclasses.replace(CFG, embedding_labels=(1, 2, 3, 4, 5), area_threshold=1.0)
    labels, best = run(cfg, images, scores, SHAPE)
    assert not labels[0, : SIZES[0][0], : SIZES[0][1]].any()
    assert not best[0, : SIZES[0][0], : SIZES[0][1]].any()


def test_areas_count_real_pixels_of_labels_from_one_on():
    labels = jnp.asarray([[[0, 1, 1], [2, 0, 1], [2, 2, 2]]], jnp.uint8)
    kept = large_labels(labels, jnp.asarray([[2, 3]]), 4, 0.25)  # of four pixels: three are 1
    np.testing.assert_array_equal(kept, [[True, True, False, False]])  # not more than 0.25
    kept = large_labels(labels, jnp.asarray([[2, 3]]), 4, 0.24)
    np.testing.assert_array_equal(kept, [[True, True, True, False]])


def test_several_views():
    """PAMR refines the mean of the scores; `average` says what becomes labels otherwise."""
    images, scores = inputs()
    both = scores[0], scores[0][::-1]
    sizes = jnp.asarray([SIZES[0]])
    image = jnp.asarray(images[0])[None]
    mean = (both[0] + both[1]) / 2

    def labels_of(**choices):
        @jax.jit
        def run(image, both):
            guide = Guide(image, normalize(image, CFG.mean, CFG.std), sizes)
            views = [resized_maps(s[None], sizes, sizes, SIZES[0]) for s in both]
            cfg = dataclasses.replace(CFG, **choices)
            return label_maps(views, cfg, sizes=sizes, guide=guide)

        return [np.asarray(x) for x in run(image, both)]

    expected = {
        "probabilities": (softmax(both[0]) + softmax(both[1])) / 2,  # as published
        "scores": softmax(20 * mean),
    }
    single, _ = run(dataclasses.replace(CFG, refine=PAMR), images[:1], [mean], SIZES[0])
    for average, probabilities in expected.items():
        _, best = labels_of(average=average)
        np.testing.assert_allclose(best[0], probabilities.max(-1), atol=1e-6)
        made, _ = labels_of(refine=PAMR, average=average)
        assert np.mean(made == single) > 0.999


def test_large_images_are_refined_at_a_smaller_size():
    """The same as refining a smaller image with the scores there, and enlarging the result."""
    images, scores = inputs()
    cfg = dataclasses.replace(CFG, refine=PAMR, refine_px=26)  # half of 40 x 52
    sizes, small = jnp.asarray([SIZES[0]]), (20, 26)
    image, score = images[0][None], scores[0][None]

    @jax.jit
    def refined(image, score):
        guide = Guide(image, normalize(image, CFG.mean, CFG.std), sizes)
        made = refine([resized_maps(score, sizes, sizes, SIZES[0])], sizes, guide, cfg)
        return made.logits, made.at(made.rows)

    @jax.jit
    def by_hand(image, score):
        shrunk = resize(normalize(image, CFG.mean, CFG.std), small)
        expected = pamr(shrunk, jnp.moveaxis(score[:, 1::2, 1::2], -1, 1), PAMR)
        return resize(jnp.moveaxis(expected, 1, -1), SIZES[0])

    logits, made = refined(image, score)
    assert logits.shape[1:3] == (26, 26)
    np.testing.assert_allclose(made, by_hand(image, score), atol=1e-5)


def test_sizes_within_a_longest_side():
    sizes = jnp.asarray([[300, 400], [400, 300], [1, 5000], [65_500, 65_500], [100, 100]])
    expected = [[75, 100], [100, 75], [1, 100], [100, 100], [100, 100]]
    np.testing.assert_array_equal(sizes_within(sizes, 100), expected)


@pytest.mark.parametrize(
    "choices",
    [
        {"ratios": (0.5, 1.0), "flip": True, "average": "scores"},
        {"average": "logits", "ratios": (1.0, 0.75), "flip": True, "scale_px": None},
        {"mode": "slide", "crop_px": (32, 32), "stride_px": (16, 16)},
    ],
    ids=["scores", "logits", "slide"],
)
def test_a_whole_program_with_a_refinement(choices):
    """Mixed sizes in one batch, through the network: as each image alone."""

    def predict(model, images, sizes):
        b, h, w, _ = images.shape
        images = jnp.where(valid_mask(sizes, (h, w))[..., None], images, 0)
        images = jnp.pad(images, ((0, 0), (0, -h % 8), (0, -w % 8), (0, 0)))
        patches = images.reshape(b, -(-h // 8), 8, -(-w // 8), 8, 3)
        return 0.1 * jnp.sin(3 * jnp.mean(patches, axis=(2, 4)))

    task = Task(model=nnx.Module(), predict=predict, grid_size=lambda sizes: -(-sizes // 8))
    cfg = dataclasses.replace(CFG, scale_px=(96, 40), refine=PAMR, refine_px=44)
    cfg = dataclasses.replace(cfg, **choices)
    images, _ = inputs()
    state, segment = make_segment_fn(task, cfg, np.uint8)
    at_network = [network_sizes(size, cfg) for size in SIZES]
    step = jax.jit(segment, static_argnums=4)
    largest = np.max(at_network, axis=0)  # of each ratio
    bounds = tuple((int(h), int(w)) for h, w in largest)
    args = tiny.padded(images, SHAPE), jnp.asarray(SIZES), jnp.asarray(at_network)
    labels, best = step(state, *args, bounds)
    assert labels.dtype == np.uint8
    for i, (h, w) in enumerate(SIZES):
        alone = step(
            state,
            jnp.asarray(images[i])[None],
            jnp.asarray([SIZES[i]]),
            jnp.asarray([at_network[i]]),
            tuple(at_network[i]),
        )
        np.testing.assert_allclose(best[i, :h, :w], alone[1][0], atol=1e-5)
        assert np.mean(labels[i, :h, :w] == alone[0][0]) > 0.999
