"""Figures of a confusion matrix. Spec maskclip, section 8.

Papers average IoU over different sets of classes. The names here have one meaning everywhere:

- `mIoU`: the classes that occur, in labels or predictions. The usual one; spec maskclip, section 8.
- `mIoU_of_labelled`: the classes that the labels show. Spec clip_es, section 8.
- `mIoU_absent_as_0`: all classes; one that occurs nowhere counts as 0. Spec reclip, section 16.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

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


def confusion_on_host(
    labels: np.ndarray, predictions: np.ndarray, classes: int, ignore: int = 255
) -> np.ndarray:
    """`confusion_matrix` by NumPy, int64: no program to compile for each size of a label map."""
    known = labels != ignore
    pairs = labels[known].astype(np.int64) * classes + predictions[known]
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


class ZeroShotFigures(NamedTuple):
    """Fractions: pixel accuracy, mean IoU of seen and of unseen classes, their harmonic mean.

    A mean over classes of which none occurs is NaN, and the harmonic mean with it.
    """

    pixel_accuracy: float
    seen: float
    unseen: float
    harmonic: float


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
    def miou_absent_as_0(self) -> float:
        """Mean IoU over all classes; one that occurs nowhere counts as 0."""
        return float(np.nan_to_num(self.iou).mean())

    @property
    def miou_of_labelled(self) -> float:
        """Mean IoU over the classes that the labels show."""
        return _mean(self.iou[~np.isnan(self.accuracy)])

    def zero_shot(self, unseen: Sequence[int]) -> ZeroShotFigures:
        """Figures of the classes in `unseen` and of the others apart. Spec clip_rc, section 10."""
        held_out = np.zeros(len(self.iou), bool)
        held_out[list(unseen)] = True
        seen, unseen_mean = _mean(self.iou[~held_out]), _mean(self.iou[held_out])
        total = seen + unseen_mean
        harmonic = 2 * seen * unseen_mean / total if total else 0.0
        return ZeroShotFigures(self.all_accuracy, seen, unseen_mean, harmonic)

    def summary(self, unseen: Sequence[int] = ()) -> dict[str, float]:
        """Percent, rounded to two decimals: aAcc, and means over classes.

        mIoU, mAcc and mPrec are over classes that occur; the other two means of IoU follow mIoU.
        With `unseen` labels also pAcc (the usual name of aAcc there), mIoU(S), mIoU(U) and hIoU.
        """
        figures = {
            "aAcc": self.all_accuracy,
            "mIoU": _mean(self.iou),
            "mIoU_of_labelled": self.miou_of_labelled,
            "mIoU_absent_as_0": self.miou_absent_as_0,
            "mAcc": _mean(self.accuracy),
            "mPrec": _mean(self.precision),
        }
        if len(unseen):
            names = ("pAcc", "mIoU(S)", "mIoU(U)", "hIoU")
            figures |= zip(names, self.zero_shot(unseen), strict=True)
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


def _mean(values: np.ndarray) -> float:
    """The mean of those that are numbers; NaN where none is."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
