"""The order of confusions, and their shares."""

from __future__ import annotations

import numpy as np

from clipseg_jax.reports.confusions import strongest


def test_what_costs_most_comes_first():
    """Few pixels of a small class weigh more than many of a large one."""
    counts = np.array([[9000, 100, 0], [0, 100, 0], [0, 60, 40]])
    first, second = strongest(counts)
    assert (first.label, first.predicted, first.pixels) == (2, 1, 60)
    assert first.of_label == 0.6
    assert first.of_predicted == 60 / 260
    assert (second.label, second.predicted) == (0, 1)
    assert strongest(counts, most=1) == [first]


def test_no_confusion_and_classes_that_occur_nowhere():
    assert strongest(np.diag([5, 0, 3])) == []
    assert strongest(np.zeros((3, 3), int)) == []
