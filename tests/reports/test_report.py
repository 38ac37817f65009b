"""report.html of real runs: the numbers of the files, nothing loaded, nothing of strangers run."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from clipseg_jax import main
from clipseg_jax.demo import world
from clipseg_jax.reports.__main__ import main as command
from clipseg_jax.reports.report import write_report
from clipseg_jax.stages.evaluation import UNSCORED
from configs import demo_maskclip
from tests.reports.pages import Page

HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """The work directory of a small run whose classes have such names."""
    folder = tmp_path_factory.mktemp("report")
    world.write_dataset(folder / "world", 14, 64)
    broken = folder / "world" / "images" / "0003.png"
    broken.write_bytes(broken.read_bytes()[:300])
    config = demo_maskclip.get_config()
    config.dataset.name, config.dataset.root = "folder", str(folder / "world")
    names = list(config.dataset.class_names)
    config.dataset.class_names = (*names[:1], HOSTILE, '" onload="x', *names[3:])
    config.inference.scale_px = (64, 64)
    config.run.pictures = 0
    main.run(config, folder / "work", recipe="demo_maskclip")
    return folder / "work"


@pytest.fixture
def copy(work, tmp_path):
    return shutil.copytree(work, tmp_path / "work")


def page_of(folder):
    return Page(write_report(folder).read_text("utf-8"))


def test_the_numbers_are_those_of_the_files(work):
    page = page_of(work)
    figures = json.loads((work / "metrics.json").read_text())
    assert "MaskCLIP on folder" in page.text
    assert re.search(rf"evaluation{figures['mIoU']:.2f}mIoU, 13 images, 1 left out", page.text)
    for name in ("aAcc", "mIoU", "mIoU_of_labelled", "mIoU_absent_as_0", "mAcc", "mPrec"):
        assert f"{name}{figures[name]:.2f}" in page.text
    # Bars: the highest first.
    ious = {name: row["IoU"] for name, row in figures["classes"].items()}
    widths = [float(a["width"]) for tag, a in page.tags if a.get("class") == "part"]
    expected = sorted((iou for iou in ious.values() if iou is not None), reverse=True)
    assert widths[: len(expected)] == pytest.approx(expected)
    assert f"{HOSTILE}{ious[HOSTILE]:.2f}" in page.text
    # Confusions: of the matrix.
    confusion = np.load(work / "confusion.npy")
    names = [*figures["classes"]]
    head = page.rows.index(page.row("labelled"))
    for label, predicted, pixels, share, precision in page.rows[head + 1 : head + 16]:
        row, column = names.index(label), names.index(predicted)
        assert pixels == f"{confusion[row, column]:,}"
        assert share == f"{confusion[row, column] / confusion[row].sum():.1%}"
        assert precision == f"{confusion[row, column] / confusion[:, column].sum():.1%}"
    # Stages.
    for stage in ("data", "text", "evaluate"):
        record = json.loads((work / f"{stage}.done.json").read_text())
        assert page.row(stage)[2] == f"{record['seconds']:,.1f}"
    assert "0003" in page.text  # left out, and why
    assert "truncated" in page.text


def test_the_pictures_are_the_best_and_the_worst(work):
    page = page_of(work)
    listed = json.loads((work / "examples" / "examples.json").read_text())
    images = [attrs for tag, attrs in page.tags if tag == "img"]
    assert [each["alt"] for each in images] == ["image", "truth", "prediction"] * 12
    for each in (*listed["best"], *listed["worst"]):
        assert f"{each['name']}: {each['mIoU']:.2f}" in page.text
    data = images[0]["src"].removeprefix("data:image/jpeg;base64,")
    shown = Image.open(io.BytesIO(base64.b64decode(data)))
    strip = Image.open(work / "examples" / listed["best"][0]["file"])
    expected = strip.crop((0, 0, 320, 320)).resize(shown.size)
    assert np.abs(np.asarray(shown).astype(int) - np.asarray(expected)).mean() < 12


def test_nothing_is_loaded_and_nothing_is_run(work):
    text = write_report(work).read_text("utf-8")
    page = Page(text)
    assert all(address.startswith("data:image/jpeg;base64,") for address in page.addresses())
    assert "script" not in {tag for tag, _ in page.tags}
    assert not [a for _, attrs in page.tags for a in attrs if a.startswith("on")]
    assert not re.search(r"url\(|@import|//[a-z]", re.sub(r"base64,[^\"]*", "", text))
    assert "default-src 'none'" in text


def test_what_the_run_used_is_there(work):
    page = page_of(work)
    assert page.row("recipe") == ["recipe", "demo_maskclip"]
    assert "device" in page.row("devices")[1]
    assert re.search(r"jax \d.*numpy \d", page.row("versions")[1])
    assert page.row("seeds") == ["seeds", "robustness.seed 0"]
    config = json.loads((work / "config.json").read_text())
    assert page.row("dataset.name") == ["dataset.name", "folder", "demo_world"]
    assert page.row("inference.scale_px")[1:] == ["[64, 64]", "[96, 96]"]
    assert page.row("maskclip.ks_threshold")[1:] == ["0", ""]
    assert sum(row[0].count(".") > 0 for row in page.rows if row) >= len(config)
    for doubt in ("a folder of the user's own", "The CLIP is the tiny one", "inference.scale_px"):
        assert doubt in page.text


def test_a_run_leaves_its_report(work):
    assert (work / "report.html").read_text("utf-8").startswith("<!doctype html>")
    assert not [path for path in work.iterdir() if path.name.startswith(".writing")]


def test_without_a_report_the_run_has_ended_well(work, copy, monkeypatch, caplog):
    def fail(*_):
        raise KeyError("a fault of ours")

    monkeypatch.setattr("clipseg_jax.reports.report.read_results", fail)
    main._report(copy)
    assert "no report: KeyError" in caplog.text
    assert f"python -m clipseg_jax.reports {copy}" in caplog.text


DAMAGE = {
    "metrics.json": "metrics.json is damaged",
    "confusion.npy": "confusion.npy is damaged",
    "examples/examples.json": "examples/examples.json is damaged",
    "examples/best_1.jpg": "examples/best_1.jpg",
    "evaluate.done.json": "evaluate.done.json is damaged",
    "config.json": "config.json is damaged",
    "content.json": "content.json is damaged",
    "runs.jsonl": "runs.jsonl: 1 damaged lines are left out",
}


@pytest.mark.parametrize("name", DAMAGE)
@pytest.mark.parametrize("content", [b'{"classes": 3, "x": [', bytes(99)])
def test_a_damaged_file_is_named_and_the_rest_is_shown(copy, name, content):
    (copy / name).write_bytes(content)
    page = page_of(copy)
    assert DAMAGE[name] in page.text
    assert page.row("text")[2]  # the stage
    assert "None on None" not in page.text


@pytest.mark.parametrize("name", DAMAGE)
def test_the_command_names_what_is_damaged(copy, name, capsys):
    (copy / name).write_bytes(b"{")
    assert command([str(copy)]) == 0
    said = capsys.readouterr()
    assert said.out == f"report: {copy}/report.html\n"
    assert said.err.startswith(f"warning: {copy}/{name}")
    assert said.err.count("\n") == 1


def test_nothing_but_damage_is_an_error(copy, capsys):
    (copy / "report.html").unlink()
    for path in [*copy.rglob("*")]:
        if path.is_file():
            path.write_bytes(b"{")
    assert command([str(copy)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {copy} has nothing that can be read, so there is no report")
    assert "metrics.json is damaged" in error
    assert error.count("\n") == 1
    assert not (copy / "report.html").exists()


@pytest.mark.parametrize(
    "name", [*DAMAGE, "text.done.json", "examples", "metrics.json confusion.npy"]
)
def test_a_missing_file_is_no_error(copy, name):
    for each in name.split():
        path = copy / each
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    if name == "config.json":
        with pytest.raises(
            ValueError, match=r"no work directory of a recipe: it has no config\.json"
        ):
            write_report(copy)
        return
    page = page_of(copy)
    if name == "text.done.json":
        assert "not finished: text" in page.text
        assert page.row("text") == ["text", "not finished", "-"]
    if name == "metrics.json confusion.npy":
        assert "There is no evaluation yet." in page.text
    if name == "confusion.npy":
        assert "metrics.json came without a confusion matrix" in page.text


WRONG = [
    {"mIoU": "x", "classes": {"a": 3, "b": {"IoU": "y"}, "c": {"IoU": 5}}, "skipped": 7},
    {"mIoU": [1], "classes": [1], "images": None, "published_metric": 5, "unseen": 3},
]


@pytest.mark.parametrize("figures", WRONG)
def test_values_of_other_types_are_left_out(copy, figures):
    (copy / "metrics.json").write_text(json.dumps(figures))
    listed = {"best": [1, {"file": "../config.json"}, {"file": "best_1.jpg", "classes": {"a": 1}}]}
    (copy / "examples" / "examples.json").write_text(json.dumps(listed))
    (copy / "evaluate.done.json").write_text('{"seconds": "long", "x": {}}')
    (copy / "content.json").write_text('{"clip.weights": 3, "a": {"sha256": 4}}')
    (copy / "robustness.json").write_text('{"fog": 3, "clean": {"0": {"mIoU": "x"}, "1": 2}}')
    (copy / "data_problems.json").write_text('{"<b>": ["x"]}')
    page = page_of(copy)
    assert "confusion.npy holds no counts" in page.text
    assert page.row("evaluate")[2] == "-"
    assert len([tag for tag, _ in page.tags if tag == "img"]) == 3


def test_a_run_of_an_earlier_version_has_a_report(copy):
    """It left neither scores nor pictures, nor what it ran with."""
    for name in ("confusion.npy", "image_scores.jsonl", "runs.jsonl", "report.html"):
        (copy / name).unlink()
    shutil.rmtree(copy / "examples")
    page = page_of(copy)
    assert "metrics.json came without pictures, a confusion matrix" in page.text
    assert "Which recipe this was is not recorded" in page.text
    assert "The recipe's own values are not known here" in page.text


def test_a_run_on_images_without_labels_has_a_report(copy):
    for name in ("metrics.json", "confusion.npy", "image_scores.jsonl"):
        (copy / name).unlink()
    shutil.rmtree(copy / "examples")
    (copy / "evaluate.done.json").write_text(json.dumps({"images": 3, **UNSCORED, "seconds": 1.0}))
    page = page_of(copy)
    assert "Nothing is scored: the images have no label maps." in page.text
    assert page.row("evaluate")[1] == "images 3, scored nothing, without label maps"


def test_the_command(copy, tmp_path, capsys):
    (copy / "report.html").unlink()
    assert command([str(copy)]) == 0
    assert capsys.readouterr().out == f"report: {copy}/report.html\n"
    out = tmp_path / "other.html"
    assert command([str(copy), "--out", str(out)]) == 0
    assert out.read_bytes() == (copy / "report.html").read_bytes()
    assert command([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error == f"error: {tmp_path} is no work directory of a recipe: it has no config.json\n"
    with pytest.raises(SystemExit):
        command(["hdfs://bucket/run"])


def test_written_weights_have_their_sum(copy):
    (copy / "head_last.safetensors").write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    assert ["written by the run", "head_last.safetensors", digest] in page_of(copy).rows
