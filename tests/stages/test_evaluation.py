"""What an evaluation leaves beside its metrics, for TensorBoard and reports."""

from __future__ import annotations

import functools
import json

import jax
import numpy as np
import pytest
from PIL import Image

from clipseg_jax import main
from clipseg_jax.core.metrics import SegmentationMetrics
from clipseg_jax.demo import world
from clipseg_jax.methods.maskclip import recipe
from clipseg_jax.stages import evaluation as module
from clipseg_jax.stages.evaluation import Evaluation, validation
from clipseg_jax.stages.inference import inference_config
from clipseg_jax.stages.showcase import Showcase
from configs import demo_maskclip
from tests.events import read_events


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    world.write_dataset(root, 14, 64)
    broken = root / "images" / "0003.png"
    broken.write_bytes(broken.read_bytes()[:300])
    config = demo_maskclip.get_config()
    config.dataset.name, config.dataset.root = "folder", str(root)
    config.inference.scale_px = (64, 64)
    config.run.pictures, config.run.batch_size = 0, 2
    config.run.devices = 1
    config.stages = ("text", "evaluate")
    return config


def content(folder):
    """Name -> bytes of the results."""
    kinds = ("metrics", "confusion", "image_scores", "examples")
    paths = (path for path in folder.rglob("*") if path.is_file())
    found = {str(path.relative_to(folder)): path.read_bytes() for path in paths}
    return {name: data for name, data in found.items() if name.startswith(kinds)}


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    main.run(config, folder)
    return folder


def test_the_confusion_and_the_scores_are_those_of_the_metrics(whole):
    figures = json.loads((whole / "metrics.json").read_text())
    confusion = np.load(whole / "confusion.npy")
    assert SegmentationMetrics.from_confusion(confusion).summary()["mIoU"] == figures["mIoU"]
    lines = [json.loads(x) for x in (whole / "image_scores.jsonl").read_text().splitlines()]
    assert [line["name"] for line in lines] == [f"{i:04}" for i in range(14) if i != 3]
    listed = json.loads((whole / "examples" / "examples.json").read_text())
    by_name = {line["name"]: line["mIoU"] for line in lines}
    assert [each["mIoU"] for each in listed["best"]] == sorted(by_name.values())[::-1][:6]
    assert [each["mIoU"] for each in listed["worst"]] == sorted(by_name.values())[:6]
    for kind in ("best", "worst"):
        for each in listed[kind]:
            assert by_name[each["name"]] == each["mIoU"]
            assert Image.open(whole / "examples" / each["file"]).size == (3 * 320 + 8, 320)
    assert not [path for path in whole.iterdir() if "partial" in path.name]


def test_tensorboard_has_the_final_table_and_the_panel(config, whole):
    figures = json.loads((whole / "metrics.json").read_text())
    found = read_events(whole / "tensorboard" / "evaluate")
    assert found["mIoU"] == {0: pytest.approx(figures["mIoU"])}
    ious = {name: row["IoU"] for name, row in figures["classes"].items() if row["IoU"] is not None}
    logged = {tag.removeprefix("iou/"): each[0] for tag, each in found.items() if "iou/" in tag}
    assert logged == pytest.approx(ious)
    assert found["classes/text_summary"][0].count("\n") == 1 + len(figures["classes"])
    panel = {tag: each[0] for tag, each in found.items() if tag.startswith("panel/")}
    assert len(panel) == 6
    assert "panel/0003" not in panel  # cannot be read
    for tag, picture in panel.items():  # the image itself is on the left
        name = tag.removeprefix("panel/")
        image = Image.open(f"{config.dataset.root}/images/{name}.png").resize((320, 320), 1)
        assert np.abs(picture[:320, :320].astype(int) - np.asarray(image)).mean() < 12


def test_again_it_is_in_tensorboard_once(config, whole, tmp_path):
    main.run(config, tmp_path)
    (tmp_path / "evaluate.done.json").unlink()
    main.run(config, tmp_path)
    assert read_events(tmp_path / "tensorboard" / "evaluate").keys() >= {"mIoU", "panel/0000"}
    assert content(tmp_path) == content(whole)


@pytest.mark.parametrize("stop", [3, 9, 13])
def test_an_interrupted_evaluation_leaves_the_same(config, whole, tmp_path, monkeypatch, stop):
    """Also the panel, of images that the second run does not segment; whatever the batches."""
    monkeypatch.setattr(module, "evaluate", functools.partial(module.evaluate, save_every_s=0))
    seen, add = [], Showcase.add

    def stopping(self, one, write):
        if len(seen) == stop:
            raise KeyboardInterrupt
        seen.append(one.index)
        add(self, one, write)

    with monkeypatch.context() as patch:
        patch.setattr(Showcase, "add", stopping)
        if stop < 13:
            with pytest.raises(KeyboardInterrupt):
                main.run(config, tmp_path)
        else:  # after the last image, before the table
            patch.setattr(module, "report", lambda *_, **__: pytest.fail("stopped"))
            with pytest.raises(pytest.fail.Exception):
                main.run(config, tmp_path)
    seen.clear()
    with monkeypatch.context() as patch:
        patch.setattr(Showcase, "add", lambda *args: seen.append(args[1].index) or add(*args))
        main.run(config, tmp_path)
    assert len(seen) == {3: 13, 9: 9, 13: 0}[stop]
    assert content(tmp_path) == content(whole)
    one, other = (read_events(f / "tensorboard" / "evaluate") for f in (tmp_path, whole))
    assert one.keys() == other.keys()
    for tag in one:
        np.testing.assert_array_equal(one[tag][0], other[tag][0])


def test_evaluations_while_training_have_panel_and_classes(config, whole, monkeypatch):
    task = recipe.build(config, whole)
    made = []

    def make():
        made.append(Evaluation(config, inference_config(config)))
        return made[0]

    evaluate = validation(make, lambda model: task._replace(model=model))
    first, second = evaluate(task.model, 5), evaluate(task.model, 10)
    assert len(made) == 1  # and compiled once
    figures = json.loads((whole / "metrics.json").read_text())
    assert first.metrics == second.metrics == made[0].figures(task)
    assert first.metrics["mIoU"] == figures["mIoU"]
    assert "iou/boat" not in first.metrics  # the log and the best checkpoint have what they had
    assert first.shown.scalars["iou/background"] == figures["classes"]["background"]["IoU"]
    final = read_events(whole / "tensorboard" / "evaluate")
    assert first.shown.images.keys() == {tag for tag in final if tag.startswith("panel/")}
    # Another than the first process has none.
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    assert made[0].validate(task).shown.images == {}
