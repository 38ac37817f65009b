"""The TPU's attention kernel, run by JAX's operations: values and gradients of the written form."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipseg_jax.core.mesh import make_mesh, on_mesh, shard_batch
from clipseg_jax.ops import attention as attention_module
from clipseg_jax.ops import attention_tpu
from clipseg_jax.ops.attention import (
    KeyValues,
    attention,
    attention_and_mean_map,
    join_heads,
    split_heads,
)

B, TOKENS, HEADS, REGIONS = 2, 41, 4, 5


def arguments(channels=32, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 7)
    width = HEADS * channels
    arrays = [jax.random.normal(key, (B, TOKENS, width), dtype) for key in keys[:3]]
    arrays += [jax.random.normal(key, (B, REGIONS, width), dtype) for key in keys[3:5]]
    # One query for all keys, and one for each: both kinds of mask, by -1e30 and by infinity.
    padding = jnp.where(jax.random.bernoulli(keys[5], 0.7, (B, 1, TOKENS)), 0.0, -1e30)
    regions = jax.random.bernoulli(keys[6], 0.5, (1, TOKENS, REGIONS))
    return arrays, (padding, jnp.where(regions, 0.0, -jnp.inf))


def by_kernel(channels, biases):
    def run(q, k, v, k2, v2):
        groups = [(k, v, biases[0]), (k2, v2, biases[1])]
        return attention_tpu.attend(q, groups, channels, True)

    return run


def written(biases):
    def run(*arrays):
        q, k, v, k2, v2 = (split_heads(x, HEADS) for x in arrays)
        return join_heads(attention(q, [KeyValues(k, v, biases[0]), KeyValues(k2, v2, biases[1])]))

    return run


@pytest.mark.parametrize("channels", [32, 64, 128])
@pytest.mark.parametrize("scores", [2**11, 2**20])  # in blocks of queries, the last cut; at once
def test_values_and_gradients(monkeypatch, channels, scores):
    monkeypatch.setattr(attention_tpu, "_SCORES", {"forward": scores, "gradient": scores})
    arrays, biases = arguments(channels)
    ours, plain = by_kernel(channels, biases), written(biases)
    np.testing.assert_allclose(ours(*arrays), plain(*arrays), rtol=1e-5, atol=1e-6)

    def gradient(function):
        return jax.grad(lambda *args: jnp.sum(jnp.sin(function(*args))), tuple(range(5)))(*arrays)

    for one, other in zip(gradient(ours), gradient(plain), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=2e-6)


def test_in_bfloat16_it_is_as_exact_as_the_written_form():
    arrays, biases = arguments(64)
    exact = written(biases)(*arrays)
    rounded = [x.astype(jnp.bfloat16) for x in arrays]
    error = jnp.abs(by_kernel(64, biases)(*rounded).astype(jnp.float32) - exact)
    usual = jnp.abs(written(biases)(*rounded).astype(jnp.float32) - exact)
    assert float(error.mean()) < 1.1 * float(usual.mean())
    assert float(error.max()) < 1.5 * float(usual.max())


@pytest.mark.parametrize("scores", [2**11, 2**20])  # sums over blocks of queries; a single block
def test_gradients_in_bfloat16_are_as_exact_too(monkeypatch, scores):
    monkeypatch.setattr(attention_tpu, "_SCORES", {"forward": scores, "gradient": scores})
    arrays, biases = arguments(64)

    def gradient(function, dtype):
        rounded = [x.astype(dtype) for x in arrays]

        def total(*args):
            return jnp.sum(jnp.sin(function(*args).astype(jnp.float32)))

        gradients = jax.grad(total, tuple(range(5)))(*rounded)
        assert {each.dtype for each in gradients} == {jnp.dtype(dtype)}
        return [each.astype(jnp.float32) for each in gradients]

    exact = gradient(written(biases), jnp.float32)
    ours = gradient(by_kernel(64, biases), jnp.bfloat16)
    usual = gradient(written(biases), jnp.bfloat16)
    for one, other, right in zip(ours, usual, exact, strict=True):
        assert float(jnp.abs(one - right).mean()) < 1.2 * float(jnp.abs(other - right).mean())


def test_what_it_takes():
    assert attention_tpu.fits(12, 1025, 1025, 64, jnp.bfloat16)
    assert attention_tpu.fits(8, 400, 400, 32, jnp.bfloat16)
    assert not attention_tpu.fits(12, 1025, 1025, 64, jnp.float32)  # parity: written out
    assert not attention_tpu.fits(3, 1025, 1025, 64, jnp.bfloat16)  # half a tile
    assert not attention_tpu.fits(12, 1025, 1025, 80, jnp.bfloat16)
    assert not attention_tpu.fits(12, 77, 77, 64, jnp.bfloat16)
    assert not attention_tpu.fits(12, 1025, 2**14, 64, jnp.bfloat16)


@pytest.mark.parametrize("devices", [1, 2])
def test_each_device_takes_its_own_images(monkeypatch, devices):
    """The op as TPUs run it, with the kernel in place of the CPU's form."""

    def as_on_tpus(*args, tpu, default, cpu):
        del default, cpu
        return tpu(*args)

    def interpreted(q, groups, channels):
        assert q.shape[0] == B // devices
        return kernel(q, groups, channels, True)

    kernel = attention_tpu.attend
    monkeypatch.setattr(attention_module, "_SCORES_AT_ONCE", 0)
    monkeypatch.setattr(attention_tpu, "_LEAST_QUERIES", 1)
    monkeypatch.setattr(attention_tpu, "attend", interpreted)
    arrays, biases = arguments(32, jnp.bfloat16)
    expected = written(biases)(*arrays)
    monkeypatch.setattr(jax.lax, "platform_dependent", as_on_tpus)
    mesh = make_mesh(devices)
    rows = shard_batch(mesh, {str(i): np.asarray(x) for i, x in enumerate(arrays)})
    result = jax.jit(on_mesh(mesh, written(biases)))(*rows.values())
    assert len(result.sharding.device_set) == devices
    np.testing.assert_allclose(
        result.astype(jnp.float32), expected.astype(jnp.float32), rtol=2e-2, atol=2e-2
    )


@pytest.mark.parametrize("scores", [2**11, 2**20])
def test_the_mean_map(monkeypatch, scores):
    monkeypatch.setattr(attention_tpu, "_SCORES", {"forward": scores, "gradient": scores})
    (q, k, v, *_), (padding, _) = arguments(32)
    expected = attention_and_mean_map(*(split_heads(x, HEADS) for x in (q, k, v)), padding)
    mixed, mean = attention_tpu.attend_and_mean_map(q, k, v, padding, 32, True)
    np.testing.assert_allclose(mixed, join_heads(expected[0]), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(mean, expected[1], rtol=1e-5, atol=1e-7)
