"""CLIP's preprocessing of whole images (spec clip, section 7); segmentation keeps the borders."""

from __future__ import annotations

import numpy as np
from PIL import Image


def resize_and_crop(image: np.ndarray | Image.Image, side_px: int) -> np.ndarray:
    """An image of any size -> uint8 RGB (side_px, side_px, 3).

    Bicubic with antialiasing until the short side fits, then the centre: what CLIP was trained on.
    Normalise with `ops.image.normalise` and CLIP_MEAN, CLIP_STD.
    """
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    width, height = picture.size
    if width <= height:
        width, height = side_px, int(side_px * height / width)
    else:
        width, height = int(side_px * width / height), side_px
    picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - side_px) / 2), round((height - side_px) / 2)
    picture = picture.crop((left, top, left + side_px, top + side_px))
    return np.asarray(picture.convert("RGB"))
