"""Image tags: windows, votes, batching, and the files they are kept in."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from PIL import Image

from clipseg_jax.methods.reclip.tags import (
    Classifier,
    TagsConfig,
    read_tags,
    tag_images,
    tag_matrix,
    vote_tags,
    whole_image_tags,
    windows,
    write_tags,
)
from clipseg_jax.models.clip import l2_normalize
from clipseg_jax.ops.pillow import pillow_bicubic
from tests import tiny

SIZES = [(50, 70), (20, 20), (64, 33), (90, 90), (10, 12)]


@pytest.fixture(scope="module")
def classifier():
    rows = l2_normalize(jax.random.normal(jax.random.key(0), (6, 24)))
    return Classifier(tiny.clip(text=tiny.TEXT), rows, batch_size=10)


def test_windows_leave_the_last_border_uncovered():
    boxes = windows(260, 350, 512)
    assert len(boxes) == 35
    np.testing.assert_array_equal(boxes[:2], [[0, 0, 85, 85], [0, 42, 85, 127]])
    assert np.all(boxes[:, 2:] - boxes[:, :2] == 85)
    assert windows(85, 300, 512).shape == (0, 4)
    assert windows(86, 86, 512).shape == (1, 4)


def test_tags_of_logits():
    logits = np.asarray([3.0, 9.0, 5.0, 5.0])
    assert whole_image_tags(logits, 5.0, 2) == [1, 2, 3]
    assert whole_image_tags(logits, 10.0, 3) == [1, 2, 3]  # best first, ties by id
    assert whole_image_tags(logits, 10.0, 1) == [1]
    assert vote_tags([4, 2, 4, 1]) == [4, 2, 1]
    assert vote_tags([4, 2, 4, 1], min_votes=2) == [4]
    assert vote_tags([4, 2, 4, 1], min_votes=3) == []
    assert vote_tags([4, 2, 4, 1], min_votes=3, k=2) == [4, 2]
    assert vote_tags([], k=2) == []


@pytest.mark.parametrize("method", ["whole", "windows"])
def test_batches_over_images_change_nothing(classifier, method):
    assert classifier.batch_size == 16  # a multiple of eight devices
    cfg = TagsConfig(method, threshold=1e9, k=3, crop_px=120)
    pictures = list(enumerate(tiny.images(SIZES), start=7))
    pictures.insert(2, (99, None))  # one that can't be read
    together = list(tag_images(pictures, classifier, cfg))
    alone = [next(tag_images([one], classifier, cfg)) for one in pictures]
    assert together == alone
    assert [index for index, _ in together] == [7, 8, 99, 9, 10, 11]
    assert together[2] == (99, [])
    if method == "windows":
        assert together[1] == (8, [])  # no larger than a window
        assert len(together[4][1]) > 0


def test_results_come_while_images_go_in(classifier):
    """Memory does not grow with the dataset."""
    taken = []

    def images():
        for index, image in enumerate(tiny.images([(60, 60)] * 12)):
            taken.append(index)
            yield index, image

    stream = tag_images(images(), classifier, TagsConfig("windows", crop_px=120))
    next(stream)
    assert len(taken) < 6


def test_pillows_resize_is_equal_in_every_pixel():
    rng = np.random.default_rng(0)
    for side, side_px in [(56, 224), (85, 64), (341, 90), (30, 30)]:
        images = rng.integers(0, 256, (2, side, side, 3)).astype(np.uint8)
        made = jax.jit(pillow_bicubic, static_argnums=1)(images, side_px)
        size = (side_px, side_px)
        expected = [Image.fromarray(i).resize(size, Image.Resampling.BICUBIC) for i in images]
        np.testing.assert_array_equal(made, np.stack([np.asarray(i) for i in expected]))
    with pytest.raises(ValueError, match=r"images must be square, not \(20, 30\)"):
        pillow_bicubic(np.zeros((1, 20, 30, 3), np.uint8), 224)


def test_files_come_back_sorted(tmp_path):
    path = write_tags(tmp_path / "tags.json", [[12, 3], [], [5]])
    assert path.read_text() == "[12, 3]\n[]\n[5]\n"
    assert read_tags(path, 20, 3) == [(3, 12), (), (5,)]
    path.write_text(path.read_text().rstrip("\n"))  # the last newline may be missing
    assert read_tags(path, 20, 3) == [(3, 12), (), (5,)]
    path.write_text(path.read_text(), "utf-16")  # as some editors save it
    tags = read_tags(path, 20)
    np.testing.assert_array_equal(np.argwhere(tag_matrix(tags, 20)), [[0, 3], [0, 12], [2, 5]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]\n[20]\n", "line 2: class 20 is not in 0..19"),
        ("[1]\n[-1]\n", "line 2: class -1 is not in 0..19"),
        ("[1]\n[2, 3\n", r"line 2: '\[2, 3' is not a list of ids"),
        ("[1]\n[2.5]\n", r"line 2: '\[2.5\]' is not a list of ids"),
        ("[1]\n\n[2]\n", "line 2: '' is not a list of ids"),
        ("[1]\n\0\n", "line 2 holds the control character"),
        ("[1]\n" + "[" * 10_000, "line 2: .* is not a list of ids"),
        ("[1]\n" + "[" * 100_000, "line 2 has 100000 characters"),
        ("[1]\n[\udcff]\n", "tags.json, line 2, is not UTF-8"),
        ("", "tags.json is an empty list"),
        ("[1]\n[2]\n[3]\n", "3 lines for 2 training images"),
        ("[1]\n", "1 lines for 2 training images"),
    ],
)
def test_wrong_files_are_refused(tmp_path, text, message):
    path = tmp_path / "tags.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=message) as error:
        read_tags(path, 20, 2)
    assert "\n" not in str(error.value)
