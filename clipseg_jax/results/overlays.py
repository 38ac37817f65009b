"""Images with the colours of their masks, and a legend below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clipseg_jax.core.label_images import overlay, palette, save_image, with_legend
from input_pipeline.text_lists import escaped

_MOST_PX = 2**25  # pixels; larger images are scaled down
_JPEG_SIDE = 65_500  # pixels, about the format's limit


def write_overlay(
    path: Path,
    pixels: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str],
    summary: Mapping[str, Mapping[str, Any]],
    opacity: float = 0.5,
) -> None:
    """Writes a JPEG of an image (h, w, 3) uint8, colours of its labels (h, w), and a legend.

    Args:
      path: of the JPEG.
      pixels, labels: the image and its mask; 0 is not coloured.
      names: of the labels.
      summary: share and score of each class; see `Segmentation.summary`.
      opacity: of the colours, 0 to 1.

    Raises:
      CannotWrite: see `write_atomic`.
    """
    height, width = labels.shape
    step = max(1, -(-max(height, width) // _JPEG_SIDE))
    while height * width > _MOST_PX * step**2:
        step += 1
    colours = palette()
    blended = overlay(pixels[::step, ::step], labels[::step, ::step], colours, opacity, clear=(0,))
    ranked = sorted(summary.items(), key=lambda item: -item[1]["share"])
    entries = [
        (
            escaped(f"{name} {part['share']:.0%} ({part['score']:.2f})"),
            colours[names.index(name)],
        )
        for name, part in ranked
        if name in names[1:] and part["share"] >= 0.005
    ]
    save_image(path, with_legend(blended, entries))
