"""WeCLIP's and WTCLIP's recipes with ViT-B/16, on folders in the published layouts."""

from __future__ import annotations

import functools
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from tests import folders, seeded
from tests.input_pipeline import coco_files
from tests.kills import differences, run_killed, run_whole, start
from tests.methods.weclip.test_recipe import lines

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def full_size(tmp_path_factory):
    root = folders.write_full_size(tmp_path_factory.mktemp("full"))
    voc = root / "VOC2012"
    shutil.copytree(voc / "SegmentationClass", voc / "SegmentationClassAug", dirs_exist_ok=True)
    lists = voc / "ImageSets/Segmentation"
    shutil.copy(lists / "train.txt", lists / "train_aug.txt")
    return root


def full_size_settings(root):
    """A published config, shortened: small crops and images, steps in both phases."""
    return {
        "clip.weights": root / "vit_b16.safetensors",
        "head.crop_px": "(80,80)", "head.batch_size": 2,
        "head.total_steps": 4, "head.late_step": 2, "par.iterations": 2,
        "inference.scale_px": "(96,96)", "crf.iterations": 2,
        "run.checkpoint_every_steps": 1, "run.log_every_steps": 1,
        "run.batch_size": 2, "run.max_buckets": 1,
    }  # fmt: skip


def voc_run(root, workdir, name="voc_weclip", stages=None):
    settings = full_size_settings(root) | {
        "dataset.root": root / "VOC2012", "head.evaluate_every_steps": 2,
    }  # fmt: skip
    return start(name, workdir, settings, root / "cache", stages=stages)


def test_voc_at_full_size_killed_and_resumed(full_size, tmp_path):
    """ViT-B/16 on a folder in VOC's layout, across the late phase's start."""
    make = functools.partial(voc_run, full_size)
    stages = run_whole(make, tmp_path / "whole")
    run_killed(make, tmp_path / "broken", stages, 2)
    assert not [*differences(tmp_path / "whole", tmp_path / "broken")]
    assert [line["late"] for line in lines(tmp_path / "whole/train.jsonl")] == [0, 0, 1, 1]


@pytest.mark.parametrize("name", ["voc_wtclip", "voc_wtclip:released"])
def test_wtclip_on_voc_at_full_size(name, full_size, tmp_path):
    finished(voc_run(full_size, tmp_path / "run", name), tmp_path / "run")


@pytest.mark.parametrize("name", ["coco_weclip", "coco_wtclip"])
def test_coco_at_full_size(name, full_size, tmp_path):
    """In WeCLIP's own layout: whole names for pictures, numbers alone for label maps."""
    root = tmp_path / "coco2014"
    for split in ("train", "val"):
        pictures, masks = root / f"JPEGImages/{split}", root / f"SegmentationClass/{split}"
        masks.mkdir(parents=True)
        names = [f"COCO_{split}2014_{i:012d}.jpg" for i in range(3)]
        things = [coco_files.thing(0, coco_files.box(2, 3, 12, 20))]
        coco_files.write(root, dict.fromkeys(names, things), f"JPEGImages/{split}")
        (root / "coco14").mkdir(exist_ok=True)
        stems = [path.stem for path in sorted(pictures.iterdir())]
        (root / f"coco14/{split}.txt").write_text("".join(f"{stem}\n" for stem in stems))
        for i, stem in enumerate(stems):
            label = seeded.label_map(*coco_files.SIZE, 81, i).astype(np.uint8)
            Image.fromarray(label).save(masks / f"{stem.split('_')[-1]}.png")
    settings = full_size_settings(full_size) | {"dataset.root": root}
    finished(start(name, tmp_path / "run", settings, full_size / "cache"), tmp_path / "run")


def test_camouflaged_animals_at_full_size(full_size, tmp_path):
    """64 classes: what the release can't do."""
    root = tmp_path / "train"
    for folder in ("JPEGImages", "SegmentationClassAug"):
        (root / folder).mkdir(parents=True)
    for i in range(3):
        Image.fromarray(seeded.image(60, 80, i)).save(root / f"JPEGImages/{i}.jpg")
        label = seeded.label_map(60, 80, 65, i).astype(np.uint8)
        Image.fromarray(label).save(root / f"SegmentationClassAug/{i}.png")
    (root / "train.txt").write_text("0\n1\n2\n")
    settings = full_size_settings(full_size) | {
        "dataset.root": root, "head.evaluate_every_steps": 2,
    }  # fmt: skip
    finished(start("cod_wtclip", tmp_path / "run", settings, full_size / "cache"), tmp_path / "run")


def finished(run, workdir):
    code, text = run.finish()
    assert code == 0, text[-3000:]
    assert [line["late"] for line in lines(workdir / "train.jsonl")] == [0, 0, 1, 1]
    done = json.loads((workdir / "evaluate_crf.done.json").read_text())
    assert done["images"] in (2, 3)
    assert "mIoU_of_labelled_without_crf" in done
