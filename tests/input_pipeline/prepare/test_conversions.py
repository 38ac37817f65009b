"""Tables against known ids; raw maps become labels whole or not at all, and runs go on."""

import errno
import os

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from input_pipeline import writing
from input_pipeline.datasets.class_sets import (
    class_set,
    coco_stuff_171_labels,
    coco_stuff_171_to_27,
    pascal_context_raw_ids,
)
from input_pipeline.datasets.images import BadLabel, read_label
from input_pipeline.prepare import conversions
from input_pipeline.prepare.conversions import Job, by_table, convert
from input_pipeline.writing import CannotWrite, write_atomic

RAW = np.array([[0, 1, 181, 255], [90, 91, 181, 12]], np.uint8)


def save(path, ids):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(ids)).save(path)


def coco_jobs(root, suffix="_labelTrainIds.png"):
    return conversions.renamed_jobs(root, ["annotations/val2017"], ".png", suffix)


def names(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_coco_27_against_the_171_names():
    """COCO-Stuff's own names fall into the super-classes that they are called after."""
    to_171, to_27 = coco_stuff_171_labels(), conversions.coco_stuff_27_table()
    names_171, names_27 = class_set("stuff").names, class_set("stuff27").names
    super_class = {
        names_171[to_171[raw]]: names_27[to_27[raw]] for raw in range(182) if to_171[raw] < 255
    }
    assert len(super_class) == 171
    assert super_class["person"] == "person"
    assert super_class["car"] == "vehicle"
    assert super_class["zebra"] == "animal"
    assert super_class["pizza"] == "food things"
    assert super_class["tv"] == "electronic"
    assert super_class["tree"] == super_class["grass"] == "plant"
    assert super_class["sky-other"] == super_class["clouds"] == "sky"
    assert super_class["sea"] == super_class["river"] == "water"
    assert {v for k, v in super_class.items() if k.startswith("wall")} == {"wall"}
    assert {v for k, v in super_class.items() if k.startswith("window")} == {"window"}
    assert {v for k, v in super_class.items() if k.startswith("ceiling")} == {"ceiling"}
    assert {v for k, v in super_class.items() if k.startswith("floor")} == {"floor"}
    assert set(super_class.values()) == set(names_27)
    assert (to_27[255], to_27[182], to_27[254]) == (255, -1, -1)
    assert conversions.coco_stuff_171_table()[[0, 12, 181, 182, 255]].tolist() == [
        *(0, 11, 170, -1, 255)
    ]


def test_171_to_27():
    to_171, to_27 = coco_stuff_171_labels(), conversions.coco_stuff_27_table()
    table = coco_stuff_171_to_27()
    assert table.shape == (171,)
    raw_ids = [raw for raw in range(182) if to_171[raw] < 255]
    assert [table[to_171[raw]] for raw in raw_ids] == [to_27[raw] for raw in raw_ids]
    assert table[[0, 11, 80, 170]].tolist() == [9, 8, 17, 24]


def test_cityscapes_table():
    table = conversions.cityscapes_table()
    names_of = {7: "road", 8: "sidewalk", 11: "building", 17: "pole", 19: "traffic light"}
    names_of |= {23: "sky", 24: "person", 26: "car", 28: "bus", 31: "train", 33: "bicycle"}
    classes = class_set("city").names
    assert {raw: classes[table[raw]] for raw in names_of} == names_of
    assert sorted(i for i in table if 0 <= i < 255) == list(range(19))
    assert [int(table[i]) for i in (0, 6, 9, 18, 29, 34, 254, 255)] == [*[255] * 5, -1, -1, 255]


def test_pascal_context_table():
    table = conversions.pascal_context_table()
    assert len(table) == 460
    assert [int(table[raw]) for raw in pascal_context_raw_ids()] == list(range(60))
    assert table[[1, 3, 459]].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("suffix", "table", "expected"),
    [
        (
            "_labelTrainIds.png",
            conversions.coco_stuff_171_table,
            [[0, 1, 170, 255], [255, 80, 170, 11]],
        ),
        (
            "_27labelTrainIds.png",
            conversions.coco_stuff_27_table,
            [[9, 11, 24, 255], [4, 17, 24, 8]],
        ),
    ],
)
def test_coco(tmp_path, suffix, table, expected):
    raw = RAW.copy()
    raw[1, 0] = 90 if suffix.startswith("_27") else 11  # a gap of COCO's numbers
    folder = tmp_path / "annotations" / "val2017"
    save(folder / "000000000139.png", raw)
    done = convert(coco_jobs(tmp_path, suffix), by_table(table()))
    assert (done.written, done.kept, done.failures) == (1, 0, [])
    label = folder / f"000000000139{suffix}"
    assert read_label(label).tolist() == expected
    assert Image.open(label).mode == "L"
    # The new file is no raw map, and nothing is left to do.
    (job,) = coco_jobs(tmp_path, suffix)
    assert job == Job(folder / "000000000139.png", label, True)
    assert convert([job], by_table(table())).kept == 1


