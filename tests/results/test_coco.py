"""COCO files of masks, read back with pycocotools and compared pixel by pixel."""

from __future__ import annotations

import json
import time

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from clipseg_jax.core.label_images import palette, save_labels
from clipseg_jax.results import coco, regions

CLASSES = ["cow", "dog", "a sign, white"]


def random_labels(height, width, seed, *, grain=1):
    """Noise of four values in squares of `grain` pixels: holes, bridges of corners, dots."""
    rng = np.random.default_rng(seed)
    small = rng.choice(4, (-(-height // grain), -(-width // grain)), p=(0.5, 0.3, 0.15, 0.05))
    return small.repeat(grain, 0).repeat(grain, 1)[:height, :width].astype(np.uint8)


def shapes():
    """A ring with a dot in its hole, single pixels at all borders, a class in one corner."""
    labels = np.zeros((40, 30), np.uint8)
    labels[5:20, 5:20] = 1
    labels[8:17, 8:17] = 0
    labels[12, 12] = 1
    labels[0, 0] = labels[39, 29] = labels[0, 29] = 2
    labels[25:30, 3:9] = 3
    labels[26:28, 4:6] = 2
    return labels


LABELS = {
    "shapes": shapes(),
    "noise": random_labels(37, 53, 0),
    "grains": random_labels(90, 70, 1, grain=6),
    "a row": random_labels(1, 60, 2),
    "a column": random_labels(60, 1, 3),
    "a pixel": np.ones((1, 1), np.uint8),
    "full": np.full((7, 5), 3, np.uint8),
    "background": np.zeros((6, 8), np.uint8),
}


def write(folder, maps, **given):
    """The folder of `predict` that has these masks, and its rows."""
    rows = {}
    for name, labels in maps.items():
        save_labels(folder / f"{name}.png", labels, coloured=True)
        part = {each: {"share": 0.5, "score": 0.25 * i} for i, each in enumerate(CLASSES, 1)}
        rows[name] = {"image": f"photos/{name}.jpg", "mask": f"{name}.png", "classes": part}
    return rows


def decoded(annotation, size):
    segmentation = annotation["segmentation"]
    if isinstance(segmentation, list):
        parts = coco_mask.frPyObjects(segmentation, *size)
        segmentation = coco_mask.merge(parts)
    return coco_mask.decode(segmentation).astype(bool)


@pytest.mark.parametrize("name", LABELS)
@pytest.mark.parametrize("kind", coco.FILES)
def test_masks_are_read_back(tmp_path, monkeypatch, name, kind):
    monkeypatch.setattr(regions, "_TOLERANCE_PX", 0)
    labels = LABELS[name]
    assert coco.write_coco(tmp_path, write(tmp_path, {name: labels}), CLASSES, kind) == []
    read = COCO(tmp_path / coco.FILES[kind])
    (image,) = read.imgs.values()
    assert (image["height"], image["width"]) == labels.shape
    painted = np.zeros_like(labels)
    for annotation in read.loadAnns(read.getAnnIds()):
        mask = decoded(annotation, labels.shape)
        assert not painted[mask].any()
        painted[mask] = annotation["category_id"]
        rows, columns = np.nonzero(mask)
        size = np.ptp(columns) + 1, np.ptp(rows) + 1
        assert annotation["bbox"] == [columns.min(), rows.min(), *size]
        assert annotation["area"] == mask.sum()
        assert annotation["iscrowd"] == 0
        assert annotation["score"] == 0.25 * annotation["category_id"]
        parts, _ = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
        assert kind == "coco" or parts == 2  # it and the background
    np.testing.assert_array_equal(painted, labels)
    if kind == "coco":
        assert len(read.anns) == len(np.unique(labels[labels > 0]))
    assert [each["id"] for each in read.anns.values()] == [*range(1, len(read.anns) + 1)]


def test_run_lengths_are_those_of_pycocotools():
    labels = LABELS["grains"]
    for region in regions.class_regions(labels):
        mask = np.asfortranarray(labels == region.label, np.uint8)
        assert region.segmentation["counts"] == coco_mask.encode(mask)["counts"].decode()


def test_polygons_stay_within_a_pixel_and_have_few_corners(tmp_path):
    labels = np.zeros((200, 260), np.uint8)
    cv2.circle(labels, (120, 100), 80, 2, -1)
    cv2.circle(labels, (110, 90), 30, 0, -1)
    labels[3, 5] = 1
    dot, ring = sorted(regions.polygon_regions(labels), key=lambda region: region.area)
    assert len(ring.segmentation) == len(dot.segmentation) == 1
    assert len(ring.segmentation[0]) < 200
    mask = decoded({"segmentation": ring.segmentation}, labels.shape)
    wrong = mask != (labels == 2)
    edge = cv2.morphologyEx((labels == 2).astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((5, 5)))
    assert not wrong[edge == 0].any()
    assert wrong.sum() < 0.02 * ring.area
    assert dot.segmentation == [[5.0, 3.0, 6.0, 3.0, 6.0, 4.0, 5.0, 4.0]] or dot.area == 1


def test_many_parts_take_the_time_of_their_pixels():
    """4,000 dots on 4 megapixels: encoded one by one they would take over 10 s."""
    labels = np.zeros((2000, 2000), np.uint8)
    labels[::32, ::32] = 1
    for function in (regions.object_regions, regions.polygon_regions):
        started = time.process_time()
        assert sum(region.area == 1 for region in function(labels)) == 63**2
        assert time.process_time() - started < 4


def test_a_folder_is_one_file_whose_numbers_stay(tmp_path):
    maps = {f"trip/{i:02d}": random_labels(20, 20, i, grain=5) for i in range(12)}
    rows = write(tmp_path, maps)
    coco.write_coco(tmp_path, rows, CLASSES)
    first = (tmp_path / "annotations.json").read_bytes()
    assert coco.is_whole(tmp_path, "coco")
    coco.write_coco(tmp_path, dict(reversed(rows.items())), CLASSES)
    assert (tmp_path / "annotations.json").read_bytes() == first
    content = json.loads(first)
    assert [image["file_name"] for image in content["images"][:2]] == ["trip/00.jpg", "trip/01.jpg"]
    colours = palette().tolist()
    assert content["categories"] == [
        {"id": i, "name": name, "color": colours[i]} for i, name in enumerate(CLASSES, 1)
    ]
    (tmp_path / "annotations.json").write_bytes(first[:-3])
    assert not coco.is_whole(tmp_path, "coco")


def test_masks_that_cannot_be_read_are_told(tmp_path):
    rows = write(tmp_path, {"a": LABELS["shapes"], "b": LABELS["shapes"], "c": LABELS["full"]})
    (tmp_path / "b.png").write_bytes(b"\x89PNG")
    save_labels(tmp_path / "c.png", np.full((4, 4), 9))  # of other classes
    assert coco.write_coco(tmp_path, rows, CLASSES) == ["b", "c"]
    assert [each["file_name"] for each in COCO(tmp_path / "annotations.json").imgs.values()] == [
        "a.jpg"
    ]


def test_images_are_called_what_they_are_called_below_the_folder():
    names = {
        "a": "/data/photos/a.jpg",
        "trip/b": "photos/trip/b.png",
        "c": "d1/c.png",
        "c_png": "d2/c.png",
    }
    assert coco.file_names(names) == {
        "a": "a.jpg",
        "trip/b": "trip/b.png",
        "c": "d1/c.png",
        "c_png": "d2/c.png",
    }
