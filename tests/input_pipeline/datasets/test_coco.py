"""COCO's objects drawn as masks and listed, from the command down, whole, stopped and damaged."""

import dataclasses
import json
import os

import numpy as np
import pytest

pytest.importorskip("pycocotools")

from pycocotools import mask as rle

from input_pipeline import writing
from input_pipeline.datasets import coco, coco_outlines
from input_pipeline.datasets.catalog import COCO14_81, COCO17_81
from input_pipeline.datasets.image_labels import image_labels
from input_pipeline.datasets.images import BadFile, BadLabel, read_label
from input_pipeline.prepare.__main__ import main
from input_pipeline.prepare.preparations import PREPARATIONS
from tests.input_pipeline.coco_files import SIZE, box, category, instances, thing, write


def drawn(label, outline, area=1.0):
    return coco.Object(label, area, coco_outlines.pack(outline), 77)


def coded(top, left, height, width, compress):
    """A run-length code of whole pixels, as COCO's crowds have it or packed."""
    inside = np.zeros(SIZE, np.uint8)
    inside[top : top + height, left : left + width] = 1
    if compress:
        code = rle.encode(np.asfortranarray(inside))
        return {"size": list(SIZE), "counts": code["counts"].decode()}
    flat = inside.T.ravel()
    edges = np.flatnonzero(np.diff(np.concatenate(([0], flat, [1 - flat[-1]]))))
    return {"size": list(SIZE), "counts": np.diff([0, *edges]).tolist()}


def test_smaller_objects_are_on_top():
    objects = [
        drawn(1, box(2, 2, 6, 6), 36.0),
        drawn(0, box(0, 0, 20, 30), 600.0),
        drawn(2, box(4, 4, 6, 6), 36.0),  # as large as the first, which stays on top
        drawn(79, box(3, 3, 1, 1), 1.0),
    ]
    labels = coco.draw(coco.AnnotatedImage("x", SIZE, objects))
    assert (labels.dtype, labels.shape) == (np.uint8, SIZE)
    expected = np.zeros(SIZE, np.uint8)
    expected[:20, :30] = 1
    expected[4:10, 4:10] = 3
    expected[2:8, 2:8] = 2
    expected[3, 3] = 80
    np.testing.assert_array_equal(labels, expected)


@pytest.mark.parametrize("compress", [False, True])
def test_outlines(compress):
    """Polygons in parts, and run-length codes, of which crowds are drawn as their class."""
    parts = [*box(0, 0, 2, 2), *box(10, 10, 3, 4)]
    labels = coco.draw(
        coco.AnnotatedImage("x", SIZE, [drawn(5, parts), drawn(0, coded(20, 36, 4, 4, compress))])
    )
    expected = np.zeros(SIZE, np.uint8)
    expected[:2, :2] = expected[10:13, 10:14] = 6
    expected[20:, 36:] = 1
    np.testing.assert_array_equal(labels, expected)
    assert not coco.draw(coco.AnnotatedImage("x", SIZE)).any()


FULL = SIZE[0] * SIZE[1]


@pytest.mark.parametrize(
    ("outline", "said"),
    [
        (None, "neither polygons nor"),
        ("abc", "neither polygons nor"),
        ([["a", "b"]], "not a list of polygons"),
        (box(0, 0, 5, 5)[0], "not a list of polygons"),
        ([box(0, 0, 5, 5)], "not a list of polygons"),
        ([[1, 1, 9, 1, 9]], "5 coordinates, an odd number"),
        ([[1, 1, 9, 1, 9, float("nan")]], "not finite"),
        ([[1, 1, 9, 1, 9, float("-inf")]], "not finite"),
        ([[0, 0, 1e9, 0, 1e9, 1e9]], r"coordinate 1e\+09, far outside of the image of 24 x 40"),
        ([[0, 0, 1e300, 0, 1e300, -1e300]], "far outside"),
        ([[-40, -40, 80, 80] * 10_000], "longer than 2097152 pixels"),
        ([[0, 0, 1, 1, 2, 0]] * 10_001, "10001 polygons"),
        ({"size": [3, 4], "counts": [12]}, r"is for an image of \[3, 4\]"),
        ({"size": [30000, 30000], "counts": [0, 900000000]}, "is for an image of"),
        ({"counts": [FULL]}, "is for an image of None"),
        ({"size": [float(SIZE[0]), SIZE[1]], "counts": [FULL]}, "is for an image of .24.0, 40"),
        ({"size": list(SIZE)}, "not whole numbers"),
        ({"size": list(SIZE), "counts": [True] * FULL}, "not whole numbers"),
        ({"size": list(SIZE), "counts": [FULL + 1]}, "is of 961 pixels, the image of 960"),
        ({"size": list(SIZE), "counts": [FULL + 1, -1]}, "not whole numbers"),
        ({"size": list(SIZE), "counts": [FULL, 0.0]}, "not whole numbers"),
        ({"size": list(SIZE), "counts": "0P"}, "cut short"),
        ({"size": list(SIZE), "counts": "00\u00e4"}, "damaged"),
        ({"size": list(SIZE), "counts": "P" * 99}, "damaged"),
        ({"size": list(SIZE), "counts": "0"}, "is of 0 pixels"),
    ],
)
def test_outlines_that_cannot_be_drawn(outline, said):
    image = coco.AnnotatedImage("x", SIZE, [drawn(0, box(0, 0, 2, 2)), drawn(3, outline)])
    with pytest.raises(BadLabel, match=f"^x: cannot draw annotation 77, .* class 3 .*{said}"):
        coco.draw(image)


