"""docs/own_images.md: every command runs, and what it trains can be used from anywhere."""

from __future__ import annotations

import json
import shlex
import shutil

import numpy as np
import pytest
from PIL import Image

import clipseg_jax
from clipseg_jax import main, predict
from clipseg_jax.core.modules import initialised
from clipseg_jax.models.resnet import DilatedResNet, DilatedResNetConfig
from configs import own_clip_rc
from tests import folders, shared
from tests.test_docs import DOCS, commands_of, resolve
from tests.test_own_images import check_predictions, small
from weights_convert import DEEPLAB, export_imagenet, load_trained

PAGE = DOCS / "own_images.md"
NAMES = ("background", "cat", "dog", "traffic light")
# The page's work directories, and the ends of the names of what is written there.
WORKS = {
    "my_words": ("",), "my_photos": ("_maskclip", "_rectified"), "mine": ("", "_crf"),
    "my_masks": ("_cams", "_masks", "_student", "_student_crf"),
    "my_deeplab": ("_student", "_student_crf"), "my_clip_rc": ("",), "my_unseen": ("",),
}  # fmt: skip


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A function that runs the page's commands of a work directory, once; the page's folder.

    Lengths and networks are small, weights are the demo's and random ones.
    """
    root = shared.folder(tmp_path_factory, "own_images_page", write_data)

    def ran(work):
        shared.folder(tmp_path_factory, f"own_images_{work}", lambda _: run_commands(root, work))
        return root

    return ran


def write_data(root):
    folders.write_painted(root / "my_data", 2, 4)
    (root / "my_data/classes.txt").write_text("\n".join(NAMES))
    for path in (root / "my_data").rglob("labels/*.png"):
        label = np.asarray(Image.open(path))
        three = np.where((label > 0) & (label < 255), (label - 1) % 3 + 1, label)
        Image.fromarray(three.astype(np.uint8)).save(path)
    tags = "0000: cat, traffic light\n0001.png: cat, dog\n0002: dog\n0003:\n"
    (root / "my_data/train/tags.txt").write_text(tags)
    shutil.copytree(root / "my_data/images", root / "photos")
    backbone = DilatedResNetConfig((1, 1, 1, 1), 8, variant="v1")
    export_imagenet(initialised(lambda rngs: DilatedResNet(backbone, rngs=rngs)), root / "r.pth")


def run_commands(root, work):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for command in commands_of(PAGE):
            if work_of(command) != work:
                continue
            words = shlex.split(command)
            if words[2] == "clipseg_jax.predict":
                assert predict.main([*words[3:], "--format", "png"]) == 0
                continue
            config = small(resolve(command), "my_data")
            if "student" in config and config.method == "clip_es":
                config.student.init_weights = "r.pth"
            if config.method == "clip_rc" and config.dataset.unseen:
                config.clip_rc.self_training_step = 1
            main.run(config, root / "workdir" / work)


def work_of(command):
    """The name of the work directory that a command writes or reads."""
    (_, after) = command.split("workdir/")
    return after.split()[0]


def test_every_command_of_the_page_is_run():
    assert [*dict.fromkeys(map(work_of, commands_of(PAGE)))] == [*WORKS]


@pytest.mark.slow
@pytest.mark.parametrize("work", WORKS)
def test_the_page_runs(page, work):
    """Each recipe leaves scores and label maps."""
    root = page(work)
    for suffix in WORKS[work]:
        metrics = json.loads((root / f"workdir/{work}/metrics{suffix}.json").read_text())
        # ReCLIP++ has no background.
        assert tuple(metrics["classes"]) == (NAMES[1:] if work == "my_photos" else NAMES)
        if suffix not in ("_cams", "_masks"):
            assert len([*(root / f"workdir/{work}/predictions{suffix}").iterdir()]) == 2
        if work == "my_unseen":
            assert (metrics["published_metric"], metrics["unseen"]) == ("hIoU", ["traffic light"])
        if work == "my_clip_rc":
            assert metrics["published_metric"] == "mIoU"
            assert "mIoU(U)" not in metrics


@pytest.mark.slow
def test_a_trained_head_segments_new_photos(page):
    masks = sorted((page("mine") / "masks").glob("*.png"))
    assert [path.stem for path in masks] == ["0000", "0001"]


@pytest.mark.slow
@pytest.mark.parametrize("work", ["my_words", "my_photos", "my_masks", "my_deeplab", "my_unseen"])
def test_what_is_trained_can_be_loaded_from_anywhere(page, work, monkeypatch, tmp_path):
    """The label maps that the recipe itself wrote, with no path but the work directory's."""
    root = page(work)
    monkeypatch.chdir(tmp_path)
    model = clipseg_jax.load(root / "workdir" / work)
    assert model.classes == NAMES[1:]
    suffix = {"my_photos": "_rectified", "my_masks": "_student", "my_deeplab": "_student"}
    predictions = root / f"workdir/{work}/predictions{suffix.get(work, '')}"
    for path in sorted(predictions.iterdir()):
        refine = "pamr" if work == "my_words" else None
        (result,) = model.segment(root / f"my_data/images/{path.name}", refine=refine)
        labels = np.asarray(Image.open(path)) + (work == "my_photos")  # which begins with cat
        assert np.mean(result.labels == labels) > 0.999


@pytest.mark.slow
def test_deeplab_starts_from_torchvisions_weights(page):
    root = page("my_deeplab")
    stored = load_trained(root / "workdir/my_deeplab/student.safetensors", DEEPLAB)
    assert (stored.record["variant"], stored.record["classes"]) == ("v1", list(NAMES))
    assert not (root / "workdir/my_deeplab/text_embeddings.npy").exists()  # it needs no CLIP


@pytest.mark.slow
def test_clip_rc_segments_without_labels(page, tmp_path):
    """What was trained and scored, once more of images without labels."""
    root, work = page("my_clip_rc"), tmp_path / "workdir/my_clip_rc"
    shutil.copytree(root / "my_data", tmp_path / "my_data")
    shutil.copytree(root / "workdir/my_clip_rc", work)
    shutil.rmtree(tmp_path / "my_data/labels")
    for path in (work / "evaluate.done.json", work / "metrics.json"):
        path.unlink()
    shutil.rmtree(work / "predictions")
    config = small(own_clip_rc.get_config(), tmp_path / "my_data")
    assert "scored" in main.run(config, work)["evaluate"]
    check_predictions(work, "", classes=len(NAMES))
