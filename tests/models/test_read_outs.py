"""Read-outs of a whole tower: padded batches, other depths, what they refuse."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipseg_jax.methods.maskclip.model import MaskCLIP
from clipseg_jax.methods.readouts.feedback import FeedbackConfig
from clipseg_jax.methods.readouts.model import ReadOutModel
from clipseg_jax.models.clip import l2_normalize
from clipseg_jax.models.clip.dense import dense_features
from clipseg_jax.models.clip.last_block import neighbour_map
from clipseg_jax.models.clip.read_outs import (
    READ_OUTS,
    Calibration,
    ReadOut,
    block_index,
    read_out,
)
from tests import tiny

TOWER = dataclasses.replace(tiny.VIT, layers=3, position_offset=0.1, position_keep_count=True)
SIZES = ((96, 112), (64, 64), (50, 97), (30, 20), (9, 40))  # the last less than a patch high
SHAPE = (112, 112)


# One program for each shape: single operations would be one each.
features = jax.jit(dense_features, static_argnames="read_out")


@functools.cache
def visual(**choices):
    return tiny.clip(dataclasses.replace(TOWER, **choices)).visual


def pixels(size, seed=3):
    return np.random.RandomState(seed).standard_normal((*size, 3)).astype(np.float32)


@pytest.mark.parametrize("pad", [True, False], ids=["padded patches", "dropped remainder"])
@pytest.mark.parametrize("name", READ_OUTS)
def test_a_padded_batch_equals_single_images(name, pad):
    tower = visual(pad_to_patch=pad)
    batch = np.full((len(SIZES), *SHAPE, 3), 7, np.float32)
    for row, (h, w) in zip(batch, SIZES, strict=True):
        row[:h, :w] = pixels((h, w))
    dense = jax.device_get(features(tower, batch, jnp.asarray(SIZES), read_out=READ_OUTS[name]))
    for i, size in enumerate(SIZES):
        alone = features(tower, pixels(size)[None], read_out=READ_OUTS[name])
        r, c = alone.features.shape[1:3]
        assert r * c > 0
        np.testing.assert_array_equal(np.sum(dense.real[i]), r * c)
        largest = float(np.max(np.abs(np.asarray(alone.features))))
        np.testing.assert_allclose(
            dense.features[i, :r, :c], alone.features[0], atol=1e-5 * largest, err_msg=str(size)
        )
        assert np.all(np.isfinite(dense.features[i]))


@pytest.mark.parametrize("name", READ_OUTS)
def test_a_blank_image_has_finite_features(name):
    images = jnp.zeros((1, 64, 48, 3))
    assert np.all(np.isfinite(features(visual(), images, read_out=READ_OUTS[name]).features))


def test_read_outs_differ():
    """None is another one by mistake, nor falls back to the plain value."""
    tower, images = visual(), jnp.asarray(pixels((64, 96)))[None]
    made = {
        name: np.asarray(features(tower, images, read_out=each).features)
        for name, each in READ_OUTS.items()
    }
    for one in made:
        for two in made:
            assert one == two or np.max(np.abs(made[one] - made[two])) > 1e-3, (one, two)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [(12, [8, 3, 9]), (24, [17, 7, 19]), (4, [2, 0, 2]), (2, [0, 0, 0])],
)
def test_blocks_of_other_depths_are_in_proportion(layers, expected):
    cfg = Calibration()
    blocks = (cfg.similarity, cfg.aggregate, cfg.fused[1])
    assert [block_index(block, layers) for block in blocks] == expected
    assert max(cfg.indices(layers)) < layers - 1


def test_published_blocks():
    assert list(Calibration().fused_indices(12)) == [3, 4, 5, 6, 7, 8, 9]
    assert READ_OUTS["resclip"].cross_indices(12) == [5, 6, 7, 8]


def test_neighbours_are_nearer_than_others():
    """By the distance on the grid, not along the flattened index; the class token is neutral."""
    near = np.asarray(neighbour_map((2, 3), 5.0))[0]
    np.testing.assert_array_equal(near[0], 0)
    np.testing.assert_array_equal(near[:, 0], 0)
    np.testing.assert_allclose(np.diag(near)[1:], 1)
    np.testing.assert_allclose(near[1, 4], np.exp(-1 / 50), rtol=1e-6)  # the patch below
    np.testing.assert_allclose(near[3, 4], np.exp(-5 / 50), rtol=1e-6)  # the next line's first


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"scores": ("kv",)}, r"scores is 'kv'; give 'qk' or 'qq'"),
        ({"scores": ("kk",), "gain": 0.0}, "gain is 0"),
        ({"scores": ("kk",), "neighbours": -1.0}, "neighbours is -1"),
        ({"scores": ("kk",), "cross": 1.5, "cross_blocks": (6,)}, r"cross is 1\.5"),
        ({"scores": ("kk",), "cross": 0.3}, r"cross is 0\.3 of no block"),
        ({"neighbours": 5.0}, "neighbours and cross belong to an attention of scores alone"),
        ({"cross": 0.3, "cross_blocks": (6,)}, "neighbours and cross belong to"),
        ({"scores": ("kk",), "calibration": Calibration()}, "neither residual nor mlp"),
    ],
)
def test_values_without_effect(values, message):
    with pytest.raises(ValueError, match=message):
        ReadOut(**values)
    with pytest.raises(ValueError, match="neighbours and cross belong to"):
        dataclasses.replace(READ_OUTS["scclip"], neighbours=5.0)


def test_maskclip_of_another_read_out():
    """The guide of MaskCLIP+ by itself, and what ReCLIP rectifies."""
    tower, images = visual(), jnp.asarray(pixels((64, 96)))[None]
    rows = l2_normalize(jax.random.normal(jax.random.key(0), (3, tower.cfg.embed_dim)))
    dense = features(tower, images, read_out=READ_OUTS["naclip"])
    expected = l2_normalize(dense.features) @ rows.T
    classify = jax.jit(MaskCLIP.__call__)
    made = classify(MaskCLIP(tower, rows, read_out=READ_OUTS["naclip"]), images)
    np.testing.assert_allclose(made, expected, atol=1e-6)
    assert np.max(np.abs(made - classify(MaskCLIP(tower, rows), images))) > 1e-3


@pytest.mark.parametrize("name", ["value", "scclip"])
def test_feedback_needs_scores(name):
    rows = l2_normalize(jax.random.normal(jax.random.key(0), (3, TOWER.embed_dim)))
    with pytest.raises(ValueError, match="feedback changes attention scores"):
        ReadOutModel(visual(), rows, READ_OUTS[name], FeedbackConfig())


def test_unknown_read_out():
    with pytest.raises(ValueError, match=r"'sclipp'.*'sclip' or 'naclip'"):
        read_out("sclipp")


def test_a_resnet_has_no_last_block():
    tower = tiny.clip(tiny.RESNET).visual
    with pytest.raises(ValueError, match="ResNet"):
        dense_features(tower, jnp.zeros((1, 64, 64, 3)), read_out=READ_OUTS["naclip"])


@pytest.mark.parametrize("name", ["scclip", "resclip"])
def test_a_tower_without_earlier_blocks_is_refused(name):
    with pytest.raises(ValueError, match="earlier blocks"):
        dense_features(visual(layers=1), jnp.zeros((1, 64, 64, 3)), read_out=READ_OUTS[name])


def test_bfloat16_is_near():
    """SC-CLIP's thresholds may fall otherwise; most features must not."""
    images = jnp.asarray(pixels((96, 96)))[None]
    for name in ("sclip", "naclip", "clearclip", "resclip"):
        exact, rounded = (
            np.asarray(features(visual(dtype=dtype), images, read_out=READ_OUTS[name]).features)
            for dtype in ("float32", "bfloat16")
        )
        assert np.max(np.abs(exact - rounded)) < 0.05 * np.max(np.abs(exact)), name
