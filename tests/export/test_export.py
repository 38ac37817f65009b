"""Exported files, run without this library; what they refuse."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import clipseg_jax
from clipseg_jax.demo import world
from clipseg_jax.export import __main__ as command
from clipseg_jax.export import export_model, files
from clipseg_jax.export import model as export_module
from clipseg_jax.segment_options import SegmentOptions
from input_pipeline.writing import CannotWrite
from tests.test_docs import DOCS, ROOT, fences, joined

pytestmark = pytest.mark.slow
WORDS, BACKGROUND = list(world.CLASSES)[:4], list(world.SCENERY)
SCRIPT = "import sys; from clipseg_jax import console; sys.exit(console.export())"
# As a program of a user who has one of the two runtimes and not this library.
ALONE = """
import sys
for name in ("clipseg_jax", "input_pipeline", "weights_convert", *sys.argv[4:]):
    sys.modules[name] = None  # importing it raises
import numpy as np
images = np.load(sys.argv[2])
if sys.argv[1].endswith(".onnx"):
    import onnxruntime
    outputs = onnxruntime.InferenceSession(sys.argv[1]).run(None, {"images": images})
else:
    import jax
    with open(sys.argv[1], "rb") as file:
        outputs = jax.export.deserialize(bytearray(file.read())).call(images)
