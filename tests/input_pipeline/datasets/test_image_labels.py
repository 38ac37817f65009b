"""Image labels of each source, in the published order; bad files are named and the others go on."""

import json
import logging

import numpy as np
import pytest
from PIL import Image

from input_pipeline.datasets import catalog
from input_pipeline.datasets import image_labels as module
from input_pipeline.datasets.catalog import (
    COCO14_81,
    COCO_STUFF_27,
    VOC07_20,
    VOC12_20,
    VOC12_21,
    VOC12_AUG,
)
from input_pipeline.datasets.image_labels import NO_OBJECT, has_annotations, image_labels
from input_pipeline.datasets.images import BadFile
from tests.input_pipeline import coco_files

OBJECT = "<object><name>{}</name>{}<part><name>head</name></part></object>"
XMLS = {
    "c": [("person", "<difficult>1</difficult>"), ("dog", ""), ("person", "")],
    "a": [("tvmonitor", "<truncated>1</truncated>"), ("aeroplane", "")],
    **{stem: [("cat", "")] for stem in "bdefg"},
}


@pytest.fixture(autouse=True)
def no_count_warning(caplog):
    caplog.set_level(logging.ERROR, logger="input_pipeline.datasets.layout")


def write_xml(root, stem, objects):
    path = root / "Annotations" / f"{stem}.xml"
    path.parent.mkdir(parents=True, exist_ok=True)
    inside = "".join(OBJECT.format(name, more) for name, more in objects)
    path.write_text(f"<annotation><filename>{stem}.jpg</filename>{inside}</annotation>")
    return path


def voc(root, stems="cab", split="ImageSets/Segmentation/train"):
    (root / split).parent.mkdir(parents=True, exist_ok=True)
    (root / f"{split}.txt").write_text("".join(f"{stem}\n" for stem in stems))
    (root / "JPEGImages").mkdir(exist_ok=True)
    for stem in stems:
        (root / "JPEGImages" / f"{stem}.jpg").touch()
        write_xml(root, stem, XMLS[stem])
    return root


def test_voc(tmp_path):
    """Every object counts, in order of first appearance; no label maps are needed."""
    result = image_labels(VOC12_AUG, voc(tmp_path), "train")
    assert result.labels == [(14, 11), (19, 0), (7,)]
    assert result.problems == []
    assert [VOC12_AUG.foreground[i] for i in result.labels[0]] == ["person", "dog"]
    for record in (VOC12_20, VOC12_21):  # the same ids, whatever the rule of the label maps
        assert image_labels(record, tmp_path, "train") == result
    some = VOC12_AUG.index(tmp_path, "train", labels=False)[2:0:-1]
    assert image_labels(VOC12_AUG, tmp_path, "train", some).labels == [(7,), (19, 0)]
    voc(tmp_path / "VOCdevkit" / "VOC2007", "bc", "ImageSets/Main/test")
    assert image_labels(VOC07_20, tmp_path, "test").labels == [(7,), (14, 11)]


def test_bad_xml_is_named_and_the_others_go_on(tmp_path):
    voc(tmp_path, "abcdefg")
    folder = tmp_path / "Annotations"
    write_xml(tmp_path, "b", [("unicorn", ""), ("cat", ""), ("gnu", ""), ("unicorn", "")])
    write_xml(tmp_path, "c", [])
    (folder / "d.xml").unlink()
    (folder / "e.xml").write_bytes((folder / "e.xml").read_bytes()[:-20])
    (folder / "f.xml").write_bytes(b"")
    result = image_labels(VOC12_AUG, tmp_path, "train", on_bad="skip")
    assert result.labels == [(19, 0), (7,), (), (), (), (), (7,)]
    reasons = dict(result.problems)
    assert list(reasons) == list("bcdef")
    assert reasons["b"] == "unknown class 'unicorn', 'gnu', left out"
    assert reasons["c"] == "shows no object of the dataset's classes"
    assert reasons["d"] == "there is no Annotations/d.xml"
    assert reasons["e"].startswith("cannot read Annotations/e.xml (unclosed token")
    assert reasons["f"].startswith("cannot read Annotations/f.xml (no element found")
    # An image without objects is no bad file.
    with pytest.raises(BadFile, match="4 of 7 images have image labels that cannot be") as error:
        image_labels(VOC12_AUG, tmp_path, "train")
    assert "\n  d: there is no Annotations/d.xml\n" in str(error.value)
    assert "\n  c: " not in str(error.value)
    for stem in "bdef":
        write_xml(tmp_path, stem, XMLS[stem])
    assert image_labels(VOC12_AUG, tmp_path, "train").problems == [("c", reasons["c"])]


