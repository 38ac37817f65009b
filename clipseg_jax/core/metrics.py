"""Metrics of a confusion matrix. Spec maskclip, section 8.

Papers average IoU over different sets of classes. The names here have one meaning everywhere:

- `mIoU`: classes that occur in labels or predictions. The usual one; spec maskclip, section 8.
- `mIoU_of_labelled`: classes that occur in the labels. Spec clip_es, section 8.
- `mIoU_absent_as_0`: all classes; one that does not occur counts as 0. Spec reclip, section 16.
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
    are not counted, and neither are those whose label or prediction is not in [0, classes).
    """
    labels, predictions = jnp.asarray(labels, jnp.int32), jnp.asarray(predictions, jnp.int32)
    counted = (labels != ignore) & (labels >= 0) & (labels < classes)
    counted &= (predictions >= 0) & (predictions < classes)
    pair = jnp.where(counted, labels * classes + predictions, classes * classes)
    return jnp.bincount(pair.ravel(), length=classes * classes + 1)[:-1].reshape(classes, classes)


def confusion_on_host(
    labels: np.ndarray, predictions: np.ndarray, classes: int, ignore: int = 255
) -> np.ndarray:
    """`confusion_matrix` in NumPy, int64, which compiles no program per size of label maps."""
    counted = (labels != ignore) & (labels >= 0) & (labels < classes)
    counted &= (predictions >= 0) & (predictions < classes)
    pairs = labels[counted].astype(np.int64) * classes + predictions[counted]
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


class ZeroShotMetrics(NamedTuple):
    """Metrics of zero-shot segmentation, as fractions.

    A mean over classes none of which occurs is NaN, and so is the harmonic mean.
    """

    pixel_accuracy: float
    seen: float  # mean IoU of seen classes
    unseen: float  # mean IoU of unseen classes
    harmonic: float  # harmonic mean of these two


@dataclasses.dataclass(frozen=True)
class SegmentationMetrics:
    """Metrics of a summed confusion matrix, as fractions; NaN for classes that do not occur."""

    iou: np.ndarray  # (classes,)
    accuracy: np.ndarray  # (classes,) correct pixels / labelled pixels (recall)
    precision: np.ndarray  # (classes,) correct pixels / predicted pixels
    all_accuracy: float  # correct pixels / all pixels

    @classmethod
    def from_confusion(cls, confusion: np.ndarray) -> SegmentationMetrics:
        """From pixel counts (classes, classes); rows are labels, columns predictions."""
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
        """Mean IoU over all classes; one that does not occur counts as 0."""
        return float(np.nan_to_num(self.iou).mean())

    @property
    def miou_of_labelled(self) -> float:
        """Mean IoU over the classes that occur in the labels."""
        return _mean(self.iou[~np.isnan(self.accuracy)])

    def zero_shot(self, unseen: Sequence[int]) -> ZeroShotMetrics:
        """Mean IoUs of the classes in `unseen` and of the others. Spec clip_rc, section 10."""
        held_out = np.zeros(len(self.iou), bool)
        held_out[list(unseen)] = True
        seen, unseen_mean = _mean(self.iou[~held_out]), _mean(self.iou[held_out])
        total = seen + unseen_mean
        harmonic = 2 * seen * unseen_mean / total if total else 0.0
        return ZeroShotMetrics(self.all_accuracy, seen, unseen_mean, harmonic)

    def summary(self, unseen: Sequence[int] = ()) -> dict[str, float]:
        """Name -> percent, rounded to two decimals: aAcc, and means over classes.

        mIoU, mAcc and mPrec are means over classes that occur; for the other means of IoU see the
        module. With `unseen` labels also pAcc (equal to aAcc), mIoU(S), mIoU(U) and hIoU.
        """
        metrics = {
            "aAcc": self.all_accuracy,
            "mIoU": _mean(self.iou),
            "mIoU_of_labelled": self.miou_of_labelled,
            "mIoU_absent_as_0": self.miou_absent_as_0,
            "mAcc": _mean(self.accuracy),
            "mPrec": _mean(self.precision),
        }
        if len(unseen):
            names = ("pAcc", "mIoU(S)", "mIoU(U)", "hIoU")
            metrics |= zip(names, self.zero_shot(unseen), strict=True)
        return {name: round(100 * value, 2) for name, value in metrics.items()}

    def per_class(self, names: Sequence[str]) -> dict[str, dict[str, float | None]]:
        """Class name -> IoU, Acc, Prec in percent; None for classes that do not occur."""

        def percent(value: float) -> float | None:
            return None if np.isnan(value) else round(100 * float(value), 2)

        rows = zip(names, self.iou, self.accuracy, self.precision, strict=True)
        return {
            name: {"IoU": percent(iou), "Acc": percent(acc), "Prec": percent(prec)}
            for name, iou, acc, prec in rows
        }


def metric_names(unseen: Sequence[int] = ()) -> tuple[str, ...]:
    """The names in `SegmentationMetrics.summary`, with or without `unseen` labels."""
    return tuple(SegmentationMetrics.from_confusion(np.eye(2)).summary(unseen and [1]))


def percent_text(value: float | None) -> str:
    """A metric as tables show it; "-" for one that is None or NaN."""
    return "-" if value is None or np.isnan(value) else f"{value:.2f}"


def _mean(values: np.ndarray) -> float:
    """Mean of the values that are not NaN; NaN if all are."""
    finite = values[~np.isnan(values)]
    return float(finite.mean()) if finite.size else float("nan")
