"""TagCLIP on a tiny CLIP, its figures and its files. Published numbers: tests/parity."""

from __future__ import annotations

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from clipseg_jax.methods.tagclip import model as tagclip
from clipseg_jax.methods.tagclip.metrics import average_precision, tag_metrics, top_tags
from clipseg_jax.methods.tagclip.model import TagCLIP, TagCLIPConfig
from clipseg_jax.models.clip import l2_normalize
from clipseg_jax.ops.image import CLIP_MEAN, CLIP_STD, normalize
from clipseg_jax.ops.resize import resize
from clipseg_jax.stages.label_list import read_label_list, write_label_list
from tests import tiny

CFG = TagCLIPConfig(affinity_blocks=(0,), votes=1, crops_at_once=3)
CLASSES = 5
VISION = dataclasses.replace(tiny.VIT, position_resize="bilinear")
ROWS = l2_normalize(jax.random.normal(jax.random.key(7), (CLASSES + 2, VISION.embed_dim)))
VISUAL = tiny.clip(VISION).visual
SHAPE = (6, 6)


def model(**choices):
    return TagCLIP(VISUAL, ROWS[:CLASSES], ROWS[CLASSES:], dataclasses.replace(CFG, **choices))


@functools.partial(jax.jit, static_argnums=0)
def run(graph, state, images, sizes, real):
    net = nnx.merge(graph, state)
    pixels = normalize(images, CLIP_MEAN, CLIP_STD)
    shape = net.visual.grid_shape(*images.shape[1:3])
    local = net.local(pixels, sizes)
    return local, net.candidates(local.refined, local.grids, shape), net(images, sizes, real)


def tagged(images, shape, real=None, **choices):
    sizes = jnp.asarray([p.shape[:2] for p in images])
    real = jnp.ones(len(images), bool) if real is None else jnp.asarray(real)
    return run(*nnx.split(model(**choices)), tiny.padded(images, shape), sizes, real)


IMAGES = tiny.images([(64, 96), (80, 64), (96, 96)])


@pytest.fixture(scope="module")
def whole():
    return tagged(IMAGES, (96, 96))


@pytest.mark.slow
def test_padding_has_no_influence(whole):
    local, (maxes, candidates), tags = whole
    for i, image in enumerate(IMAGES[:2]):
        h, w = image.shape[0] // 16, image.shape[1] // 16
        part, (best, chosen), expected_tags = tagged([image], image.shape[:2], crops_at_once=1)
        for name in ("coarse", "propagated", "refined"):
            ours = np.asarray(getattr(local, name)[i]).reshape(6, 6, -1)
            theirs = np.asarray(getattr(part, name)[0]).reshape(h, w, -1)
            np.testing.assert_allclose(ours[:h, :w], theirs, atol=2e-5, err_msg=name)
            assert not ours[h:].any()
            assert not ours[:, w:].any()
        np.testing.assert_allclose(maxes[i], best[0], atol=2e-6)
        np.testing.assert_array_equal(candidates[i], chosen[0])
        np.testing.assert_allclose(tags.scores[i], expected_tags.scores[0], atol=2e-6)
        np.testing.assert_array_equal(tags.chosen[i], expected_tags.chosen[0])


def test_votes_and_affinity(whole):
    """Against the definition, on the image that fills the batch's shape."""
    local = whole[0]
    x = normalize(jnp.asarray(IMAGES[2])[None], CLIP_MEAN, CLIP_STD)
    _, out = VISUAL(x, read=["map0", "map1", "block0"])
    maps = [np.asarray(out[f"map{i}"])[0, 1:, 1:] for i in (0, 1)]
    votes = sum((m > m.mean()).astype(int) for m in maps)
    np.testing.assert_allclose(local.affinity[2], maps[0] * (votes >= 1), atol=1e-6)
    last = VISUAL.transformer.resblocks[-1]
    x = out["block0"]
    x = x + last.attn.out_proj(last.attn.qkv(last.ln_1(x))[2])
    f = l2_normalize(VISUAL.ln_post(x + last.mlp(last.ln_2(x)))[0, 1:] @ VISUAL.proj[...])
    np.testing.assert_allclose(local.coarse[2], jax.nn.softmax(100 * f @ ROWS.T), atol=2e-5)


