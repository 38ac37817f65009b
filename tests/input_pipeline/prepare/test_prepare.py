"""The command that checks a dataset and makes its label maps: what it writes, reports, refuses."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from input_pipeline import writing
from input_pipeline.datasets.catalog import VOC12_20
from input_pipeline.prepare import __main__ as prepare
from input_pipeline.prepare import conversions
from input_pipeline.prepare.__main__ import main
from input_pipeline.prepare.preparations import PREPARATIONS
from input_pipeline.prepare.workers import CHUNK
from tests.input_pipeline.prepare.prepared import (
    LAYOUTS,
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

RAW = {
    "coco_stuff_27": (conversions.coco_stuff_27_table, ".png"),
    "coco_stuff_171": (conversions.coco_stuff_171_table, ".png"),
    "cityscapes": (conversions.cityscapes_table, "_gtFine_labelIds.png"),
}


@pytest.fixture
def tiny(monkeypatch):
    """The command as it is, but for datasets of two and one images."""
    for name in (*LAYOUTS, "coco_stuff_171"):
        preparation = dataclasses.replace(PREPARATIONS[name], expected=small(name))
        monkeypatch.setitem(PREPARATIONS, name, preparation)


@pytest.mark.parametrize("name", ["coco_stuff_27", "coco_stuff_171", "cityscapes"])
def test_write_then_check(tmp_path, capsys, tiny, name):
    """From the published files to a dataset that is whole, and again without work."""
    preparation = PREPARATIONS[name]
    table, suffix = RAW[name]
    raw_of = {int(to): raw for raw, to in reversed([*enumerate(table())])}
    raw = np.vectorize(raw_of.get)(plausible(name)).astype(np.uint8)
    layout = preparation.expected.record.layout
    for split, stems in STEMS.items():
        for stem in stems:
            save_image(tmp_path / image_file(name, split, stem))
            done = label(name, split, stem).removesuffix(layout.label_suffix)
            save(tmp_path / (done + suffix), raw)
    assert main([name, "--root", str(tmp_path)]) == 1
    output = capsys.readouterr().out
    assert f"missing label: 3\n  {label(name, 'train', 'a')}\n" in output
    assert "--write makes the" in output
    assert main([name, "--root", str(tmp_path), "--write"]) == 0
    output = capsys.readouterr().out
    assert "converted: 3, already there: 0, failed: 0" in output
    assert output.endswith("\nok\n")
    (tmp_path / label(name, "val", "c")).write_bytes(b"half")
    assert main([name, "--root", str(tmp_path), "--write"]) == 0
    assert "converted: 1, already there: 2, failed: 0" in capsys.readouterr().out


def test_write_context(tmp_path, capsys, tiny):
    root = whole(tmp_path / "VOCdevkit" / "VOC2010", "context")
    for path in (root / "SegmentationClassContext").iterdir():
        path.unlink()
    raw = np.asarray(conversions.pascal_context_raw_ids())[plausible("context")].astype(np.uint16)
    for stem in "abc":
        save(tmp_path / "raw" / f"{stem}.png", raw)
    write = ["context", "--root", str(tmp_path), "--write"]
    assert main(write) == 1  # no trainval/ there
    assert "converted: 0, already there: 0, failed: 0" in capsys.readouterr().out
    assert main([*write, "--source", str(tmp_path / "raw")]) == 0
    (tmp_path / "raw").rename(root / "trainval")
    assert main(write) == 0
    assert "converted: 0, already there: 3" in capsys.readouterr().out


def test_write_voc_aug(tmp_path, capsys, monkeypatch):
    root = whole(tmp_path / "VOCdevkit" / "VOC2012", "voc")
    source = tmp_path / "VOCdevkit" / "VOCaug" / "dataset"
    (source / "cls").mkdir(parents=True)
    (source / "train.txt").write_text("a\nd\n")
    (source / "val.txt").write_text("e\nc\n")
    for stem in "de":
        save_image(root / f"JPEGImages/{stem}.jpg")
        savemat(source / "cls" / f"{stem}.mat", {"GTcls": {"Segmentation": plausible("voc")}})
    preparation = PREPARATIONS["voc_aug"]
    counts = (("train_aug", (4,)), ("val", (1,)))
    expected = dataclasses.replace(
        preparation.expected, counts=counts, lists=(), images_per_class=()
    )
    preparation = dataclasses.replace(preparation, expected=expected)
    (root / "Annotations").mkdir()
    for stem in "abcde":
        (root / f"Annotations/{stem}.xml").write_text(
            "<annotation><object><name>cat</name></object></annotation>"
        )
    monkeypatch.setitem(PREPARATIONS, "voc_aug", preparation)
    assert main(["voc_aug", "--root", str(root)]) == 1
    output = capsys.readouterr().out
    assert "missing list: 1\n  ImageSets/Segmentation/train_aug.txt\n  -> Unpack VOC" in output
    assert main(["voc_aug", "--root", str(root), "--write"]) == 0
    output = capsys.readouterr().out
    assert "train_aug: 4 images (published: 4)" in output
    assert "converted: 5, already there: 0, failed: 0" in output
    assert [e.name for e in VOC12_20.index(root, "trainaug")] == [*"abde"]


def test_voc_aug_image_labels(tmp_path, capsys, monkeypatch):
    """Images whose labels cannot be read from the detection annotations are named."""
    root = whole(tmp_path, "voc")
    (root / "SegmentationClass").rename(root / "SegmentationClassAug")
    lists = root / "ImageSets" / "SegmentationAug"
    lists.mkdir()
    two = "/JPEGImages/{0}.jpg /{1}/{0}.png\n"
    lists.joinpath("train_aug.txt").write_text(
        "".join(two.format(stem, "SegmentationClassAug") for stem in "ab")
    )
    preparation = PREPARATIONS["voc_aug"]
    expected = dataclasses.replace(
        preparation.expected,
        counts=(("train_aug", (2,)), ("val", (1,))),
        lists=(),
        images_per_class=(),
    )
    monkeypatch.setitem(
        PREPARATIONS, "voc_aug", dataclasses.replace(preparation, expected=expected)
    )
    assert main(["voc_aug", "--root", str(root)]) == 1
    output = capsys.readouterr().out
    assert f"no image labels: 2\n  train_aug: no image labels: there is no folder {root}" in output
    (root / "Annotations").mkdir()
    inside = "<object><name>{}</name></object>"
    for stem, names in (("a", ("cat",)), ("b", ("unicorn", "dog"))):
        objects = "".join(map(inside.format, names))
        (root / f"Annotations/{stem}.xml").write_text(f"<annotation>{objects}</annotation>")
    assert main(["voc_aug", "--root", str(root)]) == 1
    assert (
        "no image labels: 2\n  b: unknown class 'unicorn', left out\n"
        "  c: there is no Annotations/c.xml\n  -> "
    ) in capsys.readouterr().out
    lists.joinpath("train_aug.txt").write_text(two.format("a", "masks"))
    assert main(["voc_aug", "--root", str(root)]) == 1
    output = capsys.readouterr().out
    assert "list of another folder: 1\n" in output
    assert "train_aug.txt: names labels like /masks/a.png, but this dataset's are in " in output


def test_report(tmp_path, capsys, tiny):
    root = whole(tmp_path / "coco", "coco_stuff_27")
    raw = root / "annotations" / "val2017"
    save(raw / "c.png", np.full(SIZE, 200, np.uint8))
    (raw / "c_27labelTrainIds.png").unlink()
    output = tmp_path / "report.json"
    argv = ["coco_stuff_27", "--root", str(root), "--write", "--report", str(output)]
    assert main(argv) == 1
    assert capsys.readouterr().out.splitlines() == [
        f"coco_stuff_27 in {root}",
        "  train: 2 images (published: 2)",
        "  val: 1 images (published: 1)",
        "  labels: 2 read, 27 of 27 classes, 12.8% of the pixels 255",
        "  converted: 0, already there: 0, failed: 1",
        "",
        "not converted: 1",
        f"  {raw / 'c.png'}: id 200 at 400 pixels is not a raw id of this dataset",
        "  -> Unpack these again; then run with --write again to resume.",
        "",
        "missing label: 1",
        "  annotations/val2017/c_27labelTrainIds.png",
        f"  -> {PREPARATIONS['coco_stuff_27'].expected.source}",
        "",
        "not ok: 2 kinds of problem",
    ]
    content = json.loads(output.read_text())
    assert content["ok"] is False
    assert content["pictures"]["train"] == {"found": 2, "published": [2]}
    assert content["converted"] == {"written": 0, "kept": 0}
    assert [(p["kind"], p["count"]) for p in content["problems"]] == [
        ("not converted", 1),
        ("missing label", 1),
    ]
    assert sum(content["pixels"].values()) == 800


def test_long_lists_are_cut_in_words_alone(tmp_path, capsys, tiny):
    root = whole(tmp_path, "voc")
    (root / "ImageSets" / "Segmentation" / "train.txt").write_text("\n".join("qrstuvw"))
    assert main(["voc", "--root", str(root), "--report", str(root / "r.json")]) == 1
    output = capsys.readouterr().out
    assert "missing image: 7\n  JPEGImages/q.jpg\n" in output
    assert "  JPEGImages/u.jpg\n  ...\n" in output
    content = json.loads((root / "r.json").read_text())
    assert [len(p["items"]) for p in content["problems"]] == [7, 7, 1]


def test_full_disk_is_one_error(tmp_path, capsys, tiny, monkeypatch):
    root = whole(tmp_path, "coco_stuff_27")
    save(root / "annotations" / "val2017" / "d.png", np.zeros(SIZE, np.uint8))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing.os, "replace", full)
    assert main(["coco_stuff_27", "--root", str(root), "--write"]) == 74
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: cannot write ")
    assert "No space left on device; free space there" in line


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["voc", "--root", "{}/nowhere"], "nowhere is not a folder"),
        (["voc", "--root", "{}", "--source", "{}"], "--source needs --write"),
        (["voc", "--root", "{}", "--write", "--source", "{}"], "--source is for voc_aug and"),
        (["coco14", "--root", "{}", "--write", "--source", "{}"], "--source is for voc_aug and"),
        (["voc_aug", "--root", "{}", "--write", "--source", "{}"], "is not a folder with cls/"),
        (["context", "--root", "{}", "--write", "--source", "{}/x"], "x is not a folder"),
        (["voc", "--root", "{}", "--report", "{}/no/r.json"], "must be a file in a folder that"),
        (["pets", "--root", "{}"], "invalid choice: 'pets'"),
        (["voc"], "required: --root"),
    ],
)
def test_wrong_usage(tmp_path, capsys, argv, said):
    try:
        code = main([word.format(tmp_path) for word in argv])
    except SystemExit as left:
        code = left.code
    assert code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert said in line


def test_processes(tmp_path, capfd):
    """In processes as in this one: results in order, an error as it was raised."""
    run = prepare.in_processes("test")
    assert list(run(len, [["a", "bb"], ["ccc"]])) == [2, 1]
    (tmp_path / "file").touch()
    save(tmp_path / "raw.png", np.zeros(SIZE, np.uint8))
    job = conversions.Job(tmp_path / "raw.png", tmp_path / "file" / "label.png", False)
    with pytest.raises(writing.CannotWrite, match=r"^cannot write .*label\.png: "):
        conversions.convert(
            [job] * 2 * CHUNK, conversions.by_table(conversions.voc_table()), run=run
        )
    assert capfd.readouterr().err == ""  # no bar where there is no terminal


def test_command(tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "input_pipeline.prepare",
            "ade20k",
            "--root",
            str(tmp_path),
        ],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[3],
    )
    assert done.returncode == 1, done.stderr
    assert "missing folder: 4\n  images/training\n" in done.stdout
    assert done.stderr == ""
