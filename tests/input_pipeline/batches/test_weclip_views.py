"""Views in random places: what is drawn and in what order, and where the padding lies."""

import itertools

import numpy as np
import pytest
from PIL import Image

from input_pipeline.batches.transforms import sample_rng
from input_pipeline.batches.weclip_views import (
    image_boxes,
    random_placement_batches,
    random_placement_view,
)
from input_pipeline.datasets import catalog
from input_pipeline.datasets.images import read_image
from tests import seeded

RECIPE = {"crop_hw": (32, 40), "ratio_range": (0.5, 2.0)}


def test_a_view_step_by_step():
    """Pillow's resize, the flip, a place on black or a box: each from its own draw."""
    image, label = seeded.image(30, 50, 1), seeded.label_map(30, 50, 5, 1)
    turned = padded = cropped = 0
    for seed in range(40):
        view, ids = random_placement_view(image, label, sample_rng(seed, 0, 0), **RECIPE)
        assert (view.shape, view.dtype) == ((32, 40, 3), np.uint8)
        assert (ids.shape, ids.dtype) == ((32, 40), np.uint8)
        rng = sample_rng(seed, 0, 0)
        ratio = rng.uniform(0.5, 2.0)
        h, w = int(ratio * 30), int(ratio * 50)
        small = np.asarray(Image.fromarray(image).resize((w, h), Image.Resampling.BILINEAR))
        if rng.random_sample() > 0.5:
            small, turned = small[:, ::-1], turned + 1
        canvas = np.zeros((max(h, 32), max(w, 40), 3), np.uint8)
        real = np.zeros(canvas.shape[:2], bool)
        top, left = rng.randint(canvas.shape[0] - h + 1), rng.randint(canvas.shape[1] - w + 1)
        canvas[top : top + h, left : left + w] = small
        real[top : top + h, left : left + w] = True
        top, left = rng.randint(canvas.shape[0] - 32 + 1), rng.randint(canvas.shape[1] - 40 + 1)
        part = np.s_[top : top + 32, left : left + 40]
        np.testing.assert_array_equal(view, canvas[part])
        assert (ids[~real[part]] == 255).all()
        padded, cropped = padded + (not real[part].all()), cropped + (h > 32)
        y0, x0, y1, x1 = image_boxes(np.where(real[part], 0, 255)[None])[0]
        expected = np.zeros((32, 40), bool)
        expected[y0:y1, x0:x1] = True
        np.testing.assert_array_equal(real[part], expected)
    assert 10 < turned < 30
    assert padded
    assert cropped


def test_an_image_smaller_than_a_pixel():
    view, ids = random_placement_view(
        np.full((1, 90, 3), 7, np.uint8), np.zeros((1, 90), np.int16), sample_rng(1, 0, 0),
        crop_hw=(16, 16), ratio_range=(0.1, 0.1),
    )  # fmt: skip
    assert (ids == 0).sum() == 9
    assert (view[ids == 0] == 7).all()


@pytest.fixture
def world(tmp_path):
    """Five images without labels."""
    (tmp_path / "images").mkdir()
    for i, (height, width) in enumerate([(40, 60), (60, 40), (20, 90), (33, 60), (10, 10)]):
        Image.fromarray(seeded.image(height, width, i)).save(tmp_path / "images" / f"{i}.png")
    return catalog.folder(tmp_path, ("background", "cat"), labels=None)


def test_batches(world):
    """Every row is its example's view; labels say what is padding; a start skips nothing."""
    data = random_placement_batches(world, world.index(""), batch_size=2, seed=3, **RECIPE)
    taken = list(itertools.islice(data.batches(), 7))
    for step, batch in enumerate(taken):
        assert (batch["image"].shape, batch["image"].dtype) == ((2, 32, 40, 3), np.uint8)
        for row, index in enumerate(batch["index"]):
            image = read_image(world.index("")[index].image_path)
            unknown = np.full(image.shape[:2], -1, np.int16)
            rng = sample_rng(3, step // data.steps_per_epoch, int(index))
            view, ids = random_placement_view(image, unknown, rng, **RECIPE)
            np.testing.assert_array_equal(batch["image"][row], view)
            np.testing.assert_array_equal(batch["label"][row], ids)
    later = list(itertools.islice(data.batches(4), 3))
    for one, two in zip(taken[4:], later, strict=True):
        for key, value in one.items():
            np.testing.assert_array_equal(value, two[key], err_msg=key)
    with pytest.raises(ValueError, match=r"ratio_range is \(2.0, 0.5\); give"):
        random_placement_batches(
            world, world.index(""), batch_size=2, crop_hw=(8, 8), ratio_range=(2.0, 0.5)
        )
