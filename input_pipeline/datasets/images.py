"""Images and label maps from disk, with one clear error for a file that cannot be used."""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Protocol, TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from input_pipeline.datasets.jpeg_scans import check_scans
from input_pipeline.datasets.label_samples import label_samples
from input_pipeline.datasets.metadata import without_metadata
from input_pipeline.text_lists import one_line
from input_pipeline.walk import NotAFile, open_regular


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

# MPO comes with JPEG. Pillow's other readers are not for strangers' files: one starts Ghostscript.
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF")
MAX_PIXELS = 178_956_970  # 13,377 x 13,377; decoding needs up to 7 bytes for each
_BAND_PIXELS = 1 << 22

_EXIF_ORIENTATION = 0x0112
_SIDEWAYS = (5, 6, 7, 8)  # orientations that exchange height and width


class BadFile(ValueError):  # noqa: N818
    """An image or label file that cannot be used; the message names file, problem and remedy."""


class BadImage(BadFile):
    """The image is missing, damaged, or of a kind that cannot be converted to RGB."""


class BadLabel(BadFile):
    """The label map is missing, damaged, not made of class ids, or has an id out of range."""


class TooLarge(ValueError):  # noqa: N818
    """An image of more than MAX_PIXELS; the message is its size."""


@contextlib.contextmanager
def open_image(file: BinaryIO) -> Iterator[Image.Image]:
    """Opens an image of one of FORMATS with Pillow, whatever its name says; decodes nothing yet.

    Raises:
      UnidentifiedImageError: of another format.
      TooLarge: more than MAX_PIXELS.
    """
    try:
        with Image.open(file, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise TooLarge(f"{image.height} x {image.width} pixels")
            yield image
    except Image.DecompressionBombError as error:  # Pillow's own limit, which users can change
        raise TooLarge(str(error).partition(" exceeds")[0]) from error


def shrunk_size(height: int, width: int, longest_px: int | None) -> tuple[int, int]:
    """(height, width) of an image whose longest side is at most `longest_px`; None: as it is."""
    longest = max(height, width)
    if longest_px is None or longest <= longest_px:
        return height, width
    height, width = (max(round(side * longest_px / longest), 1) for side in (height, width))
    return height, width


def read_image(path: AnyFile, longest_px: int | None = None) -> np.ndarray:
    """Decodes an image to uint8 RGB (h, w, 3), upright as OpenCV's imread gives it.

    `longest_px`: a larger image is shrunk to the size of `shrunk_size`, with Pillow's bilinear
    filter, which is antialiased; JPEGs are decoded at a fraction of their size for it.

    The EXIF orientation is applied; damaged metadata is ignored. Grey, palette and CMYK images
    become RGB; transparency is dropped, not blended; 16-bit samples keep their high byte. JPEG
    pixels equal OpenCV's; CMYK conversion differs from OpenCV's by up to 2.

    Raises:
      BadImage: missing, not an image, truncated or otherwise damaged, or of more than MAX_PIXELS.
    """

    def decode(image: Image.Image) -> np.ndarray:
        if longest_px is None or max(image.size) <= longest_px:
            return rgb_pixels(image)
        height, width = shrunk_size(*_upright_size(image), longest_px)
        # At twice the size at least, so that the filter makes the pixels, not the decoder.
        twice = 2 * longest_px / max(image.size)
        image.draft("RGB", (round(image.width * twice), round(image.height * twice)))
        pixels = Image.fromarray(rgb_pixels(image))
        return np.asarray(pixels.resize((width, height), Image.Resampling.BILINEAR))

    return _with_image(path, decode, BadImage)


def rgb_pixels(image: Image.Image) -> np.ndarray:
    """uint8 RGB (h, w, 3) of an image that Pillow opened; see `read_image`.

    Raises:
      Exception: of many kinds, if the file is damaged that the image still reads from.
    """
    check_scans(image)
    image.load()
    if image.mode == "F":
        raise ValueError("floating-point samples have no defined range; save it with 8 bits")
    orientation = _orientation(image)
    height, width = image.height, image.width
    sideways = orientation in _SIDEWAYS
    upright = np.empty((width, height, 3) if sideways else (height, width, 3), np.uint8)
    stored = _as_stored(upright, orientation)
    # In bands of rows, so that a large image is not in memory several times.
    rows = max(1, _BAND_PIXELS // max(width, 1))
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        whole = bottom - top == height
        stored[top:bottom] = _rgb(image if whole else image.crop((0, top, width, bottom)))
    return upright


def _rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion would clip it
        grey = np.asarray(image).clip(0, 65535).astype(np.uint16) >> 8
        return grey.astype(np.uint8)[..., None]
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 (upright) without any that can be read."""
    if image.format == "TIFF":
        return 1  # Pillow turns these itself
    if image.format == "PNG":
        image.load()  # EXIF may come after the pixels, whose damage is not to be ignored
    try:
        orientation = int(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # damaged metadata: Pillow raises all kinds of errors
        return 1
    return orientation if 1 <= orientation <= 8 else 1


def _as_stored(upright: np.ndarray, orientation: int) -> np.ndarray:
    """View of an upright image (h, w, c) in which its pixels lie as in the file."""
    turned = upright.swapaxes(0, 1) if orientation in _SIDEWAYS else upright
    return turned[
        :: -1 if orientation in (3, 4, 6, 7) else 1, :: -1 if orientation in (2, 3, 7, 8) else 1
    ]


def image_size(path: AnyFile) -> tuple[int, int]:
    """(height, width) of `read_image`'s result, from the file's header alone.

    Raises:
      BadImage: missing, the header is not that of an image, or more than MAX_PIXELS.
    """

    if not isinstance(path, str | os.PathLike):
        return path.size

    return _with_image(path, _upright_size, BadImage)


def _upright_size(image: Image.Image) -> tuple[int, int]:
    """(height, width) of an image of which nothing is decoded yet."""
    width, height = image.size
    return (width, height) if _orientation(image) in _SIDEWAYS else (height, width)


def read_label(
    path: AnyFile,
    num_classes: int | None = None,
    *,
    reduce_zero_label: bool = False,
    ignore_label: int = 255,
) -> np.ndarray:
    """Class ids (h, w) int32 of a grey or palette PNG; `ignore_label` marks ignored pixels.

    The ids are the samples as stored, whatever their bits; of palette PNGs the indices, colours do
    not matter. A palette of greys that are not the indices leaves open which of them are meant:
    the first such file of a folder is logged.

    Args:
      num_classes: ids must be below it, after `reduce_zero_label`; None: not checked.
      reduce_zero_label: in the file 0 means "no class" and i + 1 is class i.

    Raises:
      BadLabel: missing or damaged, a colour image, a JPEG, a TIFF whose 0 is white, or an id out of
        range.
    """

    def decode(image: Image.Image) -> np.ndarray:
        ids = label_samples(image)
        if image.mode == "P":
            _warn_of_greys(path, image, ids)
        return ids

    label = _with_image(path, decode, BadLabel)
    if num_classes is not None and not reduce_zero_label:
        # As they are stored, mostly in 8 bits.
        _check_range(label, path, num_classes, False, ignore_label)
        num_classes = None
    label = label.astype(np.int32)
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


_warned: set[str] = set()  # folders


def _warn_of_greys(path: AnyFile, image: Image.Image, ids: np.ndarray) -> None:
    """Logs that indices are taken, if the palette is all grey and shows other numbers."""
    colours = np.array(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
    folder = os.path.dirname(str(path))
    if folder in _warned or not (colours == colours[:, :1]).all():
        return
    used = np.flatnonzero(np.bincount(ids.ravel(), minlength=256)[: len(colours)])
    greys = colours[used, 0]
    if (greys != used).any():
        _warned.add(folder)
        logging.getLogger(__name__).warning(
            "%s: its palette shows the ids %s as greys %s; the ids are taken, in all such files "
            "here. If the greys are the classes, save the label maps as grey PNGs.",
            *(path, _listed(used), _listed(greys)),
        )


def _listed(values: np.ndarray) -> str:
    return ", ".join(map(str, values[:5])) + (", ..." if len(values) > 5 else "")


def _with_image(path: AnyFile, use: Callable[[Image.Image], T], error: type[BadFile]) -> T:
    kind, article = ("image", "an") if error is BadImage else ("label map", "a")
    with _opened(path, error) as file:
        try:
            return _use_image(file, use)
        except UnidentifiedImageError as cause:
            raise error(
                f"{path}: not {article} {kind} in a known format; replace or remove it."
            ) from cause
        except TooLarge as cause:
            raise error(
                f"{path}: {cause}, more than the {MAX_PIXELS} pixels that are read; shrink it or "
                f"cut it into parts."
            ) from cause
        except Exception as cause:  # Pillow's readers raise all kinds of errors on damaged bytes
            raise error(
                f"{path}: cannot decode the {kind} ({one_line(cause)}); replace the file or remove "
                f"it from the split."
            ) from cause


def _opened(path: AnyFile, error: type[BadFile]) -> BinaryIO:
    if not isinstance(path, str | os.PathLike):
        return io.BytesIO(path.read_bytes())
    try:
        return open_regular(path)
    except FileNotFoundError as cause:
        raise error(f"{path}: no such file; check the path or the split list.") from cause
    except NotAFile as cause:
        raise error(f"{cause}, or remove it from the split.") from cause
    except (OSError, ValueError) as cause:  # ValueError: a name with a NUL byte
        raise error(
            f"{path!s}: cannot be opened ({getattr(cause, 'strerror', '') or cause}); check its "
            f"name and permissions."
        ) from cause


def _use_image(file: BinaryIO, use: Callable[[Image.Image], T]) -> T:
    """`use` of the opened image; metadata that Pillow stumbles over is taken out."""
    try:
        with open_image(file) as image:
            return use(image)
    except TooLarge:
        raise
    except Exception:
        file.seek(0)
        bare = without_metadata(file.read())
        if bare is None:
            raise
        try:
            with open_image(io.BytesIO(bare)) as image:
                return use(image)
        except Exception:  # not the metadata alone
            pass
        raise
