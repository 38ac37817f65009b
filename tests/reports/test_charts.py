"""Charts: their marks are where the numbers are, whatever the numbers."""

from __future__ import annotations

import re

import numpy as np
import pytest

from clipseg_jax.reports.charts import _ticks, bar, curve, heat_map
from clipseg_jax.reports.logs import Series
from tests.reports.pages import Page


def series(values, steps=None):
    values = np.asarray(values, np.float64)
    return Series(np.arange(len(values)) if steps is None else np.asarray(steps), values)


def points(svg):
    """The points of each piece of a curve."""
    paths = re.findall(r'class="line" d="M([^"]*)"', svg)
    return [np.array([each.split() for each in path.split("L")], float) for path in paths]


def test_a_curve_goes_through_its_numbers():
    (path,) = points(curve(series([1.0, 3.0, 2.0], [10, 20, 40]), "loss"))
    x, y = path.T
    assert (x[1] - x[0]) / (x[2] - x[0]) == pytest.approx(1 / 3, abs=1e-2)
    assert (y[0] - y[2]) / (y[0] - y[1]) == pytest.approx(1 / 2, abs=1e-2)  # upwards
    assert y[0] > y[2] > y[1]


def test_missing_numbers_part_the_curve():
    nan = float("nan")
    svg = curve(series([1, 2, nan, 3, nan, nan, 4, 5, nan]), "loss")
    assert [len(each) for each in points(svg)] == [2, 2]
    assert svg.count("<circle") == 1
    assert "nan" not in svg


@pytest.mark.parametrize(
    "values",
    [[0.0], [5.0, 5.0], [1e-9, 2e-9], [-1e30, 1e30], [0, 0, 0], [np.inf, 1.0], [1e-300] * 2],
)
def test_any_numbers_make_a_chart(values):
    svg = curve(series(values), '"><b>')
    Page(svg)
    assert not re.search(r"nan|inf", svg)
    assert "<b>" not in svg


def test_no_number_is_said():
    assert "No number" in curve(series([float("nan")] * 3), "loss")


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0.2, 3.1), (1e-5, 2e-4), (57.3, 57.4), (-3, 9e6)]
)
def test_ticks_are_few_and_inside(low, high):
    ticks = _ticks(low, high)
    assert 3 <= len(ticks) <= 6
    rounding = (high - low) * 1e-9
    assert all(low - rounding <= tick <= high + rounding for tick in ticks)


def test_bars_and_cells_are_as_large_as_their_numbers():
    assert 'width="57.70"' in bar(57.7)
    assert 'width="0.00"' in bar(-1)
    assert 'width="100.00"' in bar(200)
    svg = heat_map(["a", "<b>"], np.array([[75, 25], [0, 0]]))
    page = Page(svg)
    cells = [attrs for _, attrs in page.tags if attrs.get("class") == "cell"]
    assert [cell["opacity"] for cell in cells] == ["0.87", "0.50"]
    assert "a as <b>: 25.0%" in page.text
