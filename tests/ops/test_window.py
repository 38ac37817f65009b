"""Windows with zeros on all sides: what is cut out again is where it was."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from clipseg_jax.ops.resize import resize_matrix
from clipseg_jax.ops.window import (
    add_margins,
    grid_to_image,
    margins_to_multiple,
    window_starts,
)


def test_margins_are_on_both_sides():
    """As published: half of them, rounded down, before; the rest behind."""
    margins = margins_to_multiple(jnp.asarray([100, 112, 113, 7]), 16)
    np.testing.assert_array_equal(margins.sizes, [112, 112, 128, 16])
    np.testing.assert_array_equal(margins.before, [6, 0, 7, 4])


def test_images_move_into_their_margins():
    sizes = np.array([[3, 5], [8, 2]])
    images = np.random.RandomState(0).standard_normal((2, 8, 6, 3)).astype(np.float32)
    margins = [margins_to_multiple(jnp.asarray(sizes[:, axis]), 4) for axis in (0, 1)]
    moved = np.asarray(add_margins(jnp.asarray(images), jnp.asarray(sizes), margins, (8, 8)))
    for image, result, (h, w), top, left in zip(
        images, moved, sizes, margins[0].before, margins[1].before, strict=True
    ):
        np.testing.assert_array_equal(result[top : top + h, left : left + w], image[:h, :w])
        np.testing.assert_allclose(np.abs(result).sum(), np.abs(image[:h, :w]).sum(), rtol=1e-6)


@pytest.mark.parametrize("windows", [False, True])
def test_grids_of_windows_with_margins(windows):
    """Each image pixel reads the padded window at its place in it."""
    size, crop, stride, multiple, patch = 21, 10, 6, 8, 4
    extent = crop if windows else size
    padded = -(-extent // multiple) * multiple
    before, grid = (padded - extent) // 2, padded // patch
    upsampling = np.asarray(resize_matrix(grid, padded))[before : before + extent]
    margins = margins_to_multiple(jnp.asarray([extent]), multiple)
    starts = window_starts(jnp.asarray([size]), 3, crop, stride) if windows else None
    made = grid_to_image(
        jnp.asarray([grid]),
        jnp.asarray([size]),
        grid_length=grid,
        length=size + 2,
        crop=crop if windows else None,
        starts=starts,
        margins=margins,
        padded_length=padded,
    )[0]
    first = [0] if starts is None else starts[0].tolist()
    expected, cover = np.zeros((size + 2, len(first), grid)), np.zeros(size + 2)
    for i, start in enumerate(first):
        expected[start : start + extent, i] = upsampling
        cover[start : start + extent] += 1
    expected = expected.reshape(size + 2, -1) / np.maximum(cover, 1)[:, None]
    np.testing.assert_allclose(made, expected, atol=1e-6)
