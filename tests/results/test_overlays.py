"""Overlays: sizes, and legends that can be read."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from clipseg_jax.results import overlays

NAMES = ("background", "cow", "dog")


def write(path, height, width, share=0.4):
    labels = np.zeros((height, width), np.uint8)
    labels[: int(height * share)] = 1
    pixels = np.full((height, width, 3), 90, np.uint8)
    summary = {
        "background": {"share": 1 - share, "score": 0.9},
        "cow": {"share": share, "score": 0.5},
    }
    overlays.write_overlay(path, pixels, labels, NAMES, summary)
    return np.asarray(Image.open(path))


@pytest.mark.parametrize(("height", "width"), [(3000, 4000), (4000, 3000), (480, 640)])
def test_a_legend_has_a_fortieth_of_the_width_in_height(tmp_path, height, width):
    """So that it can be read where the whole picture is on a screen."""
    shown = write(tmp_path / "a.jpg", height, width)
    assert shown.shape[1] == width
    assert width / 40 < shown.shape[0] - height < width / 10


def test_a_wide_image_has_a_legend_of_its_height(tmp_path):
    shown = write(tmp_path / "a.jpg", 300, 9000)
    assert 300 < shown.shape[0] < 400


def test_large_images_are_scaled_down(tmp_path, monkeypatch):
    monkeypatch.setattr(overlays, "_MOST_PX", 40 * 50)
    assert write(tmp_path / "a.jpg", 80, 120, share=0).shape == (27, 40, 3)
