"""Tiles side by side: their sizes, what they show, and that they come apart again."""

from __future__ import annotations

import numpy as np
import pytest

from clipseg_jax.core.comparison import apart, beside, compare

COLOURS = np.array([[0, 0, 0], [200, 0, 0], [0, 0, 200]], np.uint8)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((64, 48), (320, 240)),  # five times as large
        ((200, 100), (200, 100)),  # not twice: as it is
        ((3, 900), (1, 320)),
        ((1000, 640), (320, 205)),
    ],
)
def test_tiles_are_scaled_to_one_size(size, expected):
    image = np.full((*size, 3), 90, np.uint8)
    labels = np.zeros(size, np.int32)
    tiles = apart(compare(image, labels, labels, COLOURS))
    assert [tile.shape for tile in tiles] == [(*expected, 3)] * 3


def test_truth_and_prediction_are_laid_over_the_image():
    image = np.full((8, 8, 3), 100, np.uint8)
    truth, labels = np.ones((8, 8), np.int32), np.full((8, 8), 2, np.int32)
    truth[:4], labels[:, :4] = 255, 0
    row = compare(image, truth, labels, COLOURS, 0.5, clear=(0, 255), side_px=8)
    plain, there, guess = apart(row)
    np.testing.assert_array_equal(plain, image)
    np.testing.assert_array_equal(there[:4], image[:4])  # ignored
    np.testing.assert_array_equal(there[4:], np.broadcast_to([150, 50, 50], (4, 8, 3)))
    np.testing.assert_array_equal(guess[:, :4], image[:, :4])  # background
    np.testing.assert_array_equal(guess[:, 4:], np.broadcast_to([50, 50, 150], (8, 4, 3)))


def test_apart_undoes_beside():
    tiles = [np.full((2, 3, 3), n, np.uint8) for n in range(4)]
    for one, other in zip(apart(beside(tiles), 4), tiles, strict=True):
        np.testing.assert_array_equal(one, other)
    for width in (1, 4, 8, 18):
        with pytest.raises(ValueError, match=f"{width} pixels are not the width of 3 tiles"):
            apart(np.zeros((2, width, 3), np.uint8))