np.savez(sys.argv[3], *outputs)
"""


@pytest.fixture(scope="module")
def model():
    return clipseg_jax.load("demo", devices=1)


def pictures(count, height=64, width=96):
    made = (world.make("evaluation", i, max(height, width)).image for i in range(count))
    return np.stack([each[:height, :width] for each in made])


def alone(path, images, folder, *missing):
    """What the file returns in a process without this library and without `missing`."""
    np.save(folder / "images.npy", images)
    arguments = (path, folder / "images.npy", folder / "outputs.npz", *missing)
    subprocess.run([sys.executable, "-c", ALONE, *map(str, arguments)], check=True, cwd=folder)
    with np.load(folder / "outputs.npz") as outputs:
        return [outputs[name] for name in outputs.files]


@pytest.mark.parametrize(
    ("count", "batch", "options"),
    [
        (3, None, {}),  # NACLIP with PAMR
        (2, 2, {"method": "maskclip", "refine": "par"}),
        (1, None, {"refine": "crf"}),
    ],
)
def test_stablehlo_gives_what_segment_gives(model, tmp_path, count, batch, options):
    path, images = tmp_path / "model.stablehlo", pictures(count)
    given = {"words": WORDS, "background": BACKGROUND, **options}
    record = export_model(model, path, size=(64, 96), batch=batch, **given)
    labels, scores = alone(path, images, tmp_path)
    for i, expected in enumerate(model.segment(images, **given)):
        assert np.mean(labels[i] == expected.labels) > 0.999
        np.testing.assert_allclose(scores[i], expected.scores, atol=1e-5)
        assert record["names"] == [*expected.names]
    assert labels.dtype == np.uint8
    assert len(np.unique(labels)) > 1
    assert record == json.loads((tmp_path / "model.stablehlo.json").read_text())
    assert record["background"] == BACKGROUND
    assert record["refine"] == options.get("refine", "pamr")
    assert record["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert record["inputs"]["images"]["shape"] == [batch or "b", 64, 96, 3]
    assert record["outputs"]["labels"]["shape"] == [batch or "b", 64, 96]


def test_probabilities_and_a_threshold(model, tmp_path):
    path, images = tmp_path / "model", pictures(1)
    given = {"words": WORDS, "refine": None}
    record = export_model(model, path, size=(64, 96), outputs="probabilities", **given)
    (values,) = alone(path, images, tmp_path)
    (expected,) = model.scores(images, **given)
    np.testing.assert_allclose(values[0], expected.values, atol=1e-5)
    assert record["outputs"]["probabilities"]["shape"] == ["b", 64, 96, 5]
    threshold = float(np.median(expected.values.max(axis=2)))
    given = {**given, "background": np.float32(threshold), "overwrite": True}
    record = export_model(model, path, size=(64, 96), **given)
    stored = json.loads((tmp_path / "model.json").read_text())
    assert record["background"] == stored["background"] == threshold
    labels, _ = alone(path, images, tmp_path)
    assert np.mean(labels[0] == expected.segmentation(threshold).labels) > 0.999
    assert 0.3 < np.mean(labels == 0) < 0.7


@pytest.mark.parametrize(
    "given",
    [
        {"method": "naclip", "refine": "pamr", "background": BACKGROUND},
        {"method": "maskclip", "background": 0.3},
        {"method": "maskclip", "outputs": "probabilities"},
    ],
)
def test_onnx_runs_without_jax(model, tmp_path, given):
    path, images = tmp_path / "model.onnx", pictures(1)
    record = export_model(model, path, size=(64, 96), words=WORDS, **given)
    results = alone(path, images, tmp_path, "jax")
    outputs = given.pop("outputs", "labels")
    if outputs == "probabilities":
        (expected,) = model.scores(images, WORDS, **given)
        np.testing.assert_allclose(results[0][0], expected.values, atol=1e-4)
    else:
        (expected,) = model.segment(images, WORDS, **given)
        assert np.mean(results[0][0] == expected.labels) > 0.999
        np.testing.assert_allclose(results[1][0], expected.scores, atol=1e-4)
    assert record["largest_difference"] < 1e-4
    assert record["format"] == "onnx"
    assert record["inputs"]["images"]["shape"] == [1, 64, 96, 3]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"refine": "crf", "fmt": "onnx"}, "ONNX cannot hold"),
        ({"batch": 2, "fmt": "onnx"}, "one image at a time"),
        ({"path": "m.ONNX", "fmt": "stablehlo"}, "named as ONNX"),
        ({"path": "there.stablehlo"}, "there.stablehlo exists already"),
        ({"path": "of"}, "of.json exists already"),
        ({"path": "folder", "overwrite": True}, "is a folder"),
        ({"path": "folder/"}, "is a folder"),
        ({"path": "pipe", "overwrite": True}, "no regular file"),
        ({"path": "a\0b"}, "path is 'a"),
        ({"path": None}, "path is None"),
        ({"outputs": "probabilities", "background": 0.4}, "a threshold is for labels"),
        ({"outputs": "probabilities", "background": np.float32(0.4)}, "a threshold is for labels"),
        ({"fmt": "tflite"}, "fmt is 'tflite'"),
        ({"outputs": "masks"}, "outputs is 'masks'"),
        ({"size": (64, 0)}, "size"),
        ({"size": (1, 5000)}, "less extreme shape"),
        ({"batch": 0}, "batch is 0"),
        ({"words": None}, "words is None"),
        ({"options": SegmentOptions(), "method": "sclip"}, "options and one of"),
    ],
)
def test_what_has_no_meaning(model, tmp_path, monkeypatch, given, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.stablehlo").write_text("precious")
    (tmp_path / "of.json").write_text("precious")
    (tmp_path / "folder").mkdir()
    os.mkfifo("pipe")
    with pytest.raises(ValueError, match=message):
        export_model(model, **{"path": "m", "size": 64, "words": WORDS, **given})
    assert {each.name for each in tmp_path.iterdir()} == {
        "there.stablehlo",
        "of.json",
        "folder",
        "pipe",
    }
    assert (tmp_path / "of.json").read_text() == "precious"


def test_networks_that_the_converter_does_not_know(model, tmp_path):
    given = {"words": WORDS, "method": "resclip_feedback", "refine": None}
    with pytest.raises(ValueError, match=r"cannot .* this network .*; export StableHLO"):
        export_model(model, tmp_path / "m.onnx", size=64, **given)
    assert not [*tmp_path.iterdir()]


def test_weights_beyond_what_a_file_holds(model, tmp_path, monkeypatch):
    monkeypatch.setattr(export_module, "_MOST_MEGABYTES", 1)
    with pytest.raises(ValueError, match="the weights have 3 MB and an exported file at most 1"):
        export_model(model, tmp_path / "m", size=64, words=WORDS)


def test_another_function_is_not_written(model, tmp_path, monkeypatch):
    def other(content, images):
        return [np.zeros(images.shape[:3], np.uint8), np.zeros(images.shape[:3], np.float32)]

    monkeypatch.setattr(export_module, "run_stablehlo", other)
    with pytest.raises(ValueError, match="other labels"):
        export_model(model, tmp_path / "m", size=64, words=WORDS, refine=None)
    assert not [*tmp_path.iterdir()]


def test_both_files_or_none(model, tmp_path, monkeypatch):
    def full(path, record):
        raise CannotWrite(f"cannot write {path}: no space")

    monkeypatch.setattr(files, "write_json", full)
    with pytest.raises(CannotWrite, match="no space"):
        export_model(model, tmp_path / "m", size=64, words=WORDS, refine=None)
    assert not [*tmp_path.iterdir()]


def test_the_command(tmp_path, capsys):
    path = tmp_path / "m.stablehlo"
    given = ["demo", "--size", "64x96", "--words", "cat, sofa", "--refine", "none"]
    assert command.main([*given, "--out", str(path)]) == 0
    assert f"wrote {path}" in capsys.readouterr().out
    before = path.read_bytes()
    assert command.main([*given, "--out", str(path)]) == 2
    assert "exists already; give another name, or overwrite" in capsys.readouterr().err
    assert path.read_bytes() == before
    given += ["--background-words", "wall", "--overwrite"]
    assert command.main([*given, "--out", str(path)]) == 0
    assert path.read_bytes() != before


@pytest.mark.parametrize("start", [["-m", "clipseg_jax.export"], ["-c", SCRIPT]])
def test_ctrl_c_while_it_starts(tmp_path, start):
    """No traceback, and nothing written, from the first import on."""
    given = ["demo", "--size", "64", "--words", "cat", "--out", str(tmp_path / "m")]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, *start, *given], stderr=subprocess.PIPE, env=environment, text=True
    ) as process:
        time.sleep(1.5)
        process.send_signal(signal.SIGINT)
        told = process.communicate()[1]
    assert process.returncode == 130
    # Once it handles signals, which is sooner on some machines, it acknowledges them first.
    assert told.removeprefix("\nstopping\n") == "stopped; run the same command again to resume\n"
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--size", "big"], "--size is 'big'; give pixels"),
        (["--size", "64x0"], "--size is '64x0'"),
        (["--size", "64", "--words", ""], "name some: --words"),
        (["--size", "64", "--words", "'cat'"], "quote or bracket"),
        (["--size", "64", "--background", "0.4", "--background-words", "wall"], "give one of them"),
        (["--size", "64", "--background", "4"], "--background is 4"),
    ],
)
def test_wrong_commands(tmp_path, capsys, given, message):
    words = [] if "--words" in given else ["--words", "cat"]
    out = str(tmp_path / "m")
    assert command.main(["demo", "--out", out, *words, *given]) == 2
    assert message in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]


def test_the_page(tmp_path, monkeypatch):
    """Its commands and examples in their order, on smaller images; `pip` is the tests' own."""
    monkeypatch.chdir(tmp_path)
    commands = 0
    for language, text in fences(DOCS / "export.md"):
        text = text.replace("512", "64")
        if language == "python":
            page: dict = {}
            exec(compile(text, "export.md", "exec"), page)
            if "labels" in page:
                assert page["labels"].shape == page["scores"].shape == page["images"].shape[:3]
            else:
                assert page["record"]["names"] == ["background", "horse", "ball"]
            continue
        for line in joined(text):
            words = shlex.split(line)
            if words[0] != "pip":
                assert words[:3] == ["python", "-m", "clipseg_jax.export"]
                assert command.main(words[3:]) == 0
                commands += 1
    assert commands == 2
