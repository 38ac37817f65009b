"""What is taken for what: the strongest entries of a confusion matrix off its diagonal."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Confusion:
    """Pixels of one class that are predicted as another."""

    label: int
    predicted: int
    pixels: int
    of_label: float  # share of the pixels of `label`
    of_predicted: float  # share of the pixels that are predicted as `predicted`


def strongest(counts: np.ndarray, most: int = 15) -> list[Confusion]:
    """The pairs that cost most, of counts (n, n) whose rows are labels and columns predictions.

    Wrong pixels count by their share of both classes' unions, which is what they take from the
    mean IoU.
    """
    labelled, predicted = counts.sum(axis=1), counts.sum(axis=0)
    union = np.maximum(labelled + predicted - np.diag(counts), 1)
    cost = counts / union[:, None] + counts / union[None, :]
    np.fill_diagonal(cost, 0)
    order = np.argsort(-cost, axis=None, kind="stable")[:most]
    pairs = zip(*np.unravel_index(order, cost.shape), strict=True)
    return [
        Confusion(
            int(label),
            int(guess),
            int(counts[label, guess]),
            float(counts[label, guess] / labelled[label]),
            float(counts[label, guess] / predicted[guess]),
        )
        for label, guess in pairs
        if cost[label, guess]
    ]
