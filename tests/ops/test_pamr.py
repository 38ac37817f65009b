"""Pixel-adaptive mask refinement against plain loops."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipseg_jax.ops import neighbours
from clipseg_jax.ops.pamr import PAMRConfig, pamr
from clipseg_jax.ops.resize import resize

CFG = PAMRConfig(steps=3, dilations=(1, 3))
refine = jax.jit(pamr, static_argnums=2)


def inputs(b=2, h=9, w=11, k=3, seed=0):
    keys = jax.random.split(jax.random.key(seed))
    return jax.random.normal(keys[0], (b, h, w, 3)), jax.random.uniform(keys[1], (b, k, h, w))


def plain(image, masks, cfg):
    """One image (h, w, 3), masks (k, h, w), in float64, pixel by pixel."""
    image, masks = np.asarray(image, np.float64), np.asarray(masks, np.float64)
    h, w, _ = image.shape
    weights, places = {}, {}
    for y in range(h):
        for x in range(w):
            window = [
                (np.clip(y + d * i, 0, h - 1), np.clip(x + d * j, 0, w - 1), bool(i or j))
                for d in cfg.dilations
                for i in (-1, 0, 1)
                for j in (-1, 0, 1)
            ]
            colours = np.stack([image[row, column] for row, column, _ in window])
            deviation = colours.std(axis=0, ddof=1)  # the centre counts once per dilation
            places[y, x] = [(row, column) for row, column, around in window if around]
            near = np.stack([image[place] for place in places[y, x]])
            like = np.exp((-np.abs(near - image[y, x]) / (1e-8 + 0.1 * deviation)).mean(axis=1))
            weights[y, x] = like / like.sum()
    for _ in range(cfg.steps):
        new = np.zeros_like(masks)
        for (y, x), shares in weights.items():
            for share, (row, column) in zip(shares, places[y, x], strict=True):
                new[:, y, x] += share * masks[:, row, column]
        masks = new
    return masks


def test_the_same_as_pixel_by_pixel():
    images, masks = inputs()
    actual = refine(images, masks, CFG)
    for image, mask, refined in zip(images, masks, actual, strict=True):
        np.testing.assert_allclose(refined, plain(image, mask, CFG), rtol=1e-5)


def test_masks_of_another_size_are_resized_with_aligned_corners():
    images, _ = inputs(h=17, w=14)
    _, masks = inputs()
    large = jnp.moveaxis(resize(jnp.moveaxis(masks, 1, 3), (17, 14), align_corners=True), 3, 1)
    np.testing.assert_allclose(refine(images, masks, CFG), refine(images, large, CFG), rtol=1e-6)


def test_padding_has_no_influence():
    sizes, shape = ((20, 14), (11, 30), (24, 32)), (24, 32)
    images, masks = (np.array(x) for x in inputs(3, *shape, k=2))
    actual = np.asarray(refine(images, masks, CFG, jnp.asarray(sizes)))
    for i, (h, w) in enumerate(sizes):
        expected = pamr(images[i : i + 1, :h, :w], masks[i : i + 1, :, :h, :w], CFG)[0]
        np.testing.assert_allclose(actual[i, :, :h, :w], expected, atol=1e-5)
    images[0, 20:], masks[0, :, :, 14:] = 1e3, -7.0
    again = refine(images, masks, CFG, jnp.asarray(sizes))
    np.testing.assert_array_equal(again[0, :, :20, :14], actual[0, :, :20, :14])


def test_shares_of_the_masks_change_nothing(monkeypatch):
    images, masks = inputs(k=7)
    whole = refine(images, masks, CFG)
    monkeypatch.setattr(neighbours, "_MASKS_AT_ONCE", 2 * 9 * 11 * 2)  # two masks at a time
    shared = jax.jit(lambda *x: pamr(*x, CFG))(images, masks)
    np.testing.assert_allclose(shared, whole, rtol=1e-6)


@pytest.mark.parametrize("flat", [True, False])
def test_a_constant_map_stays(flat):
    images, masks = inputs(b=1)
    images = jnp.zeros_like(images) if flat else images
    np.testing.assert_allclose(refine(images, jnp.ones_like(masks), CFG), 1, rtol=1e-5)


def test_no_steps_change_nothing():
    images, masks = inputs(b=1)
    np.testing.assert_array_equal(refine(images, masks, PAMRConfig(steps=0)), masks)


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (3, 2)])
def test_images_smaller_than_the_reach(shape):
    images, masks = inputs(1, *shape)
    assert np.isfinite(refine(images, masks, PAMRConfig())).all()


def test_edges_hold():
    """A half bright, half dark: what is a class on one side stays there."""
    image = jnp.zeros((1, 16, 16, 3)).at[:, :, 8:].set(1.0)
    image = image + 0.01 * jax.random.normal(jax.random.key(0), image.shape)
    mask = jnp.zeros((1, 1, 16, 16)).at[:, :, :, :6].set(1.0)
    actual = refine(image, mask, PAMRConfig(steps=10, dilations=(1, 3)))[0, 0]
    assert actual[:, 7].min() > 0.3
    assert actual[:, 8].max() < 0.05
