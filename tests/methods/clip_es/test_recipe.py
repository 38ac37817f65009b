"""CLIP-ES's and TagCLIP's recipes whole: stages, bad files, published layouts."""

from __future__ import annotations

import json
import shutil

import cv2
import numpy as np
import pytest
from PIL import Image

from clipseg_jax import main
from clipseg_jax.evaluate import headline
from clipseg_jax.methods.clip_es.published_cams import read_cam
from clipseg_jax.methods.clip_es.stored_cams import cam_path, read_cams
from clipseg_jax.stages.label_list import read_label_list
from configs import demo_clip_es
from configs.base.clip_es import tagclip
from tests import folders, seeded
from tests.input_pipeline import coco_files
from tests.kills import start
from weights_convert import DEEPLAB, load_trained


@pytest.fixture(scope="module")
def painted(tmp_path_factory):
    return folders.write_painted(tmp_path_factory.mktemp("world"), 3, 9)


@pytest.fixture(scope="module")
def full_size(tmp_path_factory):
    return folders.write_full_size(tmp_path_factory.mktemp("full"))


def small(root):
    """The demo config in seconds: all stages, a few steps of training."""
    config = demo_clip_es.get_config()
    config.dataset.name, config.dataset.root = "folder", str(root)
    config.crf.iterations = 2
    config.student.width, config.student.batch_size = 8, 4
    config.student.init_weights = "random"
    config.student.crop_px, config.student.total_steps = (48, 48), 4
    config.run.batch_size, config.run.pictures = 3, 2
    config.run.devices = 1
    return config


@pytest.mark.slow
def test_the_whole_recipe(painted, tmp_path, capsys):
    config = small(painted)
    config.run.write_npy = config.run.predictions = True
    config.stages = config.stages[:-1]  # the CRF after the student is in the long tests
    records = main.run(config, tmp_path)
    assert tuple(records) == config.stages
    assert records["cams"] | {"seconds": 0} == {
        "images": 9, "left_out": 0, "problems": 0, "seconds": 0,
    }  # fmt: skip
    assert records["masks"]["images"] == records["evaluate_masks"]["images"] == 9
    assert records["train"]["steps"] == 4
    for name, images in (("masks", 9), ("student", 3)):
        figures = json.loads((tmp_path / f"metrics_{name}.json").read_text())
        assert figures["images"] == images
        assert list(figures["classes"])[:2] == ["background", "boat"]
        assert figures["published_metric"] == "mIoU_of_labelled"
        record = records[f"evaluate_{name}"]
        assert headline(record) == headline(figures)
        assert {"mIoU", "mIoU_of_labelled", "mIoU_absent_as_0"} <= record.keys()
    figures = json.loads((tmp_path / "metrics_cams.json").read_text())
    sweep = figures["mIoU_of_labelled_by_threshold"]
    assert sorted(sweep) == ["1.0", "2.0"]
    assert sweep[str(figures["threshold"])] == max(sweep.values()) == figures["mIoU_of_labelled"]
    assert headline(records["evaluate_cams"]) == headline(figures)
    assert len(list((tmp_path / "pictures_masks").iterdir())) == 2
    name = sorted(path.stem for path in (tmp_path / "masks").iterdir())[0]
    mask, labels = (np.asarray(Image.open(tmp_path / f / f"{name}.png")) for f in ("masks", "crf"))
    assert set(mask[mask != labels]) <= {255}
    # Grey, as the published masks are.
    for path, expected in (("masks", mask), ("crf", labels)):
        read = cv2.imread(str(tmp_path / path / f"{name}.png"), cv2.IMREAD_GRAYSCALE)
        np.testing.assert_array_equal(read, expected)
    predictions = [*(tmp_path / "predictions_student").iterdir()]
    assert len(predictions) == 3
    assert all(cv2.imread(str(p), cv2.IMREAD_GRAYSCALE).max() <= 12 for p in predictions)
    # The published file is the small one enlarged.
    stored, saved = (
        read_cams(cam_path(tmp_path, name), 12),
        read_cam(tmp_path / f"cams_npy/{name}.npy"),
    )
    np.testing.assert_array_equal(saved.classes, stored.classes)
    assert saved.maps.shape == (len(stored.classes), *mask.shape)
    assert load_trained(tmp_path / "student.safetensors", DEEPLAB).record["class_count"] == 13

    capsys.readouterr()
    assert main.run(config, tmp_path) == records
    assert capsys.readouterr().out.count("done before") == len(config.stages)


