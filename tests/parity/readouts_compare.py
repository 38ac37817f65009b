"""Comparison of arrays as a case of the read-outs says in its json."""

from __future__ import annotations

import re

import numpy as np


def near(actual, expected, case, *, name):
    """Compares as the case's "tolerance" says: a share of the largest value, for most or all."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, f"{name}: shape {actual.shape}, not {expected.shape}"
    text = case["tolerance"]
    top = np.max(np.abs(expected))
    tolerance = float(re.search(r"abs ([\d.e-]+) times absmax", text).group(1)) * top
    differences = np.abs(actual - expected)
    if found := re.search(r"at least (\d+) % of the entries, ([\d.e-]+) times absmax", text):
        share = np.mean(differences <= tolerance)
        assert share >= float(found.group(1)) / 100, f"{name}: {share:.4f} within {tolerance:.3g}"
        tolerance = float(found.group(2)) * top
    worst = np.max(differences)
    assert worst <= tolerance, f"{name}: differs by {worst:.3g}, at most {tolerance:.3g} allowed"


def pick(case, name):
    """The slices of the last axes in an array's meaning: "[:, ::5]", "(K, ::6, ::6)", "E[::2]"."""
    groups = re.findall(r"[\[(]([^\[\]()]*::\d[^\[\]()]*)[\])]", case["arrays"][name]["meaning"])
    if not groups:
        return (...,)
    steps = [part.partition("::")[2] for part in groups[-1].split(",")]
    return (..., *(slice(None, None, int(step) if step else None) for step in steps))
