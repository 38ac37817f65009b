"""The segmentation of one image, as `segment` and `scores` return it."""

from __future__ import annotations

import dataclasses

import numpy as np

from clipseg_jax.core.checks import check_number

_PIXELS_AT_ONCE = 2**22  # `bincount` takes 16 bytes for each


@dataclasses.dataclass(frozen=True)
class Segmentation:
    """The segmentation of one image at its own size."""

    labels: np.ndarray  # (h, w) uint8: 0 background, i the i-th class name
    scores: np.ndarray  # (h, w) float32: probability of the winning class
    names: tuple[str, ...]  # names[labels] is each pixel's class; names[0] is "background"

    def summary(self) -> dict[str, dict[str, float]]:
        """Class name -> share of the pixels and mean score on them, of the classes in the image."""
        counts, sums = np.zeros(len(self.names), np.int64), np.zeros(len(self.names))
        rows = max(1, _PIXELS_AT_ONCE // self.labels.shape[1])
        for top in range(0, self.labels.shape[0], rows):
            labels = self.labels[top : top + rows].ravel()
            scores = self.scores[top : top + rows].ravel()
            counts += np.bincount(labels, minlength=len(self.names))
            sums += np.bincount(labels, scores, minlength=len(self.names))
        return {
            name: {
                "share": round(float(count / self.labels.size), 4),
                "score": round(float(total / count), 4),
            }
            for name, count, total in zip(self.names, counts, sums, strict=True)
            if count
        }


@dataclasses.dataclass(frozen=True)
class ClassScores:
    """The probabilities of all classes in one image; thresholds need no second forward pass."""

    values: np.ndarray  # (h, w, c) float32: probability of names[i]; a background without words: 0
    names: tuple[str, ...]  # c, names[0] is "background"
    image_size: tuple[int, int]  # (height, width) of the image, of which the maps may be smaller

    def segmentation(self, background: float = 0.0) -> Segmentation:
        """Labels of the most probable classes, at the maps' size.

        Pixels whose best probability is below `background` are background.

        Raises:
          ValueError: `background` is not from 0 to 1.
        """
        check_number("background", background, 0, 1)
        best = self.values.max(axis=2)
        labels = self.values.argmax(axis=2).astype(np.uint8)
        return Segmentation(np.where(best < background, np.uint8(0), labels), best, self.names)
