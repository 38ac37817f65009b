"""An image, its labels and a prediction side by side, small enough for logs and reports."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from clipseg_jax.core.label_images import overlay

_GAP_PX = 4  # white, between two tiles


def compare(
    image: np.ndarray,
    truth: np.ndarray,
    labels: np.ndarray,
    colours: np.ndarray,
    opacity: float = 0.5,
    *,
    clear: Sequence[int] = (255,),
    side_px: int = 320,
) -> np.ndarray:
    """Three tiles (h', w', 3) uint8: the image, its truth and its prediction laid over it.

    Args:
      image: (h, w, 3) uint8.
      truth, labels: (h, w) integers.
      colours, opacity, clear: see `overlay`.
      side_px: longest side of a tile; images of less than half of that are enlarged.
    """
    size = _tile_size(image.shape[:2], side_px)
    small = _resize(image, size, Image.Resampling.LANCZOS)
    tiles = [small]
    for ids in (truth, labels):
        ids = _resize(ids.astype(np.uint8), size, Image.Resampling.NEAREST)
        tiles.append(overlay(small, ids, colours, opacity, clear=clear))
    return beside(tiles)


def beside(tiles: Sequence[np.ndarray]) -> np.ndarray:
    """Tiles (h, w, 3) of one size in a row, from left to right."""
    gap = np.full((tiles[0].shape[0], _GAP_PX, 3), 255, np.uint8)
    return np.concatenate([part for tile in tiles for part in (gap, tile)][1:], axis=1)


def apart(row: np.ndarray, count: int = 3) -> list[np.ndarray]:
    """The tiles of a row that `beside` made.

    Raises:
      ValueError: the width is not that of so many tiles.
    """
    width, rest = divmod(row.shape[1] + _GAP_PX, count)
    if rest or width <= _GAP_PX:
        raise ValueError(f"{row.shape[1]} pixels are not the width of {count} tiles")
    return [row[:, i * width : (i + 1) * width - _GAP_PX] for i in range(count)]


def _tile_size(size: tuple[int, int], side_px: int) -> tuple[int, int]:
    """(height, width) of a tile for an image of (height, width)."""
    longest = max(size)
    factor = side_px / longest if longest > side_px else max(1, side_px // longest)
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def _resize(array: np.ndarray, size: tuple[int, int], how: Image.Resampling) -> np.ndarray:
    return np.asarray(Image.fromarray(array).resize((size[1], size[0]), how))
