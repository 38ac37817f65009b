"""Haar wavelets and depthwise convolutions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipseg_jax.ops.wavelet import depthwise, haar, inverse_haar


def maps(b=2, h=6, w=8, c=3):
    return jax.random.normal(jax.random.key(0), (b, h, w, c))


def test_one_pixel_by_hand():
    bands = haar(jnp.asarray([[1.0, 2.0], [3.0, 5.0]])[None, :, :, None])
    # Sum, then top minus bottom, left minus right, one diagonal minus the other; halved.
    np.testing.assert_allclose(bands.ravel(), [5.5, -2.5, -1.5, 0.5])


def test_there_and_back():
    x = maps()
    np.testing.assert_allclose(inverse_haar(haar(x)), x, atol=1e-6)
    np.testing.assert_allclose(jnp.sum(haar(x) ** 2), jnp.sum(x**2), rtol=1e-6)


def test_odd_sides_are_refused():
    with pytest.raises(ValueError, match=r"even sides, not \(5, 8\)"):
        haar(maps(h=5))


def test_the_same_as_pywavelets():
    pywt = pytest.importorskip("pywt")
    x = maps()
    low, (rows, columns, both) = pywt.dwt2(np.asarray(x, np.float64), "db1", axes=(1, 2))
    expected = np.stack([low, rows, columns, both], axis=-1)
    np.testing.assert_allclose(haar(x), expected, atol=1e-6)
    back = pywt.idwt2((low, (rows, columns, both)), "db1", axes=(1, 2))
    np.testing.assert_allclose(inverse_haar(jnp.asarray(expected, jnp.float32)), back, atol=1e-6)


@pytest.mark.parametrize("side", [3, 5])
def test_depthwise_is_the_grouped_convolution(side):
    x = maps()
    kernel = jax.random.normal(jax.random.key(1), (side, side, 3))
    expected = jax.lax.conv_general_dilated(
        x, kernel[:, :, None], (1, 1), "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=3,
    )  # fmt: skip
    np.testing.assert_allclose(depthwise(x, kernel), expected, atol=1e-5)
