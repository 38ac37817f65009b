"""Small datasets, whole, incomplete and damaged, in each layout: the exact complaint about each."""

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from input_pipeline.prepare.checks import check
from input_pipeline.prepare.preparations import PREPARATIONS
from tests.input_pipeline.prepare.prepared import (
    LAYOUTS,
    LISTED,
    SIZE,
    STEMS,
    image_file,
    label,
    plausible,
    save,
    save_image,
    small,
    whole,
)


def problems(root: Path, name: str, *, deep: bool = False) -> dict[str, list[str]]:
    faults = check(root, small(name), deep=deep).problems
    assert all(problem.remedy for problem in faults)
    return {problem.kind: problem.items for problem in faults}


@pytest.mark.parametrize("name", [*LAYOUTS, "coco_stuff_171"])
def test_whole(tmp_path, name):
    checked = check(whole(tmp_path, name), small(name), deep=True)
    assert checked.problems == []
    assert checked.images == {"train": 2, "val": 1}
    assert checked.labels == 3
    assert checked.histogram.sum() == 3 * 400


@pytest.mark.parametrize("name", LAYOUTS)
def test_missing_files(tmp_path, name):
    whole(tmp_path, name)
    lost_image, lost_label = image_file(name, "train", "a"), label(name, "val", "c")
    (tmp_path / lost_image).unlink()
    (tmp_path / lost_label).unlink()
    faults = {"missing image": [lost_image], "missing label": [lost_label]}
    if name not in LISTED:
        faults["number of images"] = ["train has 1, the published one 2"]
    assert problems(tmp_path, name) == faults


@pytest.mark.parametrize("name", LAYOUTS)
def test_missing_folders(tmp_path, name):
    expected = small(name)
    parts = [p for split, _ in expected.counts for p in expected.record.layout.split(split).parts]
    folders = {folder for part in parts for folder in (part.images, part.labels)}
    assert set(problems(tmp_path, name)["missing folder"]) == folders
    whole(tmp_path, name)
    (tmp_path / parts[0].labels).rename(tmp_path / "elsewhere")
    assert problems(tmp_path, name) == {"missing folder": [parts[0].labels]}  # no label by name


@pytest.mark.parametrize("name", LISTED)
def test_lists(tmp_path, name):
    lists = whole(tmp_path, name) / "ImageSets" / LISTED[name][1]
    (lists / "train.txt").unlink()
    assert problems(tmp_path, name) == {
        "missing list": [f"ImageSets/{LISTED[name][1]}/train.txt"],
        "number of images": ["train has 0, the published one 2"],
    }
    (lists / "train.txt").write_text("a\na\nb\nc\n")
    assert problems(tmp_path, name) == {
        "listed twice": ["a (train)"],
        "number of images": ["train has 3, the published one 2"],
        "in two splits": ["c (train, val)"],
    }


def test_both_published_numbers_count(tmp_path):
    expected = dataclasses.replace(small("context"), counts=(("train", (3, 2)), ("val", (2, 3))))
    (problem,) = check(whole(tmp_path, "context"), expected).problems
    assert problem.items == ["val has 1, the published one 2 or 3"]


def test_list_of_cityscapes_is_used(tmp_path):
    (whole(tmp_path, "cityscapes") / "train.txt").write_text("ulm/a\nulm/x\n")
    assert problems(tmp_path, "cityscapes") == {
        "missing image": ["leftImg8bit/train/ulm/x_leftImg8bit.png"],
        "missing label": ["gtFine/train/ulm/x_gtFine_labelTrainIds.png"],
    }


@pytest.mark.parametrize("name", LAYOUTS)
def test_damaged_files(tmp_path, name):
    whole(tmp_path, name)
    first, second = image_file(name, "train", "a"), image_file(name, "train", "b")
    (tmp_path / first).write_bytes((tmp_path / first).read_bytes()[:-200])
    (tmp_path / second).write_bytes(b"")
    empty, colour = label(name, "train", "b"), label(name, "val", "c")
    (tmp_path / empty).write_bytes(b"")
    save(tmp_path / colour, np.zeros((*SIZE, 3), np.uint8))
    faults = problems(tmp_path, name)
    assert faults.pop("unreadable label") == [f"{empty}: not a label map in a known format"]
    assert faults.pop("colour label") == [colour]
    # The header of a JPEG that was cut short is whole. Of a PNG all is read, for its EXIF data.
    *cut, gone = faults.pop("unreadable image")
    assert len(cut) == first.endswith(".png")
    assert gone == f"{second}: not an image in a known format"
    assert faults == {}
    short, gone = problems(tmp_path, name, deep=True)["unreadable image"]
    assert short.startswith(f"{first}: cannot decode the image (")
    assert gone.startswith(f"{second}: not an image")


@pytest.mark.parametrize("name", LAYOUTS)
def test_sizes_differ(tmp_path, name):
    save_image(whole(tmp_path, name) / image_file(name, "val", "c"), (20, 10))
    assert problems(tmp_path, name) == {
        "sizes differ": [f"{label(name, 'val', 'c')}: 20 x 20, the image 20 x 10"]
    }


