"""COCO-Object's labels from COCO-Stuff's maps: whole, incomplete and broken folders."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from input_pipeline.datasets.catalog import COCO_OBJECT
from input_pipeline.datasets.images import read_label
from input_pipeline.prepare import conversions
from input_pipeline.prepare.__main__ import main
from input_pipeline.prepare.preparations import PREPARATIONS
from tests.input_pipeline.prepare.prepared import save, save_image

SPEC = Path(__file__).parents[3] / "docs/specs/readouts_classes.json"
THINGS = json.loads(SPEC.read_text("utf-8"))["coco_object"]["thing_raw_ids"]
STEMS = ("000000000139", "000000000285", "000000000632")
SIZE = (20, 24)


def raw_map(seed: int) -> np.ndarray:
    """A map of COCO-Stuff: every thing, stuff of two kinds, unlabelled pixels, a gap's id."""
    ids = np.full(SIZE, 150, np.uint8)
    ids.ravel()[-100:] = (np.arange(100) + seed) % 82 + 100
    ids.ravel()[:80] = np.roll(THINGS, seed)
    ids.ravel()[80:85] = (255, 90, 91, 11, 181)
    return ids


def image(stem: str) -> str:
    return f"images/val2017/{stem}.jpg"


def raw(stem: str) -> str:
    return f"annotations/val2017/{stem}.png"


def label(stem: str) -> str:
    return f"annotations/val2017/{stem}_instanceTrainIds.png"


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A folder of three images as it is unpacked; the command expects as many."""
    preparation = PREPARATIONS["coco_object"]
    expected = dataclasses.replace(preparation.expected, counts=(("val", (len(STEMS),)),))
    monkeypatch.setitem(
        PREPARATIONS, "coco_object", dataclasses.replace(preparation, expected=expected)
    )
    for seed, stem in enumerate(STEMS):
        save_image(tmp_path / image(stem), SIZE)
        save(tmp_path / raw(stem), raw_map(seed))
    return tmp_path


def run(root, *words: str) -> tuple[int, dict[str, list[str]], dict]:
    """Exit status, and what the report says: items of each kind of problem, all of it."""
    path = root.parent / f"{root.name}.json"
    status = main(["coco_object", "--root", str(root), "--report", str(path), *words])
    content = json.loads(path.read_text())
    return status, {each["kind"]: each["items"] for each in content["problems"]}, content


def test_table():
    """Spec readouts, section 9: the rank among the things + 1, and 0 for everything else."""
    table = conversions.coco_object_table()
    assert [int(table[raw_id]) for raw_id in THINGS] == list(range(1, 81))
    others = [i for i in (*range(182), 255) if i not in THINGS]
    assert set(table[others].tolist()) == {0}
    assert set(table[182:255].tolist()) == {conversions.UNKNOWN}  # ids that no such map has


def test_whole(root, capsys):
    status, problems, _ = run(root)
    assert status == 1
    assert problems == {"missing label": [label(stem) for stem in STEMS]}
    status, problems, content = run(root, "--write")
    assert (status, problems) == (0, {})
    assert content["converted"] == {"written": 3, "kept": 0}
    assert "3 images (published: 3)" in capsys.readouterr().out
    for seed, example in enumerate(COCO_OBJECT.index(root)):
        ids, labels = raw_map(seed), read_label(example.label_path, COCO_OBJECT.num_classes)
        expected = np.array([THINGS.index(i) + 1 if i in THINGS else 0 for i in ids.ravel()])
        np.testing.assert_array_equal(labels.ravel(), expected)
    # A run that was stopped makes what is missing or half written, and keeps the rest.
    stamp = (root / label(STEMS[0])).stat().st_mtime_ns
    whole = (root / label(STEMS[1])).read_bytes()
    (root / label(STEMS[1])).write_bytes(whole[:-20])
    (root / label(STEMS[2])).unlink()
    status, _, content = run(root, "--write")
    assert (status, content["converted"]) == (0, {"written": 2, "kept": 1})
    assert (root / label(STEMS[1])).read_bytes() == whole
    assert (root / label(STEMS[0])).stat().st_mtime_ns == stamp


def test_incomplete(root):
    """An image and a map are missing: both are named, and the other maps are made."""
    (root / image(STEMS[0])).unlink()
    (root / raw(STEMS[2])).unlink()
    status, problems, content = run(root, "--write")
    assert status == 1
    assert problems == {
        "missing image": [image(STEMS[0])],
        "missing label": [label(STEMS[2])],
        "number of images": ["val has 2, the published one 3"],
    }
    assert content["converted"] == {"written": 2, "kept": 0}
    (root / "annotations").rename(root / "elsewhere")
    assert run(root, "--write")[1]["missing folder"] == ["annotations/val2017"]
    assert run(root / "images", "--write")[1]["missing folder"] == [
        "images/val2017",
        "annotations/val2017",
    ]


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


def wide(path: Path) -> None:
    save(path, np.full(SIZE, 1000, np.uint16))


def other_dataset(path: Path) -> None:
    save(path, np.full(SIZE, 200, np.uint8))


def coloured(path: Path) -> None:
    save(path, np.zeros((*SIZE, 3), np.uint8))


def photo(path: Path) -> None:
    Image.fromarray(np.zeros(SIZE, np.uint8)).save(path, "JPEG")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (truncated, "cannot decode"),
        (wide, "id 1000 at 480 pixels is not a raw id of this dataset"),
        (other_dataset, "id 200 at 480 pixels is not a raw id of this dataset"),
        (coloured, "colour image"),
        (photo, "JPEG"),
    ],
)
def test_broken_maps(root, damage, said):
    """The map is named with the reason, no label is made of it, and the others are."""
    damage(root / raw(STEMS[1]))
    status, problems, content = run(root, "--write")
    assert status == 1
    (line,) = problems["not converted"]
    assert line.startswith(f"{root / raw(STEMS[1])}: ")
    assert said in line
    assert problems["missing label"] == [label(STEMS[1])]
    assert content["converted"] == {"written": 2, "kept": 0}
    assert not (root / label(STEMS[1])).exists()


def test_forms_of_whole_maps(root):
    """16 bits and palettes hold the same ids."""
    save(root / raw(STEMS[0]), raw_map(0).astype(np.uint16))
    palette = Image.fromarray(raw_map(1), "P")
    palette.putpalette([n for i in range(256) for n in (i, 255 - i, i // 2)])
    palette.save(root / raw(STEMS[1]))
    assert run(root, "--write")[:2] == (0, {})
    for seed in (0, 1):
        expected = conversions.coco_object_table()[raw_map(seed)]
        np.testing.assert_array_equal(read_label(root / label(STEMS[seed])), expected)


@pytest.mark.parametrize(
    ("labels", "kind", "said"),
    [
        (raw_map(0), "raw ids", ": 81, 83, 84"),
        (np.full(SIZE, 81, np.uint8), "raw ids", ": 81"),
        (np.full(SIZE, 201, np.uint8), "ids out of range", ": 201"),
        (np.full(SIZE, 255, np.uint8), "implausible share of pixels", "id 255 has 33.3%"),
        (np.full((4, 4), 1, np.uint8), "sizes differ", ": 4 x 4, the image 20 x 24"),
        (np.zeros((*SIZE, 3), np.uint8), "colour label", STEMS[1]),
    ],
)
def test_labels_of_another_rule(root, labels, kind, said):
    run(root, "--write")
    save(root / label(STEMS[1]), labels)
    status, problems, _ = run(root)
    assert status == 1
    assert said in problems[kind][0]
