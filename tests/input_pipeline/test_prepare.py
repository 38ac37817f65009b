"""Small datasets, whole, incomplete and damaged, in each layout: the exact complaint about each."""

import dataclasses
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from input_pipeline import conversions, prepare, writing
from input_pipeline.checks import check
from input_pipeline.datasets import VOC12_20
from input_pipeline.expected import Expected
from input_pipeline.preparations import PREPARATIONS
from input_pipeline.prepare import main
from input_pipeline.processes import CHUNK

SIZE = (20, 20)  # pixels enough for every class
STEMS = {"train": ("a", "b"), "val": ("c",)}
SPLITS = {"ade20k": {"train": "training", "val": "validation"}}
SPLITS["coco_stuff_27"] = SPLITS["coco_stuff_171"] = {"train": "train2017", "val": "val2017"}
LISTED = {
    "voc": ("SegmentationClass", "Segmentation"),
    "context": ("SegmentationClassContext", "SegmentationContext"),
}
RAW = {
    "coco_stuff_27": (conversions.coco_stuff_27_table, ".png"),
    "coco_stuff_171": (conversions.coco_stuff_171_table, ".png"),
    "cityscapes": (conversions.cityscapes_table, "_gtFine_labelIds.png"),
}
LAYOUTS = ("voc", "context", "ade20k", "cityscapes", "coco_stuff_27")


def image(name: str, split: str, stem: str) -> str:
    if name in LISTED:
        return f"JPEGImages/{stem}.jpg"
    if name == "cityscapes":
        return f"leftImg8bit/{split}/ulm/{stem}_leftImg8bit.png"
    return f"images/{SPLITS[name][split]}/{stem}.jpg"


def label(name: str, split: str, stem: str) -> str:
    if name in LISTED:
        return f"{LISTED[name][0]}/{stem}.png"
    if name == "cityscapes":
        return f"gtFine/{split}/ulm/{stem}_gtFine_labelTrainIds.png"
    suffix = PREPARATIONS[name].expected.record.layout.label_suffix
    return f"annotations/{SPLITS[name][split]}/{stem}{suffix}"


def small(name: str) -> Expected:
    counts = tuple((split, (len(stems),)) for split, stems in STEMS.items())
    expected = PREPARATIONS[name].expected
    return dataclasses.replace(expected, counts=counts, lists=(), pictures_of=())


def plausible(name: str) -> np.ndarray:
    """A label map with every class, and ids that are none in a fitting share."""
    expected = PREPARATIONS[name].expected
    pixels = SIZE[0] * SIZE[1]
    ids = [i for i, low, high in expected.shares for _ in range(int((low + high) / 2 * pixels))]
    classes = list(expected.classes)
    ids += (classes * pixels)[: pixels - len(ids)]
    return np.array(ids, np.uint8).reshape(SIZE)


