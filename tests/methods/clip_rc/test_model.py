"""CLIP-RC's model beyond its goldens: start, attention, padding, regions, dropout."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipseg_jax.methods.clip_rc.encoder import (
    _whole_mask,
    region_attention,
    regions_of_patches,
)
from clipseg_jax.methods.clip_rc.model import init_clip_rc
from clipseg_jax.ops.attention import KeyValues, attention
from clipseg_jax.ops.image import valid_mask
from tests import tiny
from tests.methods.clip_rc.tiny import SMALL, small
from weights_convert.clip.build import flat_arrays


@pytest.mark.slow
def test_layers_start_as_published():
    model = small(decoder_blocks=3, dropout=0.0)
    state = {path: np.asarray(leaf) for path, leaf in flat_arrays(model).items()}
    for decoder in ("decoder_q", "decoder_v"):
        first = {p: x for p, x in state.items() if p.startswith(f"head.{decoder}.0.")}
        for path, value in first.items():
            for i in "12":
                np.testing.assert_array_equal(state[path.replace(".0.", f".{i}.", 1)], value)
    kernel = state["head.decoder_q.0.linear1.kernel"]
    limit = kernel.shape[0] ** -0.5
    assert 0.9 * limit < np.abs(kernel).max() <= limit
    assert np.any(state["head.decoder_q.0.linear1.bias"])
    assert not np.any(state["head.recovery_decoder.linear_q_in.bias"])
    intended = {p: np.asarray(x) for p, x in flat_arrays(small(head_init="intended")).items()}
    assert not np.any(intended["head.decoder_v.0.linear2.kernel"])
    assert np.any(intended["head.decoder_q.0.linear2.kernel"])
    assert not np.any(intended["head.q_proj.bias"])
    visual = tiny.clip().visual
    start = visual.class_embedding[...] + visual.positional_embedding[...][0]
    np.testing.assert_array_equal(state["encoder.region_level_bridge"], np.tile(start, (4, 1)))


def test_padding_has_no_influence():
    """An image in a padded batch, of another grid than the crop's, as if it were alone."""
    model = small(dropout=0.0)
    alone = jax.random.normal(jax.random.key(1), (1, 80, 48, 3))
    padded = jnp.full((2, 96, 96, 3), 7.0).at[0, :80, :48].set(alone[0])
    sizes = jnp.asarray([(80, 48), (96, 96)])
    run = jax.jit(lambda model, *args: model(*args))
    batched, expected = run(model, padded, sizes), run(model, alone)
    np.testing.assert_allclose(batched[0, :5, :3], expected[0], rtol=1e-5, atol=1e-5)
    assert not np.any(batched[0, 5:])
    assert not np.any(batched[0, :, 3:])
    np.testing.assert_allclose(batched[1], run(model, padded)[1], rtol=1e-5, atol=1e-5)


def test_regions_know_their_patches_alone():
    """A changed corner changes that corner's region, and no other, in the first block's reading."""
    model = small(dropout=0.0)
    images = jax.random.normal(jax.random.key(1), (1, 64, 64, 3))
    first = jax.jit(lambda encoder, x: encoder.blocks(x, read=(0,))[1][0])
    moved = np.any(
        np.asarray(
            first(model.encoder, images) != first(model.encoder, images.at[:, :32, 32:].add(1))
        ),
        axis=(0, 2),
    )
    np.testing.assert_array_equal(moved[-4:], [False, True, False, False])


def test_dropout_differs_between_images_and_vanishes_without_a_key():
    encoder = small(dropout=0.5).encoder
    images = jnp.zeros((2, 64, 64, 3))
    tokens = encoder.first_tokens(images, None, jax.random.key(0))[:, 1:4]
    assert np.any(tokens[0] != tokens[1])
    assert 0.3 < float(jnp.mean(tokens == 0)) < 0.7
    plain = encoder.first_tokens(images, None, None)[:, 1:4]
    np.testing.assert_allclose(tokens, jnp.where(tokens == 0, 0, 2 * plain), rtol=1e-5, atol=1e-6)


def test_models_that_cannot_be():
    visual, rows = tiny.clip().visual, np.zeros((3, tiny.VIT.embed_dim))
    with pytest.raises(ValueError, match="not whole patches of 16; choose 64"):
        init_clip_rc(visual, rows, dataclasses.replace(SMALL, crop_px=70))
    with pytest.raises(ValueError, match="set heads to a divisor"):
        init_clip_rc(visual, rows, dataclasses.replace(SMALL, heads=5))
    with pytest.raises(ValueError, match="the same CLIP"):
        init_clip_rc(visual, rows[:, :5], SMALL)
    with pytest.raises(ValueError, match="give a CLIP with a ViT"):
        init_clip_rc(tiny.clip(tiny.RESNET).visual, rows, SMALL)


@pytest.mark.parametrize("padded", [False, True])
def test_the_whole_mask_is_that_of_the_parts(padded):
    """The form of bfloat16, by one mask, beside that of float32; also with padding."""
    grid, side, start, n, d = (4, 6), 2, 3, 2, 8
    grids = jnp.asarray([(4, 6), (3, 4)]) if padded else None
    in_region = regions_of_patches(grid, side, grids)
    real = valid_mask(grids, grid).reshape(2, -1) if padded else None
    t = start + grid[0] * grid[1] + side**2
    parts = [jax.random.normal(key, (2, n, t, d)) for key in jax.random.split(jax.random.key(0), 3)]
    expected = region_attention(*parts, in_region, real)
    result = region_attention(*(x.astype(jnp.bfloat16) for x in parts), in_region, real)
    np.testing.assert_allclose(result.astype(jnp.float32), expected, atol=0.05)
    whole = attention(*parts[:1], [KeyValues(*parts[1:], _whole_mask(in_region, real, start))])
    np.testing.assert_allclose(whole, expected, rtol=1e-5, atol=1e-6)
