"""Images and label maps from disk, with one clear error for a file that cannot be used."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError


class Stored(Protocol):
    """A file that is stored inside a larger file."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the upright image."""

    def read_bytes(self) -> bytes:
        """The file's content."""

    def __str__(self) -> str:
        """Where it is stored, for messages."""


File = Path | Stored  # what an example's image and label are
AnyFile = str | os.PathLike[str] | Stored
T = TypeVar("T")

_EXIF_ORIENTATION = 0x0112
_SIDEWAYS = (5, 6, 7, 8)  # orientations that exchange height and width


class BadFile(ValueError):  # noqa: N818
    """An image or label file that cannot be used; the message names file, problem and remedy."""


class BadImage(BadFile):
    """The image is missing, damaged, or of a kind that cannot be converted to RGB."""


class BadLabel(BadFile):
    """The label map is missing, damaged, not made of class ids, or has an id out of range."""


def read_image(path: AnyFile) -> np.ndarray:
    """Decodes an image to uint8 RGB (h, w, 3), upright as OpenCV's imread gives it.

    The EXIF orientation is applied. Grey, palette and CMYK images become RGB; transparency is
    dropped, not blended; 16-bit samples keep their high byte. JPEG pixels equal OpenCV's; CMYK
    conversion differs from OpenCV's by up to 2.

    Raises:
      BadImage: missing, not an image, truncated or otherwise damaged, or larger than Pillow accepts
        (twice PIL.Image.MAX_IMAGE_PIXELS, which is 89 million pixels).
    """

    return _with_image(path, rgb_pixels, BadImage)


def rgb_pixels(image: Image.Image) -> np.ndarray:
    """See `read_image`.

    Raises:
      Exception: of many kinds, if the file is damaged that the image still reads from.
    """
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion would clip it
        grey = np.asarray(upright).clip(0, 65535).astype(np.uint16) >> 8
        return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)
    if upright.mode == "F":
        raise ValueError("floating-point samples have no defined range; save it with 8 bits")
    return np.array(upright.convert("RGB"))


def image_size(path: AnyFile) -> tuple[int, int]:
    """(height, width) of `read_image`'s result, from the file's header alone.

    Raises:
      BadImage: missing, or the header is not that of an image.
    """

    if not isinstance(path, str | os.PathLike):
        return path.size

    def measure(image: Image.Image) -> tuple[int, int]:
        width, height = image.size
        # Pillow reports the upright size of a TIFF.
        sideways = image.format != "TIFF" and image.getexif().get(_EXIF_ORIENTATION) in _SIDEWAYS
        return (width, height) if sideways else (height, width)

    return _with_image(path, measure, BadImage)


def read_label(
    path: AnyFile,
    num_classes: int | None = None,
    *,
    reduce_zero_label: bool = False,
    ignore_label: int = 255,
) -> np.ndarray:
    """Class ids (h, w) int32 of a grey or palette PNG; `ignore_label` marks ignored pixels.

    Of palette PNGs the indices are the ids; colours do not matter.

    Args:
      num_classes: ids must be below it, after `reduce_zero_label`; None: not checked.
      reduce_zero_label: in the file 0 means "no class" and i + 1 is class i.

    Raises:
      BadLabel: missing or damaged, a colour image, or an id out of range.
    """

    def decode(image: Image.Image) -> np.ndarray:
        ids = np.asarray(image)
        if ids.ndim != 2 or image.mode == "F":
            raise ValueError(
                f"it is a colour image (mode {image.mode}), not class ids; save the ids as a "
                f"grey or palette PNG"
            )
        return ids.astype(np.int32)

    label = _with_image(path, decode, BadLabel)
    if reduce_zero_label:
        label = _reduce(label, ignore_label)
    if num_classes is not None:
        _check_range(label, path, num_classes, reduce_zero_label, ignore_label)
    return label


def reduce_zero_label(label: np.ndarray, ignore_label: int = 255) -> np.ndarray:
    """Ids with 0 for "no class" -> ids from 0: 0 becomes `ignore_label`, others decrease by one.

    `ignore_label` is kept. Any integer type; returns a new array.
    """
    return np.where((label == 0) | (label == ignore_label), ignore_label, label - 1).astype(
        label.dtype
    )


_reduce = reduce_zero_label  # read_label has an argument of that name


def _check_range(
    label: np.ndarray, path: AnyFile, num_classes: int, reduced: bool, ignore_label: int
) -> None:
    wrong = (label != ignore_label) & ((label < 0) | (label >= num_classes))
    if not wrong.any():
        return
    value = int(label[wrong][0]) + (1 if reduced else 0)
    allowed = f"{1 if reduced else 0} to {num_classes - (0 if reduced else 1)}"
    zero = ", 0 (no class)" if reduced else ""
    raise BadLabel(
        f"{path}: label {value} at {int(wrong.sum())} pixels is out of range; {num_classes} "
        f"classes have labels {allowed}{zero} and {ignore_label} (ignored). Convert the label "
        f"files, or choose the dataset record (classes, reduce_zero_label) that fits them."
    )


def _with_image(path: AnyFile, use: Callable[[Image.Image], T], error: type[BadFile]) -> T:
    kind, article = ("image", "an") if error is BadImage else ("label map", "a")
    # Pillow opens a path itself and reads only as much of it as it needs.
    file = path if isinstance(path, str | os.PathLike) else io.BytesIO(path.read_bytes())
    try:
        with Image.open(file) as image:
            return use(image)
    except FileNotFoundError as cause:
        raise error(f"{path}: no such file; check the path or the split list.") from cause
    except UnidentifiedImageError as cause:
        raise error(
            f"{path}: not {article} {kind} in a known format; replace or remove it."
        ) from cause
    except Image.DecompressionBombError as cause:
        raise error(
            f"{path}: {cause} Shrink it, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust it."
        ) from cause
    except Exception as cause:  # Pillow's readers raise all kinds of errors on damaged bytes
        raise error(
            f"{path}: cannot decode the {kind} ({cause}); replace the file or remove it from the "
            f"split."
        ) from cause