def test_cityscapes(tmp_path):
    folder = tmp_path / "gtFine" / "val" / "ulm"
    save(folder / "ulm_0_gtFine_labelIds.png", np.array([[7, 0, 33, 255]], np.uint8))
    save(folder / "ulm_0_gtFine_instanceIds.png", np.array([[26001]], np.uint16))
    jobs = conversions.renamed_jobs(
        tmp_path, ["gtFine/val"], "_gtFine_labelIds.png", "_gtFine_labelTrainIds.png"
    )
    assert convert(jobs, by_table(conversions.cityscapes_table())).written == 1
    label = read_label(folder / "ulm_0_gtFine_labelTrainIds.png")
    assert label.tolist() == [[0, 255, 18, 255]]


def test_pascal_context(tmp_path):
    raw, root = tmp_path / "trainval", tmp_path / "VOC2010"
    save(raw / "a.png", np.array([[2, 0, 458, 459]], np.uint16))
    savemat(raw / "b.mat", {"LabelMap": np.array([[454, 1]], np.uint16)})
    save(raw / "b.png", np.array([[0]], np.uint8))  # the .mat wins
    save(raw / "c.png", np.array([[460]], np.uint16))
    jobs = conversions.pascal_context_jobs(root, raw)
    done = convert(jobs, by_table(conversions.pascal_context_table()))
    folder = root / "SegmentationClassContext"
    assert read_label(folder / "a.png").tolist() == [[1, 0, 59, 0]]
    assert read_label(folder / "b.png").tolist() == [[58, 0]]
    assert done.written == 2
    assert done.failures == [f"{raw / 'c.png'}: id 460 at 1 pixels is not a raw id of this dataset"]


def sbd(root, source):
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("a\nb\n")
    (lists / "val.txt").write_text("c\n")
    (source / "cls").mkdir(parents=True)
    (source / "train.txt").write_text("e\na\nd\n")
    (source / "val.txt").write_text("c\nf\n")
    for value, stem in enumerate("acdef"):
        ids = np.array([[0, value], [20, 255]], np.uint8)
        content = {"Boundaries": np.zeros((1, 1)), "Segmentation": ids, "CategoriesPresent": [1]}
        savemat(source / "cls" / f"{stem}.mat", {"GTcls": content})


def test_sbd(tmp_path):
    root, source = tmp_path / "VOC2012", tmp_path / "SBD"
    sbd(root, source)
    (source / "cls" / "e.mat").unlink()
    for stem in "abc":
        save(root / "SegmentationClass" / f"{stem}.png", np.array([[0, 3], [20, 255]], np.uint8))
    done = convert(conversions.sbd_jobs(root, source), by_table(conversions.voc_table()))
    aug = root / "ImageSets" / "Segmentation" / "aug.txt"
    assert aug.read_text() == "d\ne\nf\n"  # SBD's images that VOC's lists do not have
    folder = root / "SegmentationClassAug"
    # VOC's own labels go there as well, as in the published folder.
    assert names(folder) == ["a.png", "b.png", "c.png", "d.png", "f.png"]
    assert read_label(folder / "c.png").tolist() == [[0, 3], [20, 255]]
    train_aug = root / "ImageSets" / "Segmentation" / "train_aug.txt"
    assert train_aug.read_text() == "a\nb\nd\ne\nf\n"
    assert read_label(folder / "d.png").tolist() == [[0, 2], [20, 255]]
    assert done.failures == [f"{source / 'cls' / 'e.mat'}: no such file"]
    # A list that is there stays: the published one has another order.
    aug.write_text("f\nd\n")
    jobs = conversions.sbd_jobs(root, source)
    assert [job.source.stem for job in jobs] == ["a", "b", "c", "f", "d"]
    assert all(job.exists for job in jobs)
    assert train_aug.read_text() == "a\nb\nd\ne\nf\n"
    aug.unlink()
    (source / "val.txt").unlink()
    with pytest.raises(ValueError, match=r"no list .*val\.txt.*Unpack both datasets completely"):
        conversions.sbd_jobs(root, source)