def made_up(columns):
    """Patch scores (1, 36, names) with the given cells at 1, on a grid of 5 x 6."""
    maps = np.zeros((*SHAPE, CLASSES + 2), np.float32)
    for name, cells in columns.items():
        for cell in cells:
            maps[(*cell, name)] = 1.0
    return jnp.asarray(maps.reshape(1, -1, CLASSES + 2))


IMAGE = normalize(tiny.padded(tiny.images([(80, 96)], seed=3), (96, 96)), CLIP_MEAN, CLIP_STD)
GRIDS = jnp.asarray([[5, 6]])


@functools.partial(jax.jit, static_argnums=0)
def reidentify(graph, state, refined):
    net = nnx.merge(graph, state)
    scores, candidates = net.candidates(refined, GRIDS, SHAPE)
    return net.reidentify(IMAGE, refined, GRIDS, SHAPE, scores, candidates)


def reidentified(columns, **choices):
    return np.asarray(reidentify(*nnx.split(model(**choices)), made_up(columns)))[0]


def test_reidentification_classifies_a_resized_crop():
    cells = [(1, 2), (1, 3), (3, 4), (2, 2)]
    scores = reidentified({1: cells})
    rows, columns = slice(1, 4), slice(2, 5)
    crop = IMAGE[:, 16 * rows.start : 16 * rows.stop, 16 * columns.start : 16 * columns.stop]
    crop = resize(crop, (64, 64))
    mask = np.zeros(SHAPE, bool)
    mask[tuple(zip(*cells, strict=True))] = True
    index = np.arange(4) * 3 // 4
    seen = mask[rows, columns][np.ix_(index, index)].ravel()
    bias = np.zeros((1, 1, 17, 17), np.float32)
    bias[..., 0, 1:] = np.where(seen, 0, -1000)
    x, _ = VISUAL.transformer(VISUAL.embed(crop)[0], jnp.asarray(bias)[0])
    p = jax.nn.softmax(100 * l2_normalize(VISUAL.pool(x)) @ ROWS.T)[0, 1]
    np.testing.assert_allclose(scores, [0, 0.5 + 0.5 * p, 0, 0, 0], atol=2e-6)


def test_an_empty_box_ends_the_reidentification():
    inner, border = [(1, 1), (2, 2)], [(0, 5), (3, 5)]  # the last column is in no box
    columns = {0: inner, 2: border, 3: inner}
    published = reidentified(columns)
    skipping = reidentified(columns, skip_empty_boxes=True)
    assert published[0] == skipping[0] != 1
    assert published[2] == skipping[2] == 1  # its box is empty
    assert published[3] == 1 != skipping[3]
    # So has one in the last row of the real grid, and a class seen nowhere is no candidate.
    assert reidentified({2: [(4, 0), (4, 3)]}).tolist() == [0, 0, 1, 0, 0]


def test_batches_of_crops_and_filling_images(whole):
    columns = {i: [(0, i), (2, i)] for i in range(5)}
    several, many = reidentified(columns), reidentified(columns, crops_at_once=64)
    np.testing.assert_allclose(several, many, atol=1e-5)
    _, (maxes, _), tags = tagged(IMAGES, (96, 96), real=[True, False, True])
    np.testing.assert_allclose(tags.scores[::2], whole[2].scores[::2], atol=1e-6)
    np.testing.assert_allclose(tags.scores[1], maxes[1])


def test_chosen_tags():
    scores = jnp.asarray([[0.0, 0.4, 0.6, 1.0], [0.2, 0.2, 0.2, 0.2], [0.0, 1.0, 0.5, 0.0]])
    tags = tagclip.choose_tags(scores, 0.5)
    assert tags.tolist() == [
        [False, False, True, True],
        [True, False, False, False],  # all equal: the first
        [False, True, False, False],  # equal to the threshold is not above it
    ]


def test_one_program_for_every_batch_of_a_shape(whole):
    before = run._cache_size()
    other = tiny.images([(16, 16), (96, 80), (32, 96)], seed=5)
    assert np.isfinite(tagged(other, (96, 96))[2].scores).all()
    assert run._cache_size() == before


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"shape \(7, 8\) for an image tower with 24 features"):
        TagCLIP(VISUAL, ROWS[:, :8], cfg=CFG)
    with pytest.raises(ValueError, match=r"tower of 2 blocks; choose one or more of 0\.\.1"):
        TagCLIP(VISUAL, ROWS)


