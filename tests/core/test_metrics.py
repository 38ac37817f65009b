"""Confusion matrices: equal on host and device, and nothing outside the range is counted."""

from __future__ import annotations

import numpy as np
import pytest

from clipseg_jax.core.metrics import (
    SegmentationMetrics,
    confusion_matrix,
    confusion_on_host,
    metric_names,
    percent_text,
)

CLASSES = 4


def by_hand(labels, predictions):
    counts = np.zeros((CLASSES, CLASSES), int)
    for label, predicted in zip(labels.ravel(), predictions.ravel(), strict=True):
        if label in range(CLASSES) and predicted in range(CLASSES):
            counts[label, predicted] += 1
    return counts


@pytest.mark.parametrize(("low", "high"), [(0, CLASSES), (-3, CLASSES + 3), (0, 256)])
def test_what_is_out_of_range_is_counted_nowhere(low, high):
    rng = np.random.default_rng(high)
    labels, predictions = rng.integers(low, high, (2, 60, 70))
    labels[rng.random(labels.shape) < 0.3] = 255
    expected = by_hand(labels, predictions)
    assert expected.sum()
    for count in (confusion_matrix, confusion_on_host):
        np.testing.assert_array_equal(count(labels, predictions, CLASSES), expected)


def test_host_takes_what_label_maps_are_stored_as():
    labels, predictions = np.array([0, 3, 255, 200], np.uint8), np.array([0, 2, 1, 255], np.uint8)
    expected = by_hand(labels, predictions)
    np.testing.assert_array_equal(confusion_on_host(labels, predictions, CLASSES), expected)


def test_an_ignored_class_is_not_counted():
    labels = np.array([0, 1, 1])
    for count in (confusion_matrix, confusion_on_host):
        assert np.sum(count(labels, labels, CLASSES, ignore=1)) == 1


def test_names_and_texts():
    metrics = SegmentationMetrics.from_confusion(np.diag([5, 0, 0]))
    assert tuple(metrics.summary([2])) == metric_names([2])
    assert tuple(metrics.summary()) == metric_names()
    assert [percent_text(value) for value in (None, float("nan"), 12.345)] == ["-", "-", "12.35"]
