"""Dense read-outs of CLIP's last block against a plain reading of their definition."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from clipseg_jax.models.clip.dense import dense_features
from clipseg_jax.models.clip.last_block import last_block
from clipseg_jax.models.clip.read_outs import (
    CLIP_BLOCK,
    VALUE,
    ReadOut,
)
from clipseg_jax.ops.attention import attention_maps, join_heads, split_heads
from tests import tiny

READ_OUTS = [
    VALUE,
    CLIP_BLOCK,
    ReadOut(("qq", "kk")),
    ReadOut(("kk",), residual=False, mlp=False),
    ReadOut((), residual=False),
]


IMAGES = np.random.RandomState(0).standard_normal((2, 64, 64, 3)).astype(np.float32)
SIZES = ((64, 64), (48, 32))


def tokens():
    visual = tiny.clip().visual
    x, bias = visual.embed(jnp.asarray(IMAGES), jnp.asarray(SIZES))
    return visual, visual.transformer(x, bias, stop=-1)[0], bias


def plain(visual, x, read_out, bias):
    block = visual.transformer.resblocks[-1]
    projected = dict(zip("qkv", block.attn.qkv(block.ln_1(x)), strict=True))
    heads = {name: split_heads(part, block.attn.heads) for name, part in projected.items()}
    mixed = heads["v"]
    if read_out.scores:
        maps = [attention_maps(heads[a], heads[b], bias) for a, b in read_out.scores]
        mixed = jnp.mean(jnp.stack(maps), axis=0) @ heads["v"]
    y = block.attn.out_proj(join_heads(mixed)) + (x if read_out.residual else 0)
    y = y + (block.mlp(block.ln_2(y)) if read_out.mlp else 0)
    return visual.ln_post(y)


@pytest.mark.parametrize("read_out", READ_OUTS, ids=str)
def test_read_outs(read_out):
    visual, x, bias = tokens()
    last = last_block(visual, x, read_out, bias)
    expected = plain(visual, x, read_out, bias)
    np.testing.assert_allclose(last.tokens, expected, rtol=1e-5, atol=1e-5)


def test_the_trained_block_is_the_transformers():
    visual, x, bias = tokens()
    whole, parts = visual.transformer(x, bias, start=-1, read=["q1", "k1", "v1"])
    last = last_block(visual, x, CLIP_BLOCK, bias)
    np.testing.assert_allclose(last.tokens, visual.ln_post(whole), rtol=1e-6, atol=1e-6)
    for name, part in zip("qkv", (last.queries, last.keys, last.values), strict=True):
        np.testing.assert_array_equal(part, parts[f"{name}1"])


def test_values_need_no_other_tokens():
    visual, x, bias = tokens()
    alone = last_block(visual, x[:, 1:], VALUE).tokens
    np.testing.assert_allclose(alone, last_block(visual, x, VALUE, bias).tokens[:, 1:], atol=1e-6)


def test_dense_features_of_a_read_out_are_those_of_its_patches():
    """In a padded batch; the value read-out is the default."""
    visual, x, bias = tokens()
    images, sizes = jnp.asarray(IMAGES), jnp.asarray(SIZES)
    for read_out in (CLIP_BLOCK, VALUE):
        dense = dense_features(visual, images, sizes, read_out=read_out)
        expected = last_block(visual, x, read_out, bias).tokens[:, 1:] @ visual.proj[...]
        features = dense.features.reshape(2, 16, -1)
        np.testing.assert_allclose(features, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(dense_features(visual, images, sizes).features, dense.features)
    with pytest.raises(ValueError, match="this CLIP has a ResNet, which has no last block"):
        dense_features(tiny.clip(tiny.RESNET).visual, images, read_out=CLIP_BLOCK)