def test_figures():
    truth = np.asarray([[1, 0, 0], [1, 1, 0]])
    tags = np.asarray([[1, 1, 0], [1, 0, 0]])
    np.testing.assert_allclose(tag_metrics(tags, truth), [2 / 3, 2 / 3, 2 / 3], atol=1e-6)
    np.testing.assert_allclose(tag_metrics(tags, truth, "category")[1:], [1 / 3, 1 / 3], atol=1e-6)
    np.testing.assert_allclose(tag_metrics(tags, truth, "sample")[1:], [0.75, 0.75], atol=1e-6)
    nothing = tag_metrics(0 * tags, truth)
    assert np.isnan(nothing.f1)
    assert nothing[1:] == (0, 0)
    scores = np.asarray([[0.1, 0.9, 0.3], [0.8, 0.2, 0.3]])
    np.testing.assert_allclose(average_precision(scores, truth), [1, 0.5, 0])
    assert top_tags(scores, 2).tolist() == [[False, True, True], [True, False, True]]


def test_label_lists(tmp_path):
    images = [("2007_000032", [0, 14]), ("b", []), ("a", [7])]
    path = write_label_list(tmp_path / "tags.txt", images)
    assert path.read_text() == "2007_000032 0 14\nb\na 7\n"
    labels = read_label_list(path, 20)
    assert list(labels.items()) == [(name, tuple(ids)) for name, ids in images]
    with pytest.raises(ValueError, match="'two words' is empty or contains white space"):
        write_label_list(path, [("two words", [1])])
    for text, message in (
        ("a 3\nb 20\n", "line 2: class 20 is not in 0..19"),
        ("a x\n", "line 1: class x is not in 0..19"),
        ("a -1\n", "line 1: class -1 is not in"),
        ("a 3 3\n", "line 1: a class is listed twice"),
        ("a 3\n\na 4\n", "line 3: image a is listed twice"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_label_list(path, 20)


def test_label_lists_by_name(tmp_path):
    """As users write them, also in one list with ids; names of files may hold anything."""
    path, names = tmp_path / "tags.txt", ("cat", "traffic light")
    path.write_text("a: cat\n\nphoto 7.jpg: traffic light, cat\n10:22 1 0\nnothing:\nb 0\nc:cat\n")
    assert read_label_list(path, 2, names) == {
        "a": (0,), "photo 7.jpg": (1, 0), "10:22": (1, 0), "nothing": (), "b": (0,), "c": (0,),
    }  # fmt: skip
    for text, message in (
        ("a: cta\n", "line 1: cta is no class; did you mean cat?"),
        ("a: zebra\n", "line 1: zebra is no class; there are cat, traffic light"),
        ("a: cat, cat\n", "line 1: a class is listed twice"),
        ("a: cat\na: cat\n", "line 2: image a is listed twice"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=re.escape(message)):
            read_label_list(path, 2, names)


def test_label_vectors(tmp_path):
    """WeCLIP's cls_labels_onehot.npy: a pickled dictionary, of which nothing is run."""
    vectors = {name: np.zeros(20, np.float32) for name in ("2007_000032", "b", "a")}
    vectors["2007_000032"][[0, 14]] = 1
    vectors["a"][7] = 1
    path = tmp_path / "cls_labels_onehot.npy"
    np.save(path, vectors, allow_pickle=True)
    labels = read_label_list(path, 20)
    assert list(labels.items()) == [("2007_000032", (0, 14)), ("b", ()), ("a", (7,))]
    with pytest.raises(ValueError, match=r"2007_000032 has float32 \(20,\); expected .* 80"):
        read_label_list(path, 80)
    vectors["b"][3] = 0.5
    np.save(path, vectors, allow_pickle=True)
    with pytest.raises(ValueError, match=r"image b has .* values, 0 or 1"):
        read_label_list(path, 20)
    for content in (np.zeros(3), {"a": print}):
        np.save(path, content, allow_pickle=True)
        with pytest.raises(ValueError, match=r"is not a file of image labels \("):
            read_label_list(path, 20)
