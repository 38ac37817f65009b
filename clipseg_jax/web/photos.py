"""Visitors' photos, read within limits; and the sample photos."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from clipseg_jax.demo import world
from input_pipeline.datasets.images import (
    FORMATS,
    BadImage,
    TooLarge,
    image_size,
    open_image,
    read_image,
)
from input_pipeline.text_lists import escaped, one_line
from input_pipeline.walk import open_regular

WORK_PX = 1024  # longest side at which photos are kept and segmented
_MOST_LETTERS = 60  # of a file name, in messages
_SAMPLE_PX = 256
_PAINTED = (28, 9, 23, 40, 16, 5, 11)  # pictures of the painted world, in different scenery
# Real photos, with words and background words; the demo's CLIP takes geese for ducks.
_GEESE = ("geese", ("duck", "boat"), ("water", "grass", "sky"))
_BENCH = ("bench", ("bench", "tree"), ("grass", "path"))


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a visitor may upload.

    Attributes:
      megabytes: of a file.
      megapixels: of the photo in it.
    """

    megabytes: int = 64
    megapixels: float = 100.0


@dataclasses.dataclass(frozen=True, eq=False)
class Photo:
    """A photo as the page works with it.

    Attributes:
      name: of the file, as its owner calls it; may be anything.
      pixels: (h, w, 3) uint8 RGB, upright, at most `WORK_PX` on the longest side.
      size: (height, width) of the photo itself, upright.
      animated: it is the first frame of an animation.
    """

    name: str
    pixels: np.ndarray
    size: tuple[int, int]
    animated: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
    """A photo that the page offers, with words that fit it."""

    photo: Photo
    words: tuple[str, ...]
    background: tuple[str, ...]


def read_photo(path: str | os.PathLike[str], name: str, limits: Limits) -> Photo:
    """Reads an uploaded file: bytes and pixels are checked before anything is decoded.

    Args:
      path: the file.
      name: what its owner calls it.
      limits: what is taken.

    Raises:
      BadImage: too large, damaged, or no image; the message names the file, why, and what is taken.
    """
    name = shown_name(name)
    megabytes = os.stat(path).st_size / 1e6
    if megabytes > limits.megabytes:
        raise BadImage(
            f"{name} has {megabytes:.0f} MB; up to {limits.megabytes} are taken. Save it smaller, "
            "for instance as JPEG."
        )
    try:
        height, width = image_size(path)
        if height * width > limits.megapixels * 1e6:
            raise BadImage(_too_large(name, limits))
        animated = _is_animated(path)
        pixels = read_image(path)
    except BadImage as error:
        raise BadImage(_reason(name, error, limits)) from error
    return Photo(name, shrunk(pixels, WORK_PX), (height, width), animated)


def shrunk(pixels: np.ndarray, longest_px: int) -> np.ndarray:
    """(h', w', 3) uint8 of an image (h, w, 3): at most `longest_px` on its longest side.

    A large image is first averaged over whole pixels in bands of rows, so that it isn't in memory
    twice.
    """
    height, width = pixels.shape[:2]
    scale = longest_px / max(height, width)
    if scale >= 1:
        return pixels
    size = max(1, round(width * scale)), max(1, round(height * scale))
    factor = int(1 / scale / 2)  # at least twice the target is left for the exact resize
    if factor > 1:
        rows = 64 * factor
        bands = [
            np.asarray(Image.fromarray(pixels[top : top + rows]).reduce(factor))
            for top in range(0, height, rows)
        ]
        pixels = np.concatenate(bands)
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))


def samples(*, real: bool) -> tuple[Sample, ...]:
    """The sample photos: painted ones, which the demo's CLIP was made for, and photos.

    `real`: the photos come first, and there are more of them.
    """
    painted = []
    for index in _PAINTED:
        pixels = world.make("evaluation", index, _SAMPLE_PX).image
        photo = Photo(f"painted_{index}.png", pixels, pixels.shape[:2])
        painted.append(Sample(photo, world.CLASSES, world.SCENERY))
    if real:
        return (_real(*_GEESE), _real(*_BENCH), *painted[:6])
    return (*painted, _real(*_GEESE))


def _real(name: str, words: tuple[str, ...], background: tuple[str, ...]) -> Sample:
    pixels = read_image(Path(__file__).parent / "photos" / f"{name}.jpg")
    return Sample(Photo(f"{name}.jpg", pixels, pixels.shape[:2]), words, background)


def shown_name(name: str) -> str:
    """A file's name for messages: its last part, in one line that isn't too long."""
    name = escaped(name.replace("\\", "/").rpartition("/")[2]).strip() or "the file"
    return (
        name
        if len(name) <= _MOST_LETTERS
        else f"{name[: _MOST_LETTERS - 1]}\N{HORIZONTAL ELLIPSIS}"
    )


def _is_animated(path: str | os.PathLike[str]) -> bool:
    try:
        with open_regular(path) as file, open_image(file) as image:
            return bool(getattr(image, "is_animated", False))
    except Exception:  # damage is told by `read_image`, which may mend it
        return False


def _reason(name: str, error: BadImage, limits: Limits) -> str:
    """What a visitor is told, without the server's path and remedies for datasets."""
    cause = error.__cause__
    if isinstance(cause, UnidentifiedImageError):
        *most, last = FORMATS
        return f"{name} is not an image that can be read here; {', '.join(most)} and {last} can."
    if isinstance(cause, TooLarge):
        return _too_large(name, limits)
    if cause is None:
        return str(error)
    return f"{name} is damaged ({one_line(cause)}); save or export it again."


def _too_large(name: str, limits: Limits) -> str:
    return f"{name} has more than the {limits.megapixels:g} megapixels taken here; scale it down."
