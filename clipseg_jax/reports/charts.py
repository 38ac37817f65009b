"""Charts as SVG inside a page: curves, bars, a heat map. Colours are those of the page's style."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from clipseg_jax.core.html import escape
from clipseg_jax.reports.logs import Series

STYLE = """
svg text { fill: var(--soft); font: 12px system-ui, sans-serif; }
svg.curve { width: 100%; height: auto; display: block; }
svg.curve .axis { stroke: var(--line); }
svg.curve .line { fill: none; stroke: var(--accent); stroke-width: 1.6; stroke-linejoin: round; }
svg.curve .dot { fill: var(--accent); }
svg.bar { width: 100%; height: .6rem; display: block; }
svg.bar .rest { fill: var(--line); }
svg.bar .part, svg.heat .cell { fill: var(--accent); }
svg.heat .frame { fill: none; stroke: var(--line); }
"""

_WIDTH, _HEIGHT = 420, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 12, 10, 26  # margins around a curve
_CELL, _NAMES, _LONGEST = 18, 112, 16  # of the heat map: a cell, room for names, their characters

Place = Callable[[float, float], tuple[float, float]]  # (step, value) -> x, y


def curve(series: Series, label: str) -> str:
    """A curve over steps; a number between two that are missing is a dot.

    `label` says what it shows, to readers who do not see it.
    """
    series = series.thinned()
    finite = series.values[np.isfinite(series.values)]
    if not finite.size:
        return '<p class="soft">No number.</p>'
    low, high = _span(float(finite.min()), float(finite.max()))
    first, last = float(series.steps[0]), float(series.steps[-1])

    def place(step: float, value: float) -> tuple[float, float]:
        across = (step - first) / (last - first) if last > first else 0.5
        x = _LEFT + across * (_WIDTH - _LEFT - _RIGHT)
        return x, _HEIGHT - _BOTTOM - (value - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    axes = [
        f'<path class="axis" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>'
        f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.4g}</text>'
        for value in _ticks(low, high)
        for _, y in [place(first, value)]
    ]
    ends = [(_LEFT, "start", f"step {first:.0f}"), (_WIDTH - _RIGHT, "end", f"{last:.0f}")]
    axes += [
        f'<text x="{x}" y="{_HEIGHT - 6}" text-anchor="{anchor}">{text}</text>'
        for x, anchor, text in ends
    ]
    return (
        f'<svg class="curve" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{escape(label)}">{"".join(axes)}{"".join(_pieces(series, place))}</svg>'
    )


def _pieces(series: Series, place: Place) -> Iterator[str]:
    """The parts of a curve between missing numbers."""
    there = np.isfinite(series.values)
    for run in np.split(np.arange(len(there)), np.flatnonzero(np.diff(there)) + 1):
        if not there[run[0]]:
            continue
        points = [place(float(series.steps[i]), float(series.values[i])) for i in run]
        if len(points) == 1:
            yield f'<circle class="dot" cx="{points[0][0]:.1f}" cy="{points[0][1]:.1f}" r="2.5"/>'
        else:
            path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
            yield f'<path class="line" d="M{path}"/>'


def _span(low: float, high: float) -> tuple[float, float]:
    """The range of the axis: wider by a twentieth, and never empty."""
    margin = (high - low) / 20 or abs(high) / 20 or 1.0
    return low - margin, high + margin


def _ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers between `low` and `high`."""
    rough = (high - low) / 4
    unit = 10.0 ** math.floor(math.log10(rough))
    step = unit * next(factor for factor in (1, 2, 2.5, 5, 10) if factor * unit >= rough)
    return [n * step for n in range(math.ceil(low / step), math.floor(high / step) + 1)]


def bar(percent: float) -> str:
    """A bar of 0 to 100 percent."""
    part = min(max(percent, 0.0), 100.0)
    return (
        '<svg class="bar" viewBox="0 0 100 1" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="rest" width="100" height="1"/>'
        f'<rect class="part" width="{part:.2f}" height="1"/></svg>'
    )


def heat_map(names: Sequence[str], counts: np.ndarray) -> str:
    """Counts (n, n), rows labels, as shares of their rows: the stronger its colour, the more."""
    size = len(names) * _CELL
    totals = np.maximum(counts.sum(axis=1, keepdims=True), 1)
    shares = counts / totals
    parts = [f'<rect class="frame" x="{_NAMES}" y="{_NAMES}" width="{size}" height="{size}"/>']
    for i, name in enumerate(names):
        short = escape(name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…")
        end, middle = _NAMES - 6, _NAMES + (i + 0.5) * _CELL + 4
        parts.append(f'<text x="{end}" y="{middle}" text-anchor="end">{short}</text>')
        parts.append(f'<text transform="translate({middle} {end}) rotate(-90)">{short}</text>')
    for row, column in zip(*np.nonzero(shares >= 0.005), strict=True):
        share = shares[row, column]
        x, y = (_NAMES + int(n) * _CELL for n in (column, row))
        title = f"{names[row]} as {names[column]}: {share:.1%}"
        parts.append(
            f'<rect class="cell" x="{x}" y="{y}" width="{_CELL}" height="{_CELL}" '
            f'opacity="{math.sqrt(share):.2f}"><title>{escape(title)}</title></rect>'
        )
    whole = _NAMES + size + 1
    return (
        f'<svg class="heat" width="{whole}" height="{whole}" viewBox="0 0 {whole} {whole}" '
        f'role="img" aria-label="confusion matrix">{"".join(parts)}</svg>'
    )