@pytest.mark.parametrize(
    ("size", "count", "outline", "said"),
    [
        ((13_000, 13_000), 100, box(0, 0, 9, 9), "100 objects are too many for 13000 x 13000"),
        ((2_000, 2_000), 1, box(0, 0, 2_000, 2_000) * 600, "600 polygons of 4800000 pixels take"),
        ((500, 500), 5_000, [box(0, 0, 500, 500)[0] * 40], "1 polygons of 80000 pixels take"),
    ],
)
def test_outlines_that_take_long_are_not_drawn(size, count, outline, said, monkeypatch):
    monkeypatch.setattr(rle, "frPyObjects", pytest.fail)
    with pytest.raises(BadLabel, match=said):
        coco.draw(coco.AnnotatedImage("x", size, [drawn(3, outline)] * count))


@pytest.mark.parametrize("outline", [[], [[]], [[5, 5]], [[5, 5, 20, 10]]])
def test_outlines_without_area_draw_nothing(outline):
    image = coco.AnnotatedImage("x", SIZE, [drawn(5, box(0, 0, 2, 2)), drawn(3, outline)])
    assert np.unique(coco.draw(image)).tolist() == [0, 6]


def test_packed_codes_are_read_as_pycocotools_does():
    rng = np.random.default_rng(0)
    for share in (0, 0.01, 0.5, 0.99, 1):
        inside = np.asfortranarray(rng.random((50, 70)) < share, np.uint8)
        code = rle.encode(inside)
        outline = {"size": [50, 70], "counts": code["counts"].decode()}
        np.testing.assert_array_equal(coco_outlines.mask(outline, (50, 70)), inside)


def changed(key, index=0, **values):
    content = instances({"a.jpg": [thing(0, box(0, 0, 2, 2))], "b.jpg": []})
    content[key][index].update(values)
    return json.dumps(content)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (changed("images", height=-5), r"image 0 has the height and width \(-5, 40\)"),
        (changed("images", height=20.5), "image 0 has the height"),
        (changed("images", width=None), "image 0 has the height"),
        (changed("images", width=True), "image 0 has the height"),
        (changed("images", height=10**6, width=10**6), "image 0 of 1000000 x 1000000 has over"),
        (changed("images", file_name=None), "image 0 has the file_name None"),
        (changed("images", file_name="a\0.jpg"), "image 0 has the file_name"),
        (changed("images", file_name="x/b.png"), "images 0 and 1 are both called b"),
        (changed("images", id=1), "image id 1 is .* given twice"),
        (changed("images", id=[1]), r"image id \[1\]"),
        (changed("annotations", area=None), "annotation 100 has the area None"),
        (changed("images", id=True), "image id True is no number"),
        (changed("annotations", area=True), "annotation 100 has the area True"),
        (changed("annotations", image_id=False), "annotation 100 has the image_id False"),
        (changed("annotations", image_id=0.0), "annotation 100 has the image_id 0.0"),
        (changed("annotations", category_id=True), "annotation 100 has the category_id True"),
        (changed("categories", id=True), "category True is called 'person'"),
        (changed("annotations", area="x"), "annotation 100 has the area 'x'"),
        (changed("annotations", area=float("nan")), "annotation 100 has the area nan"),
        (changed("annotations", area=10**400), "annotation 100 has the area 1000"),
        (changed("annotations", image_id=9), "annotation 100 has the image_id 9"),
        (changed("annotations", image_id={}), "annotation 100 has the image_id"),
        (changed("annotations", category_id="cat"), "annotation 100 has the category_id 'cat'"),
        (changed("categories", id="x"), "category 'x' is called 'person'"),
        (changed("categories", name="tree"), "category 1 is 'tree'"),
        ("[]", "no dictionary"),
        ("{}", "categories is no list"),
        ('{"categories": [], "images": [3]}', "images is no list"),
        ('{"categories": [], "categories": []}', "'categories' is given twice"),
        ("[" * 100_000, "cannot read"),
        ('{"a":' * 100_000, "cannot read"),
        ("\udcff", "cannot read"),
    ],
)
def test_files_that_are_not_as_cocos(tmp_path, text, said):
    path = tmp_path / "i.json"
    path.write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(BadFile, match=said) as raised:
        coco.read_instances(path)
    assert str(raised.value).startswith(f"{path}: cannot read COCO's objects (")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark_is_accepted(tmp_path, encoding):
    path = tmp_path / "i.json"
    path.write_text(changed("annotations"), encoding=encoding)
    assert list(coco.read_instances(path)) == ["a", "b"]


