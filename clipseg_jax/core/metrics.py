"""The one mIoU: a confusion matrix and what is read off it. Spec maskclip, section 8."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike


def confusion_matrix(
    labels: ArrayLike, predictions: ArrayLike, classes: int, ignore: int = 255
) -> Array:
    """Pixel counts (classes, classes) int32: row is the label, column the prediction.

    `labels` and `predictions` are integer arrays of one shape; pixels whose label is `ignore`
    count nowhere. Other labels and all predictions must lie in [0, classes).
    """
    labels, predictions = jnp.asarray(labels, jnp.int32), jnp.asarray(predictions, jnp.int32)
    pair = jnp.where(labels == ignore, classes * classes, labels * classes + predictions)
    return jnp.bincount(pair.ravel(), length=classes * classes + 1)[:-1].reshape(classes, classes)


@dataclasses.dataclass(frozen=True)
class SegmentationMetrics:
    """Figures of a summed confusion matrix, as fractions; NaN where a class never occurs."""

    iou: np.ndarray  # (classes,)
    accuracy: np.ndarray  # (classes,) found pixels / labelled pixels
    precision: np.ndarray  # (classes,) found pixels / predicted pixels
    all_accuracy: float

    @classmethod
    def from_confusion(cls, confusion: np.ndarray) -> SegmentationMetrics:
        """From pixel counts (classes, classes), rows labels, columns predictions."""
        confusion = np.asarray(confusion, np.float64)
        hit, label, predicted = np.diag(confusion), confusion.sum(1), confusion.sum(0)
        with np.errstate(divide="ignore", invalid="ignore"):
            return cls(
                iou=hit / (label + predicted - hit),
                accuracy=hit / label,
                precision=hit / predicted,
                all_accuracy=float(hit.sum() / label.sum()),
            )

    @property
    def miou_of_all(self) -> float:
        """Mean IoU in which a class that never occurs counts as 0, as ReCLIP's code prints it."""
        return float(np.nan_to_num(self.iou).mean())

    def summary(self) -> dict[str, float]:
        """Percent, rounded to two decimals: aAcc, and the means over classes that occur."""

        def mean(values: np.ndarray) -> float:
            known = values[~np.isnan(values)]
            return float(known.mean()) if known.size else float("nan")

        figures = {
            "aAcc": self.all_accuracy,
            "mIoU": mean(self.iou),
            "mAcc": mean(self.accuracy),
            "mPrec": mean(self.precision),
        }
        return {name: round(100 * value, 2) for name, value in figures.items()}

    def per_class(self, names: Sequence[str]) -> dict[str, dict[str, float | None]]:
        """Class name -> IoU, Acc, Prec in percent; None where the class never occurs."""

        def percent(value: float) -> float | None:
            return None if np.isnan(value) else round(100 * float(value), 2)

        rows = zip(names, self.iou, self.accuracy, self.precision, strict=True)
        return {
            name: {"IoU": percent(iou), "Acc": percent(acc), "Prec": percent(prec)}
            for name, iou, acc, prec in rows
        }