def picture(path: Path, size: tuple[int, int] = SIZE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(noise).save(path)


def save(path: Path, ids: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(ids).save(path)


def whole(root: Path, name: str) -> Path:
    for split, stems in STEMS.items():
        for stem in stems:
            picture(root / image(name, split, stem))
            save(root / label(name, split, stem), plausible(name))
        if name in LISTED:
            path = root / "ImageSets" / LISTED[name][1] / f"{split}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join(stems) + "\n")
    return root


def problems(root: Path, name: str, *, deep: bool = False) -> dict[str, list[str]]:
    found = check(root, small(name), deep=deep).problems
    assert all(problem.remedy for problem in found)
    return {problem.kind: problem.items for problem in found}


@pytest.mark.parametrize("name", [*LAYOUTS, "coco_stuff_171"])
def test_whole(tmp_path, name):
    checked = check(whole(tmp_path, name), small(name), deep=True)
    assert checked.problems == []
    assert checked.pictures == {"train": 2, "val": 1}
    assert checked.labels == 3
    assert checked.histogram.sum() == 3 * 400


@pytest.mark.parametrize("name", LAYOUTS)
def test_missing_files(tmp_path, name):
    whole(tmp_path, name)
    lost_image, lost_label = image(name, "train", "a"), label(name, "val", "c")
    (tmp_path / lost_image).unlink()
    (tmp_path / lost_label).unlink()
    found = {"missing picture": [lost_image], "missing label": [lost_label]}
    if name not in LISTED:
        found["number of pictures"] = ["train has 1, the published one 2"]
    assert problems(tmp_path, name) == found


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
        "number of pictures": ["train has 0, the published one 2"],
    }
    (lists / "train.txt").write_text("a\na\nb\nc\n")
    assert problems(tmp_path, name) == {
        "listed twice": ["a (train)"],
        "number of pictures": ["train has 3, the published one 2"],
        "in two splits": ["c (train, val)"],
    }


def test_both_published_numbers_count(tmp_path):
    expected = dataclasses.replace(small("context"), counts=(("train", (3, 2)), ("val", (2, 3))))
    (problem,) = check(whole(tmp_path, "context"), expected).problems
    assert problem.items == ["val has 1, the published one 2 or 3"]


def test_list_of_cityscapes_is_used(tmp_path):
    (whole(tmp_path, "cityscapes") / "train.txt").write_text("ulm/a\nulm/x\n")
    assert problems(tmp_path, "cityscapes") == {
        "missing picture": ["leftImg8bit/train/ulm/x_leftImg8bit.png"],
        "missing label": ["gtFine/train/ulm/x_gtFine_labelTrainIds.png"],
    }


@pytest.mark.parametrize("name", LAYOUTS)
def test_damaged_files(tmp_path, name):
    whole(tmp_path, name)
    first, second = image(name, "train", "a"), image(name, "train", "b")
    (tmp_path / first).write_bytes((tmp_path / first).read_bytes()[:-200])
    (tmp_path / second).write_bytes(b"")
    empty, colour = label(name, "train", "b"), label(name, "val", "c")
    (tmp_path / empty).write_bytes(b"")
    save(tmp_path / colour, np.zeros((*SIZE, 3), np.uint8))
    found = problems(tmp_path, name)
    assert found.pop("unreadable label") == [f"{empty}: not a label map in a known format"]
    assert found.pop("colour label") == [colour]
    # The header of a JPEG that was cut short is whole. Of a PNG all is read, for its EXIF data.
    *cut, gone = found.pop("unreadable picture")
    assert len(cut) == first.endswith(".png")
    assert gone == f"{second}: not a picture in a known format"
    assert found == {}
    short, gone = problems(tmp_path, name, deep=True)["unreadable picture"]
    assert short.startswith(f"{first}: can't decode the picture (")
    assert gone.startswith(f"{second}: not a picture")


@pytest.mark.parametrize("name", LAYOUTS)
def test_sizes_differ(tmp_path, name):
    picture(whole(tmp_path, name) / image(name, "val", "c"), (20, 10))
    assert problems(tmp_path, name) == {
        "sizes differ": [f"{label(name, 'val', 'c')}: 20 x 20, the picture 20 x 10"]
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
        "implausible share of pixels": ["id 255 has 0.0%, and should have 3.0% to 30.0%"]
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
        "implausible share of pixels": ["id 255 has 0.0%, and should have 1.0% to 15.0%"],
    }
    # A part of the dataset isn't judged as the whole.
    (tmp_path / "ImageSets" / "Segmentation" / "val.txt").write_text("")
    assert problems(tmp_path, "voc") == {
        "number of pictures": ["val has 0, the published one 1"],
    }


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
    counts = {name: dict(known.expected.counts) for name, known in PREPARATIONS.items()}
    assert counts == {
        "voc": {"train": (1464,), "val": (1449,)},
        "voc_aug": {"train_aug": (10582,), "val": (1449,)},
        "context": {"train": (4998, 4996), "val": (5105, 5104)},
        "ade20k": {"train": (20210,), "val": (2000,)},
        "cityscapes": {"train": (2975,), "val": (500,)},
        "coco_stuff_27": {"train": (118287,), "val": (5000,)},
        "coco_stuff_171": {"train": (118287,), "val": (5000,)},
        "coco14": {"train": (82081,), "val": (40137,)},
        "coco17": {"val": (4952,)},
    }


@pytest.fixture
def tiny(monkeypatch):
    """The command as it is, but for datasets of two and one pictures."""
    for name in (*LAYOUTS, "coco_stuff_171"):
        known = dataclasses.replace(PREPARATIONS[name], expected=small(name))
        monkeypatch.setitem(PREPARATIONS, name, known)


@pytest.mark.parametrize("name", ["coco_stuff_27", "coco_stuff_171", "cityscapes"])
def test_write_then_check(tmp_path, capsys, tiny, name):
    """From the published files to a dataset that is whole, and again without work."""
    known = PREPARATIONS[name]
    table, suffix = RAW[name]
    raw_of = {int(to): raw for raw, to in reversed([*enumerate(table())])}
    raw = np.vectorize(raw_of.get)(plausible(name)).astype(np.uint8)
    layout = known.expected.record.layout
    for split, stems in STEMS.items():
        for stem in stems:
            picture(tmp_path / image(name, split, stem))
            done = label(name, split, stem).removesuffix(layout.label_suffix)
            save(tmp_path / (done + suffix), raw)
    assert main([name, "--root", str(tmp_path)]) == 1
    told = capsys.readouterr().out
    assert f"missing label: 3\n  {label(name, 'train', 'a')}\n" in told
    assert "--write makes the" in told
    assert main([name, "--root", str(tmp_path), "--write"]) == 0
    told = capsys.readouterr().out
    assert "converted: 3, there already: 0, failed: 0" in told
    assert told.endswith("\nok\n")
    (tmp_path / label(name, "val", "c")).write_bytes(b"half")
    assert main([name, "--root", str(tmp_path), "--write"]) == 0
    assert "converted: 1, there already: 2, failed: 0" in capsys.readouterr().out


def test_write_context(tmp_path, capsys, tiny):
    root = whole(tmp_path / "VOCdevkit" / "VOC2010", "context")
    for path in (root / "SegmentationClassContext").iterdir():
        path.unlink()
    raw = np.asarray(conversions.pascal_context_raw_ids())[plausible("context")].astype(np.uint16)
    for stem in "abc":
        save(tmp_path / "raw" / f"{stem}.png", raw)
    write = ["context", "--root", str(tmp_path), "--write"]
    assert main(write) == 1  # no trainval/ there
    assert "converted: 0, there already: 0, failed: 0" in capsys.readouterr().out
    assert main([*write, "--source", str(tmp_path / "raw")]) == 0
    (tmp_path / "raw").rename(root / "trainval")
    assert main(write) == 0
    assert "converted: 0, there already: 3" in capsys.readouterr().out


def test_write_voc_aug(tmp_path, capsys, monkeypatch):
    root = whole(tmp_path / "VOCdevkit" / "VOC2012", "voc")
    source = tmp_path / "VOCdevkit" / "VOCaug" / "dataset"
    (source / "cls").mkdir(parents=True)
    (source / "train.txt").write_text("a\nd\n")
    (source / "val.txt").write_text("e\nc\n")
    for stem in "de":
        picture(root / f"JPEGImages/{stem}.jpg")
        savemat(source / "cls" / f"{stem}.mat", {"GTcls": {"Segmentation": plausible("voc")}})
    known = PREPARATIONS["voc_aug"]
    counts = (("train_aug", (4,)), ("val", (1,)))
    expected = dataclasses.replace(known.expected, counts=counts, lists=(), pictures_of=())
    known = dataclasses.replace(known, expected=expected)
    (root / "Annotations").mkdir()
    for stem in "abcde":
        (root / f"Annotations/{stem}.xml").write_text(
            "<annotation><object><name>cat</name></object></annotation>"
        )
    monkeypatch.setitem(PREPARATIONS, "voc_aug", known)
    assert main(["voc_aug", "--root", str(root)]) == 1
    told = capsys.readouterr().out
    assert "missing list: 1\n  ImageSets/Segmentation/train_aug.txt\n  -> Unpack VOC" in told
    assert main(["voc_aug", "--root", str(root), "--write"]) == 0
    told = capsys.readouterr().out
    assert "train_aug: 4 pictures (published: 4)" in told
    assert "converted: 5, there already: 0, failed: 0" in told
    assert [e.name for e in VOC12_20.index(root, "trainaug")] == [*"abde"]


def test_voc_aug_image_labels(tmp_path, capsys, monkeypatch):
    """Pictures whose labels can't be read from the detection annotations are named."""
    root = whole(tmp_path, "voc")
    (root / "SegmentationClass").rename(root / "SegmentationClassAug")
    lists = root / "ImageSets" / "SegmentationAug"
    lists.mkdir()
    two = "/JPEGImages/{0}.jpg /{1}/{0}.png\n"
    lists.joinpath("train_aug.txt").write_text(
        "".join(two.format(stem, "SegmentationClassAug") for stem in "ab")
    )
    known = PREPARATIONS["voc_aug"]
    expected = dataclasses.replace(
        known.expected, counts=(("train_aug", (2,)), ("val", (1,))), lists=(), pictures_of=()
    )
    monkeypatch.setitem(PREPARATIONS, "voc_aug", dataclasses.replace(known, expected=expected))
    assert main(["voc_aug", "--root", str(root)]) == 1
    told = capsys.readouterr().out
    assert f"no image labels: 2\n  train_aug: no image labels: there is no folder {root}" in told
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
    told = capsys.readouterr().out
    assert "list of another folder: 1\n" in told
    assert "train_aug.txt: names labels like /masks/a.png, and this dataset's are in " in told


def test_published_pictures_and_classes(tmp_path):
    """As many pictures as published, but others, or with other classes."""
    whole(tmp_path, "voc")
    names = b"a\nb"
    digest = hashlib.sha1(names, usedforsecurity=False).hexdigest()
    expected = dataclasses.replace(
        small("voc"), lists=(("train", digest),), pictures_of=(("train", (2,) * 20),)
    )
    assert check(tmp_path, expected).problems == []
    ids = plausible("voc")
    ids[ids == 9] = 8
    save(tmp_path / label("voc", "train", "a"), ids)
    other = dataclasses.replace(expected, lists=(("train", digest), ("val", digest)))
    found = {problem.kind: problem.items for problem in check(tmp_path, other).problems}
    assert found == {
        "other pictures": ["val has as many as the published one, but others"],
        "pictures with a class": ["train: 1 with chair, not 2"],
    }


def test_published_facts():
    """Digests are of 20 bytes; each class is in fewer pictures than there are."""
    for known in PREPARATIONS.values():
        counts = dict(known.expected.counts)
        assert all(len(bytes.fromhex(digest)) == 20 for _, digest in known.expected.lists)
        assert {split for split, _ in known.expected.lists} <= set(counts)
        for split, numbers in known.expected.pictures_of:
            assert len(numbers) == len(known.expected.foreground)
            assert max(numbers) < counts[split][0] < sum(numbers)


def test_report(tmp_path, capsys, tiny):
    root = whole(tmp_path / "coco", "coco_stuff_27")
    raw = root / "annotations" / "val2017"
    save(raw / "c.png", np.full(SIZE, 200, np.uint8))
    (raw / "c_27labelTrainIds.png").unlink()
    told = tmp_path / "report.json"
    argv = ["coco_stuff_27", "--root", str(root), "--write", "--report", str(told)]
    assert main(argv) == 1
    assert capsys.readouterr().out.splitlines() == [
        f"coco_stuff_27 in {root}",
        "  train: 2 pictures (published: 2)",
        "  val: 1 pictures (published: 1)",
        "  labels: 2 read, 27 of 27 classes, 12.8% of the pixels 255",
        "  converted: 0, there already: 0, failed: 1",
        "",
        "not converted: 1",
        f"  {raw / 'c.png'}: id 200 at 400 pixels is none of this dataset's raw ids",
        "  -> Unpack these again; then --write goes on where it stopped.",
        "",
        "missing label: 1",
        "  annotations/val2017/c_27labelTrainIds.png",
        f"  -> {PREPARATIONS['coco_stuff_27'].expected.source}",
        "",
        "not ok: 2 kinds of problem",
    ]
    content = json.loads(told.read_text())
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
    told = capsys.readouterr().out
    assert "missing picture: 7\n  JPEGImages/q.jpg\n" in told
    assert "  JPEGImages/u.jpg\n  ...\n" in told
    content = json.loads((root / "r.json").read_text())
    assert [len(p["items"]) for p in content["problems"]] == [7, 7, 1]


def test_full_disk_is_one_error(tmp_path, capsys, tiny, monkeypatch):
    root = whole(tmp_path, "coco_stuff_27")
    save(root / "annotations" / "val2017" / "d.png", np.zeros(SIZE, np.uint8))

    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing, "_write", full)
    assert main(["coco_stuff_27", "--root", str(root), "--write"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: cannot write ")
    assert "No space left on device; free space there" in line


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["voc", "--root", "{}/nowhere"], "nowhere is not a folder"),
        (["voc", "--root", "{}", "--source", "{}"], "--source goes with --write"),
        (["voc", "--root", "{}", "--write", "--source", "{}"], "--source is for voc_aug and"),
        (["coco14", "--root", "{}", "--write", "--source", "{}"], "--source is for voc_aug and"),
        (["voc_aug", "--root", "{}", "--write", "--source", "{}"], "is no folder with cls/"),
        (["context", "--root", "{}", "--write", "--source", "{}/x"], "x is no folder"),
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
        [sys.executable, "-m", "input_pipeline.prepare", "ade20k", "--root", str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 1, done.stderr
    assert "missing folder: 4\n  images/training\n" in done.stdout
    assert done.stderr == ""
