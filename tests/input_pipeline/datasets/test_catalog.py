"""Records hold what was published; indexes read the standard folders and complain clearly."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from input_pipeline.datasets import catalog
from input_pipeline.datasets.class_sets import (
    class_set,
    coco_stuff_171_labels,
    palette,
    pascal_context_raw_ids,
    readout_rows,
)
from input_pipeline.prepare.conversions import coco_stuff_27_table

RECLIP = json.loads(Path(__file__).with_name("reclip_classes.json").read_text("utf-8"))
RECORDS = {
    "VOC07_20": (20, False, False, 5),
    "VOC12_20": (20, False, True, 5),
    "VOC12_21": (21, True, False, 5),
    "VOC12_AUG": (21, True, False, 5),
    "CONTEXT_59": (59, False, True, 0),
    "CONTEXT_60": (60, True, False, 10),
    "COCO14_81": (81, True, False, 0),
    "COCO17_81": (81, True, False, 0),
    "COD_65": (65, True, False, 0),
    "COCO_STUFF_164K": (171, False, False, 15),
    "COCO_STUFF_27": (27, False, False, 0),
    "COCO_OBJECT": (81, True, False, 0),
    "ADE20K": (150, False, True, 0),
    "CITYSCAPES": (19, False, False, 0),
}


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def voc(root):
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("b\na\n")
    (lists / "aug.txt").write_text("d\n\nc\n")
    (lists / "val.txt").write_text("e\n")
    touch(root, *(f"JPEGImages/{s}.jpg" for s in "abcdex"))
    touch(root, *(f"SegmentationClass/{s}.png" for s in "abe"))
    touch(root, *(f"SegmentationClassAug/{s}.png" for s in "cd"))


@pytest.mark.parametrize("name", RECORDS)
def test_record(name):
    classes, background, reduced, unseen = RECORDS[name]
    record = getattr(catalog, name)
    assert record.name == name
    assert record.num_classes == classes == len(record.palette)
    assert len(record.prompts) == classes - background
    assert (record.background, record.reduce_zero_label) == (background, reduced)
    assert len(record.unseen) == unseen
    assert all(0 <= i < classes for i in record.unseen)
    assert record.class_names[0] == "background" or not background
    assert record.foreground == record.class_names[background:]
    assert catalog.BY_NAME[name.lower()] is record
    hash(record)


def test_every_record_is_known_by_name():
    assert [name.upper() for name in catalog.BY_NAME] == [*RECORDS]


def test_unseen_names():
    names = catalog.VOC12_21.class_names
    assert [names[i] for i in catalog.VOC12_21.unseen] == [
        *("pottedplant", "sheep", "sofa", "train", "tvmonitor")
    ]


def test_class_sets():
    for record in catalog.BY_NAME.values():
        assert len(record.class_names) == len(record.palette)
        assert all(len(colour) == 3 for colour in record.palette)
    assert len(class_set("acontext").prompts) == 459
    assert class_set("batman").prompts[:2] == ("Batman", "Joker")
    with pytest.raises(ValueError, match="'catwoman'; choose one of: voc, "):
        class_set("catwoman")


SPEC = Path(__file__).resolve().parents[3] / "docs/specs/readouts_classes.json"
READOUT_NAMES = json.loads(SPEC.read_text("utf-8"))["sets"]
DATASET_OF_NAMES = {
    "voc20": catalog.VOC12_20,
    "voc21": catalog.VOC12_21,
    "context59": catalog.CONTEXT_59,
    "context60": catalog.CONTEXT_60,
    "coco_object": catalog.COCO_OBJECT,
    "coco_stuff": catalog.COCO_STUFF_164K,
    "ade20k": catalog.ADE20K,
    "city_scapes": catalog.CITYSCAPES,
}


@pytest.mark.parametrize("name", READOUT_NAMES)
def test_readout_rows(name):
    """As specified, a class each; label 0 is the background where the dataset has one."""
    rows, spec = readout_rows(name), READOUT_NAMES[name]
    assert [list(names) for names in rows] == spec["rows"]
    assert sum(map(len, rows)) == spec["text_rows"]
    dataset = DATASET_OF_NAMES[name.partition(".")[0]]
    assert len(rows) == dataset.num_classes == spec["classes"]
    assert dataset.background == (spec["background_label"] == 0)
    # Most names are ours; the others are in order, too.
    same = sum(ours in names for ours, names in zip(dataset.class_names, rows, strict=True))
    assert same > 0.7 * len(rows)


def test_readout_sets():
    with pytest.raises(ValueError, match=r"names 'voc'; choose one of: voc20\.sclip, voc20"):
        readout_rows("voc")
    assert "trafficlight" in {name for names in readout_rows("city_scapes") for name in names}
    assert readout_rows("context60")[-1] == ("wood ",)  # the tokenizer strips it


@pytest.mark.parametrize(
    ("reclip", "record"),
    [
        ("voc", catalog.VOC12_20),
        ("context", catalog.CONTEXT_59),
        ("ade", catalog.ADE20K),
        ("cityscapes", catalog.CITYSCAPES),
        ("coco", catalog.COCO_STUFF_27),
    ],
)
def test_reclip_classes(reclip, record):
    """ReCLIP's class lists, white space included, are these records' prompts."""
    assert list(record.prompts) == RECLIP["classes"][reclip]


def test_coco_27_groups():
    table = coco_stuff_27_table()
    assert table[:182].tolist() == RECLIP["coco27_from_182"]
    assert table[255] == 255
    assert len(set(catalog.COCO_STUFF_27.palette)) == 27


def test_coco_classes():
    """COCO's 80 in its order, under CLIP-ES's names, which are VOC's where VOC has the class."""
    ours, stuff = catalog.COCO14_81.foreground, catalog.COCO_STUFF_164K.class_names[:80]
    assert {theirs: name for name, theirs in zip(ours, stuff, strict=True) if name != theirs} == {
        "motorcycle": "motorbike",
        "airplane": "aeroplane",
        "couch": "sofa",
        "potted plant": "pottedplant",
        "dining table": "diningtable",
        "tv": "tvmonitor",
    }
    assert set(catalog.VOC12_20.class_names) <= set(ours)
    assert catalog.COCO14_81.palette[:21] == catalog.VOC12_21.palette
    assert len(set(catalog.COCO14_81.palette)) == 81