def test_label_maps_instead(tmp_path):
    """What the maps show counts if it is asked for, ascending, whatever the annotations say."""
    voc(tmp_path)
    folder = tmp_path / "SegmentationClassAug"
    folder.mkdir()
    for stem, ids in {"c": [0, 20, 3, 255], "a": [0, 255], "b": [1]}.items():
        Image.fromarray(np.asarray([ids], np.uint8)).save(folder / f"{stem}.png")
    result = image_labels(VOC12_AUG, tmp_path, "train", maps=True, cache=tmp_path / "work")
    assert result.labels == [(2, 19), (), (0,)]
    assert result.problems == [("a", NO_OBJECT)]
    annotated = image_labels(VOC12_AUG, tmp_path, "train", cache=tmp_path / "work")
    assert annotated.labels == [(14, 11), (19, 0), (7,)]
    assert len(list((tmp_path / "work").iterdir())) == 2  # neither is taken for the other
    assert image_labels(VOC12_AUG, tmp_path, "train", maps=True, cache=tmp_path / "work") == result
    (folder / "b.png").write_bytes(b"")
    with pytest.raises(BadFile, match=r"b: .*b\.png: not a label map"):
        image_labels(VOC12_AUG, tmp_path, "train", maps=True, cache=tmp_path / "work")


def test_no_annotations_at_all(tmp_path):
    voc(tmp_path)
    (tmp_path / "Annotations").rename(tmp_path / "elsewhere")
    assert not has_annotations(VOC12_AUG, tmp_path, "train")
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*Annotations; unpack the"):
        image_labels(VOC12_AUG, tmp_path, "train", on_bad="skip")
    (tmp_path / "elsewhere").rename(tmp_path / "Annotations")
    assert has_annotations(VOC12_AUG, tmp_path, "train")


OBJECTS = {
    "COCO_train2014_000000000025.jpg": [
        coco_files.thing(58, coco_files.box(0, 0, 4, 4)),
        coco_files.thing(0, coco_files.box(0, 0, 4, 4), iscrowd=1),
        coco_files.thing(58, coco_files.box(4, 4, 4, 4)),
    ],
    "COCO_train2014_000000000009.jpg": [coco_files.thing(79, coco_files.box(0, 0, 2, 2))],
    "COCO_train2014_000000000030.jpg": [],
}
NAMES = [f"COCO_train2014_{number:012d}" for number in (9, 25)]


def coco(root, lines=tuple(NAMES), listed="coco14/train.txt"):
    path = coco_files.write(root, OBJECTS, "train2014")
    (root / listed).parent.mkdir(parents=True, exist_ok=True)
    (root / listed).write_text("".join(f"{line}\n" for line in lines))
    return path


def test_coco(tmp_path):
    """From the objects, crowds included, ascending; or from the list, in its order."""
    coco(tmp_path)
    expected = [(79,), (0, 58)]
    assert image_labels(COCO14_81, tmp_path, "train").labels == expected
    assert [COCO14_81.foreground[i] for i in (0, 58, 79)] == ["person", "pottedplant", "toothbrush"]
    coco(tmp_path, [f"{NAMES[1]} 58 0 58", f"{NAMES[0]} 3"])
    result = image_labels(COCO14_81, tmp_path, "train", cache=tmp_path / "work")
    assert result == ([(58, 0), (3,)], [])
    assert not (tmp_path / "work").exists()  # a list is as fast as a cache of it
    coco(tmp_path, [f"{NAMES[1]} 58 80", NAMES[0]])
    result = image_labels(COCO14_81, tmp_path, "train", on_bad="skip")
    assert result.labels == [(58,), ()]
    assert dict(result.problems) == {
        NAMES[1]: "unknown class 80, left out",
        NAMES[0]: "shows no object of the dataset's classes",
    }


