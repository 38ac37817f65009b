"""Batch norm in half precision: what it returns, and that one pass over the maps is enough."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from clipseg_jax.models.batch_norm import BatchNorm

SHAPE = (4, 6, 5, 3)


def maps(mean):
    rows = np.random.default_rng(0).normal(mean, 2.0, SHAPE)
    return jnp.asarray(rows, jnp.bfloat16)


def applied(x, dtype, *, running_mean=0.0, stats_over="batch"):
    """(output, gradient of a weighted sum of it, running mean, running variance)."""
    weights = np.random.default_rng(1).normal(size=SHAPE)

    @jax.jit
    def run(x):
        norm = BatchNorm(SHAPE[-1], rngs=nnx.Rngs(0))
        norm.mean[...] = jnp.full(SHAPE[-1:], running_mean)
        out = norm(x, train=True, stats_over=stats_over)
        assert out.dtype == x.dtype
        return jnp.sum(out.astype(jnp.float32) * weights), (out, norm.mean[...], norm.var[...])

    (_, (out, mean, var)), gradient = jax.value_and_grad(run, has_aux=True)(x.astype(dtype))
    return tuple(np.asarray(each, np.float32) for each in (out, gradient, mean, var))


@pytest.mark.parametrize("stats_over", ["batch", "image"])
def test_one_pass_gives_what_two_give(stats_over):
    x = maps(mean=1.0)
    half = applied(x, jnp.bfloat16, stats_over=stats_over)
    whole = applied(x, jnp.float32, stats_over=stats_over)
    for name, actual, expected, bound in zip(
        ("output", "gradient", "mean", "var"), half, whole, (1e-2, 2e-2, 1e-5, 1e-5), strict=True
    ):
        scale = np.abs(expected).max()
        np.testing.assert_allclose(actual, expected, atol=bound * scale, err_msg=name)


def test_large_means_cost_no_digits():
    """Of which squares in float32 would leave nothing; the running mean has followed them."""
    x = maps(mean=3e4)
    actual = applied(x, jnp.bfloat16, running_mean=2.99e4)
    expected = applied(x, jnp.float32, running_mean=2.99e4)
    np.testing.assert_allclose(actual[3], expected[3], rtol=1e-4)
    assert actual[3].min() > 0


def test_evaluation_keeps_the_type():
    norm = BatchNorm(SHAPE[-1], rngs=nnx.Rngs(0))
    x = maps(mean=0.0)
    half, whole = norm(x, train=False), norm(x.astype(jnp.float32), train=False)
    assert (half.dtype, whole.dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_array_equal(half, whole.astype(jnp.bfloat16))
