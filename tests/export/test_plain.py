"""Functions as few simple operations: same values, no loops over what is known."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from flax import nnx
from jax import numpy as jnp

from clipseg_jax.export.plain import plain

X = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)


def operations(call, *arrays):
    """Names of the operations of the plain function, after its values were compared."""
    specs = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arrays]
    simple = plain(call, *specs)
    expected = jax.tree.leaves(call(*map(jnp.asarray, arrays)))
    for ours, theirs in zip(jax.jit(simple)(*arrays), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)
        assert ours.dtype == theirs.dtype
    return [each.primitive.name for each in jax.make_jaxpr(simple)(*specs).jaxpr.eqns]


def test_what_is_known_is_computed_once():
    weights = jnp.ones((5, 5))

    def call(x):
        return jax.jit(lambda y: y @ jnp.linalg.norm(jnp.sin(weights), axis=0, keepdims=True).T)(x)

    assert operations(call, X) == ["dot_general"]


def test_loops_over_known_counts_are_unrolled():
    def call(x):
        return jax.lax.fori_loop(0, 3, lambda i, y: y * jnp.take(jnp.arange(1.0, 4.0), i), x)

    assert set(operations(call, X)) == {"mul"}


@pytest.mark.parametrize("reverse", [False, True])
def test_results_of_unrolled_steps_are_in_order(reverse):
    def call(x):
        def step(total, weight):
            return total + weight * x, total

        return jax.lax.scan(step, jnp.zeros_like(x), jnp.arange(4.0), reverse=reverse)

    assert "scan" not in operations(call, X)


@pytest.mark.parametrize("reverse", [False, True])
def test_loops_over_inputs_stay(reverse):
    weights = jnp.full((4, 4), 0.5)

    def call(x):
        def step(total, each):
            return total + each, jnp.sin(weights) @ each

        return jax.lax.scan(step, x[0] * 0, x, reverse=reverse)

    names = operations(call, X)
    assert "scan" in names
    assert "sin" not in names


def test_loops_whose_end_depends_on_inputs_stay():
    def call(x):
        return jax.lax.while_loop(lambda y: jnp.sum(y) < 100, lambda y: y * y + 1, x)

    assert "while" in operations(call, X)


@pytest.mark.parametrize("known", [True, False])
def test_branches(known):
    def call(x):
        index = jnp.int32(1) if known else (x[0, 0, 0] > 0).astype(jnp.int32)
        return jax.lax.switch(index, [lambda y: y + 1, lambda y: y * 2], x)

    names = operations(call, X)
    assert ("add" in names) is not known
    assert "cond" not in names


@pytest.mark.parametrize("mode", ["clip", "fill", "wrap"])
def test_reading_at_known_positions(mode):
    index = jnp.asarray([[3, 0], [7, -9]])

    def call(x):
        return jax.vmap(lambda each: jnp.take(each, index, axis=0, mode=mode))(x)

    operations(jax.vmap(call), X[None])


def test_reading_integers_beyond_the_end():
    def call(x):
        return jnp.asarray(x).at[jnp.asarray([1, 9])].get(mode="fill", fill_value=7)

    operations(call, np.arange(4, dtype=np.uint8))


def test_max_pooling():
    def call(x):
        return nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))

    images = np.random.default_rng(0).normal(size=(1, 7, 8, 3)).astype(np.float32)
    assert "reduce_window_max" not in operations(call, images)


def test_joining_and_splitting():
    def call(x):
        parts = jax.lax.unstack(jax.lax.stack([x, x + 1], axis=1), axis=1)
        return jnp.pad(parts[1], ((0, 0), (1, 1), (0, 0)), mode="edge")

    assert not {"stack", "unstack"} & {*operations(call, X)}
