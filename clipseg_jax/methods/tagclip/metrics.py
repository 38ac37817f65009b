"""Metrics of multi-label classification. Spec tagclip, section 7."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np


class TagMetrics(NamedTuple):
    """F1, precision and recall in [0, 1]; F1 is NaN where precision and recall are 0."""

    f1: float
    precision: float
    recall: float


def average_precision(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Average precision (c,) of scores (n, c).

    `truth` (n, c) is 1 where image n has class c. A class that no image has gets 0; the published
    mAP is the mean over all classes.
    """
    order = np.argsort(-np.asarray(scores, np.float64), axis=0, kind="stable")
    hits = np.take_along_axis(np.asarray(truth) > 0, order, axis=0)
    rank = np.arange(1, len(hits) + 1)[:, None]
    precision = np.cumsum(hits, axis=0) / rank
    return (precision * hits).sum(axis=0) / np.maximum(hits.sum(axis=0), 1)


def relative_tags(scores: np.ndarray, threshold: float) -> np.ndarray:
    """Tags (n, c) bool: scores above min + threshold * (max - min) of each image."""
    low, high = scores.min(axis=1, keepdims=True), scores.max(axis=1, keepdims=True)
    return scores > low + threshold * (high - low)


def top_tags(scores: np.ndarray, k: int) -> np.ndarray:
    """Tags (n, c) bool: the `k` highest scores of each image."""
    order = np.argsort(-scores, axis=1, kind="stable")
    tags = np.zeros(scores.shape, bool)
    np.put_along_axis(tags, order[:, :k], True, axis=1)
    return tags


def tag_metrics(
    tags: np.ndarray,
    truth: np.ndarray,
    average: Literal["overall", "category", "sample"] = "overall",
) -> TagMetrics:
    """Precision, recall and F1 of tags (n, c) against the truth (n, c), both 0 or 1.

    `average`: "overall" pools all pairs (image, class); "category" and "sample" average precision
    and recall over classes or over images; F1 is computed of the averages.
    """
    tags, truth = np.asarray(tags) > 0, np.asarray(truth) > 0
    axis = {"overall": None, "category": 0, "sample": 1}[average]
    true_positive, false_positive, false_negative = (
        np.sum(pairs, axis=axis, dtype=np.float64)
        for pairs in (tags & truth, tags & ~truth, ~tags & truth)
    )
    precision = float(np.mean(true_positive / (true_positive + false_positive + 1e-9)))
    recall = float(np.mean(true_positive / (true_positive + false_negative + 1e-9)))
    total = precision + recall
    return TagMetrics(2 * precision * recall / total if total else float("nan"), precision, recall)