@pytest.mark.slow
def test_bad_images_are_named_and_the_rest_is_made(painted, tmp_path):
    """A truncated image, one without labels, an unknown label; then only what is missing."""
    root = tmp_path / "world"
    shutil.copytree(painted, root)
    images = sorted((root / "train/images").iterdir())
    truncated, empty, unknown = images[:3]
    content = truncated.read_bytes()
    truncated.write_bytes(content[: len(content) // 2])
    for image, value in ((empty, 0), (unknown, 77)):
        label = root / "train/labels" / f"{image.stem}.png"
        Image.fromarray(np.full_like(np.asarray(Image.open(label)), value)).save(label)
    config = small(root)
    config.stages = ("data", "text", "cams", "masks", "evaluate_masks")
    records = main.run(config, tmp_path / "run")
    assert records["cams"]["images"] == 6
    assert records["cams"]["left_out"] == records["cams"]["problems"] == 3
    problems = json.loads((tmp_path / "run/cams_problems.json").read_text())
    assert set(problems) == {path.stem for path in (truncated, empty, unknown)}
    assert "77" in problems[unknown.stem]
    assert records["masks"]["images"] == records["evaluate_masks"]["images"] == 6

    truncated.write_bytes(content)  # mended: only this one is made
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*.np[yz]")}
    for stage in ("cams", "masks"):
        (tmp_path / "run" / f"{stage}.done.json").unlink()
    records = main.run(config, tmp_path / "run")
    assert records["cams"]["images"] == records["masks"]["images"] == 7
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*.np[yz]")}
    assert {path: after[path] for path in before} == before

    # Cut short, as a power failure leaves them, and what a killed run was writing.
    cam = cam_path(tmp_path / "run", images[-1].stem)
    cut = [cam, *(tmp_path / f"run/{kind}/{images[-2].stem}.png" for kind in ("crf", "masks"))]
    whole = [path.read_bytes() for path in cut]
    for path in cut:
        path.write_bytes(path.read_bytes()[:-10])
    left = tmp_path / "run/masks/.writing-x1"
    left.write_bytes(b"half")
    for stage in ("cams", "masks"):
        (tmp_path / "run" / f"{stage}.done.json").unlink()
    assert main.run(config, tmp_path / "run")["masks"]["images"] == 7
    assert [path.read_bytes() for path in cut] == whole
    assert not left.exists()

    cam.write_bytes(cam.read_bytes()[:100])
    (tmp_path / "run/masks" / f"{images[-1].stem}.png").unlink()
    (tmp_path / "run" / "masks.done.json").unlink()
    with pytest.raises(ValueError, match=rf"{cam.name} is damaged"):
        main.run(config, tmp_path / "run")


@pytest.mark.slow
def test_tags_instead_of_labels(painted, tmp_path):
    config = small(painted)
    for name in ("stages", "labels"):
        config[name] = tagclip()[name]
    config.tags.templates = "demo_world"
    config.tags.affinity_blocks, config.tags.votes = (2,), 2
    config.masks.confidence_threshold = 0.0
    records = main.run(config, tmp_path)
    listed = read_label_list(tmp_path / "folder_train_tagclip.txt", 12)
    assert len(listed) == records["tags"]["images"] == 9
    assert all(listed.values())
    name, ids = next(iter(listed.items()))
    assert tuple(read_cams(cam_path(tmp_path, name), 12).classes) == ids
    assert not (np.asarray(Image.open(tmp_path / f"masks/{name}.png")) == 255).any()


def test_what_users_get_wrong(painted, tmp_path):
    config = small(painted)
    for stages, message in (
        (("text", "evaluate_cams"), "run the stage `cams` first"),
        (("text", "masks"), "run the stage `cams` first"),
        (("text", "train"), "run the stage `masks` first"),
    ):
        config.stages = stages
        with pytest.raises(ValueError, match=message):
            main.run(config, tmp_path / stages[1])
    config.student.init_weights = None
    with pytest.raises(ValueError, match="no initial weights; pass"):
        main.run(config, tmp_path / "weights")
    config.labels.source, config.stages = "tags", ("text", "cams")
    with pytest.raises(ValueError, match="run the stage `tags` first"):
        main.run(config, tmp_path / "tags")
    config.labels.source, config.masks.image = "annotations", "grey"
    config.stages = ("text", "cams", "masks")
    with pytest.raises(ValueError, match='must be "wrapped" or "raw"'):
        main.run(config, tmp_path / "image")


def write_xml(root, labels):
    (root / "Annotations").mkdir(exist_ok=True)
    for stem, names in labels.items():
        objects = "".join(f"<object><name>{name}</name></object>" for name in names)
        (root / f"Annotations/{stem}.xml").write_text(f"<annotation>{objects}</annotation>")


def full_size_settings(root, workdir):
    return {
        "clip.weights": root / "vit_b16.safetensors",
        "run.batch_size": 2, "run.max_buckets": 1, "crf.iterations": 2,
        "student.init_weights": "random", "student.crop_px": "(65,65)", "student.batch_size": 2,
        # Of random weights: a real rate would end in numbers that are none.
        "student.total_steps": 2, "student.optim.learning_rate": 1e-12,
        "student.scales": "(1.0,)", "run.checkpoint_every_steps": 1,
    }  # fmt: skip


@pytest.mark.long
def test_voc_at_full_size(full_size, tmp_path):
    """ViT-B/16 and DeepLabV2-ResNet101 on a folder in VOC's layout."""
    root = full_size / "VOC2012"
    shutil.copytree(root / "SegmentationClass", root / "SegmentationClassAug", dirs_exist_ok=True)
    lists = root / "ImageSets/Segmentation"
    shutil.copy(lists / "train.txt", lists / "train_aug.txt")
    stems = (lists / "train.txt").read_text().split()
    write_xml(root, {stem: ["dog", "cat", "person"][: 1 + i % 3] for i, stem in enumerate(stems)})
    settings = full_size_settings(full_size, tmp_path) | {"dataset.root": root}
    run = start("voc_clip_es", tmp_path / "run", settings, full_size / "cache")
    code, text = run.finish()
    assert code == 0, text[-3000:]
    done = json.loads((tmp_path / "run/evaluate_student_crf.done.json").read_text())
    assert done["images"] == 2


@pytest.mark.long
def test_coco_at_full_size(full_size, tmp_path):
    """The same in COCO's layout, as far as the masks; the student differs by its classes alone."""
    root = tmp_path / "coco2014"
    things = [coco_files.thing(n, coco_files.box(2, 3, 12, 20)) for n in (0, 16)]
    for split in ("train2014", "val2014"):
        objects = {f"COCO_{split}_{i:012d}.jpg": things[: 1 + i % 2] for i in range(3)}
        coco_files.write(root, objects, split)
    (root / "ImageSets").mkdir()
    for split in ("train2014", "val2014"):
        stems = sorted(path.stem for path in (root / split).iterdir())
        (root / f"ImageSets/{split}.txt").write_text("".join(f"{s} 0 16\n" for s in stems))
    masks = root / "SegmentationClass"
    masks.mkdir()
    for path in root.glob("*2014/*.jpg"):
        label = seeded.label_map(*coco_files.SIZE, 81, 3)
        Image.fromarray(label.astype(np.uint8)).save(masks / f"{path.stem}.png")
    settings = full_size_settings(full_size, tmp_path) | {
        "dataset.root": root,
        "stages": "('data','text','cams','evaluate_cams','masks','evaluate_masks')",
    }
    run = start("coco_clip_es", tmp_path / "run", settings, full_size / "cache")
    code, text = run.finish()
    assert code == 0, text[-3000:]
    done = json.loads((tmp_path / "run/evaluate_masks.done.json").read_text())
    assert done["images"] == 3
