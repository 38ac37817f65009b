"""Resize, crop, flip, colour distortion and padding, on NumPy arrays.

Images are uint8 RGB (h, w, 3), labels (h, w) of any integer type, sizes (height, width). Random
functions draw from the given generator in the published code's order, so that the same seed gives
the same view in both. Source: MaskCLIP's data pipeline (mmsegmentation's transforms); ReCLIP's
differs only in the wrap-around of saturations. Image arithmetic is OpenCV's.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import cv2
import numpy as np

_OPENCV_TYPES = (np.uint8, np.uint16, np.int16, np.int32)  # that it resizes unchanged
_CROP_REDRAWS = 10
_BRIGHTNESS = 32  # largest shift of pixel values
_CONTRAST = _SATURATION = (0.5, 1.5)
_HUE = 18  # OpenCV's uint8 hue: 180 steps a turn


def sample_rng(seed: int, epoch: int, index: int) -> np.random.RandomState:
    """The random generator of one example in one epoch, independent of processes and order.

    Philox with the seed as key and (epoch, index) in the upper half of its counter: streams never
    overlap, and none depends on how many examples came before.
    """
    bits = np.random.Philox(key=[seed, 0], counter=[0, 0, index, epoch])
    return np.random.RandomState(bits)


def rescaled_size(height: int, width: int, scale: Sequence[int]) -> tuple[int, int]:
    """The largest (height, width) with this aspect that fits `scale`, at least 1 x 1.

    `scale` holds a bound for the long side and one for the short side, in either order.
    """
    factor = min(max(scale) / max(height, width), min(scale) / min(height, width))
    return max(int(height * factor + 0.5), 1), max(int(width * factor + 0.5), 1)


def check_ratios(ratio_range: tuple[float, float]) -> tuple[float, float]:
    """A range of random ratios as given.

    Raises:
      ValueError: it does not ascend from above 0.
    """
    low, high = ratio_range
    if not 0 < low <= high:
        raise ValueError(f"ratio_range is {tuple(ratio_range)}; give (least, most), both above 0")
    return low, high


def random_scale(
    rng: np.random.RandomState,
    scale: Sequence[int],
    ratio_range: tuple[float, float] = (0.5, 2.0),
) -> tuple[int, int]:
    """`scale` times a ratio drawn uniformly from the range. One draw."""
    low, high = ratio_range
    ratio = rng.random_sample() * (high - low) + low
    return int(scale[0] * ratio), int(scale[1] * ratio)


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear resize in OpenCV's arithmetic, without antialiasing; keeps the dtype."""
    return cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)


