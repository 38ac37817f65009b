"""Logs as series: what is read, and what is left of long ones."""

from __future__ import annotations

import json

import numpy as np

from clipseg_jax.reports.logs import Series, read_log


def test_numbers_by_step(tmp_path):
    path = tmp_path / "train.jsonl"
    lines = [
        '{"step": 2, "loss": 1.5, "note": "x"}',
        '{"step": 1, "loss": null, "rate": 1}',
        "{half a",
        '{"step": true, "loss": 3}',
        '{"step": 2, "loss": 2.5, "late": false}',
        "",
    ]
    path.write_text("\n".join(lines))
    log = read_log(path)
    assert log.series.keys() == {"loss", "rate"}
    np.testing.assert_array_equal(log.series["loss"].steps, [1, 2])
    np.testing.assert_array_equal(log.series["loss"].values, [np.nan, 2.5])  # the later line
    assert log.damaged == 2


def test_a_file_that_is_no_log_has_no_series(tmp_path):
    path = tmp_path / "image_scores.jsonl"
    path.write_text('{"name": "a", "mIoU": 3.0}\n' * 3)
    assert read_log(path).series == {}


def test_long_series_keep_their_ends_and_extremes():
    values = np.sin(np.arange(30_000) / 500)
    values[12_345], values[20_000], values[7] = 9.0, -9.0, np.nan
    thin = Series(np.arange(30_000) * 20, values).thinned()
    assert len(thin.steps) <= 1000
    assert {0, 29_999 * 20, 12_345 * 20, 20_000 * 20} <= {*thin.steps.tolist()}
    assert np.all(np.diff(thin.steps) > 0)
    np.testing.assert_array_equal(thin.values, values[thin.steps // 20])


def test_short_series_and_missing_numbers_stay():
    short = Series(np.arange(5), np.full(5, np.nan))
    assert short.thinned() is short
    assert len(Series(np.arange(5000), np.full(5000, np.nan)).thinned().steps) == 2


def test_a_large_log_is_read_line_by_line(tmp_path):
    path = tmp_path / "train.jsonl"
    with path.open("w") as file:
        for step in range(20_000):
            file.write(json.dumps({"step": step, "loss": 1 / (step + 1)}) + "\n")
    assert len(read_log(path).series["loss"].steps) == 20_000
