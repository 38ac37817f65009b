"""PAR of padded batches: each image's own border counts, and padding has no influence."""

import jax
import jax.numpy as jnp
import numpy as np

from clipseg_jax.ops.par import PARConfig, diffuse, neighbour_weights, par

CFG = PARConfig(iterations=3, dilations=(1, 3))
SIZES = ((20, 14), (11, 30), (24, 32))
SHAPE = (24, 32)


def test_padding_has_no_influence():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(3, *SHAPE, 3)).astype(np.float32)
    masks = rng.uniform(size=(3, 2, *SHAPE)).astype(np.float32)
    sizes = jnp.asarray(SIZES)

    @jax.jit
    def padded(images, masks):
        weights = neighbour_weights(images, CFG, sizes)
        return jnp.moveaxis(diffuse(weights, jnp.moveaxis(masks, 1, 2), CFG, sizes), 2, 1)

    actual = np.asarray(padded(images, masks))
    for i, (h, w) in enumerate(SIZES):
        expected = par(images[i : i + 1, :h, :w], masks[i : i + 1, :, :h, :w], CFG)[0]
        np.testing.assert_allclose(actual[i, :, :h, :w], expected, atol=1e-5)
    images[0, 20:], masks[0, :, :, 14:] = 1e3, -7.0
    np.testing.assert_array_equal(padded(images, masks)[0, :, :20, :14], actual[0, :, :20, :14])
