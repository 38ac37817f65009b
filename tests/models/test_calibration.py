"""SC-CLIP's steps against plain loops; padding takes no part."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipseg_jax.models.clip.calibration import (
    aggregate,
    fill_outliers,
    outlier_scores,
    outliers,
)


def patches(n, d=5, seed=0):
    return np.random.RandomState(seed).standard_normal((n, d)).astype(np.float32)


def plain_scores(x, neighbours):
    distances = np.sum((x[:, None] - x[None]) ** 2, axis=-1).astype(np.float64)
    near = np.argsort(distances, axis=1)[:, 1 : neighbours + 1]
    farthest = np.array([distances[i, near[i]].max() for i in range(len(x))])
    return np.array([np.mean(farthest[i] / farthest[near[i]]) for i in range(len(x))])


@pytest.mark.parametrize("neighbours", [3, 30])
def test_outlier_scores(neighbours):
    x = patches(49)
    real = jnp.ones((1, 7, 7), bool)
    made = outlier_scores(jnp.asarray(x)[None], real, neighbours)[0]
    np.testing.assert_allclose(made, plain_scores(x, neighbours), rtol=1e-5)


def test_outlier_scores_without_the_padding():
    x, real = patches(49), np.zeros((1, 7, 7), bool)
    real[0, :5, :4] = True
    made = outlier_scores(jnp.asarray(x)[None], jnp.asarray(real), 6)[0]
    np.testing.assert_allclose(made[real.ravel()], plain_scores(x[real.ravel()], 6), rtol=1e-5)
    assert np.all(np.isinf(made[~real.ravel()]))


@pytest.mark.parametrize("grid", [(1, 1), (3, 3), (5, 6)])
def test_too_few_patches_for_their_neighbours(grid):
    """The published code fails; the two patches farthest apart would tie."""
    real = jnp.ones((1, *grid), bool)
    scores = outlier_scores(jnp.asarray(patches(grid[0] * grid[1]))[None], real, 30)
    np.testing.assert_array_equal(scores, 1)
    assert not np.any(outliers(scores, real, 0.05))


def test_equal_patches_are_no_outliers():
    scores = outlier_scores(jnp.ones((1, 49, 5)), jnp.ones((1, 7, 7), bool), 30)
    assert np.all(np.isfinite(scores))
    assert not np.any(outliers(scores, jnp.ones((1, 7, 7), bool), 0.05))


@pytest.mark.parametrize("n", [20, 49])
def test_outliers_are_above_the_quantile(n):
    scores = np.abs(patches(50, 1, seed=4))[:, 0]
    real = np.arange(50) < n
    given = np.where(real, scores, np.inf)
    made = outliers(jnp.asarray(given)[None], jnp.asarray(real)[None], 0.05)[0]
    expected = scores > np.quantile(scores[:n], 0.95)
    np.testing.assert_array_equal(made, expected & real)


def test_outliers_become_the_mean_of_sound_neighbours():
    x = patches(12).reshape(3, 4, 5)
    outlier = np.zeros((3, 4), bool)
    outlier[0, 0] = outlier[0, 1] = outlier[1, 2] = True
    real = np.ones((3, 4), bool)
    real[:, 3] = False  # padding has no influence
    made = fill_outliers(jnp.asarray(x).reshape(1, 12, 5), outlier.reshape(1, 12), real[None])
    made = np.asarray(made).reshape(3, 4, 5)
    np.testing.assert_allclose(made[0, 0], (x[1, 0] + x[1, 1]) / 2, rtol=1e-6)
    sound = [x[0, 2], x[1, 0], x[1, 1]]
    np.testing.assert_allclose(made[0, 1], np.mean(sound, axis=0), rtol=1e-5)
    np.testing.assert_allclose(
        made[1, 2], np.mean([x[0, 2], x[1, 1], x[2, 1], x[2, 2]], axis=0), rtol=1e-5
    )
    np.testing.assert_array_equal(made[~outlier], x[~outlier])


def test_an_outlier_among_outliers_stays():
    x = patches(9)
    outlier = jnp.ones((1, 9), bool)
    made = fill_outliers(jnp.asarray(x)[None], outlier, jnp.ones((1, 3, 3), bool))
    np.testing.assert_array_equal(made[0], x)


def test_aggregate():
    x = patches(6)
    similarity = jax.random.uniform(jax.random.key(0), (1, 6, 6))
    weights = np.where(similarity[0] >= 0.4, similarity[0], 0)
    expected = weights @ x / (weights.sum(axis=1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(aggregate(x[None], similarity, 0.4)[0], expected, rtol=1e-5)
