"""A user's folder: what is in it decides what is scored and what is learned from."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from PIL import Image

from clipseg_jax import main
from clipseg_jax.demo.world import CLASSES
from clipseg_jax.stages import data, preflight
from clipseg_jax.stages.data import check_splits, find_dataset
from configs import demo_clip_rc, demo_maskclip, demo_maskclip_plus, demo_reclippp
from tests import folders


@pytest.fixture
def painted(tmp_path):
    return folders.write_painted(tmp_path / "world", 3, 2)


@pytest.fixture
def config(painted):
    config = demo_maskclip.get_config()
    config.dataset.name, config.dataset.root = "folder", str(painted)
    config.inference.scale_px = (64, 64)
    config.run.pictures, config.run.predictions = 1, True
    return config


def labelled(config, split):
    (part,) = find_dataset(config.dataset).layout.split(split).parts
    return part.labels


def test_what_is_there_decides(config, painted, capsys):
    assert (labelled(config, "val"), labelled(config, "train")) == ("labels", "train/labels")
    check_splits(config.dataset, "train", "val")
    assert capsys.readouterr().out == ""
    shutil.rmtree(painted / "train/labels")
    assert (labelled(config, "val"), labelled(config, "train")) == ("labels", None)
    shutil.rmtree(painted / "train")
    # Labels that are scored are never learned from.
    (part,) = find_dataset(config.dataset).layout.split("train").parts
    assert (part.images, part.labels) == ("images", None)
    shutil.rmtree(painted / "labels")
    assert labelled(config, "val") is None
    record = check_splits(config.dataset, "train", "val")
    assert record["images"] == {"train": 3, "val": 3}
    said = capsys.readouterr().out
    assert "no labels/, so val is segmented and not scored" in said
    assert "no train/, so images/ is what is learned from" in said


def test_images_without_labels_are_segmented(config, painted, tmp_path, capsys):
    main.run(config, tmp_path / "scored")
    shutil.rmtree(painted / "labels")
    records = main.run(config, tmp_path / "work")
    assert records["evaluate"].keys() == {"images", "skipped", "scored", "seconds"}
    assert records["evaluate"]["images"] == 3
    assert "has no label maps: nothing is scored" in capsys.readouterr().out
    assert not (tmp_path / "work/metrics.json").exists()
    assert not [path for path in (tmp_path / "work").iterdir() if "partial" in path.name]
    assert len([*(tmp_path / "work/pictures").iterdir()]) == 1
    for path in sorted((tmp_path / "scored/predictions").iterdir()):
        other = tmp_path / "work/predictions" / path.name
        np.testing.assert_array_equal(Image.open(path), Image.open(other))


def test_nothing_to_score_and_nothing_to_write(config, painted, tmp_path):
    shutil.rmtree(painted / "labels")
    config.run.pictures, config.run.predictions = 0, False
    with pytest.raises(ValueError, match=r"no label maps to score.*run\.predictions=True"):
        main.run(config, tmp_path)
    config.run.predictions = True
    with pytest.raises(ValueError, match="omit the stage robustness"):
        preflight.check(config, ("text", "robustness"))


def test_scores_while_training_need_labels(painted):
    shutil.rmtree(painted / "labels")
    config = demo_reclippp.get_config()
    config.dataset.name, config.dataset.root = "folder", str(painted)
    config.rectifier.evaluate_every_epochs, config.run.predictions = 1, True
    with pytest.raises(
        ValueError, match=r"no label maps to score while.*rectifier\.evaluate_every_epochs=0"
    ):
        preflight.check(config, config.stages)
    config.rectifier.evaluate_every_epochs = 0
    preflight.check(config, config.stages)


@pytest.mark.parametrize(
    ("module", "method"), [(demo_clip_rc, "CLIP-RC"), (demo_maskclip_plus, "zero-shot MaskCLIP")]
)
@pytest.mark.parametrize("removed", ["train", "train/labels"])
def test_labels_that_are_learned_from_are_asked_for(module, method, removed, painted, tmp_path):
    shutil.rmtree(painted / removed)
    config = module.get_config()
    config.dataset.name, config.dataset.root = "folder", str(painted)
    config.dataset.class_names, config.dataset.unseen = CLASSES, ("bus",)
    config.stages = ("data",)
    with pytest.raises(ValueError, match=f"{method}.*learns from label maps.*train/labels"):
        main.run(config, tmp_path / "work")


def test_the_demo_world_is_labelled_by_the_class_names(tmp_path, monkeypatch):
    """Also in another order, by some names only, and beside a background."""
    monkeypatch.setattr(data, "_DEMO", {"": {"split": "evaluation", "count": 18, "size": 32}})
    config = demo_maskclip.get_config().dataset
    config.root = str(tmp_path)

    def labels(*names):
        config.class_names = names
        check_splits(config, "val")
        files = sorted((tmp_path / "labels").iterdir())
        return np.stack([np.asarray(Image.open(path)) for path in files])

    own = labels(*CLASSES)
    kinds = (own > 0) & (own < 255)
    assert (labels("background", *CLASSES) == own).all()
    assert (labels(*CLASSES[::-1])[kinds] == 13 - own[kinds]).all()
    few = labels("background", "sheep", "blue boat")
    sheep, boats = own == CLASSES.index("sheep") + 1, own == CLASSES.index("boat") + 1
    assert (few[sheep] == 1).all()
    assert {*np.unique(few[boats])} == {2, 255}  # those of other colours are ignored
    assert (few[kinds & ~sheep & ~boats] == 255).all()
    with pytest.raises(ValueError, match=r"classes \['tre', 'brown boat'\] are not in the demo"):
        labels("tre", "boat", "brown boat")