def test_damaged_maps_are_named_and_the_others_go_on(tmp_path):
    folder = tmp_path / "annotations" / "val2017"
    for stem in "abcde":
        save(folder / f"{stem}.png", RAW)
    whole = (folder / "b.png").read_bytes()
    (folder / "b.png").write_bytes(whole[:-30])
    (folder / "c.png").write_bytes(b"")
    save(folder / "d.png", np.full((2, 2), 200, np.uint8))
    save(folder / "e.png", np.zeros((2, 2, 3), np.uint8))
    done = convert(coco_jobs(tmp_path), by_table(conversions.coco_stuff_171_table()))
    assert done.written == 1
    assert [failure.partition(": ")[0] for failure in done.failures] == [
        str(folder / f"{stem}.png") for stem in "bcde"
    ]
    said = [failure.partition(": ")[2] for failure in done.failures]
    assert "cannot decode" in said[0]
    assert "not a label map" in said[1]
    assert said[2].startswith("id 200 at 4 pixels is not")
    assert "colour image" in said[3]
    assert [n for n in names(folder) if "TrainIds" in n] == ["a_labelTrainIds.png"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"LabelMap": np.zeros((2, 2, 2))}, "shape"),
        ({"LabelMap": np.array([[0.5]])}, "type float64"),
        ({"LabelMap": np.zeros((0, 0))}, "shape"),
        ({"Other": np.zeros((2, 2))}, "neither LabelMap nor GTcls"),
        (b"MATLAB 5.0 MAT-file, cut short", "cannot read"),
    ],
)
def test_bad_mat_files(tmp_path, content, said):
    path = tmp_path / "a.mat"
    path.write_bytes(content) if isinstance(content, bytes) else savemat(path, content)
    with pytest.raises(BadLabel, match=rf"a\.mat: cannot read the ids .*{said}|{said}"):
        conversions.read_raw(path)


def test_half_files_are_made_again(tmp_path):
    folder = tmp_path / "annotations" / "val2017"
    for stem in "ab":
        save(folder / f"{stem}.png", RAW)
    table = by_table(conversions.coco_stuff_171_table())
    convert(coco_jobs(tmp_path), table)
    half, whole = (folder / f"{stem}_labelTrainIds.png" for stem in "ab")
    expected = half.read_bytes()
    for rest in (expected[:-1], b""):
        half.write_bytes(rest)
        stamp = whole.stat().st_mtime_ns
        done = convert(coco_jobs(tmp_path), table)
        assert (done.written, done.kept) == (1, 1)
        assert half.read_bytes() == expected
        assert whole.stat().st_mtime_ns == stamp


class Stopped(BaseException):
    pass


@pytest.mark.parametrize(
    ("trouble", "raised", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), CannotWrite, "No space left on device"),
        (Stopped(), Stopped, None),
    ],
)
def test_interrupted_run_leaves_no_half_file_and_goes_on(
    tmp_path, monkeypatch, trouble, raised, said
):
    folder = tmp_path / "annotations" / "val2017"
    for stem in "abc":
        save(folder / f"{stem}.png", RAW)
    table = by_table(conversions.coco_stuff_171_table())
    move, calls = os.replace, []

    def failing(temporary, path):
        calls.append(path)
        if len(calls) == 2:
            raise trouble
        move(temporary, path)

    monkeypatch.setattr(writing.os, "replace", failing)
    with pytest.raises(raised, match=said) as caught:
        convert(coco_jobs(tmp_path), table)
    if said:
        assert str(caught.value).startswith(f"cannot write {folder / 'b_labelTrainIds.png'}: ")
    assert names(folder) == ["a.png", "a_labelTrainIds.png", "b.png", "c.png"]
    done = convert(coco_jobs(tmp_path), table)
    assert (done.written, done.kept, len(calls)) == (2, 1, 4)
    assert len(names(folder)) == 6


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CannotWrite, match=r"cannot write .*label\.png: .*again to resume"):
        write_atomic(tmp_path / "file" / "label.png", lambda file: file.write(b""))
