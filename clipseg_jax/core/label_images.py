"""Label maps as images: palette, index PNG, overlay, legend."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from clipseg_jax.core.files import write_atomic

_PIXELS_AT_ONCE = 2**22  # of which blending takes 72 bytes for each


def palette(count: int = 256) -> np.ndarray:
    """The PASCAL VOC colour map (count, 3) uint8: bits of the index distributed over R, G and B."""
    index = np.arange(count)[:, None]
    colours = np.zeros((count, 3), np.int64)
    for bit in range(8):
        colours |= ((index >> (3 * bit + np.arange(3))) & 1) << (7 - bit)
    return colours.astype(np.uint8)


def overlay(
    image: np.ndarray,
    labels: np.ndarray,
    colours: np.ndarray,
    opacity: float = 0.5,
    *,
    clear: Sequence[int] = (255,),
) -> np.ndarray:
    """Blends an image (h, w, 3) uint8 with the colours of its labels (h, w).

    Args:
      image: (h, w, 3) uint8.
      labels: (h, w) integers.
      colours: (count, 3) uint8; labels beyond the last colour get the last.
      opacity: of the colours, 0 to 1.
      clear: labels whose pixels are not coloured.
    """
    result = np.empty_like(image)
    rows = max(1, _PIXELS_AT_ONCE // max(image.shape[1], 1))
    for top in range(0, image.shape[0], rows):
        pixels, ids = image[top : top + rows], labels[top : top + rows]
        painted = colours[np.minimum(ids, len(colours) - 1)]
        blended = (pixels * (1 - opacity) + painted * opacity).astype(np.uint8)
        result[top : top + rows] = np.where(np.isin(ids, clear)[..., None], pixels, blended)
    return result


def with_legend(
    image: np.ndarray, entries: Sequence[tuple[str, np.ndarray]], *, scale: float | None = None
) -> np.ndarray:
    """An image (h', w', 3) uint8: `image` (h, w, 3) with a legend below it.

    Args:
      image: (h, w, 3) uint8.
      entries: (text, colour) pairs; they wrap over as many lines as needed.
      scale: of the font, relative to 12 pixels; None: by the image, so that the legend can be read
        where a large image is shown on a screen.
    """
    if not entries:
        return image
    width = max(image.shape[1], 160)
    largest = max(40, image.shape[0] / 25)
    size = round(np.clip(width / 36, 11, largest)) if scale is None else round(12 * scale)
    font = ImageFont.load_default(size)
    pad, box = size // 2, size
    rows: list[list[tuple[str, np.ndarray, int]]] = [[]]
    used = pad
    for text, colour in entries:
        wide = box + pad + int(font.getlength(text)) + 2 * pad
        if rows[-1] and used + wide > width:
            rows.append([])
            used = pad
        rows[-1].append((text, colour, used))
        used += wide
    height = image.shape[0] + len(rows) * (size + pad) + pad
    canvas = Image.new("RGB", (width, height), "white")
    canvas.paste(Image.fromarray(image), (0, 0))
    draw = ImageDraw.Draw(canvas)
    for i, row in enumerate(rows):
        top = image.shape[0] + pad + i * (size + pad)
        for text, colour, left in row:
            fill = tuple(int(c) for c in colour)
            draw.rectangle((left, top, left + box, top + box), fill=fill, outline="black")
            draw.text((left + box + pad, top - size // 8), text, fill="black", font=font)
    return np.asarray(canvas)


def save_image(path: str | Path, image: np.ndarray) -> Path:
    """Writes an RGB image (h, w, 3) uint8 atomically as PNG, or as JPEG by the file's suffix."""
    kind = "JPEG" if Path(path).suffix.lower() in (".jpg", ".jpeg") else "PNG"
    pillow = Image.fromarray(image)
    return write_atomic(path, lambda file: pillow.save(file, kind, quality=92))


def save_labels(path: str | Path, labels: np.ndarray, *, coloured: bool = False) -> Path:
    """Writes labels (h, w), 0 to 255, as a greyscale PNG whose pixel values are the labels.

    `coloured`: with the PASCAL VOC palette, for viewing. Pillow still reads the labels; OpenCV and
    other readers expand them to colours.
    """
    image = Image.fromarray(labels.astype(np.uint8))
    if coloured:
        image.putpalette(palette().ravel().tolist())
    return write_atomic(path, lambda file: image.save(file, "PNG"))
