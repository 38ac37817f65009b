"""Class embeddings, label images and atomic files."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from clipseg_jax.core import files, label_images
from clipseg_jax.core.metrics import SegmentationMetrics, confusion_matrix, confusion_on_host
from clipseg_jax.models.clip import Tokenizer, l2_normalize
from clipseg_jax.prompts import class_embeddings, templates, text_encoder
from input_pipeline.datasets.images import read_label
from tests import tiny


@pytest.fixture(scope="module")
def encoder():
    return text_encoder(tiny.clip(text=tiny.TEXT).text)


def test_an_ensemble_is_the_unit_mean_of_unit_rows(encoder):
    tokenizer = Tokenizer.openai()
    chosen = templates("imagenet_subset_7")
    rows = class_embeddings(["cat", "tv monitor"], encoder, tokenizer, prompt_templates=chosen)
    each = l2_normalize(encoder(tokenizer([t.format("tv monitor") for t in chosen])))
    mean = np.asarray(each).mean(0)
    np.testing.assert_allclose(rows[1], mean / np.linalg.norm(mean), atol=1e-6)


def test_batches_and_padding_change_nothing(encoder):
    names = ["cat", "a very much longer name than the others have", "dog", "sofa", "bus"]
    whole = class_embeddings(names, encoder, Tokenizer.openai())
    done = []
    parts = class_embeddings(
        names, encoder, Tokenizer.openai(), batch_size=2, progress=lambda *n: done.append(n)
    )
    np.testing.assert_allclose(whole, parts, atol=1e-6)
    assert done == [(2, 5), (4, 5), (5, 5)]


def test_unknown_templates_and_long_prompts(encoder):
    with pytest.raises(ValueError, match="no template set 'clip_999'"):
        templates("clip_999")
    with pytest.raises(ValueError, match="at most 77 fit"):
        class_embeddings(["word " * 90], encoder, Tokenizer.openai())


def test_a_long_prompt_is_shown_in_part_with_a_remedy_that_is_there(encoder):
    for long in ("word " * 100, "word " * 900, "w" * 10**7):
        with pytest.raises(ValueError, match=r"at most 77 .*\.\.\..*; shorten it$") as caught:
            class_embeddings(["cat", long], encoder, Tokenizer.openai())
        assert len(str(caught.value)) < 200


def test_embeddings_that_are_not_finite_are_refused(encoder):
    def broken(ids):
        return encoder(ids).at[1].set(float("nan"))

    with pytest.raises(ValueError, match="NaN or infinite for 1 of 3 classes, such as 'dog'"):
        class_embeddings(["cat", "dog", "cow"], broken, Tokenizer.openai())


def test_template_sets():
    assert len(templates("imagenet_80")) == 80
    assert templates("maskclip_85")[:80] == templates("imagenet_80")


def test_a_half_written_file_is_never_seen(tmp_path):
    path = tmp_path / "deep" / "a.txt"
    files.write_atomic(path, lambda file: file.write(b"old"))

    def fail(file):
        file.write(b"new")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match=r"cannot write .*a\.txt: No space left.*free space"):
        files.write_atomic(path, fail)
    assert path.read_bytes() == b"old"
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]


def test_index_pngs_keep_their_labels(tmp_path):
    from PIL import Image

    labels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    grey = label_images.save_labels(tmp_path / "a.png", labels)
    np.testing.assert_array_equal(cv2.imread(str(grey), cv2.IMREAD_GRAYSCALE), labels)
    coloured = label_images.save_labels(tmp_path / "b.png", labels, coloured=True)
    for path, mode in ((grey, "L"), (coloured, "P")):
        image = Image.open(path)
        assert image.mode == mode
        np.testing.assert_array_equal(np.asarray(image), labels)
        np.testing.assert_array_equal(read_label(path), labels)
    voc = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128)]
    assert [tuple(c) for c in label_images.palette(5)] == voc


def test_overlay_and_legend():
    image = np.full((20, 200, 3), 100, np.uint8)
    labels = np.zeros((20, 200), np.uint8)
    labels[:10] = 1
    painted = label_images.overlay(image, labels, label_images.palette(), clear=(0,))
    assert tuple(painted[0, 0]) == (114, 50, 50)
    assert tuple(painted[15, 0]) == (100, 100, 100)
    shown = label_images.with_legend(painted, [("cat", np.array([128, 0, 0]))])
    np.testing.assert_array_equal(shown[:20], painted)
    assert shown.shape[0] > 30


def test_confusion_by_hand():
    labels = np.array([[0, 1, 255], [2, 1, 1]])
    predicted = np.array([[0, 1, 1], [0, 1, 2]])
    expected = [[1, 0, 0], [0, 2, 1], [1, 0, 0]]
    counts = np.asarray(confusion_matrix(labels, predicted, 3))
    np.testing.assert_array_equal(counts, expected)
    small = labels.astype(np.uint8), predicted.astype(np.uint8)  # as label maps are read
    np.testing.assert_array_equal(confusion_on_host(*small, 3), expected)
    metrics = SegmentationMetrics.from_confusion(counts)
    np.testing.assert_allclose(metrics.iou, [0.5, 2 / 3, 0])
    means = dict.fromkeys(("mIoU", "mIoU_of_labelled", "mIoU_absent_as_0"), 38.89)
    assert metrics.summary() == {"aAcc": 60.0, **means, "mAcc": 55.56, "mPrec": 50.0}