def test_label_maps():
    table = coco_stuff_171_labels()
    assert (table[0], table[12], table[181], table[255]) == (0, 11, 170, 255)
    assert sorted(set(table)) == [*range(171), 255]
    assert len(pascal_context_raw_ids()) == 60


def test_palette_has_distinct_colours():
    colours = palette(60)
    assert len(set(colours)) == len(colours) == 60
    assert palette(21)[20] == class_set("voc21").palette[20]


def test_voc(tmp_path):
    voc(tmp_path / "VOCdevkit" / "VOC2012")
    aug = catalog.VOC12_20.index(tmp_path, "trainaug")  # found below the folder of datasets
    assert [example.name for example in aug] == ["b", "a", "d", "c"]
    assert [example.label_path.parent.name for example in aug] == [
        *["SegmentationClass"] * 2,
        *["SegmentationClassAug"] * 2,
    ]
    root = tmp_path / "VOCdevkit" / "VOC2012"
    assert catalog.VOC12_21.index(root, "train") == aug[:2]
    (example,) = catalog.VOC12_21.index(root)
    assert example.image_path == root / "JPEGImages" / "e.jpg"


LINES = {
    "stems": "b\na\n",
    "files": "b.jpg\na.jpg\n",
    "image labels": "b 3 14\na 0\n",
    "DeepLab's": "".join(f"/JPEGImages/{s}.jpg /SegmentationClassAug/{s}.png\n" for s in "ba"),
    "relative": "".join(f"JPEGImages/{s}.jpg SegmentationClassAug/{s}.png\n" for s in "ba"),
}


@pytest.mark.parametrize("lines", LINES)
@pytest.mark.parametrize("folder", ["Segmentation", "SegmentationAug"])
def test_voc_aug(tmp_path, folder, lines):
    """Every form of list that is in use, in either place; all labels lie in one folder."""
    touch(tmp_path, *(f"JPEGImages/{s}.jpg" for s in "abc"))
    touch(tmp_path, *(f"SegmentationClassAug/{s}.png" for s in "ab"))
    (tmp_path / "ImageSets" / folder).mkdir(parents=True)
    (tmp_path / "ImageSets" / folder / "train_aug.txt").write_text(LINES[lines])
    examples = catalog.VOC12_AUG.index(tmp_path, "train_aug")
    assert [example.name for example in examples] == ["b", "a"]
    assert examples[0].image_path == tmp_path / "JPEGImages" / "b.jpg"
    assert examples[0].label_path == tmp_path / "SegmentationClassAug" / "b.png"


