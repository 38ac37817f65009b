"""SigLIP's towers on any grid, in padded batches, and read densely; numbers: test_transformers."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipseg_jax.core.modules import initialised
from clipseg_jax.methods.maskclip.model import MaskCLIP
from clipseg_jax.methods.reclip.tags import Classifier
from clipseg_jax.models.clip import (
    CLIP,
    CLIPConfig,
    SigLIPTextConfig,
    SigLIPVisionConfig,
    with_class_token,
)
from clipseg_jax.models.clip.dense import dense_features
from clipseg_jax.models.clip.read_outs import CLIP_BLOCK
from weights_convert import with_config

VISION = SigLIPVisionConfig(image_px=32, patch_px=8, width=32, layers=2, heads=2, mlp_width=56)
TEXT = SigLIPTextConfig(
    context_length=6, vocabulary=40, width=24, layers=1, heads=2, embed_dim=32, mlp_width=40
)
SIZES = [(32, 32), (40, 21), (17, 64)]


@pytest.fixture(scope="module")
def model():
    return initialised(lambda rngs: CLIP(CLIPConfig(VISION, TEXT), rngs=rngs), 0)


def images(*shape):
    return jax.random.normal(jax.random.key(1), (*shape, 3))


@pytest.mark.parametrize("position_resize", ["bicubic", "bilinear_antialias"])
def test_a_padded_batch_is_its_single_images(position_resize, model):
    cfg = dataclasses.replace(VISION, position_resize=position_resize)
    visual = with_config(model, CLIPConfig(cfg, TEXT)).visual
    batch = images(3, 40, 64)
    sizes = jnp.asarray(SIZES)
    pooled, _ = visual(batch, sizes)
    dense = dense_features(visual, batch, sizes)
    for i, (h, w) in enumerate(SIZES):
        single = batch[i : i + 1, :h, :w]
        hp, wp = visual.grid_shape(h, w)
        np.testing.assert_allclose(pooled[i], visual(single)[0][0], atol=1e-5)
        alone = dense_features(visual, single)
        for name in ("features", "tokens", "keys"):
            found = getattr(dense, name)[i, :hp, :wp]
            np.testing.assert_allclose(found, getattr(alone, name)[0], atol=1e-5, err_msg=name)
        assert dense.real[i].sum() == hp * wp
        assert dense.real[i, :hp, :wp].all()


def test_dense_features_are_the_pools_of_single_tokens(model):
    """The value path lies where texts do: it is what the pool makes of a token alone."""
    visual = model.visual
    dense = dense_features(visual, images(1, 32, 40))
    tokens = dense.tokens.reshape(-1, 1, VISION.width)  # every token an image of its own
    np.testing.assert_allclose(
        dense.features.reshape(-1, VISION.width), visual.head(tokens), atol=1e-5
    )
    assert np.abs(dense.features - dense.tokens).max() > 0.1  # not the last hidden state


def test_read_outs_of_the_last_block_are_refused(model):
    with pytest.raises(ValueError, match=r"read by the value path .* read-out 'value', or"):
        dense_features(model.visual, images(1, 32, 32), read_out=CLIP_BLOCK)


def test_what_reads_a_class_token_refuses_it(model):
    with pytest.raises(ValueError, match=r"X reads the class token, and SigLIP's .* has none"):
        with_class_token(model.visual, "X")
    with pytest.raises(ValueError, match="the tagger reads the class token"):
        Classifier(model, np.eye(3, 32))
    with pytest.raises(ValueError, match=r"shape \(3, 7\) for an image tower with 32 features"):
        MaskCLIP(model.visual, np.ones((3, 7)))


def test_texts_see_their_padding(model):
    ids = jnp.asarray([[5, 7, 1, 1, 1, 1]])
    changed = ids.at[0, 4].set(9)
    assert np.abs(model.text(ids) - model.text(changed)).max() > 1e-3
    with pytest.raises(ValueError, match=r"ids of 3 tokens; .* padded to 6"):
        model.text(ids[:, :3])


def test_logits_have_the_bias(model):
    ids = jnp.asarray([[5, 7, 1, 1, 1, 1]])
    before = model(images(1, 32, 32), ids)
    model.logit_bias[...] += 2
    np.testing.assert_allclose(model(images(1, 32, 32), ids), before + 2, atol=1e-5)
