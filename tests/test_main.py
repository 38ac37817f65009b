"""A recipe from the command line: stages, skipping, resuming, and what users get wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from clipseg_jax import main
from clipseg_jax.core.metrics import SegmentationMetrics, confusion_on_host
from clipseg_jax.demo import world
from clipseg_jax.stages import evaluation as evaluation_stage
from clipseg_jax.stages import robustness
from configs import demo_maskclip, voc_maskclip
from input_pipeline.batches import evaluation

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def config(tmp_path):
    world.write_dataset(tmp_path / "world", 10, 64)
    config = demo_maskclip.get_config()
    config.dataset.name = "folder"
    config.dataset.root = str(tmp_path / "world")
    config.inference.scale_px = (64, 64)
    config.run.pictures = 3
    config.run.predictions = True
    return config


def test_the_whole_recipe(config, tmp_path, capsys):
    work = tmp_path / "work"
    records = main.run(config, work)
    assert list(records) == ["data", "text", "evaluate"]
    metrics = json.loads((work / "metrics.json").read_text())
    assert metrics["images"] == 10
    assert metrics["skipped"] == []
    assert set(metrics["classes"]) == {"background", *world.CLASSES}
    assert 0 < metrics["mIoU"] <= 100
    assert metrics["published_metric"] == records["evaluate"]["published_metric"] == "mIoU"
    assert sorted(p.name for p in (work / "pictures").iterdir()) == [
        "0000.png", "0001.png", "0002.png",
    ]  # fmt: skip
    # The label maps are what was scored, and grey.
    counts, names = 0, sorted(path.name for path in (work / "predictions").iterdir())
    assert len(names) == 10
    for name in names:
        predicted = cv2.imread(str(work / "predictions" / name), cv2.IMREAD_GRAYSCALE)
        truth = np.asarray(Image.open(tmp_path / "world/labels" / name))
        counts = counts + confusion_on_host(truth, predicted, 13)
    assert SegmentationMetrics.from_confusion(counts).summary()["mIoU"] == metrics["mIoU"]
    assert json.loads((work / "config.json").read_text())["method"] == "maskclip"
    assert not (work / "evaluate.partial.npz").exists()
    assert "mIoU" not in capsys.readouterr().err

    # Again: nothing is computed; a stage is done again once its record is gone.
    before = (work / "metrics.json").stat().st_mtime_ns
    assert main.run(config, work)["evaluate"] == records["evaluate"]
    assert (work / "metrics.json").stat().st_mtime_ns == before
    (work / "evaluate.done.json").unlink()
    config.stages = ("evaluate",)
    config.run.batch_size = 16
    config.run.palette = True
    again = main.run(config, work)["evaluate"]
    assert again["mIoU"] == records["evaluate"]["mIoU"]
    coloured = Image.open(work / "predictions" / names[-1])
    assert coloured.mode == "P"
    np.testing.assert_array_equal(np.asarray(coloured), predicted)

    # Another configuration must not be mixed in.
    config.maskclip.ks_threshold = 1.0
    with pytest.raises(ValueError, match=r"maskclip\.ks_threshold: 0\.0 -> 1\.0"):
        main.run(config, work)


def test_robustness(config, tmp_path, monkeypatch, capsys):
    """As it is and under each corruption, of one plan; goes on where it was stopped."""
    config.stages = ("text", "robustness")
    config.robustness.kinds, config.robustness.levels = ("gaussian_noise", "gaussian_blur"), (1, 5)
    read, sizes = [], evaluation.example_sizes
    monkeypatch.setattr(evaluation, "example_sizes", lambda *a: read.append(a) or sizes(*a))
    record = main.run(config, tmp_path)["robustness"]
    assert len(read) == 1  # the headers of all pictures
    path = tmp_path / "robustness.json"
    done = json.loads(path.read_text())
    assert {kind: [*levels] for kind, levels in done.items()} == {
        "clean": ["0"], "gaussian_noise": ["1", "5"], "gaussian_blur": ["1", "5"],
    }  # fmt: skip
    assert len({levels[level]["mIoU"] for levels in done.values() for level in levels}) == 5
    noise = [done["gaussian_noise"][level]["mIoU"] for level in "15"]
    assert record["clean"] == done["clean"]["0"]["mIoU"] > noise[1]
    assert record["gaussian_noise"] == pytest.approx(sum(noise) / 2, abs=0.01)
    assert f"gaussian_noise 5: mIoU {noise[1]:.2f}" in capsys.readouterr().out

    # Without its last figure: that one alone is made again.
    (tmp_path / "robustness.done.json").unlink()
    rest = {**done, "gaussian_blur": {"1": done["gaussian_blur"]["1"]}}
    (tmp_path / "robustness.partial.json").write_text(json.dumps(rest))
    assert main.run(config, tmp_path)["robustness"]["gaussian_blur"] == record["gaussian_blur"]
    assert json.loads(path.read_text()) == done
    assert capsys.readouterr().out.count(": mIoU ") == 1

    config.robustness.kinds = ("gaussian_noise", "drizzle")  # is said before anything is measured
    with pytest.raises(ValueError, match="No corruption 'drizzle'"):
        main.run(config, tmp_path / "unknown")
    assert not (tmp_path / "unknown" / "robustness.partial.json").exists()
    config.dataset.corruption, config.dataset.corruption_level = "gaussian_noise", 1
    with pytest.raises(ValueError, match="corrupted already"):
        main.run(config, tmp_path / "twice")


def test_bad_files_are_skipped_and_named(config, tmp_path):
    broken = tmp_path / "world" / "images" / "0004.png"
    broken.write_bytes(broken.read_bytes()[:300])
    label = tmp_path / "world" / "labels" / "0007.png"
    wrong = np.asarray(Image.open(label)).copy()
    wrong[:4] = 77
    Image.fromarray(wrong).save(label)
    main.run(config, tmp_path / "work")
    metrics = json.loads((tmp_path / "work" / "metrics.json").read_text())
    assert metrics["images"] == 8
    reasons = " ".join(metrics["skipped"])
    assert "0004.png" in reasons
    assert "label 77" in reasons


@pytest.mark.slow
def test_a_resumed_evaluation_names_what_was_left_out_before(config, tmp_path, monkeypatch):
    """Stopped after the last batch; and once more, with nothing left to read."""
    wrong = tmp_path / "world" / "labels" / "0000.png"
    Image.fromarray(np.full_like(np.asarray(Image.open(wrong)), 77)).save(wrong)
    config.run.pictures, config.run.predictions = 0, False
    main.run(config, tmp_path / "whole")
    work = tmp_path / "work"

    def stop(*_, **__):
        raise KeyboardInterrupt

    for _ in range(2):
        with monkeypatch.context() as stopped:
            stopped.setattr(evaluation_stage, "report", stop)
            with pytest.raises(KeyboardInterrupt):
                main.run(config, work)
    main.run(config, work)
    text = (work / "metrics.json").read_text()
    assert text == (tmp_path / "whole/metrics.json").read_text()
    (reason,) = json.loads(text)["skipped"]
    assert "label 77" in reason
    assert not [path for path in work.iterdir() if "partial" in path.name]


def test_labels_of_other_classes_are_no_score(config, tmp_path):
    """Every label map has an id that is no class: nothing is printed, and mending helps."""
    names = config.dataset.class_names
    config.dataset.class_names = names[:2]
    config.run.pictures, config.run.predictions = 0, False
    with pytest.raises(ValueError, match=r"of 10 images were left out.*out of range"):
        main.run(config, tmp_path / "work")
    assert not (tmp_path / "work/metrics.json").exists()
    assert not [path for path in (tmp_path / "work").iterdir() if "partial" in path.name]


@pytest.mark.parametrize("content", ["", "[]", '{"clean": 3}', '{"clean": {"0": {"mIoU": "x"}}}'])
def test_damaged_figures_of_robustness_are_measured_again(tmp_path, content):
    path = tmp_path / "robustness.partial.json"
    assert robustness._read(path, "mIoU") == {}
    path.write_text(content)
    assert robustness._read(path, "mIoU") == {}
    path.write_text('{"clean": {"0": {"mIoU": 1.5, "hIoU": null}, "1": {"pAcc": 2}}}')
    figures = robustness._read(path, "mIoU")
    assert figures["clean"].keys() == {"0"}
    assert np.isnan(figures["clean"]["0"]["hIoU"])


def test_user_errors(config, tmp_path):
    config.stages = ("evaluate",)
    with pytest.raises(ValueError, match="run the stage `text` first"):
        main.run(config, tmp_path / "a")
    config.stages = ("data", "train")
    with pytest.raises(ValueError, match="unknown stages train; maskclip has data, text"):
        main.run(config, tmp_path / "b")
    for given, message in [
        ((), "no stages; set --config.stages to some of data,text,"),
        (("evaluate", "data", "text"), "order.*set --config.stages=data,text,evaluate$"),
        (("data", "data"), "set --config.stages=data$"),
    ]:
        config.stages = given
        with pytest.raises(ValueError, match=message):
            main.run(config, tmp_path / "b")
    blocked = tmp_path / "file"
    blocked.write_text("")
    config.stages = ("data",)
    with pytest.raises(OSError, match="cannot write"):
        main.run(config, blocked)
    voc = voc_maskclip.get_config()
    voc.dataset.root = str(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        main.run(voc, tmp_path / "c")


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "clipseg_jax.main", *arguments],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_the_command_explains_itself(tmp_path):
    done = command(
        "--config=configs/voc_maskclip.py",
        f"--workdir={tmp_path / 'work'}",
        f"--config.dataset.root={tmp_path}",
    )
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("error: ")
    assert "Traceback" not in done.stderr
