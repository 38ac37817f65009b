"""Images as whole patches, for every tower."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from clipseg_jax.models import patches

SIDES = (1, 15, 16, 17, 32, 47)


@pytest.mark.parametrize(
    ("pad", "expected"), [(True, (1, 1, 1, 2, 2, 3)), (False, (1,) * 4 + (2, 2))]
)
def test_grids(pad, expected):
    """A side of less than a patch is one, whatever becomes of remainders."""
    sizes = jnp.stack([jnp.asarray(SIDES), jnp.full(len(SIDES), 32)], axis=1)
    made = patches.grid_sizes(sizes, 16, pad_to_patch=pad)
    np.testing.assert_array_equal(made[:, 0], expected)
    for side, rows in zip(SIDES, expected, strict=True):
        assert patches.grid_shape(side, 32, 16, pad_to_patch=pad) == (rows, 2)


def test_images_are_zero_beyond_their_sizes():
    images, sizes = jnp.ones((2, 20, 9, 3)), jnp.asarray([[20, 9], [5, 7]])
    made = patches.pad_to_grid(images, sizes, (2, 1), 16)
    assert made.shape == (2, 32, 16, 3)
    np.testing.assert_array_equal(np.sum(made, axis=(1, 2))[:, 0], [20 * 9, 5 * 7])
    np.testing.assert_array_equal(made[1, :5, :7], 1)
    # A remainder that is dropped stays: the convolution does not reach it.
    assert patches.pad_to_grid(images, None, (1, 1), 16).shape == (2, 20, 16, 3)


def test_leading_tokens_are_never_masked():
    bias = patches.padding_bias(jnp.asarray([[2, 1], [1, 2]]), (2, 2), leading=2)
    seen = np.asarray(bias[:, 0] == 0)
    np.testing.assert_array_equal(seen, [[1, 1, 1, 0, 1, 0], [1, 1, 1, 1, 0, 0]])
