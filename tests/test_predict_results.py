"""What `predict` writes besides masks: formats, what is made again, what is left as it is."""

from __future__ import annotations

import json
import os
import re
import signal
import sys

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from clipseg_jax import predict, predict_model
from clipseg_jax.results.npz import load_scores
from clipseg_jax.segmentation import ClassScores, Segmentation
from input_pipeline.datasets.images import BadImage, image_size, read_label


class QuickSegmenter:
    """Labels the left half of every image 1, without any network; counts what it segments."""

    made = 0  # masks

    def __init__(self, class_names, **_):
        self.names = ("background", *class_names)

    def __call__(self, paths):
        for i, path in enumerate(paths):
            try:
                height, width = image_size(path)
            except BadImage as error:
                yield i, error
                continue
            labels = np.zeros((height, width), np.uint8)
            labels[:, : width // 2] = 1
            QuickSegmenter.made += 1
            yield i, Segmentation(labels, np.ones((height, width), np.float32), self.names)

    def scores(self, paths, longest_px):
        for i, path in enumerate(paths):
            height, width = image_size(path)
            factor = min(1, longest_px / max(height, width))
            size = round(height * factor), round(width * factor), len(self.names)
            values = np.full(size, 1 / len(self.names), np.float32)
            yield i, ClassScores(values, self.names, (height, width))


class NoSegmenter:
    def __init__(self, *_, **__):
        raise AssertionError("the network is needed")


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(predict_model, "Segmenter", QuickSegmenter)
    QuickSegmenter.made = 0


@pytest.fixture
def photos(tmp_path):
    for name in ("a", "trip/b", "trip/c"):
        paint(tmp_path / f"photos/{name}.jpg")
    return tmp_path / "photos"


def paint(path, size=(40, 60), grey=90):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), grey, np.uint8)).save(path)
    return path


def command(out, *paths, more=()):
    return predict.main(
        [*map(str, paths), "--classes=cow, dog", "--weights=demo", f"--out={out}", *more]
    )


def files(out):
    return {
        str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()
    }


EVERY = ["--format=overlay,html,coco", "--format", "coco-objects, coco-polygons,npz"]


def test_all_formats(tmp_path, photos, capsys):
    out = tmp_path / "out"
    assert command(out, photos, more=EVERY) == 0
    assert {*files(out)} == {
        "annotations.json", "annotations_objects.json", "annotations_polygons.json", "index.html",
        "labelmap.txt", "settings.json", "summary.jsonl",
        *(f"{n}{s}" for n in ("a", "trip/b", "trip/c") for s in (".png", "_overlay.jpg", ".npz")),
    }  # fmt: skip
    read = COCO(out / "annotations.json")
    assert [each["file_name"] for each in read.loadImgs([1, 2, 3])] == [
        "a.jpg", "trip/b.jpg", "trip/c.jpg",
    ]  # fmt: skip
    for annotation in read.anns.values():
        assert (annotation["category_id"], annotation["area"]) == (1, 40 * 30)
        assert annotation["score"] == 1.0
        np.testing.assert_array_equal(read.annToMask(annotation), read_label(out / "a.png"))
    stored = load_scores(out / "trip/b.npz")
    assert (stored.values.shape, stored.image_size) == ((40, 60, 3), (40, 60))
    assert stored.names == ("background", "cow", "dog")
    assert "contact sheet in" in capsys.readouterr().out

    # Again: nothing is made, and nothing changes.
    before = files(out), {path: path.stat().st_mtime_ns for path in out.rglob("*.json")}
    assert command(out, photos, more=EVERY) == 0
    assert QuickSegmenter.made == 3
    assert (files(out), {path: path.stat().st_mtime_ns for path in out.rglob("*.json")}) == before


def test_masks_alone(tmp_path, photos):
    out = tmp_path / "out"
    assert command(out, photos, more=["--format=png"]) == 0
    assert {*files(out)} == {
        "labelmap.txt", "settings.json", "summary.jsonl", "a.png", "trip/b.png", "trip/c.png",
    }  # fmt: skip


def test_what_comes_of_masks_needs_no_network(tmp_path, photos, monkeypatch, capsys):
    whole, out = tmp_path / "whole", tmp_path / "out"
    more = ["--format=png,overlay,html,coco"]
    assert command(whole, photos, more=more) == 0
    assert command(out, photos, more=["--format=png"]) == 0
    monkeypatch.setattr(predict_model, "Segmenter", NoSegmenter)
    capsys.readouterr()
    assert command(out, photos, more=more) == 0
    assert "3 of 3 images already have masks" in capsys.readouterr().out
    assert files(out) == files(whole)


def test_scores_leave_masks_as_they_are(tmp_path, photos):
    out = tmp_path / "out"
    assert command(out, photos) == 0
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    assert command(out, photos, more=["--format=npz", "--scores-px=30"]) == 0
    assert load_scores(out / "a.npz").values.shape == (20, 30, 3)
    (out / "a.npz").write_bytes((out / "a.npz").read_bytes()[:-9])
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*.npz")}
    assert command(out, photos, more=["--format=npz", "--scores-px=30"]) == 0
    again = {path.name for path, time in times.items() if path.stat().st_mtime_ns != time}
    assert again == {"a.npz"}
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.png")} == before
    assert QuickSegmenter.made == 3


