"""Images as Python callers give them: files, Pillow images, and arrays of any library."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from input_pipeline.datasets.images import MAX_PIXELS, BadImage, image_size, rgb_pixels

Picture = str | os.PathLike[str] | np.ndarray  # an array is uint8 (h, w), (h, w, 1), ... (h, w, 4)
_TAKEN = (
    "give a path, a Pillow image, or an array of uint8 or uint16: RGB (h, w, 3), RGBA (h, w, 4) or "
    "grey (h, w)"
)


def is_one_picture(images: Any) -> bool:
    """Whether this is a single image: a path, a Pillow image, or the array of one."""
    return isinstance(images, (str, os.PathLike, Image.Image)) or _is_one_array(images)


def picture_list(images: Any, *, first: int = 0) -> list[Picture]:
    """One image, or several in any iterable, as a list of paths and uint8 arrays.

    `first`: the number of the first one in errors.

    Raises:
      ValueError: something that is no image; the message names its position and what is taken.
    """
    if is_one_picture(images):
        return [_picture(images, first)]
    if not isinstance(images, Iterable) or isinstance(images, (bytes, Mapping)):
        raise ValueError(f"images is of type {type(images).__name__}; {_TAKEN}, or a list of them")
    return [_picture(image, index) for index, image in enumerate(images, first)]


def picture_size(picture: Picture) -> tuple[int, int]:
    """(height, width) of a picture; of a file, from its header alone.

    Raises:
      BadImage: a file that cannot be read, or a picture of too many pixels.
    """
    if not isinstance(picture, np.ndarray):
        if os.path.isdir(picture):
            raise BadImage(
                f"{picture} is a folder; give the photos in it, such as "
                "sorted(Path(FOLDER).glob('*.jpg')), or run python -m clipseg_jax.predict FOLDER"
            )
        return image_size(picture)
    height, width = picture.shape[:2]
    if height * width > MAX_PIXELS:
        raise BadImage(
            f"{height} x {width} pixels are more than the {MAX_PIXELS} that are taken; scale it "
            "down"
        )
    return height, width


def rgb_array(picture: np.ndarray) -> np.ndarray:
    """RGB (h, w, 3) of an array of `picture_list`; transparency is dropped, not blended."""
    channels = np.atleast_3d(picture)
    if channels.shape[2] < 3:  # grey, with or without transparency
        return np.broadcast_to(channels[..., :1], (*channels.shape[:2], 3))
    return channels[..., :3]


def _is_one_array(images: Any) -> bool:
    """Whether this is the array of a single image, not a stack (n, h, w, c) or a list of paths."""
    return hasattr(images, "__array__") and np.ndim(images) in (0, 2, 3)


def _picture(image: Any, index: int) -> Picture:
    if isinstance(image, str):
        return image
    if isinstance(image, os.PathLike):
        return Path(image)
    if isinstance(image, Image.Image):
        try:
            return rgb_pixels(image)
        except Exception as error:  # Pillow reads the file only now
            raise ValueError(f"image {index} cannot be decoded ({error}); {_TAKEN}") from error
    try:
        array = np.asarray(image)
    except Exception as error:  # ragged lists, arrays of other libraries on other devices
        kind = type(image).__name__
        raise ValueError(f"image {index} of type {kind} is no array ({error}); {_TAKEN}") from error
    if array.dtype == np.uint16:  # as of 16-bit files
        array = (array >> 8).astype(np.uint8)
    grey = array.ndim == 2
    if array.dtype != np.uint8 or not (grey or (array.ndim == 3 and 1 <= array.shape[2] <= 4)):
        kind = f"{array.dtype} {array.shape}" if array.ndim else f"of type {type(image).__name__}"
        raise ValueError(f"image {index} is {kind}; {_TAKEN}")
    if 0 in array.shape:
        raise ValueError(f"image {index} is {array.shape}, without pixels; {_TAKEN}")
    return array
