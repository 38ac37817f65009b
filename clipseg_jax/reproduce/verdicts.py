"""Our number beside the published one: equal, within what others report, or neither."""

from __future__ import annotations

from clipseg_jax.stages.published_rows import Figure

# Percent, where nobody reports how much runs differ. Trained networks differ by their seed; what
# nothing is trained for differs by the arithmetic of devices alone.
RANDOM, FIXED = 0.5, 0.2
RULE = (
    "Within the reported numbers: between the least and the greatest that the paper and others "
    "report, to the digit that is printed. Where nobody else reports one, or ours is outside: "
    f"equal within {RANDOM:g}, or within {FIXED:g} where nothing is trained and no noise is added. "
    "These two bounds are ours; nobody reports them. Otherwise the distance is told."
)
_LAST_DIGIT = 0.05  # half of what most papers round to


def verdict(figure: Figure, ours: float) -> str:
    """What the number `ours` says, in percent as the figure's."""
    low = high = figure.paper
    reported = ""
    if figure.spread is not None:
        low, high = min(low, figure.spread.low), max(high, figure.spread.high)
        reported = f" ({printed(low)} to {printed(high)})"
        if low - _LAST_DIGIT <= round(ours, 2) <= high + _LAST_DIGIT:
            return f"within the reported numbers{reported}"
    tolerance = RANDOM if figure.random else FIXED
    if abs(difference(figure, ours)) <= tolerance:
        return f"equal within {tolerance:g}"
    distance, side = (low - ours, "below") if ours < low else (ours - high, "above")
    return f"{distance:.2f} {side}{' the reported numbers' if reported else ''}{reported}"


def difference(figure: Figure, ours: float) -> float:
    """Ours minus the paper's, in percent, to two digits."""
    return round(ours - figure.paper, 2)


def printed(percent: float) -> str:
    """A published number as it is printed: with one digit, or two."""
    return f"{percent:.2f}".removesuffix("0")
