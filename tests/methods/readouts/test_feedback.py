"""ResCLIP's feedback against plain loops; padded batches equal single images."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipseg_jax.methods.readouts.feedback import (
    FeedbackConfig,
    feedback_matrix,
    feedback_of,
    patch_classes,
)
from clipseg_jax.methods.readouts.model import ReadOutModel
from clipseg_jax.models.clip import l2_normalize
from clipseg_jax.models.clip.read_outs import READ_OUTS
from clipseg_jax.ops.pamr import PAMRConfig
from tests import tiny


def plain_matrix(classes):
    """Spec readouts, section 5, SFR 3 and 4, as written."""
    r, c = classes.shape
    n, flat = r * c, classes.ravel()
    points = [(i, j) for i in range(r) for j in range(c)]
    longest = max(r, c) - 1
    m = np.zeros((n, n))
    for a, p in enumerate(points):
        for b, q in enumerate(points):
            if flat[a] != flat[b]:
                continue
            distance = max(abs(p[0] - q[0]), abs(p[1] - q[1]))
            connected = True
            for k in range(distance + 1):
                t = np.float32(k / max(longest, 1))
                at = [
                    int(np.rint(np.float32(x) * (np.float32(1) - t) + np.float32(y) * t))
                    for x, y in zip(p, q, strict=True)
                ]
                connected &= classes[at[0], at[1]] == flat[a]
            m[a, b] = 1.0 if connected else np.exp(-distance / longest)
    length = min(n, 31)
    length += 1 - length % 2
    x = np.arange(-(length // 2), length // 2 + 1)
    kernel = np.exp(-(x**2) / 50.0)
    kernel /= kernel.sum()
    rows = [np.convolve(np.pad(row, length // 2), kernel, mode="valid") for row in m]
    rows = np.stack(rows)
    return rows / (rows.sum(axis=1, keepdims=True) + 1e-8)


@pytest.mark.parametrize("grid", [(1, 1), (1, 4), (4, 6), (7, 7), (6, 9)])
def test_feedback_matrix(grid):
    classes = np.random.RandomState(1).randint(0, 3, grid)
    made = feedback_matrix(jnp.asarray(classes)[None], jnp.asarray([grid]))[0]
    np.testing.assert_allclose(made, plain_matrix(classes), rtol=1e-4, atol=1e-6)


def test_feedback_matrices_of_padded_images():
    grids, shape = [(4, 6), (7, 3), (2, 2)], (7, 8)
    classes = np.random.RandomState(2).randint(0, 3, (3, *shape))
    made = np.asarray(feedback_matrix(jnp.asarray(classes), jnp.asarray(grids)))
    made = made.reshape(3, *shape, *shape)
    for matrix, own, (r, c) in zip(made, classes, grids, strict=True):
        expected = plain_matrix(own[:r, :c]).reshape(r, c, r, c)
        np.testing.assert_allclose(matrix[:r, :c, :r, :c], expected, rtol=1e-4, atol=1e-6)
        inside = matrix[:r, :c, :r, :c].sum()
        np.testing.assert_allclose(matrix.sum(), inside, rtol=1e-6)  # zero in the padding


def test_patch_classes():
    """The most frequent row, the smallest of equals; unsure pixels are row 0, remainders none."""
    rows = np.full((5, 4), 1)
    rows[:2, :2] = [[2, 2], [1, 1]]  # equal: the smaller
    rows[0, 2] = rows[0, 3] = rows[1, 2] = 2  # three of four
    probabilities = 0.2 + 0.6 * np.eye(3)[rows]
    probabilities[2:4, 2:4] = [0.3, 0.35, 0.35]  # unsure
    rows[4] = 2  # beyond the last whole patch
    made = patch_classes(jnp.asarray(probabilities)[None], 0.5, 2, (2, 2))[0]
    np.testing.assert_array_equal(made, [[1, 2], [1, 0]])


def model(feedback):
    vision = dataclasses.replace(tiny.VIT, layers=3, pad_to_patch=False)
    text = l2_normalize(jax.random.normal(jax.random.key(0), (4, vision.embed_dim)))
    return ReadOutModel(tiny.clip(vision).visual, text, READ_OUTS["resclip"], feedback)


def test_the_second_pass_in_a_padded_batch():
    network = model(FeedbackConfig(threshold=0.26, pamr=PAMRConfig(steps=2, dilations=(1, 2))))
    sizes, shape = ((64, 96), (80, 48)), (96, 96)
    images = [np.random.RandomState(i).standard_normal((*s, 3)) for i, s in enumerate(sizes)]
    batch = np.full((2, *shape, 3), 9.0)
    for row, image in zip(batch, images, strict=True):
        row[: image.shape[0], : image.shape[1]] = image
    together = jax.jit(lambda x, s: network(x, s))(jnp.asarray(batch), jnp.asarray(sizes))
    first = jax.jit(lambda x, s: model(None)(x, s))(jnp.asarray(batch), jnp.asarray(sizes))
    for cosines, image in zip(together, images, strict=True):
        alone = network(jnp.asarray(image, jnp.float32)[None])[0]
        r, c = alone.shape[:2]
        np.testing.assert_allclose(cosines[:r, :c], alone, atol=1e-5)
        assert not np.any(cosines[r:])
        assert not np.any(cosines[:, c:])
    assert np.max(np.abs(together - first)) > 1e-3  # it does something


def test_the_largest_feedback_is_the_share():
    network = model(None)
    images = jnp.asarray(np.random.RandomState(0).standard_normal((1, 64, 64, 3)), jnp.float32)
    cfg = FeedbackConfig(gain=2.0, share=0.25, pamr=PAMRConfig(steps=1))
    feedback = feedback_of(network(images), images, None, network.visual, cfg)
    assert feedback.scale == 1.5
    np.testing.assert_allclose(np.max(feedback.bias), 0.5, rtol=1e-6)
    assert not np.any(feedback.bias[:, 0])
    assert not np.any(feedback.bias[:, :, 0])


@pytest.mark.parametrize("wrong", [{"share": 1.5}, {"gain": 0}, {"threshold": -1}])
def test_wrong_constants(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        FeedbackConfig(**wrong)
