"""CAMs and masks of killed runs: what is cut short is made again, what is impossible is refused."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from clipseg_jax.methods.clip_es.crf_masks import mask_path
from clipseg_jax.methods.clip_es.stored_cams import StoredCAM, is_whole, read_cams, write_cams
from clipseg_jax.methods.clip_es.student import labelled_examples
from configs import demo_clip_es

MAPS = np.random.default_rng(0).random((2, 5, 7), np.float32)
CAM = StoredCAM(np.array([3, 1], np.int32), MAPS)


@pytest.fixture
def path(tmp_path):
    write_cams(tmp_path / "a.npz", CAM)
    return tmp_path / "a.npz"


def test_whole_ones_are_read(path):
    assert is_whole(path)
    again = read_cams(path, 4)
    np.testing.assert_array_equal(again.classes, CAM.classes)
    np.testing.assert_array_equal(again.maps, CAM.maps)


@pytest.mark.parametrize("size", [0, 10, 200, -1, -30])
def test_files_that_are_cut_short_are_not_done(path, size):
    assert not is_whole(path.parent / "none.npz")
    path.write_bytes(path.read_bytes()[:size])
    assert not is_whole(path)
    with pytest.raises(ValueError, match=r"a\.npz is damaged .*delete it and cams\.done\.json"):
        read_cams(path, 4)


def test_zeros_of_a_power_failure_are_not_done(path):
    path.write_bytes(bytes(path.stat().st_size))
    assert not is_whole(path)


@pytest.mark.parametrize(
    ("cam", "message"),
    [
        (CAM._replace(classes=np.array([99, 1], np.int32)), r"classes \[99, 1\], .* in 0\.\.3"),
        (CAM._replace(classes=np.array([-1, 1], np.int32)), r"classes \[-1, 1\]"),
        (CAM._replace(classes=np.array([1, 1], np.int32)), r"classes \[1, 1\]"),
        (CAM._replace(classes=np.array([1.0, 2.0])), "classes of float64"),
        (CAM._replace(classes=np.array([1], np.int32)), r"maps \(2, 5, 7\) for classes \(1,\)"),
        (StoredCAM(np.zeros(0, np.int32), MAPS[:0]), r"maps \(0, 5, 7\)"),
        (CAM._replace(maps=MAPS * np.nan), r"not in 0\.\.1"),
        (CAM._replace(maps=MAPS * 2), r"not in 0\.\.1"),
        (CAM._replace(maps=MAPS.astype(str)), r"not in 0\.\.1|damaged"),
    ],
)
def test_impossible_ones_are_refused(path, cam, message):
    write_cams(path, cam)
    with pytest.raises(ValueError, match=message) as error:
        read_cams(path, 4)
    assert "delete it and cams.done.json" in str(error.value)


def test_a_torn_mask_is_no_reason_to_leave_its_image_out(tmp_path):
    """Training would go on without it, to other weights."""
    config = demo_clip_es.get_config()
    config.dataset.name, config.dataset.root = "folder", str(tmp_path / "world")
    for number in range(3):
        for path in (
            tmp_path / f"world/train/images/{number}.png",
            mask_path(tmp_path, f"{number}"),
        ):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8)).save(path)
    names = [each.name for each in labelled_examples(config, tmp_path)]
    assert len(names) == 3
    torn = mask_path(tmp_path, names[1])
    torn.write_bytes(torn.read_bytes()[:-20])
    with pytest.raises(ValueError, match=rf"{torn} .*delete .*masks\.done\.json"):
        labelled_examples(config, tmp_path)