def test_a_pipe_is_no_file_of_objects(tmp_path):
    os.mkfifo(tmp_path / "i.json")
    with pytest.raises(BadFile, match=r"i\.json is a named pipe"):
        coco.read_instances(tmp_path / "i.json")


def test_names_with_blanks_cannot_be_listed(tmp_path, capsys, tiny):
    write(tmp_path, {"my photo.jpg": every_class()}, "val2014")
    assert main(["coco14", "--root", str(tmp_path), "--write"]) == 2
    assert "'my photo' has blanks" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["COCO2014", "coco2014"])
def test_the_folder_below_the_root_in_either_case(tmp_path, name):
    (tmp_path / name).mkdir()
    assert COCO14_81.layout.resolve(tmp_path) == tmp_path / name


def test_unknown_category_is_not_drawn(tmp_path):
    content = instances({"a.jpg": [thing(0, box(0, 0, 2, 2)), thing(1, box(0, 0, 2, 2))]})
    content["annotations"][1]["category_id"] = 91
    (tmp_path / "i.json").write_text(json.dumps(content))
    (read,) = coco.read_instances(tmp_path / "i.json").values()
    assert (read.labels, read.unknown, read.size) == ((0,), [91], SIZE)
    with pytest.raises(BadLabel, match=r"^a: category 91 is not one of COCO's 80"):
        coco.draw(read)


