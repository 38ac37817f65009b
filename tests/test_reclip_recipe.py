"""ReCLIP's recipe whole: every stage, skipping, killing, going on, and what users get wrong."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipseg_jax import main
from clipseg_jax.demo import world
from configs import demo_reclip, demo_reclippp
from tests import seeded
from weights_convert import results, safetensors_file

ROOT = Path(__file__).resolve().parent.parent
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
    root = tmp_path_factory.mktemp("world")
    world.write_dataset(root, 6, 64)
    world.write_dataset(root / "train", 10, 64, "train")
    return root


def small(module, root):
    """A demo config of seconds: all stages, a few steps of each training."""
    config = module.get_config()
    config.dataset.name, config.dataset.root = "folder", str(root)
    for section in (config.rectify, config.distill):
        section.scale_px, section.crop_px = (64, 64), (48, 48)
        section.batch_size, section.epochs = 4, 2
    config.inference.scale_px = (64, 64)
    config.distill.width = 8
    config.rectify.evaluate_every_epochs = config.distill.evaluate_every_epochs = 1
    config.tags.crop_px = 192  # windows of 32 pixels
    config.evaluate.pictures = 2
    config.train.devices = config.evaluate.devices = 1
    config.train.log_every_steps = 1
    return config


@pytest.mark.slow
@pytest.mark.parametrize("module", [demo_reclip, demo_reclippp])
def test_the_whole_recipe(module, painted, tmp_path, capsys):
    config = small(module, painted)
    records = main.run(config, tmp_path)
    assert tuple(records) == ALL
    assert records["tags"]["images"] == 10
    assert records["rectify"]["steps"] == records["distill"]["steps"] == 6
    for stage in ("rectified", "distilled"):
        figures = json.loads((tmp_path / f"metrics_{stage}.json").read_text())
        assert figures["images"] == 6
        assert set(figures["classes"]) == set(world.CLASSES)
        assert len(list((tmp_path / f"pictures_{stage}").iterdir())) == 2
        last = results.load_result(tmp_path / f"{stage}_last.safetensors")
        assert last.record["classes"][:2] == ["boat", "fish"]
        assert last.record["figures"]["steps"] == 6
    assert not list(tmp_path.rglob("*.partial*"))
    lines = [json.loads(line) for line in (tmp_path / "rectify.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 7))
    assert lines[0]["rate"] == pytest.approx(config.rectify.optim.rate)
    # The rate changes once an epoch, of three steps.
    assert lines[3]["rate"] == pytest.approx(config.rectify.optim.rate * 0.5**0.9)
    evaluations = (tmp_path / "rectify_evaluations.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in evaluations] == [3, 6]

    # Again: every stage says so and does nothing.
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.safetensors")}
    capsys.readouterr()
    assert main.run(config, tmp_path) == records
    assert capsys.readouterr().out.count("done before") == len(ALL)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.safetensors")}


def test_own_weights_and_tags_replace_stages(painted, tmp_path):
    config = small(demo_reclippp, painted)
    config.stages = ("data", "text", "tags", "rectify")
    main.run(config, tmp_path / "a")
    tags = next((tmp_path / "a" / "tags").glob("*_ReCLIPPP.json"))
    config.tags.file = str(tags)
    config.rectify.weights = str(tmp_path / "a" / "rectified_last.safetensors")
    config.stages = ("text", "tags", "rectify", "evaluate")
    records = main.run(config, tmp_path / "b")
    assert records["tags"]["file"] == str(tags)
    assert "skipped" in records["rectify"]
    assert not (tmp_path / "b" / "checkpoints").exists()

    # The same weights under other classes, another state of the code, another method.
    config.stages = ("text", "evaluate")
    other = config.copy_and_resolve_references()
    other.dataset.class_names = (*world.CLASSES[:11], "kite")
    with pytest.raises(ValueError, match="trained with other classes: number 11 is 'balloon'"):
        main.run(other, tmp_path / "c")
    other = config.copy_and_resolve_references()
    other.revision = "2025"
    with pytest.raises(ValueError, match=r"belongs to revision 2024, not 2025"):
        main.run(other, tmp_path / "d")
    other = config.copy_and_resolve_references()
    other.model = "reclip"
    with pytest.raises(ValueError, match=r"is of ReCLIP\+\+"):
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
    config.distill.backbone = None
    with pytest.raises(ValueError, match="no backbone; pass"):
        main.run(config, tmp_path / "b")
    config.distill.backbone = "random"
    with pytest.raises((ValueError, OSError), match=r"rectified_best\.safetensors"):
        main.run(config, tmp_path / "c")
    config.revision = "2025"
    with pytest.raises(ValueError, match="the 2025 state of ReCLIP\\+\\+ has no distillation"):
        main.run(config, tmp_path / "d")


def write_voc(root, train=5, val=2, size=(72, 96)):
    """A small folder in VOC's layout: JPEGs, palette PNGs, split lists."""
    lists = root / "ImageSets" / "Segmentation"
    for folder in (lists, root / "JPEGImages", root / "SegmentationClass"):
        folder.mkdir(parents=True, exist_ok=True)
    for split, start, count in (("train", 0, train), ("val", 100, val)):
        stems = [f"2007_{start + i:06d}" for i in range(count)]
        (lists / f"{split}.txt").write_text("\n".join(stems) + "\n")
        for i, stem in enumerate(stems):
            Image.fromarray(seeded.image(*size, start + i)).save(root / f"JPEGImages/{stem}.jpg")
            label = Image.fromarray(seeded.label_map(*size, 21, start + i), "P")
            label.putpalette([n for i in range(256) for n in (i, 255 - i, i // 2)])
            label.save(root / f"SegmentationClass/{stem}.png")
    return root


@pytest.fixture(scope="module")
def full_size(tmp_path_factory):
    """Seeded ViT-B/16 weights, a ResNet-50's, and a VOC folder: what a user brings."""
    root = tmp_path_factory.mktemp("full")
    shapes = json.loads((ROOT / "tests/golden/clip/shapes.json").read_text())["ViT-B/16"]
    weights = seeded.state_dict(shapes, 0)
    half = {k: v.astype(np.float16) if v.ndim > 1 else v for k, v in weights.items()}
    with (root / "vit_b16.safetensors").open("wb") as file:
        safetensors_file.write(file, half, {})
    write_voc(root / "VOC2012")
    return root


def start(config, workdir, settings, cache):
    """The command of a user, as a process of its own."""
    arguments = [f"--config.{name}={value}" for name, value in settings.items()]
    environment = {**os.environ, "CLIPSEG_JAX_CACHE": str(cache), "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        [
            sys.executable, "-m", "clipseg_jax.main", f"--config=configs/{config}.py",
            f"--workdir={workdir}", *arguments,
        ],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def full_size_run(root, workdir):
    """The headline command on `full_size`, shortened: small crops, a few steps of each training."""
    settings = {
        "clip.weights": root / "vit_b16.safetensors",
        "dataset.root": root / "VOC2012",
        "text.templates": "single",
        "tags.crop_px": 384, "tags.batch_size": 2,
        "rectify.scale_px": "(96,64)", "rectify.crop_px": "(64,64)",
        "rectify.batch_size": 2, "rectify.epochs": 2,
        "inference.scale_px": "(96,64)",
        "distill.backbone": "random",
        "distill.scale_px": "(96,64)", "distill.crop_px": "(64,64)",
        "distill.batch_size": 2, "distill.epochs": 1,
        "train.checkpoint_every_steps": 2, "train.log_every_steps": 1,
        "evaluate.batch_size": 2,
    }  # fmt: skip
    return start("voc_reclippp", workdir, settings, root / "cache")


def tiny_run(root, workdir):
    settings = {
        "dataset.name": "folder", "dataset.root": root, "text.templates": "single",
        "rectify.scale_px": "(64,64)", "rectify.crop_px": "(48,48)",
        "rectify.batch_size": 2, "rectify.epochs": 4, "rectify.evaluate_every_epochs": 1,
        "inference.scale_px": "(64,64)",
        "distill.scale_px": "(64,64)", "distill.crop_px": "(48,48)", "distill.width": 8,
        "distill.batch_size": 2, "distill.epochs": 4, "distill.evaluate_every_epochs": 1,
        "train.checkpoint_every_steps": 3, "train.log_every_steps": 1,
        "evaluate.batch_size": 2, "evaluate.pictures": 2,
    }  # fmt: skip
    return start("demo_reclippp", workdir, settings, root / "cache")


def finish(run):
    text, _ = run.communicate(timeout=900)
    return run.returncode, text


def check_kills(make, root, folder, kills):
    """Kills at random moments, SIGKILL and SIGTERM in turn, change nothing of the result."""
    whole, broken = folder / "whole", folder / "broken"
    began = time.monotonic()
    code, text = finish(make(root, whole))
    length = time.monotonic() - began
    assert code == 0, text[-3000:]
    began = time.monotonic()
    code, text = finish(make(root, whole))
    start_up = time.monotonic() - began
    assert code == 0, text[-3000:]
    stages = json.loads((whole / "config.json").read_text())["stages"]
    assert text.count("done before") == len(stages)

    rng = random.Random(0)
    for i in range(kills):
        run = make(root, broken)
        try:
            # From the first imports to somewhere inside a stage.
            run.wait(start_up + rng.uniform(-0.3, 3.0) * length / kills)
        except subprocess.TimeoutExpired:
            run.send_signal(signal.SIGTERM if i % 2 else signal.SIGKILL)
        code, text = finish(run)
        assert code in (0, 143, -signal.SIGTERM, -signal.SIGKILL), text[-3000:]
    code, text = finish(make(root, broken))
    assert code == 0, text[-3000:]
    for name in ("rectified_best", "rectified_last", "distilled_best", "distilled_last"):
        one = results.load_result(whole / f"{name}.safetensors").arrays
        two = results.load_result(broken / f"{name}.safetensors").arrays
        assert one.keys() == two.keys()
        for key, value in one.items():
            np.testing.assert_array_equal(value, two[key], err_msg=f"{name} {key}")
    for name in ("metrics_rectified", "metrics_distilled"):
        assert (whole / f"{name}.json").read_text() == (broken / f"{name}.json").read_text()


@pytest.mark.slow
def test_killed_ten_times(painted, tmp_path):
    check_kills(tiny_run, painted, tmp_path, 10)


@pytest.mark.slow
def test_full_size_killed_and_resumed(full_size, tmp_path):
    """ViT-B/16 and ResNet-50. CLIPSEG_JAX_TEST_KILLS=10 for as many as the small one's."""
    check_kills(
        full_size_run, full_size, tmp_path, int(os.environ.get("CLIPSEG_JAX_TEST_KILLS", "2"))
    )
