"""Pixel-adaptive refinement against plain loops."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipseg_jax.ops.par import PARConfig, neighbour_weights, par
from clipseg_jax.ops.resize import resize

CFG = PARConfig(iterations=3, dilations=(1, 3))


def inputs(b=2, h=9, w=11, k=3, seed=0):
    keys = jax.random.split(jax.random.key(seed))
    return jax.random.normal(keys[0], (b, h, w, 3)), jax.random.uniform(keys[1], (b, k, h, w))


def neighbours(h, w, y, x, cfg):
    """Row and column of each neighbour, clipped to the image, and its distance."""
    for d in cfg.dilations:
        for i in (-1, 0, 1):
            for j in (-1, 0, 1):
                if i or j:
                    row, column = np.clip(y + d * i, 0, h - 1), np.clip(x + d * j, 0, w - 1)
                    yield row, column, d * np.hypot(i, j)


def plain(image, masks, cfg):
    """One image (h, w, 3), masks (k, h, w), in float64, pixel by pixel."""
    image, masks = np.asarray(image, np.float64), np.asarray(masks, np.float64)
    h, w, _ = image.shape
    weights = {}
    for y in range(h):
        for x in range(w):
            neighbourhood = list(neighbours(h, w, y, x, cfg))
            colours = np.stack([image[row, column] for row, column, _ in neighbourhood])
            width = (colours.std(axis=0, ddof=1) + 1e-8) * cfg.width
            like = np.exp(-(((colours - image[y, x]) / width) ** 2).mean(axis=1))
            far = np.asarray([distance for *_, distance in neighbourhood])
            near = np.exp(-((far / (far.std(ddof=1) + 1e-8) / cfg.width) ** 2))
            weights[y, x] = like / like.sum() + cfg.position_weight * near / near.sum()
    for _ in range(cfg.iterations):
        new = np.zeros_like(masks)
        for (y, x), shares in weights.items():
            for share, (row, column, _) in zip(shares, neighbours(h, w, y, x, cfg), strict=True):
                new[:, y, x] += share * masks[:, row, column]
        masks = new
    return masks


def test_the_same_as_pixel_by_pixel():
    images, masks = inputs()
    actual = jax.jit(par, static_argnums=2)(images, masks, CFG)
    for image, mask, refined in zip(images, masks, actual, strict=True):
        np.testing.assert_allclose(refined, plain(image, mask, CFG), rtol=3e-6)


def test_masks_of_another_size_than_the_image():
    _, masks = inputs()
    larger = jax.random.normal(jax.random.key(1), (2, 17, 14, 3))
    small = resize(larger, masks.shape[2:], align_corners=True)
    np.testing.assert_allclose(par(larger, masks, CFG), par(small, masks, CFG), rtol=1e-6)


@pytest.mark.parametrize("iterations", [1, 20])
def test_a_constant_mask_grows_by_the_position_weight(iterations):
    images, masks = inputs(b=1)
    cfg = dataclasses.replace(CFG, iterations=iterations)
    actual = par(images, jnp.ones_like(masks), cfg)
    np.testing.assert_allclose(actual, 1.01**iterations, rtol=1e-5)


def test_a_flat_image_has_no_number_out_of_place():
    """Without any difference of colours, every neighbour is as alike as the others."""
    weights = neighbour_weights(
        jnp.zeros((1, 5, 6, 3)), dataclasses.replace(CFG, position_weight=0)
    )
    np.testing.assert_allclose(weights, 1 / 16, rtol=1e-6)


def test_edges_hold():
    """A half bright, half dark: what is a class on one side stays there."""
    image = jnp.zeros((1, 16, 16, 3)).at[:, :, 8:].set(1.0)
    image = image + 0.01 * jax.random.normal(jax.random.key(0), image.shape)
    mask = jnp.zeros((1, 1, 16, 16)).at[:, :, :, :6].set(1.0)
    actual = par(image, mask, dataclasses.replace(CFG, iterations=10))[0, 0]
    assert actual[:, 7].min() > 0.3
    assert actual[:, 8].max() < 0.05
