"""The one attention op: values, gradients, masks, dropout, shared keys, maps."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipseg_jax.ops import attention as attention_module
from clipseg_jax.ops.attention import (
    KeyValues,
    attention,
    attention_and_mean_map,
    attention_maps,
)


@pytest.mark.parametrize("turns", [False, True])
def test_attention_is_a_masked_softmax_with_dropout(monkeypatch, turns):
    """Values and gradients, made together or head by head; the same entries are dropped."""
    b, n, q, d, rate = 2, 3, 5, 4, 0.4
    keys = jax.random.split(jax.random.key(0), 8)
    queries = jax.random.normal(keys[0], (b, n, q, d))
    ks = [jax.random.normal(key, (b, n, m, d)) for key, m in zip(keys[1:3], (7, 2), strict=True)]
    vs = [jax.random.normal(key, (b, n, m, d)) for key, m in zip(keys[3:5], (7, 2), strict=True)]
    bias = jnp.where(jax.random.bernoulli(keys[5], 0.5, (b, q, 2)), 0.0, -jnp.inf)

    def run(queries, ks, vs, key=None):
        groups = [KeyValues(ks[0], vs[0]), KeyValues(ks[1], vs[1], bias)]
        return attention(queries, groups, rate=rate, key=key)

    def plain(queries, ks, vs):
        scores = jnp.einsum("bnqd,bnkd->bnqk", queries, jnp.concatenate(ks, 2)) / d**0.5
        scores = scores.at[..., 7:].add(bias[:, None])
        weights = jax.nn.softmax(scores, axis=-1)
        return jnp.einsum("bnqk,bnkd->bnqd", weights, jnp.concatenate(vs, 2))

    monkeypatch.setattr(attention_module, "_SCORES_AT_ONCE", 0 if turns else 2**20)
    arguments = queries, ks, vs
    np.testing.assert_allclose(jax.jit(run)(*arguments), plain(*arguments), rtol=1e-5, atol=1e-6)

    def total(function):
        return jax.jit(jax.grad(lambda *args: jnp.sum(jnp.sin(function(*args))), (0, 1, 2)))

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        total(run)(*arguments),
        total(plain)(*arguments),
    )
    # With one-hot values dropout shows: entries are 0 or grown, and their mean stays.
    eyes = jnp.split(jnp.broadcast_to(jnp.eye(9), (b, n, 9, 9)), [7], axis=2)
    whole = run(queries, ks, eyes)
    maps = jnp.stack([jax.jit(run)(queries, ks, eyes, jax.random.key(i)) for i in range(20)])
    kept = maps != 0
    np.testing.assert_allclose(
        maps[kept], (jnp.broadcast_to(whole, maps.shape) / (1 - rate))[kept], rtol=1e-5
    )
    assert abs(float(jnp.mean(kept[:, whole > 0])) - (1 - rate)) < 0.03
    assert np.all(np.any(kept[0] != kept[1], axis=(2, 3)))
    assert np.any(kept[0, 0, 0] != kept[0, 1, 0])
    monkeypatch.setattr(attention_module, "_SCORES_AT_ONCE", 2**20 if turns else 0)
    other = run(queries, ks, eyes, jax.random.key(0))
    np.testing.assert_allclose(other, maps[0], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("turns", [False, True])
def test_keys_may_be_shared_by_the_whole_batch(monkeypatch, turns):
    """Shared keys equal a copy for each row, in values and gradients."""
    b, n, q, d = 3, 2, 4, 5
    keys = jax.random.split(jax.random.key(0), 5)
    queries, k, v = (jax.random.normal(key, (b, n, q, d)) for key in keys[:3])
    common = tuple(jax.random.normal(key, (1, n, 7, d)) for key in keys[3:])
    causal = jnp.where(jnp.tril(jnp.ones((1, q, q), bool)), 0.0, -jnp.inf)

    def run(queries, common, k, v):
        return attention(queries, [KeyValues(*common), KeyValues(k, v, causal)])

    def copied(queries, common, k, v):
        return run(queries, tuple(jnp.tile(x, (b, 1, 1, 1)) for x in common), k, v)

    monkeypatch.setattr(attention_module, "_SCORES_AT_ONCE", 0 if turns else 2**20)
    arguments = queries, common, k, v
    np.testing.assert_allclose(jax.jit(run)(*arguments), copied(*arguments), rtol=1e-6, atol=1e-6)
    ours, expected = (
        jax.jit(jax.grad(lambda *args, f=f: jnp.sum(jnp.sin(f(*args))), (0, 1, 2, 3)))(*arguments)
        for f in (run, copied)
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), ours, expected
    )


def test_maps_are_those_of_the_mixture():
    b, n, t, d = 2, 3, 6, 4
    q, k, v = (
        jax.random.normal(key, (b, n, t, d)) for key in jax.random.split(jax.random.key(1), 3)
    )
    bias = jnp.where(jnp.arange(t) < 4, 0.0, -1e30) * jnp.ones((b, 1, 1))
    maps = attention_maps(q, k, bias)
    assert not maps[..., 4:].any()
    expected = jnp.einsum("bnqk,bnkd->bnqd", maps, v)
    mixed, mean = attention_and_mean_map(q, k, v, bias)
    np.testing.assert_allclose(mean, maps.mean(1), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(mixed, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        attention(q, [KeyValues(k, v, bias)]), expected, rtol=1e-5, atol=1e-6
    )
