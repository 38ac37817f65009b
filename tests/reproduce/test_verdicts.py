"""What is said of our number beside the published one."""

from __future__ import annotations

import pytest

from clipseg_jax.reproduce.verdicts import difference, printed, verdict
from clipseg_jax.stages.published_rows import Figure, Spread

FIXED = Figure("metrics.json", "mIoU", 49.5)
RANDOM = Figure("metrics.json", "mIoU", 49.5, random=True)
USERS = Figure("metrics.json", "mIoU", 74.9, random=True, spread=Spread(73.3, 73.9, "users"))


@pytest.mark.parametrize(
    ("figure", "ours", "says"),
    [
        (FIXED, 49.5, "equal within 0.2"),
        (FIXED, 49.7, "equal within 0.2"),
        (FIXED, 49.3, "equal within 0.2"),
        (FIXED, 49.71, "0.21 above"),
        (FIXED, 49.29, "0.21 below"),
        (RANDOM, 50.0, "equal within 0.5"),
        (RANDOM, 48.99, "0.51 below"),
        # All that is reported, from the least to the paper's own.
        (USERS, 73.26, "within the reported numbers (73.3 to 74.9)"),
        (USERS, 74.5, "within the reported numbers (73.3 to 74.9)"),
        (USERS, 74.94, "within the reported numbers (73.3 to 74.9)"),
        (USERS, 75.3, "equal within 0.5"),  # of the paper's
        (USERS, 75.5, "0.60 above the reported numbers (73.3 to 74.9)"),
        (USERS, 73.2, "0.10 below the reported numbers (73.3 to 74.9)"),
    ],
)
def test_verdict(figure, ours, says):
    assert verdict(figure, ours) == says


def test_one_number_that_others_report():
    figure = Figure("metrics.json", "mIoU", 59.1, spread=Spread(59.63, 59.63, "its README"))
    assert verdict(figure, 59.4) == "within the reported numbers (59.1 to 59.63)"
    assert verdict(figure, 58.0) == "1.10 below the reported numbers (59.1 to 59.63)"


def test_a_spread_is_named_only_where_one_is_reported():
    for ours in (0.0, 49.5, 99.0):
        assert "reported" not in verdict(FIXED, ours) + verdict(RANDOM, ours)


def test_difference():
    assert difference(FIXED, 49.48) == -0.02
    assert difference(FIXED, 50.1) == 0.6


def test_numbers_as_papers_print_them():
    assert [printed(x) for x in (97.0, 95.8, 64.07, 3.1)] == ["97.0", "95.8", "64.07", "3.1"]
