"""Transforms and corruptions beyond the goldens: edges, invariants, errors."""

import cv2
import numpy as np
import pytest

from input_pipeline.batches import corruptions, transforms
from tests import seeded

IMAGE = seeded.image(90, 120, 4)


def test_sample_rng_is_a_function_of_its_arguments():
    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (2**31, 7, 2**33)]
    draws = [transforms.sample_rng(*key).random_sample(5).tolist() for key in keys]
    assert len({tuple(draw) for draw in draws}) == len(keys)
    assert draws[3] == transforms.sample_rng(0, 0, 1).random_sample(5).tolist()


@pytest.mark.parametrize(
    ("size", "scale", "expected"),
    [
        ((375, 500), (2048, 512), (512, 683)),
        ((500, 375), (512, 2048), (683, 512)),
        ((375, 500), (520, 520), (390, 520)),
        ((100, 1000), (2048, 512), (205, 2048)),
        ((1, 9000), (2048, 512), (1, 2048)),
        ((6000, 6000), (2048, 512), (512, 512)),
    ],
)
def test_rescaled_size(size, scale, expected):
    assert transforms.rescaled_size(*size, scale) == expected


def test_crop_of_one_label_redraws_ten_times():
    label = np.full((90, 120), -1, np.int32)
    rng, count = np.random.RandomState(0), np.random.RandomState(0)
    transforms.random_crop(IMAGE, label, rng, (32, 32))
    for _ in range(11):
        count.randint(0, 59), count.randint(0, 89)
    assert rng.rand() == count.rand()


def test_crop_larger_than_the_image_is_padded_later():
    label = seeded.label_map(90, 120, 5, 4)
    cropped, ids = transforms.random_crop(IMAGE, label, np.random.RandomState(0), (100, 64))
    assert cropped.shape == (90, 64, 3)
    image, ids = transforms.pad(cropped, ids, (100, 64))
    assert (image[90:] == 0).all()
    assert (ids[90:] == 255).all()


def test_flip_and_suppress():
    label = np.array([[0, 1, 2]], np.uint8)
    image = np.arange(9, dtype=np.uint8).reshape(1, 3, 3)
    flipped, ids = transforms.flip(image, label, np.random.RandomState(2))  # draws 0.44
    assert flipped[0, 0].tolist() == [6, 7, 8]
    assert ids.tolist() == [[2, 1, 0]]
    kept, _ = transforms.flip(image, label, np.random.RandomState(0))  # draws 0.55
    np.testing.assert_array_equal(kept, image)
    assert transforms.suppress(label, [1]).tolist() == [[0, -1, 2]]


def test_random_view_is_reproducible():
    label = seeded.label_map(90, 120, 5, 4)
    recipe = {"scale": (2048, 96), "crop_hw": (64, 80)}
    runs = [
        transforms.random_view(IMAGE, label, transforms.sample_rng(1, 2, 3), **recipe)
        for _ in range(2)
    ]
    assert runs[0][0].shape == (64, 80, 3)
    assert runs[0][0].dtype == np.uint8
    assert runs[0][1].shape == (64, 80)
    np.testing.assert_array_equal(runs[0][0], runs[1][0])


@pytest.mark.parametrize("kind", corruptions.KINDS)
@pytest.mark.parametrize("shape", [(90, 120), (1, 40), (1, 1)])
def test_corruptions_keep_shape_and_input(kind, shape):
    image = seeded.image(*shape, 4)
    before = image.copy()
    for level in corruptions.LEVELS:
        result = corruptions.corrupt(image, kind, level, np.random.RandomState(level))
        assert result.shape == image.shape
        assert result.dtype == np.uint8
    np.testing.assert_array_equal(image, before)


# Not spatter: its levels 4 and 5 are another substance.
@pytest.mark.parametrize("kind", [kind for kind in corruptions.KINDS if kind != "spatter"])
def test_higher_levels_change_more(kind):
    change = [
        np.abs(
            corruptions.corrupt(IMAGE, kind, level, np.random.RandomState(0)).astype(int) - IMAGE
        ).mean()
        for level in (1, 3, 5)
    ]
    assert change == sorted(change)
    assert change[0] > 0


