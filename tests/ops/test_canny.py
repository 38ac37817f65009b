"""Canny's edges against OpenCV's."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipseg_jax.ops.canny import add_edges, canny


@pytest.mark.parametrize(("low", "high"), [(100, 200), (30, 90)])
def test_the_same_as_opencv(low, high):
    cv2 = pytest.importorskip("cv2")
    rng = np.random.default_rng(0)
    smooth = [cv2.GaussianBlur(rng.integers(0, 256, (31, 26), np.uint8), (0, 0), s) for s in (1, 3)]
    stretched = [cv2.normalize(x, None, 0, 255, cv2.NORM_MINMAX) for x in smooth]
    images = np.stack([rng.integers(0, 256, (31, 26), np.uint8), *smooth, *stretched])
    actual = jax.jit(canny, static_argnums=(1, 2))(images, low, high)
    expected = np.stack([cv2.Canny(image, low, high) for image in images]) > 0
    assert 0 < expected.sum() < expected.size
    np.testing.assert_array_equal(actual, expected)


def test_edges_raise_a_map_within_its_bounds():
    maps = jnp.zeros((1, 2, 12, 12)).at[:, 0, 3:9, 3:9].set(0.9)
    raised = add_edges(maps)
    edges = canny(jnp.floor(255 * maps))
    assert edges[0, 0].any()
    assert raised.max() == 1
    np.testing.assert_allclose(raised[0, 0] * 1.4, maps[0, 0] + 0.5 * edges[0, 0], rtol=1e-6)
    np.testing.assert_array_equal(raised[0, 1], 0)  # a map without edges stays