def every_class():
    """An object of each class, on a background large enough."""
    return [thing(i, box(i // 20 * 2, i % 20 * 2, 2, 2)) for i in range(80)]


def train_and_val(root, year=2014):
    prefix = "COCO_{}2014_" if year == 2014 else ""
    for split, numbers in (("train", (3, 1, 2)), ("val", (4, 5))):
        names = [f"{prefix.format(split)}{number:012d}.jpg" for number in numbers]
        objects = {name: every_class() for name in names[1:]}
        write(root, {names[0]: [], **objects}, f"{split}{year}", year)
    return root


@pytest.fixture
def tiny(monkeypatch):
    """The command as it is, but for two and one images with objects."""
    for name, counts in (
        ("coco14", (("train", (2,)), ("val", (1,)))),
        ("coco17", (("val", (1,)),)),
    ):
        preparation = PREPARATIONS[name]
        expected = dataclasses.replace(
            preparation.expected, counts=counts, lists=(), shares=((0, 0.4, 0.9), (255, 0, 0.1))
        )
        monkeypatch.setitem(PREPARATIONS, name, dataclasses.replace(preparation, expected=expected))


def test_prepare(tmp_path, capsys, tiny):
    """From the download to a dataset that is whole, and again without work."""
    root = train_and_val(tmp_path)
    assert main(["coco14", "--root", str(root)]) == 1
    output = capsys.readouterr().out
    assert "missing list: 2\n  ImageSets/train2014.txt\n" in output
    assert "then --write makes the lists in ImageSets/ and" in output
    assert main(["coco14", "--root", str(root), "--write"]) == 0
    output = capsys.readouterr().out
    assert "  train: 2 images (published: 2)\n  val: 1 images (published: 1)\n" in output
    assert (
        "labels: 3 read, 81 of 81 classes, 66.7% of the pixels 0, 0.0% of the pixels 255" in output
    )
    assert "converted: 3, already there: 0, failed: 0" in output
    assert output.endswith("\nok\n")
    ids = " ".join(map(str, range(80)))
    lines = (root / "ImageSets/train2014.txt").read_text().splitlines()
    assert lines == [f"COCO_train2014_{number:012d} {ids}" for number in (1, 2)]
    (example,) = COCO14_81.index(root, "val")
    assert example.name == "COCO_val2014_000000000005"
    label = read_label(example.label_path, 81)
    assert label[0, :4].tolist() == [1, 1, 2, 2]
    assert image_labels(COCO14_81, root, "val").labels == [tuple(range(80))]
    # Half a file, and one that is gone, are made again; the others stay.
    first, second = sorted((root / "SegmentationClass").iterdir())[:2]
    stamp = example.label_path.stat().st_mtime_ns
    first.write_bytes(first.read_bytes()[:-3])
    second.unlink()
    assert main(["coco14", "--root", str(root), "--write"]) == 0
    assert "converted: 2, already there: 1, failed: 0" in capsys.readouterr().out
    assert example.label_path.stat().st_mtime_ns == stamp
    assert {path.suffix for path in (root / "SegmentationClass").iterdir()} == {".png"}


def test_val_alone(tmp_path, capsys, tiny):
    """TagCLIP's COCO 2017 needs no images to train on; published lists come before our own."""
    root = tmp_path / "COCO2017"
    write(root, {"000000000139.jpg": every_class(), "000000000285.jpg": []}, "images/val2017", 2017)
    assert main(["coco17", "--root", str(tmp_path), "--write"]) == 0
    assert (root / "ImageSets/val2017.txt").read_text().startswith("000000000139 0 1 2 ")
    (example,) = COCO17_81.index(tmp_path)
    assert example.image_path == root / "images/val2017/000000000139.jpg"
    (root / "ImageSets/val2017.txt").unlink()
    (root / "imageset/coco2017").mkdir(parents=True)
    (root / "imageset/coco2017/val.txt").write_text("000000000139 7\n")
    capsys.readouterr()
    assert main(["coco17", "--root", str(root), "--write"]) == 0
    assert "converted: 0, already there: 1" in capsys.readouterr().out
    assert not (root / "ImageSets/val2017.txt").exists()
    assert image_labels(COCO17_81, root, "val").labels == [(7,)]


def test_damaged(tmp_path, capsys, tiny):
    root = train_and_val(tmp_path)
    path = root / "annotations/instances_train2014.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["segmentation"] = [1, 2]
    path.write_text(json.dumps(content))
    assert main(["coco14", "--root", str(root), "--write"]) == 1
    output = capsys.readouterr().out
    assert "converted: 2, already there: 0, failed: 1" in output
    assert (
        "not converted: 1\n  COCO_train2014_000000000001: cannot draw annotation 110, an object of "
        in output
    )
    assert "missing label: 1\n  SegmentationClass/COCO_train2014_000000000001.png" in output
    path.write_text(path.read_text()[:-9])
    assert main(["coco14", "--root", str(root), "--write"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {path}: cannot read COCO's objects (")
    path.unlink()
    listed = root / "ImageSets/train2014.txt"
    listed.write_text("COCO_train2014_000000000001 0 90\nCOCO_train2014_000000000002\n")
    assert main(["coco14", "--root", str(root)]) == 1
    output = capsys.readouterr().out
    assert (
        "no image labels: 2\n"
        "  COCO_train2014_000000000001: unknown class 90, left out\n"
        "  COCO_train2014_000000000002: shows no object of the dataset's classes\n"
    ) in output
    listed.write_text("COCO_train2014_000000000001\nCOCO_train2014_000000000002\n")
    assert main(["coco14", "--root", str(root)]) == 1
    assert f"no image labels: 1\n  train: {path}: no such file\n" in capsys.readouterr().out


def test_stopped_drawing_goes_on(tmp_path, monkeypatch, tiny):
    root = train_and_val(tmp_path)
    move, calls = os.replace, []

    def failing(temporary, path):
        calls.append(path)
        if len(calls) == 4:  # after two lists and a mask
            raise KeyboardInterrupt
        move(temporary, path)

    monkeypatch.setattr(writing.os, "replace", failing)
    assert main(["coco14", "--root", str(root), "--write"]) == 130
    assert len(list((root / "SegmentationClass").iterdir())) == 1
    assert main(["coco14", "--root", str(root), "--write"]) == 0
    assert len(calls) == 4 + 2


def test_other_images(tmp_path, capsys, monkeypatch, tiny):
    """As many as published, but not the same."""
    preparation = PREPARATIONS["coco17"]
    sha = (("val", "40bd001563085fc35165329ea1ff5c5ecbdbbeef"),)  # of "123"
    expected = dataclasses.replace(preparation.expected, lists=sha)
    monkeypatch.setitem(PREPARATIONS, "coco17", dataclasses.replace(preparation, expected=expected))
    for number, code in (("123", 0), ("124", 1)):
        root = tmp_path / number
        write(root, {f"{number}.jpg": every_class()}, "val2017", 2017)
        assert main(["coco17", "--root", str(root), "--write"]) == code
    output = capsys.readouterr().out
    assert "other images: 1\n  val has as many as the published one, but others\n" in output


def test_category_numbers():
    assert [category(i) for i in (0, 10, 11, 79)] == [1, 11, 13, 90]
