"""What zero-shot training sees of labels: splits as published, and nothing of unseen classes."""

import itertools

import numpy as np
import pytest
from PIL import Image

from input_pipeline.batches.training import random_view_batches
from input_pipeline.batches.transforms import random_view, sample_rng
from input_pipeline.batches.zero_shot import hide_unseen, label_table, seen_classes
from input_pipeline.datasets import catalog
from input_pipeline.datasets.images import read_image, read_label
from tests import seeded

NAMES = ("sky", "cat", "dog", "tree", "car")
UNSEEN = (1, 3)
RECIPE = {"scale": (512, 48), "crop_hw": (32, 40)}


@pytest.mark.parametrize(
    ("record", "classes", "names"),
    [
        (catalog.VOC12_20, 20, "pottedplant sheep sofa train tvmonitor"),
        (
            catalog.CONTEXT_60,
            60,
            "aeroplane bird boat cat cow fence keyboard motorbike sofa tvmonitor",
        ),
        (
            catalog.COCO_STUFF_164K,
            171,
            "cow giraffe suitcase frisbee skateboard carrot scissors cardboard clouds grass "
            "playingfield river road tree wall-concrete",
        ),
    ],
    ids=["voc", "context", "coco"],
)
def test_published_splits(record, classes, names):
    """Spec clip_rc, sections 9 and 11."""
    assert record.num_classes == classes
    assert [record.class_names[i] for i in sorted(record.unseen)] == names.split()
    seen = seen_classes(record.num_classes, record.unseen)
    assert len(seen) + len(record.unseen) == classes
    assert list(seen) == sorted(set(range(classes)) - set(record.unseen))


def test_label_tables():
    labels = np.asarray([0, 1, 2, 3, 4, 255])
    assert label_table("inductive", UNSEEN)[labels].tolist() == [0, 255, 2, 255, 4, 255]
    assert label_table("transductive", UNSEEN)[labels].tolist() == [0, 1, 2, 1, 4, 255]
    assert label_table("fully", UNSEEN)[labels].tolist() == labels.tolist()
    with pytest.raises(ValueError, match="unknown setting 'weakly'; choose one of inductive, tr"):
        label_table("weakly", UNSEEN)
    with pytest.raises(ValueError, match=r"unseen labels \[5\] are not in 0..4"):
        seen_classes(5, (1, 5))
    with pytest.raises(ValueError, match="all 2 classes are unseen"):
        seen_classes(2, (0, 1))


def write(root, corrupt=None):
    (root / "images").mkdir(parents=True)
    (root / "labels").mkdir()
    rng = np.random.RandomState(0)
    for i in range(6):
        label = seeded.label_map(60, 90, len(NAMES), i)
        if corrupt is not None:
            wrong = rng.choice(corrupt, label.shape).astype(np.uint8)
            label = np.where(np.isin(label, UNSEEN), wrong, label)
        Image.fromarray(seeded.image(60, 90, i)).save(root / f"images/{i}.png")
        Image.fromarray(label).save(root / f"labels/{i}.png")
    return catalog.folder(root, NAMES)


def batches(dataset, setting, **options):
    data = random_view_batches(dataset, dataset.index(""), batch_size=3, seed=5, **RECIPE)
    return list(itertools.islice(hide_unseen(data, setting, UNSEEN, **options).batches(), 6))


@pytest.mark.parametrize(
    ("setting", "corrupt"),
    [("inductive", (1, 3)), ("inductive", (1, 3, 255)), ("transductive", (1, 3))],
)
def test_labels_of_unseen_classes_change_nothing(tmp_path, setting, corrupt):
    """Whatever stands there: the same crops, the same labels."""
    clean = batches(write(tmp_path / "clean"), setting)
    dirty = batches(write(tmp_path / "dirty", corrupt), setting)
    hidden = 0
    for one, two in zip(clean, dirty, strict=True):
        for key in one:
            np.testing.assert_array_equal(one[key], two[key], err_msg=key)
        assert not np.any(one["label"] == UNSEEN[1])
        assert not np.any(one["label"] == UNSEEN[0]) or setting == "transductive"
        hidden += np.sum(one["label"] == (255 if setting == "inductive" else UNSEEN[0]))
    assert hidden > 1000  # there was something to hide


def test_published_crops_still_count_them(tmp_path):
    """Then the views are those of the whole label map, with the labels hidden in the end."""
    dataset = write(tmp_path)
    examples, table = dataset.index(""), label_table("transductive", UNSEEN)
    plain = batches(dataset, "fully")
    for one, whole in zip(batches(dataset, "transductive", before_crop=False), plain, strict=True):
        np.testing.assert_array_equal(one["image"], whole["image"])
        np.testing.assert_array_equal(one["label"], table[whole["label"]])
    first = plain[0]
    index = int(first["index"][0])
    view, ids = random_view(
        read_image(examples[index].image_path),
        read_label(examples[index].label_path),
        sample_rng(5, 0, index),
        **RECIPE,
    )
    h, w = ids.shape
    np.testing.assert_array_equal(first["image"][0, :h, :w], view)
    np.testing.assert_array_equal(first["label"][0, :h, :w], ids)