def test_bad_coco_annotations(tmp_path):
    path = coco(tmp_path, [*NAMES, "COCO_train2014_000000000031"])
    (tmp_path / "train2014" / "COCO_train2014_000000000031.jpg").touch()
    content = json.loads(path.read_text())
    content["annotations"][0]["category_id"] = 12  # a gap in COCO's numbers
    path.write_text(json.dumps(content))
    result = image_labels(COCO14_81, tmp_path, "train", on_bad="skip")
    assert result.labels == [(79,), (0, 58), ()]
    assert result.problems == [
        (NAMES[1], "unknown category 12, left out"),
        ("COCO_train2014_000000000031", "is not in instances_train2014.json"),
    ]
    content["categories"][0]["name"] = "unicorn"
    for damaged, said in (
        (json.dumps(content), "category 1 is 'unicorn'; COCO's is 'person'"),
        (json.dumps(content)[:-100], "cannot read COCO's objects .*; unpack annotations_trainval"),
        ("[]", "cannot read COCO's objects"),
        ('{"images": []}', "cannot read COCO's objects .categories is no list"),
        (None, "no such file; unpack COCO's annotations"),
    ):
        path.write_text(damaged) if damaged else path.unlink()
        with pytest.raises(BadFile, match=said):
            image_labels(COCO14_81, tmp_path, "train", on_bad="skip")


def test_coco_stuff(tmp_path):
    """TagCLIP's list has ids of the 182 classes; they become those of the 171."""
    stems = ["000000000139", "000000000632"]
    for stem in stems:
        for name in (
            f"images/val2017/{stem}.jpg",
            f"annotations/val2017/{stem}_27labelTrainIds.png",
        ):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
    assert not has_annotations(COCO_STUFF_27, tmp_path, "tagclip_val")
    with pytest.raises(
        FileNotFoundError, match=r"No split list .*imageset/cocostuff/val\.txt is Tag"
    ):
        COCO_STUFF_27.index(tmp_path, "tagclip_val")
    (tmp_path / "imageset/cocostuff").mkdir(parents=True)
    listed = tmp_path / "imageset/cocostuff/val.txt"
    listed.write_text(f"{stems[0]} 0 12 181\n{stems[1]} 11 13\n")
    assert [e.name for e in COCO_STUFF_27.index(tmp_path, "tagclip_val")] == stems
    result = image_labels(COCO_STUFF_27, tmp_path, "tagclip_val", on_bad="skip")
    assert result.labels == [(0, 11, 170), (12,)]
    assert result.problems == [(stems[1], "unknown class 255, left out")]
    assert [COCO_STUFF_27.image_class_labels[i] for i in result.labels[0]] == [9, 8, 24]
    listed.write_text(f"{stems[0]}\n{stems[1]}\n")
    with pytest.raises(FileNotFoundError, match=r"no list with ids .*imageset/cocostuff/val\.txt"):
        image_labels(COCO_STUFF_27, tmp_path, "tagclip_val")


def labelled(root, ids):
    (root / "images").mkdir(parents=True)
    (root / "labels").mkdir()
    for name, values in ids.items():
        (root / "images" / f"{name}.png").touch()
        label = np.array([values], np.uint8)
        Image.fromarray(label).save(root / "labels" / f"{name}.png")