def test_voc_aug_complaints(tmp_path):
    with pytest.raises(
        FileNotFoundError,
        match=r"may be ImageSets/SegmentationAug/val\.txt instead\. python -m input_pipeline\.prep",
    ):
        catalog.VOC12_AUG.index(tmp_path)
    touch(tmp_path, "JPEGImages/a.jpg", "SegmentationClassAug/a.png")
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("/JPEGImages/a.jpg /masks/a.png\n")
    with pytest.raises(
        ValueError,
        match=r"val\.txt: names labels like /masks/a\.png, but .* are in SegmentationClassAug/;",
    ):
        catalog.VOC12_AUG.index(tmp_path)


def test_coco_as_weclip_has_it(tmp_path):
    """Images under their whole names, label maps under the numbers alone."""
    for split in ("train", "val"):
        stems = [f"COCO_{split}2014_{n:012d}" for n in (9, 25)]
        touch(tmp_path, *(f"JPEGImages/{split}/{stem}.jpg" for stem in stems))
        touch(tmp_path, *(f"SegmentationClass/{split}/{n:012d}.png" for n in (9, 25)))
        (tmp_path / "coco14").mkdir(exist_ok=True)
        (tmp_path / f"coco14/{split}.txt").write_text("".join(f"{stem}\n" for stem in stems))
        examples = catalog.COCO14_81.index(tmp_path, split)
        assert [each.name for each in examples] == stems
        folder = tmp_path / "SegmentationClass" / split
        assert [each.label_path for each in examples] == [folder / f"{n:012d}.png" for n in (9, 25)]
        assert examples[0].image_path == tmp_path / "JPEGImages" / split / f"{stems[0]}.jpg"
    (tmp_path / "SegmentationClass/train/000000000025.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"SegmentationClass/train: 000000000025\.png"):
        catalog.COCO14_81.index(tmp_path, "train")


def test_camouflaged_animals(tmp_path):
    touch(tmp_path, "JPEGImages/b.jpg", "JPEGImages/a.jpg")
    touch(tmp_path, "SegmentationClassAug/b.png", "SegmentationClassAug/a.png")
    with pytest.raises(FileNotFoundError, match="1 to 64 in the published order, 255 ignored"):
        catalog.COD_65.index(tmp_path, "train")
    (tmp_path / "train.txt").write_text("b\na\n")
    examples = catalog.COD_65.index(tmp_path, "train")
    assert [each.label_path.name for each in examples] == ["b.png", "a.png"]
    assert catalog.COD_65.class_names[1] == catalog.COD_65.foreground[0] == "Deer"
    assert len(set(catalog.COD_65.palette)) == 65


def test_without_label_maps(tmp_path):
    """For what needs image labels alone."""
    voc(tmp_path)
    (tmp_path / "SegmentationClass" / "e.png").unlink()
    with pytest.raises(FileNotFoundError, match="1 of 1 files are missing"):
        catalog.VOC12_21.index(tmp_path)
    (example,) = catalog.VOC12_21.index(tmp_path, labels=False)
    assert (example.name, example.label_path) == ("e", None)


def test_voc07(tmp_path):
    root = tmp_path / "VOCdevkit" / "VOC2007"
    touch(root, "JPEGImages/000001.jpg")
    (root / "ImageSets" / "Main").mkdir(parents=True)
    (root / "ImageSets" / "Main" / "test.txt").write_text("000001\n")
    (example,) = catalog.VOC07_20.index(tmp_path, "test")
    assert example.label_path is None


@pytest.mark.parametrize(
    "folder", ["train2014", "images/train2014", "JPEGImages/train2014", "JPEGImages"]
)
@pytest.mark.parametrize("listed", ["ImageSets/train2014.txt", "coco14/train.txt"])
def test_coco14(tmp_path, folder, listed):
    """The folders of the download and of the published code, with our list or CLIP-ES's."""
    stem = "COCO_train2014_000000000009"
    touch(tmp_path, f"{folder}/{stem}.jpg", f"SegmentationClass/{stem}.png", listed)
    (tmp_path / listed).write_text(f"{stem} 45 49 50\n")
    (example,) = catalog.COCO14_81.index(tmp_path, "train")
    assert example.name == stem
    assert example.image_path == tmp_path / folder / f"{stem}.jpg"
    assert example.label_path == tmp_path / "SegmentationClass" / f"{stem}.png"


def test_coco_needs_a_list(tmp_path):
    touch(tmp_path, "val2017/000000000139.jpg")
    with pytest.raises(FileNotFoundError) as error:
        catalog.COCO17_81.index(tmp_path)
    assert str(error.value) == (
        f"No split list {tmp_path / 'ImageSets/val2017.txt'}. Split val needs, below the root "
        "(usually COCO2017): val2017/*.jpg, SegmentationClass/*.png, ImageSets/val2017.txt. "
        "Images may be in images/val2017 or JPEGImages/val2017 or JPEGImages instead. "
        "The list may be imageset/coco2017/val.txt instead. "
        "python -m input_pipeline.prepare coco17 --root DIR --write makes lists and labels from "
        "the annotations."
    )


def test_context(tmp_path):
    lists = tmp_path / "ImageSets" / "SegmentationContext"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("2008_000002\n")
    touch(tmp_path, "JPEGImages/2008_000002.jpg", "SegmentationClassContext/2008_000002.png")
    for record in (catalog.CONTEXT_59, catalog.CONTEXT_60):
        (example,) = record.index(tmp_path, "val")
        assert example.label_path == tmp_path / "SegmentationClassContext" / "2008_000002.png"


def test_coco_stuff(tmp_path):
    for stem in ("000000000785", "000000000139"):
        touch(
            tmp_path,
            f"images/val2017/{stem}.jpg",
            f"annotations/val2017/{stem}_labelTrainIds.png",
            f"annotations/val2017/{stem}.png",
        )
    examples = catalog.COCO_STUFF_164K.index(tmp_path)
    assert [example.name for example in examples] == ["000000000139", "000000000785"]
    assert examples[0].label_path.name == "000000000139_labelTrainIds.png"


def test_coco_stuff_27(tmp_path):
    stem = "000000000139"
    for suffix in (".png", "_labelTrainIds.png", "_27labelTrainIds.png"):
        touch(tmp_path, f"images/val2017/{stem}.jpg", f"annotations/val2017/{stem}{suffix}")
    (example,) = catalog.COCO_STUFF_27.index(tmp_path)
    assert example.label_path.name == f"{stem}_27labelTrainIds.png"
    (example,) = catalog.COCO_STUFF_164K.index(tmp_path)
    assert example.label_path.name == f"{stem}_labelTrainIds.png"


def test_coco_object(tmp_path):
    stem = "000000000139"
    for suffix in (".png", "_labelTrainIds.png", "_instanceTrainIds.png"):
        touch(tmp_path, f"images/val2017/{stem}.jpg", f"annotations/val2017/{stem}{suffix}")
    (example,) = catalog.COCO_OBJECT.index(tmp_path)
    assert example.label_path.name == f"{stem}_instanceTrainIds.png"
    assert catalog.COCO_OBJECT.class_names == catalog.COCO17_81.class_names
    example.label_path.unlink()
    with pytest.raises(FileNotFoundError, match="prepare coco_object --root DIR --write makes"):
        catalog.COCO_OBJECT.index(tmp_path)


def test_cityscapes_lists(tmp_path):
    """ReCLIP's lists give the order where they are there; else the folder does."""
    for stem in ("ulm/ulm_000000_000019", "aachen/aachen_000001_000019"):
        touch(
            tmp_path,
            f"leftImg8bit/train/{stem}_leftImg8bit.png",
            f"gtFine/train/{stem}_gtFine_labelTrainIds.png",
        )
    names = ["aachen/aachen_000001_000019", "ulm/ulm_000000_000019"]
    assert [e.name for e in catalog.CITYSCAPES.index(tmp_path, "train")] == names
    (tmp_path / "train.txt").write_text("\n".join(reversed(names)))
    listed = catalog.CITYSCAPES.index(tmp_path, "train")
    assert [e.name for e in listed] == names[::-1]
    assert listed[0].image_path == tmp_path / "leftImg8bit/train" / f"{names[1]}_leftImg8bit.png"
    (tmp_path / "train.txt").write_text("leftImg8bit/train/ulm.png\n")
    with pytest.raises(FileNotFoundError, match=r"1 of 1 files are missing .* \(see train\.txt\)"):
        catalog.CITYSCAPES.index(tmp_path, "train")


@pytest.mark.parametrize("below", ["", "ADEChallengeData2016", "ade/ADEChallengeData2016"])
def test_ade_roots(tmp_path, below):
    root = tmp_path / below
    touch(root, "images/training/A.jpg", "annotations/training/A.png")
    (example,) = catalog.ADE20K.index(tmp_path, "train")
    assert example.image_path == root / "images/training/A.jpg"


@pytest.mark.parametrize("count", [4996, 4998])
def test_either_published_count(tmp_path, caplog, count):
    """MaskCLIP's and ReCLIP's lists of Pascal Context differ."""
    layout = catalog.CONTEXT_59.layout
    with caplog.at_level(logging.WARNING):
        layout.warn_of_count(tmp_path, "train", count)
        assert not caplog.text
        layout.warn_of_count(tmp_path, "train", 4997)
    assert "has 4997 images, the published one 4998 or 4996;" in caplog.text


def test_cityscapes_and_ade(tmp_path):
    touch(
        tmp_path / "city",
        "leftImg8bit/val/ulm/ulm_0_leftImg8bit.png",
        "gtFine/val/ulm/ulm_0_gtFine_labelTrainIds.png",
    )
    (example,) = catalog.CITYSCAPES.index(tmp_path / "city")
    assert example.name == "ulm/ulm_0"
    assert example.label_path.name == "ulm_0_gtFine_labelTrainIds.png"
    touch(tmp_path / "ade", "images/validation/A.jpg", "annotations/validation/A.png")
    assert [e.name for e in catalog.ADE20K.index(tmp_path / "ade")] == ["A"]


def test_warns_of_another_count(tmp_path, caplog):
    voc(tmp_path)
    with caplog.at_level(logging.WARNING):
        catalog.VOC12_20.index(tmp_path)
    assert "has 1 images, the published one 1449" in caplog.text


def test_folders(tmp_path):
    touch(tmp_path, "images/b.png", "images/a.JPG", "images/sub/a.png", "images/notes.txt")
    touch(tmp_path, "labels/b.png", "labels/a.png", "labels/sub/a.png", "images/.hidden.png")
    record = catalog.folder(tmp_path, ["background", "cat"], background=True)
    assert record.prompts == ("cat",)
    examples = record.index("")
    assert [e.name for e in examples] == ["a", "b", "sub/a"]
    assert examples == record.index(tmp_path)

    touch(tmp_path, "images/b.jpg")
    plain = catalog.folder(tmp_path, ("cat", "dog"), labels=None)
    names = [e.name for e in plain.index(tmp_path)]
    assert names == ["a", "b.jpg", "b.png", "sub/a"]
    assert all(e.label_path is None for e in plain.index(""))
    with pytest.raises(ValueError, match="at least one name"):
        catalog.folder(tmp_path, "cat")


def test_errors_name_path_and_layout(tmp_path):
    record = catalog.VOC12_20
    with pytest.raises(ValueError, match="no split 'test'; choose one of: train, trainaug, val"):
        record.index(tmp_path, "test")
    with pytest.raises(FileNotFoundError, match=r"nowhere is not a folder.*JPEGImages/\*\.jpg"):
        record.index(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"JPEGImages.*usually VOCdevkit/VOC2012"):
        record.index(tmp_path)
    voc(tmp_path)
    (tmp_path / "JPEGImages" / "e.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 1 files are missing in .*: e\.jpg"):
        record.index(tmp_path)
    (tmp_path / "SegmentationClassAug" / "c.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 2 files are missing in .*: c\.png"):
        record.index(tmp_path, "trainaug")
    (tmp_path / "ImageSets" / "Segmentation" / "train.txt").write_text("a\na\n")
    with pytest.raises(ValueError, match="listed twice"):
        record.index(tmp_path, "train")
    (tmp_path / "ImageSets" / "Segmentation" / "val.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"No split list .*val\.txt"):
        record.index(tmp_path)
    (tmp_path / "empty" / "images").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="No images in"):
        catalog.folder(tmp_path / "empty", ["cat"], labels=None).index("")
    with pytest.raises(FileNotFoundError, match="gone is not a folder"):
        catalog.folder(tmp_path / "gone", ["cat"], labels=None).index("")


def test_index_then_read(tmp_path):
    """The record's own label rule and number of classes fit `read_label`."""
    from input_pipeline.datasets.images import read_label

    voc(tmp_path)
    ids = np.array([[0, 1, 20, 255]], np.uint8)
    (example,) = catalog.VOC12_20.index(tmp_path)
    Image.fromarray(ids).save(example.label_path)
    record = catalog.VOC12_20
    label = read_label(
        example.label_path, record.num_classes, reduce_zero_label=record.reduce_zero_label
    )
    assert label.tolist() == [[255, 0, 19, 255]]
    assert read_label(example.label_path, 21).tolist() == ids.tolist()
