"""ProxyCLIP against a plain reading of its definition (spec readouts, section 12)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipseg_jax.core.modules import initialised
from clipseg_jax.methods.readouts import proxy
from clipseg_jax.methods.readouts.proxy import ProxyCLIP, ProxyConfig, dino_input, proxy_attention
from clipseg_jax.methods.readouts.task import build_proxy
from clipseg_jax.models.clip import l2_normalize
from clipseg_jax.models.dino import DINO, DINOConfig
from clipseg_jax.ops.image import (
    CLIP_MEAN,
    CLIP_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    normalize,
)
from clipseg_jax.ops.resize import resize
from tests import tiny

VIT = dataclasses.replace(tiny.VIT, pad_to_patch=False, position_offset=0.1)
SIZES = ((64, 56), (48, 33), (32, 64))


def model(cfg=None):
    dino = initialised(
        lambda rngs: DINO(DINOConfig(32, 8, width=48, layers=2, heads=3), rngs=rngs), 1
    )
    rows = l2_normalize(jax.random.normal(jax.random.key(2), (5, VIT.embed_dim)))
    return ProxyCLIP(tiny.clip(VIT).visual, dino, rows, cfg)


def image(size, seed=3):
    return np.random.RandomState(seed).standard_normal((*size, 3)).astype(np.float32)


def plain(features, values, cfg):
    """Values (n, d) of one image by the definition, one patch after the other."""
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    cosines = unit @ unit.T
    cut = cfg.beta * cosines.mean()
    out = np.zeros_like(values)
    for i, row in enumerate(cosines):
        kept = row - cut >= 0
        kept[i] = True
        weights = np.where(kept, np.exp(cfg.gamma * (row - cut)), 0)
        out[i] = weights @ values / weights.sum()
    return out


@pytest.mark.parametrize("cfg", [ProxyConfig(), ProxyConfig(beta=0.5, gamma=10.0)], ids=str)
@pytest.mark.parametrize("at_once", [proxy._SIMILARITIES_AT_ONCE, 2 * 20 * 7, 1])
def test_attention(cfg, at_once, monkeypatch):
    monkeypatch.setattr(proxy, "_SIMILARITIES_AT_ONCE", at_once)
    state = np.random.RandomState(0)
    features = state.standard_normal((2, 20, 6)).astype(np.float32) + 0.4
    values = state.standard_normal((2, 20, 4)).astype(np.float32)
    real = np.arange(20) < np.array([[20], [13]])
    mixed = np.asarray(proxy_attention(*map(jnp.asarray, (features, values, real)), cfg))
    for i, n in enumerate((20, 13)):
        expected = plain(features[i, :n].astype(np.float64), values[i, :n], cfg)
        np.testing.assert_allclose(mixed[i, :n], expected, atol=1e-5)
        assert not mixed[i, n:].any()


def test_patches_that_are_all_alike_keep_their_own_values():
    features = jnp.ones((1, 6, 3))  # the mean cosine is 1, and nothing exceeds 1.2
    values = jnp.asarray(np.random.RandomState(0).standard_normal((1, 6, 4)), jnp.float32)
    mixed = proxy_attention(features, values, jnp.ones((1, 6), bool), ProxyConfig())
    np.testing.assert_allclose(mixed, values, atol=1e-6)


def test_the_whole_model():
    size = (33, 80)  # not whole patches of either tower
    proxyclip, pixels = model(), image(size)[None]
    visual, block = proxyclip.visual, proxyclip.visual.transformer.resblocks[-1]
    tokens = proxyclip.dino(dino_input(pixels))
    grid = tokens.shape[1:3]
    x, _ = visual.transformer(visual.embed(pixels)[0], stop=-1)
    values = block.attn.qkv(block.ln_1(x))[2][:, 1:].reshape(1, size[0] // 16, size[1] // 16, -1)
    values = resize(values, grid)[0].reshape(grid[0] * grid[1], -1)
    mixed = plain(np.asarray(tokens[0].reshape(len(values), -1)), np.asarray(values), proxyclip.cfg)
    features = visual.ln_post(block.attn.out_proj(jnp.asarray(mixed))) @ visual.proj[...]
    cosines = l2_normalize(features) @ proxyclip.text_embeddings[...].T
    made = jax.jit(lambda m, x: m(x))(proxyclip, pixels)
    np.testing.assert_allclose(made[0].reshape(cosines.shape), cosines, atol=1e-5)


def test_padded_batches_equal_single_images():
    # No cosine of these images is within rounding of the cut.
    proxyclip, run = model(), jax.jit(lambda m, x, s=None: m(x, s))
    padded = np.full((len(SIZES), 64, 64, 3), 7.0, np.float32)
    for i, (h, w) in enumerate(SIZES):
        padded[i, :h, :w] = image((h, w))
    made = run(proxyclip, padded, jnp.asarray(SIZES))
    np.testing.assert_array_equal(
        proxyclip.grid_sizes(jnp.asarray(SIZES)), [(h // 8, w // 8) for h, w in SIZES]
    )
    for i, (h, w) in enumerate(SIZES):
        alone = run(proxyclip, image((h, w))[None])[0]
        rows, columns = alone.shape[:2]
        np.testing.assert_allclose(made[i, :rows, :columns], alone, atol=1e-5)
        assert not made[i, rows:].any()
        assert not made[i, :, columns:].any()


def test_input_of_dino():
    pixels = jnp.asarray(np.random.RandomState(0).randint(0, 256, (1, 8, 8, 3)), jnp.uint8)
    made = dino_input(normalize(pixels, CLIP_MEAN, CLIP_STD))
    np.testing.assert_allclose(made, normalize(pixels, IMAGENET_MEAN, IMAGENET_STD), atol=1e-5)


def test_as_a_task():
    proxyclip = model()
    rows = proxyclip.text_embeddings[...]
    task = build_proxy(proxyclip.visual, proxyclip.dino, rows, ProxyConfig(beta=1.0))
    assert task.model.cfg.beta == 1.0
    sizes = jnp.asarray([[64, 56]])
    scores = jax.jit(task.predict)(task.model, image((64, 64))[None], sizes)
    assert scores.shape == (1, 8, 8, 5)
    np.testing.assert_array_equal(task.grid_size(sizes), [[8, 7]])
    assert not scores[:, :, 7:].any()


def test_what_has_no_meaning():
    proxyclip = model()
    with pytest.raises(ValueError, match="needs a CLIP with a ViT"):
        build_proxy(tiny.clip(tiny.RESNET).visual, proxyclip.dino, np.zeros((5, 24)))
    with pytest.raises(ValueError, match="24 features"):
        build_proxy(proxyclip.visual, proxyclip.dino, np.zeros((5, 23)))
    with pytest.raises(ValueError, match="beta"):
        ProxyConfig(beta=-1.0)
    with pytest.raises(ValueError, match="gamma"):
        ProxyConfig(gamma=0.0)