def resize_label(label: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Nearest-neighbour resize by OpenCV's rule, floor(i * h / size[0]); keeps the integer type."""
    supported = label if label.dtype in _OPENCV_TYPES else label.astype(np.int32)
    resized = cv2.resize(supported, (size[1], size[0]), interpolation=cv2.INTER_NEAREST)
    return resized.astype(label.dtype, copy=False)


def suppress(label: np.ndarray, unseen: Collection[int]) -> np.ndarray:
    """Labels 0..32767 as int16 with unseen classes as -1, which the crop does not ignore."""
    table = np.arange(max(256, int(label.max(initial=0)) + 1), dtype=np.int16)
    table[list(unseen)] = -1
    if len(table) > 256:
        return table[label]
    return cv2.LUT(np.asarray(label, np.uint8), table)


def random_crop(
    image: np.ndarray,
    label: np.ndarray,
    rng: np.random.RandomState,
    crop_hw: tuple[int, int],
    *,
    cat_max_ratio: float = 0.75,
    ignore_label: int = 255,
) -> tuple[np.ndarray, np.ndarray]:
    """A crop of `crop_hw` (less where the image is smaller) that no class dominates.

    A crop where one label covers `cat_max_ratio` or more of the pixels that are not ignored, or
    that has a single label, is drawn again up to 10 times; the last is taken as it is. So an image
    without labels (-1 everywhere) gets the eleventh crop. Two draws per crop.
    """
    top, left = _draw_box(label, rng, crop_hw)
    if cat_max_ratio < 1:
        lowest = min(int(label.min()), 0)  # -1 stands for pixels without a class
        bins = max(int(label.max()), ignore_label) - lowest + 1

        def counts(box: np.ndarray) -> np.ndarray:
            ranks = (box - lowest).astype(np.uint16)
            histogram = cv2.calcHist([ranks], [0], None, [bins], [0, bins]).astype(np.int64)
            histogram[ignore_label - lowest] = 0
            return histogram

        one_label: bool | None = None  # then no crop is accepted: draw, do not count
        for _ in range(_CROP_REDRAWS):
            if not one_label:
                pixels = counts(label[top : top + crop_hw[0], left : left + crop_hw[1]])
                shown = np.count_nonzero(pixels)
                if shown > 1 and pixels.max() / pixels.sum() < cat_max_ratio:
                    break
                if shown < 2 and one_label is None:
                    one_label = bool(np.count_nonzero(counts(label)) < 2)
            top, left = _draw_box(label, rng, crop_hw)
    rows, columns = slice(top, top + crop_hw[0]), slice(left, left + crop_hw[1])
    return image[rows, columns], label[rows, columns]


def _draw_box(
    label: np.ndarray, rng: np.random.RandomState, crop_hw: tuple[int, int]
) -> tuple[int, int]:
    top = rng.randint(0, max(label.shape[0] - crop_hw[0], 0) + 1)
    left = rng.randint(0, max(label.shape[1] - crop_hw[1], 0) + 1)
    return int(top), int(left)


def flip(
    image: np.ndarray, label: np.ndarray, rng: np.random.RandomState
) -> tuple[np.ndarray, np.ndarray]:
    """Mirrors left and right with probability 1/2. One draw."""
    if rng.rand() < 0.5:
        return cv2.flip(image, 1), label[:, ::-1]  # much faster than copying a NumPy view
    return image, label


def distort_colours(
    image: np.ndarray, rng: np.random.RandomState, *, saturation_wrap: bool = False
) -> np.ndarray:
    """Random brightness, contrast, saturation and hue, each with probability 1/2.

    Contrast comes second or last, which is drawn as well. Each step draws whether it is applied,
    then its value. Order of draws: brightness, place of contrast, contrast if second, saturation,
    hue, contrast if last. Every step rounds down to uint8.

    Args:
      saturation_wrap: saturations above 255 wrap around to 0, as in ReCLIP's code; otherwise they
        are clipped at 255.
    """
    image = np.ascontiguousarray(image)
    table = None  # brightness, and contrast after it
    if rng.randint(2):
        table = _affine(add=rng.uniform(-_BRIGHTNESS, _BRIGHTNESS))
    contrast_first = rng.randint(2) == 1
    if contrast_first and rng.randint(2):
        contrast = _affine(times=rng.uniform(*_CONTRAST))
        table = contrast if table is None else contrast[table]
    if table is not None:
        image = cv2.LUT(image, table)
    if rng.randint(2):
        saturation = _affine(times=rng.uniform(*_SATURATION), wrap=saturation_wrap)
        image = _through_hsv(image, 1, saturation)
    if rng.randint(2):
        hue = (np.arange(256) + rng.randint(-_HUE, _HUE)) % 180
        image = _through_hsv(image, 0, hue)
    if not contrast_first and rng.randint(2):
        image = cv2.LUT(image, _affine(times=rng.uniform(*_CONTRAST)))
    return image


def _affine(*, times: float = 1.0, add: float = 0.0, wrap: bool = False) -> np.ndarray:
    """(256,) uint8: the new value of each pixel value."""
    changed = np.arange(256, dtype=np.float32) * np.float32(times) + np.float32(add)
    return (changed.astype(int) % 256 if wrap else np.clip(changed, 0, 255)).astype(np.uint8)


def _through_hsv(image: np.ndarray, channel: int, table: np.ndarray) -> np.ndarray:
    tables = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    tables[0, :, channel] = table
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    return cv2.cvtColor(cv2.LUT(hsv, tables, dst=hsv), cv2.COLOR_HSV2RGB)


def pad(
    image: np.ndarray, label: np.ndarray, size: tuple[int, int], *, ignore_label: int = 255
) -> tuple[np.ndarray, np.ndarray]:
    """Pads at the bottom and right: the image with 0, the label with the ignored label."""
    height, width = label.shape
    if (height, width) == size:
        return image, label
    padded = np.zeros((*size, 3), image.dtype)
    padded_label = np.full(size, ignore_label, label.dtype)
    padded[:height, :width], padded_label[:height, :width] = image, label
    return padded, padded_label


def random_view(
    image: np.ndarray,
    label: np.ndarray,
    rng: np.random.RandomState,
    *,
    scale: Sequence[int],
    crop_hw: tuple[int, int],
    ratio_range: tuple[float, float] = (0.5, 2.0),
    cat_max_ratio: float = 0.75,
    ignore_label: int = 255,
    saturation_wrap: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """A training view of an image: uint8, of `crop_hw` or less where the image is smaller.

    Resize by a random ratio, crop, flip, colour distortion. Normalization and padding come later,
    in this order.

    Args:
      scale: bounds for the long and the short side, before the random ratio.
      crop_hw, cat_max_ratio, ignore_label: see `random_crop`.
      ratio_range: see `random_scale`.
      saturation_wrap: see `distort_colours`.
    """
    size = rescaled_size(image.shape[0], image.shape[1], random_scale(rng, scale, ratio_range))
    image, label = resize(image, size), resize_label(label, size)
    image, label = random_crop(
        image, label, rng, crop_hw, cat_max_ratio=cat_max_ratio, ignore_label=ignore_label
    )
    image, label = flip(image, label, rng)
    return distort_colours(image, rng, saturation_wrap=saturation_wrap), label
