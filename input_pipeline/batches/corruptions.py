"""Corruptions of uint8 images for robustness tests (MaskCLIP's set, after Hendrycks & Dietterich).

Eight kinds, five levels each. Noise is drawn from the given generator in the published code's
order: `RandomState(s)` gives what that code gives after `numpy.random.seed(s)`. Computed in float64
in [0, 1]; results are clipped and rounded down.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import cv2
import numpy as np
from PIL import Image

Rng = np.random.RandomState

LEVELS = (1, 2, 3, 4, 5)


def check_corruption(kind: str, level: int) -> None:
    """Raises ValueError for an unknown kind or level."""
    if kind not in _KINDS:
        raise ValueError(f"No corruption {kind!r}; choose one of: {', '.join(KINDS)}.")
    if level not in LEVELS:
        raise ValueError(f"Corruption level is {level!r}; it must be one of 1, 2, 3, 4, 5.")


def corrupt(image: np.ndarray, kind: str, level: int, rng: Rng) -> np.ndarray:
    """Corrupts a uint8 RGB image (h, w, 3), before any resize.

    Works on the channels in reverse order (BGR), as the published evaluation does: this decides the
    colours of `spatter`, JPEG's result, and which sample gets which noise.

    Args:
      kind: one of `KINDS`.
      level: 1 (mild) to 5.
      rng: `gaussian_blur`, `defocus_blur` and `jpeg_compression` draw nothing from it.

    Raises:
      ValueError: unknown kind or level.
    """
    check_corruption(kind, level)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
        raise ValueError(
            f"Image is {image.dtype} of shape {image.shape}; corruptions need uint8 (h, w, 3)."
        )
    return _KINDS[kind](image[..., ::-1], level, rng)[..., ::-1]


def _pixels(scaled: np.ndarray) -> np.ndarray:
    """[0, 1] -> uint8, clipped and rounded down."""
    return (np.clip(scaled, 0, 1) * 255).astype(np.uint8)


def _gaussian_noise(image: np.ndarray, level: int, rng: Rng) -> np.ndarray:
    spread = (0.08, 0.12, 0.18, 0.26, 0.38)[level - 1]
    return _pixels(image / 255.0 + rng.normal(size=image.shape, scale=spread))


def _shot_noise(image: np.ndarray, level: int, rng: Rng) -> np.ndarray:
    photons = (60, 25, 12, 5, 3)[level - 1]
    return _pixels(rng.poisson(image / 255.0 * photons) / photons)


def _impulse_noise(image: np.ndarray, level: int, rng: Rng) -> np.ndarray:
    """Sets samples to 0 or 1. Unlike the published draws, these need no scikit-image."""
    probability = (0.03, 0.06, 0.09, 0.17, 0.27)[level - 1]
    draw = rng.random_sample(image.shape)
    salt_and_pepper = np.where(draw < probability / 2, 0.0, 1.0)
    return _pixels(np.where(draw < probability, salt_and_pepper, image / 255.0))


def _speckle_noise(image: np.ndarray, level: int, rng: Rng) -> np.ndarray:
    spread = (0.15, 0.2, 0.35, 0.45, 0.6)[level - 1]
    scaled = image / 255.0
    return _pixels(scaled + scaled * rng.normal(size=image.shape, scale=spread))


def _gaussian_blur(image: np.ndarray, level: int, rng: Rng) -> np.ndarray:
    return _pixels(_gaussian(image / 255.0, (1, 2, 3, 4, 6)[level - 1]))


def _gaussian(pixels: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian filter in float64, cut at 4 sigma, edges repeated (scikit-image's defaults)."""
    radius = int(4 * sigma + 0.5)
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    pixels = np.ascontiguousarray(pixels, np.float64)
    return cv2.sepFilter2D(pixels, cv2.CV_64F, kernel, kernel, borderType=cv2.BORDER_REPLICATE)


def _defocus_blur(image: np.ndarray, level: int, rng: Rng) -> np.ndarray:
    radius, alias_sigma = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))[level - 1]
    reach, aperture = (8, 3) if radius <= 8 else (radius, 5)
    grid = np.arange(-reach, reach + 1) ** 2
    disk = (grid[:, None] + grid <= radius**2).astype(np.float32)
    disk = cv2.GaussianBlur(disk / disk.sum(), (aperture, aperture), sigmaX=alias_sigma)
    return _pixels(cv2.filter2D(np.ascontiguousarray(image / 255.0), -1, disk))


def _spatter(image: np.ndarray, level: int, rng: Rng) -> np.ndarray:
    mean, spread, sigma, threshold, intensity, mud = (
        (0.65, 0.3, 4, 0.69, 0.6, False),
        (0.65, 0.3, 3, 0.68, 0.6, False),
        (0.65, 0.3, 2, 0.68, 0.5, False),
        (0.65, 0.3, 1, 0.65, 1.5, True),
        (0.67, 0.4, 1, 0.65, 1.5, True),
    )[level - 1]
    scaled = image / 255.0
    liquid = _gaussian(rng.normal(size=image.shape[:2], loc=mean, scale=spread), sigma)
    liquid[liquid < threshold] = 0
    if mud:
        cover = _gaussian((liquid > threshold).astype(np.float64), intensity)
        cover[cover < 0.8] = 0
        colour = np.array((63, 42, 20)) / 255
        return _pixels(scaled * (1 - cover[..., None]) + colour * cover[..., None])
    cover = _drops((liquid * 255).astype(np.uint8)) * intensity
    return _pixels(scaled + cover[..., None] * (np.array((175, 238, 238)) / 255))


def _drops(liquid: np.ndarray) -> np.ndarray:
    """Brightness in [0, 1] of water drops, rims included, from its amount (h, w) uint8."""
    distance = cv2.distanceTransform(255 - cv2.Canny(liquid, 50, 150), cv2.DIST_L2, 5)
    distance = cv2.blur(np.minimum(distance, 20), (3, 3)).astype(np.uint8)
    emboss = np.array(((-2, -1, 0), (-1, 1, 1), (0, 1, 2)), np.float32)
    relief = cv2.filter2D(cv2.equalizeHist(distance), cv2.CV_8U, emboss)
    shine = liquid * cv2.blur(relief, (3, 3)).astype(np.float32)
    # An image of a few pixels may have no water.
    return shine / max(float(shine.max()), 1e-12)


def _jpeg_compression(image: np.ndarray, level: int, rng: Rng) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(
        file, "JPEG", quality=(25, 18, 15, 10, 7)[level - 1]
    )
    return np.asarray(Image.open(file, formats=("JPEG",)).convert("RGB"))


_KINDS: dict[str, Callable[[np.ndarray, int, Rng], np.ndarray]] = {
    "gaussian_noise": _gaussian_noise,
    "shot_noise": _shot_noise,
    "impulse_noise": _impulse_noise,
    "speckle_noise": _speckle_noise,
    "gaussian_blur": _gaussian_blur,
    "defocus_blur": _defocus_blur,
    "spatter": _spatter,
    "jpeg_compression": _jpeg_compression,
}
KINDS = tuple(_KINDS)
