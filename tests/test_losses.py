"""Losses against plain loops."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from clipseg_jax.losses.contrastive import rectification_loss
from clipseg_jax.models.clip import unit
from clipseg_jax.ops.gumbel import gumbel_noise, straight_through

CONSTANTS = {"gumbel_scale": 5.0, "temperature": 100.0}


def rectification_inputs(b=3, h=4, w=5, c=6, e=8):
    keys = jax.random.split(jax.random.key(0), 4)
    logits = jax.random.normal(keys[0], (b, h, w, c))
    features = unit(jax.random.normal(keys[1], (b, h, w, e)))
    text = unit(jax.random.normal(keys[2], (c, e)))
    return logits, features, text, gumbel_noise(keys[3], logits.shape)


def test_straight_through_draws_are_one_hot_with_the_softmax_gradient():
    logits, _, _, noise = rectification_inputs()
    drawn = straight_through(logits, noise)
    np.testing.assert_array_equal(np.sort(drawn, axis=-1)[..., -1], 1)
    np.testing.assert_array_equal(np.sum(drawn, axis=-1), 1)
    np.testing.assert_array_equal(np.argmax(drawn, -1), np.argmax(logits + noise, -1))

    def score(make):
        return lambda x: jnp.sum(make(x) * jnp.cos(jnp.arange(6.0)))

    made = jax.grad(score(lambda x: straight_through(x, noise)))(logits)
    np.testing.assert_allclose(
        made, jax.grad(score(lambda x: jax.nn.softmax(x + noise)))(logits), atol=1e-6
    )


def test_draws_follow_the_softmax():
    logits = jnp.log(jnp.asarray([0.6, 0.3, 0.1]))
    noise = gumbel_noise(jax.random.key(0), (20000, 3))
    assert np.all(np.isfinite(noise))
    np.testing.assert_allclose(straight_through(logits, noise).mean(0), [0.6, 0.3, 0.1], atol=0.02)


def test_rectification_loss_is_the_loop_over_images_and_classes():
    logits, features, text, noise = rectification_inputs()
    tagged = [[0, 3, 5], [], [2]]
    tags = np.zeros((3, 6), bool)
    expected = []
    for i, ids in enumerate(tagged):
        tags[i, ids] = True
        drawn = np.argmax(5.0 * np.asarray(logits[i]) + np.asarray(noise[i]), axis=-1)
        losses = []
        for c in ids:
            pooled = np.asarray(features[i])[drawn == c].sum(0) / drawn.size
            similarity = 100.0 * np.asarray(text) @ pooled
            losses.append(np.log(np.sum(np.exp(similarity))) - similarity[c])
        expected.append(np.mean(losses) if losses else 0)
    parts = rectification_loss(logits, features, text, jnp.asarray(tags), noise, **CONSTANTS)
    np.testing.assert_allclose(parts.per_image, expected, rtol=1e-5)
    np.testing.assert_allclose(parts.loss, np.sum(expected) / 3, rtol=1e-5)


def test_images_without_tags_have_no_gradient():
    logits, features, text, noise = rectification_inputs()
    tags = jnp.zeros((3, 6), bool).at[0, 1].set(True)

    @functools.partial(jax.value_and_grad, argnums=(0, 1, 2))
    def loss(logits, features, text, tags):
        return rectification_loss(logits, features, text, tags, noise, **CONSTANTS).loss

    value, (to_logits, to_features, to_text) = loss(logits, features, text, tags)
    assert value > 0
    assert np.any(to_logits[0] != 0)
    assert not np.any(to_logits[1:])
    assert not np.any(to_features)  # the tower is frozen, gradients pass through masks alone
    assert not np.any(to_text)
    value, (to_logits, *_) = loss(logits, features, text, jnp.zeros((3, 6), bool))
    assert value == 0
    assert not np.any(to_logits)
