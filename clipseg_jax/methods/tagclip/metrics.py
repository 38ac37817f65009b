"""How well image-level tags fit. Spec tagclip, section 7."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np


class TagFigures(NamedTuple):
    """F1, precision and recall as fractions; F1 is NaN where both others are 0."""

    f1: float
    precision: float
    recall: float


def average_precision(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """AP (c,) of scores (n, c): mean precision at the ranks of the images that show the class.

    `truth` (n, c) is 1 where image n shows class c. A class that no image shows has AP 0; mAP,
    as published, is the mean over all.
    """
    order = np.argsort(-np.asarray(scores, np.float64), axis=0, kind="stable")
    hits = np.take_along_axis(np.asarray(truth) > 0, order, axis=0)
    rank = np.arange(1, len(hits) + 1)[:, None]
    precision = np.cumsum(hits, axis=0) / rank
    return (precision * hits).sum(axis=0) / np.maximum(hits.sum(axis=0), 1)


def relative_tags(scores: np.ndarray, share: float) -> np.ndarray:
    """Tags (n, c) bool: scores above min + share * (max - min) of each image."""
    low, top = scores.min(axis=1, keepdims=True), scores.max(axis=1, keepdims=True)
    return scores > low + share * (top - low)


def top_tags(scores: np.ndarray, k: int) -> np.ndarray:
    """Tags (n, c) bool: the `k` best scores of each image."""
    order = np.argsort(-scores, axis=1, kind="stable")
    tags = np.zeros(scores.shape, bool)
    np.put_along_axis(tags, order[:, :k], True, axis=1)
    return tags


def tag_figures(
    tags: np.ndarray,
    truth: np.ndarray,
    average: Literal["overall", "category", "sample"] = "overall",
) -> TagFigures:
    """Precision, recall and F1 of tags (n, c) against the truth (n, c), both 0 or 1.

    "overall" counts all pairs together; "category" and "sample" average precision and recall over
    classes, or over images, before F1.
    """
    tags, truth = np.asarray(tags) > 0, np.asarray(truth) > 0
    axis = {"overall": None, "category": 0, "sample": 1}[average]
    hit, wrong, missed = (
        np.sum(pairs, axis=axis, dtype=np.float64)
        for pairs in (tags & truth, tags & ~truth, ~tags & truth)
    )
    precision = float(np.mean(hit / (hit + wrong + 1e-9)))
    recall = float(np.mean(hit / (hit + missed + 1e-9)))
    total = precision + recall
    return TagFigures(2 * precision * recall / total if total else float("nan"), precision, recall)
