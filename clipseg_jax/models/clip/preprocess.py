"""CLIP's preprocessing for image classification (spec clip, section 7)."""

from __future__ import annotations

import numpy as np
from PIL import Image


def resize_and_crop(image: np.ndarray | Image.Image, side_px: int) -> np.ndarray:
    """An image of any size -> uint8 RGB (side_px, side_px, 3).

    The short side is resized to `side_px`, bicubic with antialiasing, and the centre is cropped, as
    in CLIP's training. Normalise with `ops.image.normalize` and CLIP_MEAN, CLIP_STD.
    """
    resized = image if isinstance(image, Image.Image) else Image.fromarray(image)
    width, height = resized.size
    if width <= height:
        width, height = side_px, int(side_px * height / width)
    else:
        width, height = int(side_px * width / height), side_px
    resized = resized.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - side_px) / 2), round((height - side_px) / 2)
    cropped = resized.crop((left, top, left + side_px, top + side_px))
    return np.asarray(cropped.convert("RGB"))
