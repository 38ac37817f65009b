"""A segmentation as the page keeps and draws it: no change of the sliders needs the network."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from clipseg_jax.core.label_images import overlay, palette
from clipseg_jax.segmentation import ClassScores

_HEAT_PX = 512  # longest side at which the heat maps are kept
# Of viridis, evenly spaced: dark blue, through green, to yellow.
_HEAT_COLOURS = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
_HEAT_OPACITY = 0.7
_OUTLINES = 500  # a photo's longest side in outlines' widths
_SHOWN_PX = 640  # about the longest side of pictures of small photos


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
    """Labels and probabilities of a photo, small enough to be kept for every visitor.

    Attributes:
      labels: (h, w) uint8, the most probable of `names` at each pixel.
      scores: (h, w) float32, its probability.
      heat: (c, h', w') uint8, the probability of each name, 255 for 1, at up to 512 pixels.
      names: of the classes; names[0] is "background".
      settings: what it was made with, for the download.
    """

    labels: np.ndarray
    scores: np.ndarray
    heat: np.ndarray
    names: tuple[str, ...]
    settings: Mapping[str, Any]

    @property
    def nbytes(self) -> int:
        """Of its arrays."""
        return self.labels.nbytes + self.scores.nbytes + self.heat.nbytes

    def labels_at(self, threshold: float) -> np.ndarray:
        """(h, w) uint8: `labels`, but 0 where the probability is below `threshold`, 0 to 1."""
        return np.where(self.scores < np.float32(threshold), np.uint8(0), self.labels)


def result_of(scores: ClassScores, settings: Mapping[str, Any]) -> Result:
    """The result of the probabilities of a photo's classes."""
    best = scores.segmentation()
    step = -(-max(best.labels.shape) // _HEAT_PX)
    heat = np.rint(scores.values[::step, ::step] * 255).clip(0, 255).astype(np.uint8)
    heat = np.ascontiguousarray(heat.transpose(2, 0, 1))
    return Result(best.labels, best.scores, heat, scores.names, settings)


def shares(labels: np.ndarray, count: int) -> np.ndarray:
    """(count,) the share of the pixels that each label has."""
    return np.bincount(labels.ravel(), minlength=count)[:count] / labels.size


def enlargement(size: tuple[int, ...]) -> int:
    """How many times larger than a photo of (height, width, ...) its pictures are.

    A browser does not enlarge them where clicks must be located.
    """
    return max(1, round(_SHOWN_PX / max(size[:2])))


def draw_photo(pixels: np.ndarray) -> np.ndarray:
    """A photo (h, w, 3) uint8 as it is shown, `enlargement` times larger."""
    times = enlargement(pixels.shape)
    if times == 1:
        return pixels
    size = pixels.shape[1] * times, pixels.shape[0] * times
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))


def draw_overlay(pixels: np.ndarray, labels: np.ndarray, opacity: float) -> np.ndarray:
    """A photo (h, w, 3) as it is shown, under the colours of labels (h, w) with white outlines.

    Label 0 is left clear.
    """
    times = enlargement(pixels.shape)
    labels = labels.repeat(times, axis=0).repeat(times, axis=1)
    drawn = overlay(draw_photo(pixels), labels, palette(), opacity, clear=(0,))
    width = max(1, round(max(labels.shape) / _OUTLINES))
    edge = np.zeros(labels.shape, bool)
    for step in range(1, width + 1):
        edge[:-step] |= labels[:-step] != labels[step:]
        edge[:, :-step] |= labels[:, :-step] != labels[:, step:]
    drawn[edge] = (drawn[edge] * (1 - opacity) + 255 * opacity).astype(np.uint8)
    return drawn


def draw_heat(pixels: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """A photo (h, w, 3) as it is shown, in grey under the colours of a heat map (h', w') uint8."""
    shown = draw_photo(pixels)
    height, width = shown.shape[:2]
    full = Image.fromarray(heat).resize((width, height), Image.Resampling.BILINEAR)
    grey = np.asarray(Image.fromarray(shown).convert("L"))[..., None]
    blended = grey * (1 - _HEAT_OPACITY) + _heat_colours()[np.asarray(full)] * _HEAT_OPACITY
    return blended.astype(np.uint8)


def mask_image(labels: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """An index image with the palette of `predict`, at (height, width) `size`.

    Pixel values are labels; where `size` is larger each takes that of the nearest pixel.
    """
    image = Image.fromarray(labels)
    if labels.shape != size:
        image = image.resize(size[::-1], Image.Resampling.NEAREST)
    image.putpalette(palette().ravel().tolist())
    return image


def description(
    result: Result, labels: np.ndarray, photo_name: str, size: tuple[int, int], threshold: float
) -> dict[str, Any]:
    """What the JSON download says of a mask of (height, width) `size`."""
    colours = palette(len(result.names))
    parts = shares(labels, len(result.names))
    return {
        "photo": photo_name,
        "height": size[0],
        "width": size[1],
        "computed_height": labels.shape[0],
        "computed_width": labels.shape[1],
        "settings": {**result.settings, "background_threshold": threshold},
        "classes": [
            {
                "label": i,
                "name": name,
                "colour": hex_colour(colours[i]),
                "share": round(float(part), 4),
            }
            for i, (name, part) in enumerate(zip(result.names, parts, strict=True))
        ],
    }


def _heat_colours() -> np.ndarray:
    """(256, 3) the colour of each heat."""
    anchors = np.array(_HEAT_COLOURS, np.float32)
    at = np.linspace(0, len(anchors) - 1, 256)
    columns = [np.interp(at, np.arange(len(anchors)), channel) for channel in anchors.T]
    return np.stack(columns, axis=1)


def hex_colour(colour: np.ndarray) -> str:
    """A colour (3,) as HTML has it."""
    return "#" + "".join(f"{int(part):02x}" for part in colour)
