"""ReCLIP's recipe whole: every stage, skipping, killing, going on, and what users get wrong."""

from __future__ import annotations

import functools
import json

import pytest

from clipseg_jax import main
from clipseg_jax.demo import world
from configs import demo_reclip, demo_reclippp
from tests import folders
from tests.kills import differences, run_killed, run_whole, start
from weights_convert import RECLIP, load_trained

ALL = (
    "data",
    "text",
    "tags",
    "evaluate_maskclip",
    "rectify",
    "evaluate",
    "distill",
    "evaluate_distilled",
)


@pytest.fixture(scope="module")
def painted(tmp_path_factory):
    return folders.write_painted(tmp_path_factory.mktemp("world"), 6, 10)


def small(module, root):
    """A demo config of seconds: all stages, a few steps of each training."""
    config = module.get_config()
    config.dataset.name, config.dataset.root = "folder", str(root)
    for section in (config.rectifier, config.student):
        section.scale_px, section.crop_px = (64, 64), (48, 48)
        section.batch_size, section.total_epochs = 4, 2
    config.inference.scale_px = (64, 64)
    config.student.width, config.student.init_weights = 8, "random"
    config.rectifier.evaluate_every_epochs = config.student.evaluate_every_epochs = 1
    config.tags.crop_px = 192  # windows of 32 pixels
    config.run.pictures = 2
    config.run.devices = 1
    config.run.log_every_steps = 1
    return config


@pytest.mark.slow
@pytest.mark.parametrize(
    "module", [pytest.param(demo_reclip, marks=pytest.mark.long), demo_reclippp]
)
def test_the_whole_recipe(module, painted, tmp_path, capsys):
    config = small(module, painted)
    config.run.predictions = True
    records = main.run(config, tmp_path)
    assert tuple(records) == ALL
    assert records["tags"]["images"] == 10
    assert records["rectify"]["steps"] == records["distill"]["steps"] == 6
    for stage in ("rectified", "distilled"):
        figures = json.loads((tmp_path / f"metrics_{stage}.json").read_text())
        assert figures["images"] == 6
        assert set(figures["classes"]) == set(world.CLASSES)
        assert figures["published_metric"] == "mIoU_absent_as_0"
        assert len(list((tmp_path / f"pictures_{stage}").iterdir())) == 2
        assert len(list((tmp_path / f"predictions_{stage}").iterdir())) == 6
        last = load_trained(tmp_path / f"{stage}_last.safetensors", RECLIP)
        assert last.record["classes"][:2] == ["boat", "fish"]
        assert last.record["figures"]["steps"] == 6
    assert not list(tmp_path.rglob("*.partial*"))
    lines = [json.loads(line) for line in (tmp_path / "rectify.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 7))
    assert lines[0]["rate"] == pytest.approx(config.rectifier.optim.learning_rate)
    # The rate changes once an epoch, of three steps.
    assert lines[3]["rate"] == pytest.approx(config.rectifier.optim.learning_rate * 0.5**0.9)
    evaluations = (tmp_path / "rectify_evaluations.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in evaluations] == [3, 6]

    # Again: every stage says so and does nothing.
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.safetensors")}
    capsys.readouterr()
    assert main.run(config, tmp_path) == records
    assert capsys.readouterr().out.count("done before") == len(ALL)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.safetensors")}


@pytest.mark.slow
def test_own_weights_and_tags_replace_stages(painted, tmp_path):
    config = small(demo_reclippp, painted)
    config.stages = ("data", "text", "tags", "rectify")
    main.run(config, tmp_path / "a")
    tags = next((tmp_path / "a" / "tags").glob("*_ReCLIPPP.json"))
    config.tags.file = str(tags)
    config.rectifier.trained_weights = str(tmp_path / "a" / "rectified_last.safetensors")
    config.stages = ("text", "tags", "rectify", "evaluate")
    records = main.run(config, tmp_path / "b")
    assert records["tags"]["file"] == str(tags)
    assert "skipped" in records["rectify"]
    assert not (tmp_path / "b" / "checkpoints").exists()

    # The same weights under other classes, another state of the code, another method.
    config.stages = ("text", "evaluate")
    other = config.copy_and_resolve_references()
    other.rectifier.read_out = "naclip"
    with pytest.raises(ValueError, match="was trained on the read-out 'value' of CLIP"):
        main.run(other, tmp_path / "g")
    other = config.copy_and_resolve_references()
    other.dataset.class_names = (*world.CLASSES[:11], "kite")
    with pytest.raises(ValueError, match="trained with other classes: number 11 is 'balloon'"):
        main.run(other, tmp_path / "c")
    other = config.copy_and_resolve_references()
    other.revision = "2025"
    with pytest.raises(ValueError, match=r"is of revision 2024, not 2025"):
        main.run(other, tmp_path / "d")
    other = config.copy_and_resolve_references()
    other.model = "reclip"
    with pytest.raises(ValueError, match=r"is of method ReCLIP\+\+, not ReCLIP"):
        main.run(other, tmp_path / "e")
    tags.write_text(tags.read_text() + "[0]\n")
    other = config.copy_and_resolve_references()
    other.stages = ("text", "tags")
    with pytest.raises(ValueError, match="11 lines for 10 training images"):
        main.run(other, tmp_path / "f")


def test_what_users_get_wrong(painted, tmp_path):
    config = small(demo_reclippp, painted)
    config.stages = ("text", "rectify")
    with pytest.raises(ValueError, match="run the stage `tags` first"):
        main.run(config, tmp_path / "a")
    config.stages = ("text", "distill")
    config.student.init_weights = None
    with pytest.raises(ValueError, match="no initial weights; pass"):
        main.run(config, tmp_path / "b")
    config.student.init_weights = "random"
    with pytest.raises((ValueError, OSError), match=r"rectified_best\.safetensors"):
        main.run(config, tmp_path / "c")
    config.revision = "2025"
    with pytest.raises(ValueError, match="the 2025 state of ReCLIP\\+\\+ has no distillation"):
        main.run(config, tmp_path / "d")


@pytest.fixture(scope="module")
def full_size(tmp_path_factory):
    return folders.write_full_size(tmp_path_factory.mktemp("full"))


def full_size_run(root, workdir, stages=None):
    """The headline command on `full_size`, shortened: small crops, a few steps of each training."""
    settings = {
        "clip.weights": root / "vit_b16.safetensors",
        "dataset.root": root / "VOC2012",
        "text.templates": "single",
        "tags.crop_px": 384, "run.crops_at_once": 2,
        "rectifier.scale_px": "(96,64)", "rectifier.crop_px": "(64,64)",
        "rectifier.batch_size": 2, "rectifier.total_epochs": 2,
        "inference.scale_px": "(96,64)",
        "student.init_weights": "random",
        "student.scale_px": "(96,64)", "student.crop_px": "(64,64)",
        "student.batch_size": 2, "student.total_epochs": 1,
        "run.checkpoint_every_steps": 2, "run.log_every_steps": 1,
        "run.batch_size": 2,
    }  # fmt: skip
    return start("voc_reclippp", workdir, settings, root / "cache", stages=stages)


@pytest.mark.long
def test_full_size_killed_and_resumed(full_size, tmp_path):
    """ViT-B/16 and ResNet-50."""
    make = functools.partial(full_size_run, full_size)
    stages = run_whole(make, tmp_path / "whole")
    run_killed(make, tmp_path / "broken", stages, 2)
    assert not [*differences(tmp_path / "whole", tmp_path / "broken")]