def test_an_image_that_was_replaced_keeps_no_old_result(tmp_path, photos):
    """Not even in a format that this run does not write."""
    out = tmp_path / "out"
    assert command(out, photos, more=EVERY) == 0
    paint(photos / "a.jpg", (20, 20))
    assert command(out, photos, more=["--format=coco"]) == 0
    assert not (out / "a.npz").exists()
    assert not (out / "a_overlay.jpg").exists()
    assert (out / "trip/b.npz").exists()
    assert COCO(out / "annotations.json").imgs[1]["width"] == 20


def test_coco_follows_a_mask_that_was_changed_by_hand(tmp_path, photos):
    out = tmp_path / "out"
    assert command(out, photos, more=["--format=coco"]) == 0
    mask = Image.open(out / "a.png")
    mask.putdata([2] * (40 * 60))
    mask.save(out / "a.png")
    assert command(out, photos, more=["--format=coco"]) == 0
    assert COCO(out / "annotations.json").anns[1]["category_id"] == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_a_contact_sheet(tmp_path, photos, monkeypatch, number):
    out, whole = tmp_path / "out", tmp_path / "whole"
    assert command(whole, photos, more=EVERY) == 0
    save = predict.save

    def interrupted(*given):
        os.kill(os.getpid(), number)
        return save(*given)

    monkeypatch.setattr(predict, "save", interrupted)
    assert command(out, photos, more=EVERY) == 128 + number
    content = (out / "index.html").read_text()
    shown = json.loads(re.search(r'id="clipseg_jax-results">(.*?)</script>', content)[1])["images"]
    assert [each["name"] for each in shown] == ["a"]
    assert not (out / "annotations.json").exists()
    monkeypatch.setattr(predict, "save", save)
    assert command(out, photos, more=EVERY) == 0
    assert files(out) == files(whole)


def test_files_of_others_stay(tmp_path, photos, capsys):
    out = tmp_path / "out"
    out.mkdir()
    for name in ("index.html", "labelmap.txt"):
        (out / name).write_text("mine")
    assert command(out, photos) == 0
    said = capsys.readouterr().err
    for name in ("index.html", "labelmap.txt"):
        assert f"{name} is not of this command and stays; move it" in said
        assert (out / name).read_text() == "mine"
    for name, kind in (("annotations_objects.json", "coco-objects"), ("a.npz", "npz")):
        other = tmp_path / kind
        other.mkdir()
        (other / name).write_text("mine")
        assert command(other, photos, more=[f"--format={kind}"]) == 2
        assert f"{name} exists and is not of this command" in capsys.readouterr().err
        assert command(other, photos) == 0  # it is not asked for
        assert (other / name).read_text() == "mine"


@pytest.mark.parametrize("name", ["index.html", "labelmap.txt", "summary.jsonl"])
def test_a_folder_with_the_name_of_a_result_is_told_before_any_work(tmp_path, photos, capsys, name):
    paint(photos / name / "d.jpg")
    out = tmp_path / "new/masks"
    assert command(out, photos) == 2
    error = capsys.readouterr().err
    assert f"the masks of {photos / name / 'd.jpg'} and others of the folder {name}" in error
    assert ("leave html out of --format" in error) == (name == "index.html")
    assert error.count("\n") == 1
    assert (QuickSegmenter.made, out.parent.exists()) == (0, False)
    (out / name).mkdir(parents=True)
    assert command(out, photos / "a.jpg") == 2
    assert f"{out / name} is a folder, " in capsys.readouterr().err
    assert QuickSegmenter.made == 0
    if name == "index.html":
        assert command(out, photos, more=["--format=png"]) == 0
        assert (out / "index.html/d.png").is_file()


@pytest.mark.parametrize("there", [False, True])
def test_an_error_leaves_no_empty_folder(tmp_path, photos, monkeypatch, capsys, there):
    def refuse(**_):
        raise ValueError("a class name is too long")

    monkeypatch.setattr(predict_model, "Segmenter", refuse)
    out = tmp_path / "new/masks"
    if there:
        out.mkdir(parents=True)
    assert command(out, photos) == 2
    assert "too long" in capsys.readouterr().err
    assert out.exists() == there
    assert out.parent.exists() == there


@pytest.mark.parametrize("package", ["pycocotools", "cv2"])
def test_a_missing_package_is_told_before_any_work(tmp_path, photos, monkeypatch, capsys, package):
    for name in [*sys.modules]:
        if name == package or name.startswith((f"{package}.", "clipseg_jax.results.regions")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    assert command(tmp_path / "out", photos, more=["--format=coco"]) == 2
    said = capsys.readouterr().err
    assert "pip install 'clipseg_jax[data]'" in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()
    assert command(tmp_path / "out", photos, more=["--format=npz"]) == 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--format=jpg"], "--format jpg is none; there are png, overlay, html, coco, coco-obj"),
        (["--format=coco,\x1b[31m"], r"--format \x1b[31m is none"),
        (["--scores-px=0"], "--scores-px is 0; give a whole number of at least 1"),
    ],
)
def test_wrong_options(tmp_path, photos, capsys, more, message):
    assert command(tmp_path / "out", photos, more=more) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
