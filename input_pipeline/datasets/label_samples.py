"""The samples of a label map as they are stored; what Pillow makes of them are brightnesses."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFile

_JPEG, _LOSSY_IN_TIFF = ("JPEG", "MPO"), ("jpeg", "tiff_jpeg", "webp")
# How samples are stored -> the factor by which Pillow brings them to 0 ... 255.
_FACTORS = {"L;2": 85, "L;2R": 85, "L;4": 17, "L;4R": 17}
_WHITE_IS_ZERO = ("1;I", "L;I", "L;2I", "L;4I")


def label_samples(image: Image.Image) -> np.ndarray:
    """Samples (h, w) of 1 to 32 bits, of a palette image the indices.

    Raises:
      ValueError: colours, floats, lossy compression, or a TIFF whose 0 is white.
      Exception: of many kinds, if the file is damaged that the image still reads from.
    """
    lossy = image.format in _JPEG or image.info.get("compression") in _LOSSY_IN_TIFF
    if lossy:
        raise ValueError("it is a JPEG, which changes ids; save the ids as a grey PNG")
    if len(image.getbands()) != 1 or image.mode == "F":
        raise ValueError(
            f"it is a colour image (mode {image.mode}), not class ids; save the ids as a "
            f"grey or palette PNG"
        )
    stored = _storage(image)  # known until the image is decoded
    if stored.startswith(_WHITE_IS_ZERO):
        raise ValueError("it is a TIFF whose 0 is white; save the ids as a grey PNG")
    samples, factor = np.asarray(image), _FACTORS.get(stored, 1)
    return samples if factor == 1 else samples // factor


def _storage(image: Image.Image) -> str:
    """Pillow's name of how samples are stored, such as "L;4"; "" for formats of one way only."""
    if not isinstance(image, ImageFile.ImageFile) or not image.tile:
        return ""
    arguments = image.tile[0].args
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else ""