@pytest.mark.parametrize(
    ("name", "ids", "kind", "said"),
    [
        ("voc", [21, 22, 220], "ids out of range", "21, 22, 220"),
        ("context", [60, 254], "raw ids", "60, 254"),
        ("context", [60, 459, 400], "raw ids", "60, 400, 459"),
        ("context", [1000], "ids out of range", "1000"),
        ("ade20k", [*range(151, 161)], "ids out of range", "151, 152, 153, 154, 155, ..."),
        ("cityscapes", [19, 33], "raw ids", "19, 33"),
        ("cityscapes", [33, 34], "ids out of range", "33, 34"),
        ("coco_stuff_27", [27, 181], "raw ids", "27, 181"),
        ("coco_stuff_27", [182], "ids out of range", "182"),
        ("coco_stuff_171", [171, 181], "raw ids", "171, 181"),
        ("coco_stuff_171", [200], "ids out of range", "200"),
    ],
)
def test_ids_that_may_not_be(tmp_path, name, ids, kind, said):
    labels = plausible(name).astype(np.uint16 if max(ids) > 255 else np.uint8)
    labels[-1, -len(ids) :] = ids
    path = label(name, "val", "c")
    save(whole(tmp_path, name) / path, labels)
    assert problems(tmp_path, name) == {kind: [f"{path}: {said}"]}


def test_every_id_raw(tmp_path):
    """Maps that were only renamed show as such, and as a whole."""
    whole(tmp_path, "cityscapes")
    raw = np.arange(400).reshape(SIZE) % 19
    for split, stems in STEMS.items():
        for stem in stems:
            save(tmp_path / label("cityscapes", split, stem), raw.astype(np.uint8))
    assert problems(tmp_path, "cityscapes") == {
        "implausible share of pixels": ["id 255 has 0.0%, expected 3.0% to 30.0%"]
    }


def test_classes_and_shares(tmp_path):
    whole(tmp_path, "voc")
    for split, stems in STEMS.items():
        for stem in stems:
            ids = plausible("voc")
            ids[ids == 7] = 0
            ids[ids == 255] = 0
            save(tmp_path / label("voc", split, stem), ids)
    assert problems(tmp_path, "voc") == {
        "class without a pixel": ["7 (car)"],
        "implausible share of pixels": ["id 255 has 0.0%, expected 1.0% to 15.0%"],
    }
    # A part of the dataset is not judged as the whole.
    (tmp_path / "ImageSets" / "Segmentation" / "val.txt").write_text("")
    found = problems(tmp_path, "voc")
    assert found == {
        "unreadable list": found["unreadable list"],
        "number of images": ["val has 0, the published one 1"],
    }
    assert found["unreadable list"][0].startswith("ImageSets/Segmentation/val.txt is an empty list")


def test_palette_labels_are_fine(tmp_path):
    whole(tmp_path, "voc")
    path = tmp_path / label("voc", "val", "c")
    with Image.open(path) as grey:
        ids = grey.convert("P", dither=Image.Dither.NONE)
        ids = Image.frombytes("P", grey.size, grey.tobytes())
    ids.putpalette([255, 0, 0] * 256)
    ids.save(path)
    assert problems(tmp_path, "voc") == {}


def test_published_numbers():
    counts = {name: dict(preparation.expected.counts) for name, preparation in PREPARATIONS.items()}
    assert counts == {
        "voc": {"train": (1464,), "val": (1449,)},
        "voc_aug": {"train_aug": (10582,), "val": (1449,)},
        "context": {"train": (4998, 4996), "val": (5105, 5104)},
        "ade20k": {"train": (20210,), "val": (2000,)},
        "cityscapes": {"train": (2975,), "val": (500,)},
        "coco_stuff_27": {"train": (118287,), "val": (5000,)},
        "coco_stuff_171": {"train": (118287,), "val": (5000,)},
        "coco_object": {"val": (5000,)},
        "coco14": {"train": (82081,), "val": (40137,)},
        "coco17": {"val": (4952,)},
    }


def test_published_images_and_classes(tmp_path):
    """As many images as published, but others, or with other classes."""
    whole(tmp_path, "voc")
    names = b"a\nb"
    digest = hashlib.sha1(names, usedforsecurity=False).hexdigest()
    expected = dataclasses.replace(
        small("voc"), lists=(("train", digest),), images_per_class=(("train", (2,) * 20),)
    )
    assert check(tmp_path, expected).problems == []
    ids = plausible("voc")
    ids[ids == 9] = 8
    save(tmp_path / label("voc", "train", "a"), ids)
    other = dataclasses.replace(expected, lists=(("train", digest), ("val", digest)))
    faults = {problem.kind: problem.items for problem in check(tmp_path, other).problems}
    assert faults == {
        "other images": ["val has as many as the published one, but others"],
        "images with a class": ["train: 1 with chair, not 2"],
    }


def test_published_facts():
    """Digests are of 20 bytes; each class is in fewer images than there are."""
    for preparation in PREPARATIONS.values():
        counts = dict(preparation.expected.counts)
        assert all(len(bytes.fromhex(digest)) == 20 for _, digest in preparation.expected.lists)
        assert {split for split, _ in preparation.expected.lists} <= set(counts)
        for split, numbers in preparation.expected.images_per_class:
            assert len(numbers) == len(preparation.expected.foreground)
            assert max(numbers) < counts[split][0] < sum(numbers)
