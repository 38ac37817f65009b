"""DINO towers: positions by their definition, padded batches, the released sizes."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipseg_jax.core.modules import abstract, initialised
from clipseg_jax.models.dino import DINO, DINOConfig, SwiGLU
from clipseg_jax.ops.resize import resize_matrix
from weights_convert.clip.build import shapes_of

V1 = DINOConfig(image_px=40, patch_px=8, width=48, layers=2, heads=3)
V2 = dataclasses.replace(V1, layer_scale=True)
REGISTERS = dataclasses.replace(V2, registers=4, position_antialias=True)
# One of the stored size, larger and smaller grids, one axis kept, sides with a remainder, sides of
# less than a patch.
SIZES = [(40, 40), (64, 56), (16, 31), (40, 48), (47, 40), (45, 45), (5, 30), (3, 3)]


# One program for each shape: single operations would be one each.
run = jax.jit(DINO.__call__)
positions = jax.jit(DINO.positions, static_argnums=1)


def tower(cfg, seed=0):
    return initialised(lambda rngs: DINO(cfg, rngs=rngs), seed)


kept = functools.cache(tower)  # not to be changed


def image(size, seed=1):
    return np.random.RandomState(seed).standard_normal((*size, 3)).astype(np.float32)


@pytest.mark.parametrize(
    "cfg", [V1, dataclasses.replace(REGISTERS, mlp="swiglu")], ids=["v1", "registers"]
)
def test_padded_batches_equal_single_images(cfg):
    model = kept(cfg)
    padded = np.full((len(SIZES), 64, 56, 3), 9.0, np.float32)
    for i, (h, w) in enumerate(SIZES):
        padded[i, :h, :w] = image((h, w))
    made = np.asarray(run(model, padded, jnp.asarray(SIZES)))
    assert made.shape == (len(SIZES), 8, 7, 48)
    for i, (h, w) in enumerate(SIZES):
        rows, columns = max(h // 8, 1), max(w // 8, 1)
        alone = run(model, image((h, w))[None])[0]
        assert alone.shape == (rows, columns, 48)
        np.testing.assert_allclose(made[i, :rows, :columns], alone, atol=1e-5)
        assert not made[i, rows:].any()
        assert not made[i, :, columns:].any()


def cubic(x, a):
    x = abs(x)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def axis_weights(g, r, antialias):
    """Row i holds what position i of r takes from each of g stored ones (spec readouts, 2, 12)."""
    weights = np.zeros((r, g))
    for i in range(r):
        if antialias:
            step = g / r
            stretch = max(step, 1)
            for j in range(g):
                weights[i, j] = cubic((j + 0.5 - (i + 0.5) * step) / stretch, -0.5)
            weights[i] /= weights[i].sum()
        else:
            source = (i + 0.5) * g / (r + 0.1) - 0.5
            low = int(np.floor(source))
            for k in (-1, 0, 1, 2):
                weights[i, min(max(low + k, 0), g - 1)] += cubic(source - low - k, -0.75)
    return weights


@pytest.mark.parametrize("cfg", [V1, REGISTERS], ids=["offset", "antialias"])
@pytest.mark.parametrize("size", SIZES)
def test_positions(cfg, size):
    model, g = kept(cfg), cfg.grid
    stored = np.asarray(model.pos_embed[1:]).reshape(g, g, -1)
    if size == (g * 8, g * 8) or (size == (45, 45)):
        expected = stored
    else:
        rows, columns = (axis_weights(g, max(n // 8, 1), cfg.position_antialias) for n in size)
        expected = np.einsum("rg,ghd,ch->rcd", rows, stored, columns)
    made = np.asarray(positions(model, size))
    np.testing.assert_allclose(made[0].reshape(expected.shape), expected, atol=1e-6)


def test_the_offset_moves_an_axis_of_the_stored_size_too():
    model = kept(V1)
    made = np.asarray(positions(model, (40, 48)))[0].reshape(5, 6, -1)
    exact = resize_matrix(5, 6, "bicubic")
    stored = np.asarray(model.pos_embed[1:]).reshape(5, 5, -1)
    assert np.max(np.abs(made - np.einsum("ghd,ch->gcd", stored, exact))) > 1e-4


def test_the_antialiased_matrix_is_jaxs():
    for n_in, n_out in ((37, 24), (37, 37), (9, 14), (14, 3)):
        x = jnp.asarray(np.random.RandomState(0).standard_normal((n_in, 2)), jnp.float32)
        expected = jax.image.resize(x, (n_out, 2), "cubic", antialias=True)
        padded = resize_matrix(
            jnp.int32(n_in), jnp.int32(n_out), "bicubic_antialias", in_length=40, out_length=40
        )
        assert not padded[n_out:].any()
        assert not padded[:, n_in:].any()
        np.testing.assert_allclose(padded[:n_out, :n_in] @ x, expected, atol=1e-5)


def test_layer_scale_and_registers_count():
    model = tower(REGISTERS)
    pixels = image((40, 40))[None]
    before = run(model, pixels)
    model.register_tokens[...] *= -9
    assert np.max(np.abs(run(model, pixels) - before)) > 1e-3
    model = tower(V2)
    for block in model.blocks:
        block.ls1[...] *= 0
        block.ls2[...] *= 0

    @jax.jit
    def without_blocks(model, pixels):
        tokens = model.patch_embed(pixels).reshape(1, -1, 48) + model.positions((40, 40))
        return model.norm(tokens)

    made = run(model, pixels).reshape(1, -1, 48)
    np.testing.assert_allclose(made, without_blocks(model, pixels), atol=1e-5)


def test_swiglu():
    layer = initialised(lambda rngs: SwiGLU(48, "float32", rngs=rngs))
    assert layer.w12.kernel.shape == (48, 2 * 128)
    x = image((5, 48))[..., 0][None]
    gate, value = np.split(np.asarray(layer.w12(x)), 2, axis=-1)
    np.testing.assert_allclose(layer(x), layer.w3(gate / (1 + np.exp(-gate)) * value), atol=1e-5)


@pytest.mark.parametrize(
    ("cfg", "millions"),
    [
        (DINOConfig(224, 16, 384, 12, 6), 21.67),
        (DINOConfig(224, 8, 768, 12, 12), 85.81),
        (DINOConfig(518, 14, 384, 12, 6, layer_scale=True), 22.06),
        (DINOConfig(518, 14, 1024, 24, 16, layer_scale=True, registers=4), 304.37),
        (DINOConfig(518, 14, 1536, 40, 24, mlp="swiglu", layer_scale=True), 1136.48),
    ],
    ids=["s16", "b8", "v2_s14", "v2_l14_reg", "v2_g14"],
)
def test_released_sizes(cfg, millions):
    model = abstract(lambda rngs: DINO(cfg, rngs=rngs))
    parameters = sum(int(np.prod(shape)) for shape in shapes_of(model).values())
    assert round(parameters / 1e6, 2) == millions
    side = 2 * cfg.patch_px
    pixels = jax.ShapeDtypeStruct((1, side, side + cfg.patch_px + 1, 3), jnp.float32)
    assert jax.eval_shape(lambda m, x: m(x), model, pixels).shape == (1, 2, 3, cfg.width)


def test_what_has_no_meaning():
    with pytest.raises(ValueError, match="5 heads don't divide width 48"):
        dataclasses.replace(V1, heads=5)
    with pytest.raises(ValueError, match="image_px 7 is less than a patch of 8"):
        dataclasses.replace(V1, image_px=7)
