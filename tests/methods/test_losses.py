"""Losses against plain loops."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipseg_jax.methods.reclip.loss import rectification_loss
from clipseg_jax.methods.weclip.affinity_loss import affinity_loss, affinity_targets
from clipseg_jax.models.clip import l2_normalize
from clipseg_jax.ops import upsample
from clipseg_jax.ops.cross_entropy import (
    balanced_cross_entropy,
    cross_entropy,
    downsample_labels,
    upsampled_balanced_cross_entropy,
)
from clipseg_jax.ops.gumbel import gumbel_noise, straight_through
from clipseg_jax.ops.resize import resize

CONSTANTS = {"gumbel_scale": 5.0, "temperature": 100.0}


def rectification_inputs(b=3, h=4, w=5, c=6, e=8):
    keys = jax.random.split(jax.random.key(0), 4)
    logits = jax.random.normal(keys[0], (b, h, w, c))
    features = l2_normalize(jax.random.normal(keys[1], (b, h, w, e)))
    text = l2_normalize(jax.random.normal(keys[2], (c, e)))
    return logits, features, text, gumbel_noise(keys[3], logits.shape)


def test_straight_through_draws_are_one_hot_with_the_softmax_gradient():
    logits, _, _, noise = rectification_inputs()
    drawn = straight_through(logits, noise)
    np.testing.assert_array_equal(np.sort(drawn, axis=-1)[..., -1], 1)
    np.testing.assert_array_equal(np.sum(drawn, axis=-1), 1)
    np.testing.assert_array_equal(np.argmax(drawn, -1), np.argmax(logits + noise, -1))

    def score(make):
        return lambda x: jnp.sum(make(x) * jnp.cos(jnp.arange(6.0)))

    gradient = jax.grad(score(lambda x: straight_through(x, noise)))(logits)
    np.testing.assert_allclose(
        gradient, jax.grad(score(lambda x: jax.nn.softmax(x + noise)))(logits), atol=1e-6
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


plain, apart_and_added = jax.jit(cross_entropy), jax.jit(balanced_cross_entropy)


def class_maps(b=3, g=5, k=7, c=6):
    keys = jax.random.split(jax.random.key(1), 2)
    logits = 3 * jax.random.normal(keys[0], (b, g, k, c))
    labels = np.array(jax.random.randint(keys[1], (b, g, k), 0, c))
    labels[0] = 0
    labels[1, :2] = 255
    labels[2] = 255
    return logits, labels


def test_cross_entropies_are_loops_over_pixels():
    logits, labels = class_maps()
    apart = {0: [], 1: []}
    exact = np.asarray(logits, np.float64)
    for place in np.ndindex(labels.shape):
        if labels[place] != 255:
            scores = exact[place]
            entropy = np.log(np.sum(np.exp(scores))) - scores[labels[place]]
            apart[int(labels[place] > 0)].append(entropy)
    mean = np.mean(apart[0] + apart[1])
    np.testing.assert_allclose(plain(logits, jnp.asarray(labels)), mean, rtol=1e-5)
    balanced = np.mean(apart[0]) + np.mean(apart[1])
    assert abs(balanced - 2 * mean) > 0.01
    actual = apart_and_added(logits, jnp.asarray(labels))
    np.testing.assert_allclose(actual, balanced, rtol=1e-5)


@pytest.mark.parametrize("loss", [cross_entropy, balanced_cross_entropy])
def test_ignored_pixels_teach_nothing(loss):
    logits, labels = class_maps()
    run = jax.jit(jax.value_and_grad(loss))
    _, gradient = run(logits, jnp.asarray(labels))
    assert np.all(np.any(np.asarray(gradient) != 0, axis=-1) == (labels != 255))
    value, gradient = run(logits, jnp.full(labels.shape, 255, labels.dtype))
    assert value == 0
    assert not np.any(gradient)


def test_a_part_without_pixels_is_zero():
    logits, labels = class_maps()
    for only in (labels == 0, (labels > 0) & (labels < 255)):
        kept = jnp.asarray(np.where(only, labels, 255))
        np.testing.assert_allclose(apart_and_added(logits, kept), plain(logits, kept), rtol=1e-6)


def test_shrunk_labels_are_those_at_the_centres():
    labels = np.arange(2 * 7 * 12).reshape(2, 7, 12)
    shrunk = downsample_labels(jnp.asarray(labels), (3, 5))
    rows = [int((i + 0.5) * 7 / 3) for i in range(3)]
    columns = [int((i + 0.5) * 12 / 5) for i in range(5)]
    np.testing.assert_array_equal(shrunk, labels[:, rows][:, :, columns])
    np.testing.assert_array_equal(downsample_labels(jnp.asarray(labels), (7, 12)), labels)


@pytest.mark.parametrize("numbers", [2**24, 300])
@pytest.mark.parametrize("kinds", [(0, 1, 2, 255), (0, 255), (1, 2)])
def test_upsampled_balanced_cross_entropy_is_that_of_full_size(kinds, numbers, monkeypatch):
    monkeypatch.setattr(upsample, "_NUMBERS_AT_ONCE", numbers)
    logits = jax.random.normal(jax.random.key(0), (2, 3, 4, 5))
    labels = jnp.asarray(np.random.default_rng(0).choice(kinds, (2, 13, 17)))
    run = jax.value_and_grad(upsampled_balanced_cross_entropy)
    plain = jax.value_and_grad(
        lambda x, y: balanced_cross_entropy(resize(x, (13, 17)), y), allow_int=True
    )
    for a, b in zip(run(logits, labels), plain(logits, labels), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_affinity_targets_pair_by_pair():
    labels = np.random.default_rng(0).choice([0, 1, 2, 255], (2, 24, 40))
    targets = affinity_targets(jnp.asarray(labels), (3, 5), radius=2)
    patch_labels = labels[:, ::8, ::8]
    for i in range(15):
        for j in range(15):
            (y, x), (v, u) = divmod(i, 5), divmod(j, 5)
            a, b = patch_labels[:, y, x], patch_labels[:, v, u]
            near = max(abs(y - v), abs(x - u)) <= 2
            expected = np.where((a == 255) | (b == 255) | (not near), 255, a == b)
            np.testing.assert_array_equal(targets[:, i, j], expected)


def test_affinity_loss_without_pairs_is_nothing():
    affinity = jnp.full((1, 4, 4), 0.3)
    assert affinity_loss(affinity, jnp.full((1, 4, 4), 255)) == 0
    alike = affinity_loss(affinity, jnp.ones((1, 4, 4), int))
    np.testing.assert_allclose(alike, 0.5 * 16 * 0.7 / 17, rtol=1e-6)
    unlike = affinity_loss(affinity, jnp.zeros((1, 4, 4), int))
    np.testing.assert_allclose(unlike, 0.5 * 16 * 0.3 / 17, rtol=1e-6)
