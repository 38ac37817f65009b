"""The TPU's kernel of PAR and PAMR, run by JAX's operations: the numbers of the written form."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from clipseg_jax.ops import neighbours, neighbours_tpu

OFFSETS = neighbours.neighbour_offsets((1, 2, 12))


@pytest.mark.parametrize("shape", [(2, 21, 3, 30), (1, 40, 1, 90)])
def test_it_diffuses_as_the_written_form(shape):
    b, h, _, w = shape
    keys = jax.random.split(jax.random.key(0), 2)
    weights = jax.nn.softmax(jax.random.normal(keys[0], (b, h, len(OFFSETS), w)), axis=2)
    masks = jax.random.uniform(keys[1], shape)
    sizes = np.asarray([[h, w], [h - 4, w - 8]][:b])
    expected = neighbours.diffuse(weights, masks, OFFSETS, 3, sizes)
    result = neighbours_tpu.diffuse(weights, masks, OFFSETS, 3, sizes, interpret=True)
    for i, (height, width) in enumerate(sizes):
        inside = np.s_[i, :height, :, :width]
        np.testing.assert_allclose(result[inside], expected[inside], rtol=1e-6)


def test_what_fits():
    assert neighbours_tpu.fits((4, 320, 4, 320), neighbours.neighbour_offsets((1, 2, 4, 8, 12, 24)))
    assert not neighbours_tpu.fits((1, 2048, 4, 2048), OFFSETS)
