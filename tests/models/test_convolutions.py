"""Convolutions as matrix products against XLA's own, values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from clipseg_jax.models.convolutions import PointwiseConv, TapConv, conv

CASES = {
    "pointwise": (PointwiseConv, 8, 5, 1, {}),
    "pointwise strided": (PointwiseConv, 8, 5, 1, {"stride": 2}),
    "3x3": (TapConv, 8, 5, 3, {}),
    "5x5": (TapConv, 4, 6, 5, {}),
    "dilated": (TapConv, 8, 5, 3, {"dilation": 2}),
    "depthwise": (TapConv, 8, 8, 3, {"dilation": 2, "groups": 8}),
    "few outputs": (TapConv, 40, 2, 3, {"dilation": 4}),
    "few outputs, taps in the padding": (TapConv, 40, 2, 3, {"dilation": 10}),
    "taps in the padding": (TapConv, 8, 5, 3, {"dilation": 12}),
    "strided": (nnx.Conv, 8, 5, 3, {"stride": 2}),
}


@pytest.mark.parametrize("case", CASES)
def test_equals_xlas_convolution(case: str) -> None:
    kind, c_in, c_out, kernel, choices = CASES[case]
    module = conv(c_in, c_out, kernel, **choices, dtype="float32", rngs=nnx.Rngs(0))
    assert type(module) is kind
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 9, 12, c_in)), jnp.float32)
    stride, dilation = choices.get("stride", 1), choices.get("dilation", 1)

    def reference(x: jax.Array, weights: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(
            x,
            weights,
            window_strides=(stride, stride),
            padding=[(kernel // 2 * dilation,) * 2] * 2,
            rhs_dilation=(dilation, dilation),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=choices.get("groups", 1),
        )

    graph, params = nnx.split(module)

    def ours(x: jax.Array, weights: jax.Array) -> jax.Array:
        return nnx.merge(graph, params | {"kernel": weights})(x)

    def values(f):  # type: ignore[no-untyped-def]
        out, back = jax.vjp(jax.jit(f), x, params["kernel"][...])
        return (out, *back(jnp.cos(out)))

    for actual, expected in zip(values(ours), values(reference), strict=True):
        # Sums of up to 360 products of numbers about 1.
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=5e-5)