def test_label_maps(tmp_path):
    """Any other dataset has the labels that its maps show, without background and ignored ones."""
    labelled(tmp_path, {"a": [2, 0, 255, 2, 1], "b": [0, 0, 0, 255, 0], "c": [1, 1, 1, 1, 1]})
    record = catalog.folder(tmp_path, ["background", "cat", "dog"], background=True)
    result = image_labels(record, "", "val")
    assert result.labels == [(0, 1), (), (0,)]
    assert result.problems == [("b", "shows no object of the dataset's classes")]
    reduced = catalog.folder(tmp_path, ["cat", "dog"], reduce_zero_label=True)
    assert image_labels(reduced, "", "val").labels == result.labels
    plain = catalog.folder(tmp_path, ["ground", "cat", "dog"])
    assert image_labels(plain, "", "val").labels == [(0, 1, 2), (0,), (1,)]
    content = (tmp_path / "labels" / "c.png").read_bytes()
    (tmp_path / "labels" / "c.png").write_bytes(content[:-25])
    (tmp_path / "labels" / "b.png").write_bytes(b"")
    fewer = catalog.folder(tmp_path, ["background", "cat"], background=True)
    result = image_labels(fewer, "", "val", on_bad="skip")
    assert result.labels == [(), (), ()]
    assert "label 2 at 2 pixels is out of range" in result.problems[0][1]
    assert "not a label map" in result.problems[1][1]
    assert "cannot decode the label map" in result.problems[2][1]
    bare = catalog.folder(tmp_path, ["cat"], labels=None)
    assert image_labels(bare, "", "val", on_bad="skip").problems[0] == ("a", "has no label map")


def test_cache(tmp_path, monkeypatch, caplog):
    """What was read is kept; what changed, failed or is new is read again."""
    caplog.set_level(logging.WARNING)
    root, cache = voc(tmp_path / "voc"), tmp_path / "work"
    parsed = []
    parse = module.ElementTree.parse
    monkeypatch.setattr(
        module.ElementTree, "parse", lambda path: (parsed.append(path.stem), parse(path))[1]
    )

    def read(record=VOC12_AUG):
        parsed.clear()
        result = image_labels(record, root, "train", cache=cache, on_bad="skip")
        return result.labels, sorted(parsed)

    (root / "Annotations" / "b.xml").write_text("<annotation>")
    assert read() == ([(14, 11), (19, 0), ()], ["a", "b", "c"])
    (file,) = cache.iterdir()
    assert file.name == "image_labels_VOC12_AUG_train.json"
    assert read() == ([(14, 11), (19, 0), ()], ["b"])
    write_xml(root, "b", XMLS["b"])
    write_xml(root, "a", [("train", ""), ("boat", ""), ("boat", "")])
    assert read() == ([(14, 11), (18, 3), (7,)], ["a", "b"])
    assert read() == ([(14, 11), (18, 3), (7,)], [])
    stamp = file.stat().st_mtime_ns
    (root / "ImageSets/Segmentation/train.txt").write_text("b\nc\n")  # another list, no new file
    assert read() == ([(7,), (14, 11)], [])
    assert file.stat().st_mtime_ns == stamp
    # A damaged cache, or one of other classes, is none.
    whole = file.read_text()
    for content in (whole[:-5], "[]", '{"format":1}', whole.replace("aeroplane", "plane")):
        file.write_text(content)
        assert read() == ([(7,), (14, 11)], ["b", "c"])
    assert caplog.text.count("damaged; reading the image labels again") == 3
    assert [path.name for path in cache.iterdir()] == [file.name]


def test_cache_that_cannot_be_written(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    (tmp_path / "file").touch()
    result = image_labels(VOC12_AUG, voc(tmp_path / "voc"), "train", cache=tmp_path / "file" / "x")
    assert len(result.labels) == 3
    assert "image labels are not cached: cannot write" in caplog.text
    assert "damaged" not in caplog.text


def test_coco_cache_opens_no_annotations(tmp_path, monkeypatch):
    path = coco(tmp_path)
    options = {"cache": tmp_path / "work"}
    result = image_labels(COCO14_81, tmp_path, "train", **options)
    monkeypatch.setattr(module, "read_instances", None)
    assert image_labels(COCO14_81, tmp_path, "train", **options) == result
    path.touch()
    with pytest.raises(TypeError):
        image_labels(COCO14_81, tmp_path, "train", **options)