def test_impulse_noise_rates():
    image = np.full((200, 200, 3), 128, np.uint8)
    result = corruptions.corrupt(image, "impulse_noise", 4, np.random.RandomState(0))
    assert np.mean(result == 0) == pytest.approx(0.085, abs=0.005)
    assert np.mean(result == 255) == pytest.approx(0.085, abs=0.005)
    assert np.mean(result == 128) == pytest.approx(0.83, abs=0.01)


def test_gaussian_blur_by_hand():
    """One white line: the response is the normalised kernel, cut at four sigma."""
    image = np.zeros((5, 41, 3), np.uint8)
    image[:, 20] = 255
    result = corruptions.corrupt(image, "gaussian_blur", 2, np.random.RandomState(0))
    kernel = np.exp(-0.5 * (np.arange(-8, 9) / 2) ** 2)
    expected = np.zeros(41)
    expected[12:29] = kernel / kernel.sum() * 255
    assert np.abs(result[2, :, 0] - np.floor(expected)).max() <= 1


def test_corruption_errors():
    rng = np.random.RandomState(0)
    with pytest.raises(ValueError, match="No corruption 'rain'"):
        corruptions.corrupt(IMAGE, "rain", 1, rng)
    with pytest.raises(ValueError, match="level is 0"):
        corruptions.corrupt(IMAGE, "spatter", 0, rng)
    with pytest.raises(ValueError, match="need uint8"):
        corruptions.corrupt(IMAGE.astype(np.float32), "spatter", 1, rng)


def test_resize_label_is_opencv_nearest():
    label = seeded.label_map(90, 120, 9, 2)
    expected = cv2.resize(label, (77, 51), interpolation=cv2.INTER_NEAREST)
    result = transforms.resize_label(label.astype(np.int64), (51, 77))
    np.testing.assert_array_equal(result, expected)
    assert result.dtype == np.int64


class Draws:
    """Stands for a generator: gates and values are given."""

    def __init__(self, gates, values):
        self.gates, self.values = iter(gates), iter(values)

    def randint(self, *bounds):
        return next(self.gates)

    def uniform(self, *bounds):
        return next(self.values)


@pytest.mark.parametrize(("wrap", "saturation"), [(False, 255), (True, int(235 * 1.4) - 256)])
def test_saturation_beyond_255(wrap, saturation):
    colour = np.full((4, 4, 3), (250, 20, 20), np.uint8)
    hsv = cv2.cvtColor(colour, cv2.COLOR_RGB2HSV)
    assert hsv[0, 0, 1] == 235
    hsv[..., 1] = saturation
    only_saturation = Draws([0, 0, 1, 0, 0], [1.4])
    result = transforms.distort_colours(colour, only_saturation, saturation_wrap=wrap)
    np.testing.assert_array_equal(result, cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB))


def crop_by_sorting(label, rng, crop_hw, ratio):
    """The published rule, written plainly: where the box's corner lies."""

    def corner():
        top = rng.randint(0, max(label.shape[0] - crop_hw[0], 0) + 1)
        return top, rng.randint(0, max(label.shape[1] - crop_hw[1], 0) + 1)

    top, left = corner()
    for _ in range(10):
        box = label[top : top + crop_hw[0], left : left + crop_hw[1]]
        counts = np.unique(box[box != 255], return_counts=True)[1]
        if len(counts) > 1 and counts.max() / counts.sum() < ratio:
            break
        top, left = corner()
    return top, left


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.int64])
@pytest.mark.parametrize("ratio", [0.2, 0.5, 0.75])
def test_crop_rule(dtype, ratio):
    positions = np.arange(90 * 120, dtype=np.int32).reshape(90, 120)
    for seed in range(25):
        label = seeded.label_map(90, 120, 1 + seed % 5, seed).astype(dtype)
        if seed % 3 == 0 and np.dtype(dtype).kind == "i":
            label = transforms.suppress(label, [0, 1]).astype(dtype)
        top, left = crop_by_sorting(label, np.random.RandomState(seed), (30, 40), ratio)
        box, ids = transforms.random_crop(
            positions, label, np.random.RandomState(seed), (30, 40), cat_max_ratio=ratio
        )
        assert box[0, 0] == top * 120 + left
        np.testing.assert_array_equal(ids, label[top : top + 30, left : left + 40])
