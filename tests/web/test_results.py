"""Results: thresholds without the network, pictures, downloads."""

from __future__ import annotations

import numpy as np
import pytest

from clipseg_jax.core.label_images import palette
from clipseg_jax.segmentation import ClassScores
from clipseg_jax.web import markup, results

NAMES = ("background", "cat", "<b>dog", "cow")


@pytest.fixture
def scores():
    values = np.random.default_rng(0).random((60, 90, 4)).astype(np.float32)
    values[..., 3] *= 0.1
    values /= values.sum(-1, keepdims=True)
    return ClassScores(values, NAMES, (120, 180))


@pytest.fixture
def pixels():
    return np.random.default_rng(1).integers(0, 256, (60, 90, 3), np.uint8)


@pytest.mark.parametrize("threshold", [0, 0.35, 0.5, 1])
def test_a_threshold_is_that_of_the_scores(scores, threshold):
    result = results.result_of(scores, {})
    expected = scores.segmentation(threshold).labels
    assert np.array_equal(result.labels_at(threshold), expected)
    assert result.labels_at(threshold).dtype == np.uint8


def test_heat_maps_are_kept_small():
    values = np.zeros((1024, 700, 3), np.float32)
    values[:, :350, 1] = 1
    result = results.result_of(ClassScores(values, NAMES[:3], (1024, 700)), {})
    assert result.heat.shape == (3, 512, 350)
    assert result.heat[1, :, :175].min() == 255
    assert result.nbytes < 2 * values.nbytes / 3


def test_the_overlay_shows_colours_and_outlines(pixels):
    labels = np.zeros((60, 90), np.uint8)
    labels[20:40, 30:60] = 2
    times = results.enlargement(pixels.shape)
    drawn = results.draw_overlay(pixels, labels, 1.0)
    assert drawn.shape == (60 * times, 90 * times, 3)
    assert (drawn[25 * times : 35 * times, 35 * times : 55 * times] == palette()[2]).all()
    assert (drawn[20 * times - 1, 45 * times] == 255).all()
    assert np.array_equal(drawn[: 15 * times], results.draw_photo(pixels)[: 15 * times])
    assert np.array_equal(results.draw_overlay(pixels, labels, 0), results.draw_photo(pixels))
    large = np.zeros((600, 900, 3), np.uint8)
    assert results.draw_photo(large) is large


def test_a_heat_map_goes_from_dark_to_yellow(pixels):
    heat = np.zeros((30, 45), np.uint8)
    heat[:, 30:] = 255
    drawn = results.draw_heat(pixels, heat).astype(int)
    left, right = drawn[:, : drawn.shape[1] // 2], drawn[:, -drawn.shape[1] // 4 :]
    assert left.sum(-1).mean() + 200 < right.sum(-1).mean()
    assert (right[..., 0] > right[..., 2]).all()


def test_a_mask_of_the_photos_size(scores):
    labels = results.result_of(scores, {}).labels
    image = results.mask_image(labels, (120, 180))
    assert image.mode == "P"
    assert np.array_equal(np.asarray(image), labels.repeat(2, 0).repeat(2, 1))
    assert np.array_equal(np.asarray(results.mask_image(labels, (60, 90))), labels)


def test_what_the_download_says(scores):
    result = results.result_of(scores, {"model": "demo"})
    labels = result.labels_at(0.4)
    about = results.description(result, labels, "a.jpg", (120, 180), 0.4)
    assert about["settings"] == {"model": "demo", "background_threshold": 0.4}
    assert [each["label"] for each in about["classes"]] == [0, 1, 2, 3]
    assert [each["colour"] for each in about["classes"]][:2] == ["#000000", "#800000"]
    assert sum(each["share"] for each in about["classes"]) == pytest.approx(1, abs=1e-3)
    size = [about[key] for key in ("height", "width", "computed_height", "computed_width")]
    assert size == [120, 180, 60, 90]


def test_the_legend_escapes_names_and_puts_the_largest_first(scores):
    result = results.result_of(scores, {})
    labels = np.zeros((60, 90), np.uint8)
    labels[:30], labels[30] = 2, 1
    text = markup.legend(result, labels, 2)
    assert "<b>" not in text
    order = [
        text.index(name)
        for name in ("&lt;b&gt;dog<", ">cat<", ">background<", "Not here:", ">cow<")
    ]
    assert order == sorted(order)
    assert text.count('aria-pressed="true"') == 1
    assert '<span class="share">50%</span>' in text
    assert "<b>dog" not in markup.heat_caption(result, 2)
    assert markup.percent(0.001) == "<1%"
