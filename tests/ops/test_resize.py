"""Resizes against a plain NumPy reading of PyTorch's definition, one output pixel at a time."""

from __future__ import annotations

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipseg_jax.ops.image import opencv_resize
from clipseg_jax.ops.resize import resize, resize_matrix, resize_within

SIZES = [(7, 15), (14, 20), (14, 7), (33, 12), (1, 5), (5, 1), (9, 9)]


def reference(n_in, n_out, mode, align_corners):
    """Row i holds what output pixel i takes from each input pixel."""
    weights = np.zeros((n_out, n_in))
    for i in range(n_out):
        if align_corners:
            source = i * (n_in - 1) / (n_out - 1) if n_out > 1 else 0.0
        else:
            source = (i + 0.5) * n_in / n_out - 0.5
        if mode == "bilinear":
            source = max(source, 0.0)
            low = math.floor(source)
            taps = [(low, 1 - (source - low)), (low + 1, source - low)]
        else:
            low = math.floor(source)
            taps = [(low + k, cubic(source - low - k)) for k in (-1, 0, 1, 2)]
        for j, weight in taps:
            weights[i, min(max(j, 0), n_in - 1)] += weight
    return weights


def cubic(x, a=-0.75):
    x = abs(x)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


CASES = list(itertools.product(["bilinear", "bicubic"], [False, True]))


@pytest.mark.parametrize(("mode", "align"), CASES)
@pytest.mark.parametrize(("n_in", "n_out"), SIZES)
def test_weights(n_in, n_out, mode, align):
    actual = resize_matrix(n_in, n_out, mode, align_corners=align)
    np.testing.assert_allclose(actual, reference(n_in, n_out, mode, align), atol=3e-6)


@pytest.mark.parametrize(("mode", "align"), CASES)
def test_sizes_known_only_at_run_time(mode, align):
    run = jax.jit(
        lambda a, b: resize_matrix(a, b, mode, align_corners=align, in_length=40, out_length=30)
    )
    for n_in, n_out in SIZES:
        actual = np.asarray(run(n_in, n_out))
        np.testing.assert_allclose(
            actual[:n_out, :n_in], reference(n_in, n_out, mode, align), atol=3e-6
        )
        assert not actual[n_out:].any()
        assert not actual[:, n_in:].any()
    assert run._cache_size() == 1


def test_images():
    x = np.random.RandomState(0).standard_normal((2, 9, 14, 3)).astype(np.float32)
    actual = resize(jnp.asarray(x), (20, 7), "bicubic")
    rows, columns = reference(9, 20, "bicubic", False), reference(14, 7, "bicubic", False)
    np.testing.assert_allclose(actual, np.einsum("oh,bhwc,pw->bopc", rows, x, columns), atol=1e-5)


def test_padding_has_no_influence():
    x = np.random.RandomState(1).standard_normal((2, 12, 16, 2)).astype(np.float32)
    sizes, targets = np.array([[9, 14], [12, 5]]), np.array([[20, 7], [6, 10]])
    actual = resize_within(jnp.asarray(x), jnp.asarray(sizes), jnp.asarray(targets), (24, 12))
    for i in range(2):
        (h, w), (oh, ow) = sizes[i], targets[i]
        alone = resize(jnp.asarray(x[i : i + 1, :h, :w]), (int(oh), int(ow)))
        np.testing.assert_allclose(actual[i, :oh, :ow], alone[0], atol=1e-6)
        assert not np.asarray(actual[i, oh:]).any()


def test_scale_factor_moves_positions():
    """A factor of 1.3 on 10 pixels gives 13, positions from 1/1.3; on 11 pixels 14, not 14.3."""
    actual = np.asarray(resize_matrix(11, 14, "bilinear", scale_factor=1.3))
    source = np.maximum((np.arange(14) + 0.5) / 1.3 - 0.5, 0)
    np.testing.assert_allclose(actual @ np.arange(11), np.minimum(source, 10), atol=1e-5)


opencv = jax.jit(opencv_resize, static_argnums=3)


def test_unknown_mode_is_named():
    with pytest.raises(ValueError, match="'lanczos'"):
        resize_matrix(4, 8, "lanczos")


@pytest.mark.parametrize(
    ("size", "target"),
    [
        *(((75, 100), (102, 137)), ((90, 61), (40, 27)), ((75, 100), (102, 27))),
        *(((1, 30), (4, 120)), ((30, 1), (120, 4)), ((1, 1), (3, 5)), ((40, 31), (1, 1))),
        *(((64, 48), (32, 24)), ((33, 21), (66, 42)), ((41, 37), (41, 37))),
        *(((1500, 9), (1499, 13)), ((9, 1024), (11, 4096)), ((2200, 7), (2101, 5))),
    ],
)
def test_opencv_to_the_bit(size, target):
    cv2 = pytest.importorskip("cv2")
    image = np.random.RandomState(3).randint(0, 256, (*size, 3)).astype(np.uint8)
    expected = cv2.resize(image, target[::-1], interpolation=cv2.INTER_LINEAR)
    # Padded to more than they are, so that most have one program.
    shape, out = (tuple((side // 150 + 1) * 150 for side in sides) for sides in (size, target))
    padded = np.full((1, *shape, 3), 99, np.uint8)
    padded[0, : size[0], : size[1]] = image
    actual = np.asarray(opencv(padded, np.array([size]), np.array([target]), out))
    np.testing.assert_array_equal(actual[0, : target[0], : target[1]], expected)


def test_opencv_to_the_bit_at_any_size():
    cv2 = pytest.importorskip("cv2")
    random, shape = np.random.RandomState(4), (200, 200)
    for _ in range(200):
        sides = np.exp(random.uniform(0, np.log(200), (2, 2))).astype(int)
        image = np.zeros((1, *shape, 3), np.uint8)
        image[0, : sides[0, 0], : sides[0, 1]] = random.randint(0, 256, (*sides[0], 3))
        real = image[0, : sides[0, 0], : sides[0, 1]]
        expected = cv2.resize(real, sides[1, ::-1].tolist(), interpolation=cv2.INTER_LINEAR)
        actual = np.asarray(opencv(image, sides[:1], sides[1:], shape))
        actual = actual[0, : sides[1, 0], : sides[1, 1]]
        np.testing.assert_array_equal(actual, expected, err_msg=f"{sides[0]} to {sides[1]}")
