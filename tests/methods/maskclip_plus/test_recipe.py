"""MaskCLIP+'s recipe whole: phases, layouts, devices, and what users get wrong."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
from PIL import Image

from clipseg_jax import main
from clipseg_jax.demo import TINY_CLIP, world
from clipseg_jax.methods.maskclip_plus.build import training_batches
from configs import coco_stuff_maskclip_plus, context_maskclip_plus, demo_maskclip_plus
from configs import voc_maskclip_plus as voc
from tests import folders, seeded
from weights_convert import MASKCLIP_PLUS, build_maskclip_plus, load_trained
from weights_convert.clip.build import flat_arrays

LONG = pytest.mark.long
CONFIGS = {"voc": voc, "context": context_maskclip_plus, "coco_stuff": coco_stuff_maskclip_plus}


@pytest.fixture(scope="module")
def painted(tmp_path_factory):
    return folders.write_painted(tmp_path_factory.mktemp("world"), 4, 10)


def small(config, steps=6, switch=4):
    """Any of the configs in seconds, taught by the tiny CLIP; self-training begins at `switch`."""
    config.clip.weights, config.clip.tower = str(TINY_CLIP), ""
    config.text.templates = "single"
    student = config.student
    student.init_weights = "random"
    student.blocks, student.width = (1, 1, 1, 1), 8
    student.scale_px = config.inference.scale_px = (64, 64)
    student.crop_px, student.batch_size = (48, 48), 4
    student.total_steps, student.evaluate_every_steps = steps, 2
    if student.setting == "zero_shot":
        student.guided_steps, student.self_training_steps = (1, switch - 1), (switch, -1)
    config.run.devices = 1
    config.run.log_every_steps = 1
    config.run.batch_size = 2
    return config


def demo(painted, setting="zero_shot"):
    config = small(demo_maskclip_plus.get_config(setting))
    config.dataset.name, config.dataset.root = "folder", str(painted)
    config.run.pictures = 2
    return config


@pytest.mark.slow
def test_the_whole_recipe(painted, tmp_path, capsys):
    config = demo(painted)
    config.stages = (*config.stages, "robustness")
    config.run.predictions = True
    config.robustness.kinds, config.robustness.levels = ("speckle_noise", "spatter"), (1, 5)
    records = main.run(config, tmp_path)
    assert tuple(records) == config.stages
    assert records["data"]["training_images"] == 10
    assert records["train"]["steps"] == 6
    for suffix in ("_maskclip", "_guided", ""):
        figures = json.loads((tmp_path / f"metrics{suffix}.json").read_text())
        assert figures["images"] == 4
        assert figures["unseen"] == ["sheep", "cactus", "bus", "balloon"]
        assert {"mIoU", "mIoU(S)", "mIoU(U)", "hIoU"} <= figures.keys()
        assert len(list((tmp_path / f"pictures{suffix}").iterdir())) == 2
        assert len(list((tmp_path / f"predictions{suffix}").iterdir())) == 4
    lines = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 7))
    assert lines[0]["rate"] == pytest.approx(config.student.optim.learning_rate)
    assert lines[5]["rate"] > 1e-4
    assert {"loss_ce", "acc_seg"} <= lines[0].keys()
    evaluations = (tmp_path / "train_evaluations.jsonl").read_text().splitlines()
    seen = {line["step"]: line for line in map(json.loads, evaluations)}
    assert [*seen] == [2, 4, 6]
    guided, last = (
        json.loads((tmp_path / f"metrics{suffix}.json").read_text()) for suffix in ("_guided", "")
    )
    for figures, step in ((guided, 4), (last, 6)):
        assert seen[step]["hIoU"] == figures["hIoU"]  # null for a mean over no class
        assert seen[step]["mIoU"] == figures["mIoU"]
    found = json.loads((tmp_path / "robustness.json").read_text())
    assert {kind: [*levels] for kind, levels in found.items()} == {
        "clean": ["0"], "speckle_noise": ["1", "5"], "spatter": ["1", "5"],
    }  # fmt: skip
    assert found["clean"]["0"]["mIoU"] == last["mIoU"] == records["robustness"]["clean"]
    assert not list(tmp_path.rglob("*.partial*"))
    for name, steps in (("student_guided", 4), ("student", 6)):
        trained = load_trained(
            tmp_path / f"{name}.safetensors", MASKCLIP_PLUS, classes=world.CLASSES
        )
        assert trained.record["steps"] == steps
        assert not any(path.startswith("teacher") for path in trained.arrays)

    capsys.readouterr()
    assert main.run(config, tmp_path) == records
    assert capsys.readouterr().out.count("done before") == len(config.stages)

    # What an interrupted run of the corruptions left is not measured again.
    found["spatter"]["5"]["mIoU"] = 12.34
    (tmp_path / "robustness.partial.json").write_text(json.dumps(found))
    (tmp_path / "robustness.done.json").unlink()
    main.run(config, tmp_path)
    assert json.loads((tmp_path / "robustness.json").read_text()) == found

    # A trained file in place of training: nothing of CLIP is needed.
    config.student.trained_weights = str(tmp_path / "student.safetensors")
    config.clip.weights = "none"
    config.stages = ("train", "evaluate")
    again = main.run(config, tmp_path / "again")
    assert "skipped" in again["train"]
    assert again["evaluate"]["mIoU"] == records["evaluate"]["mIoU"]
    config.dataset.class_names = (*world.CLASSES[:11], "kite")
    with pytest.raises(ValueError, match="trained with other classes: number 11 is 'balloon'"):
        main.run(config, tmp_path / "other")


def test_each_phase_labels_as_it_should(painted, tmp_path):
    """The label maps that reach the loss: seen classes given, unseen ones to be found."""
    batch = next(training_batches(demo(painted)).batches())
    assert set(np.unique(batch["label"])) <= {-1, 0, 1, 2, 4, 5, 7, 8, 10, 255}
    free = demo(painted, "annotation_free")
    batch = next(training_batches(free).batches())
    assert set(np.unique(batch["label"])) == {-1, 255}
    free.student.use_gt_ignore = False
    data = training_batches(free)
    assert all(example.label_path is None for example in data.examples)
    batch = next(data.batches())
    for label, (h, w) in zip(batch["label"], batch["image_size"], strict=True):
        assert (label[:h, :w] == -1).all()


def write_context(root):
    """A folder in Pascal Context's layout, from one in VOC's."""
    folders.write_voc(root)
    (root / "ImageSets/Segmentation").rename(root / "ImageSets/SegmentationContext")
    (root / "SegmentationClass").rename(root / "SegmentationClassContext")
    for path in (root / "SegmentationClassContext").iterdir():
        label = seeded.label_map(72, 96, 60, len(path.stem) + int(path.stem[-1]), ignore=None)
        Image.fromarray(label).save(path)


def write_coco(root):
    """A folder in COCO-Stuff's layout."""
    for split, count in (("train2017", 5), ("val2017", 2)):
        for folder in ("images", "annotations"):
            (root / folder / split).mkdir(parents=True)
        for i in range(count):
            stem = f"{i:012d}"
            picture = Image.fromarray(seeded.image(72, 96, i))
            picture.save(root / f"images/{split}/{stem}.jpg")
            label = Image.fromarray(seeded.label_map(72, 96, 171, i))
            label.save(root / f"annotations/{split}/{stem}_labelTrainIds.png")


def write_voc(root):
    """VOC's, with SBD's part."""
    folders.write_voc(root)
    lists = root / "ImageSets/Segmentation"
    stems = (lists / "train.txt").read_text().split()
    (lists / "train.txt").write_text("\n".join(stems[:3]) + "\n")
    (lists / "aug.txt").write_text("\n".join(stems[3:]) + "\n")
    (root / "SegmentationClassAug").mkdir()
    for stem in stems[3:]:
        name = f"{stem}.png"
        (root / "SegmentationClass" / name).rename(root / "SegmentationClassAug" / name)


WRITE = {"voc": write_voc, "context": write_context, "coco_stuff": write_coco}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dataset", "variant", "classes"),
    [
        ("voc", "setting=zero_shot,classes=21", 21),
        pytest.param("voc", "setting=annotation_free", 20, marks=LONG),
        pytest.param("context", "student=deeplabv3plus_r101,setting=zero_shot", 60, marks=LONG),
        pytest.param("coco_stuff", "setting=zero_shot", 171, marks=LONG),
    ],
)
def test_published_layouts(dataset, variant, classes, tmp_path):
    """The published variants on folders as users have them, over the switch of the phases."""
    WRITE[dataset](tmp_path / "data")
    config = small(CONFIGS[dataset].get_config(variant), steps=4, switch=2)
    config.dataset.root = str(tmp_path / "data")
    zero_shot = config.student.setting == "zero_shot"
    config.stages = ("data", "text", "train", *["evaluate_guided"] * zero_shot, "evaluate")
    records = main.run(config, tmp_path / "run")
    assert records["data"] | {"seconds": 0} == {
        "dataset": config.dataset.name.upper(), "images": 2, "classes": classes,
        "training_images": 5, "seconds": 0,
    }  # fmt: skip
    assert records["train"]["steps"] == 4
    assert records["evaluate"]["images"] == 2
    assert ("hIoU" in records["evaluate"]) == zero_shot
    trained = load_trained(tmp_path / "run/student.safetensors", MASKCLIP_PLUS)
    assert trained.record["class_count"] == classes
    assert ("background_embedding" in trained.arrays) == (classes in (21, 60))


def parameters(painted, folder, devices):
    """The student after training on so many devices, across the switch."""
    config = demo(painted)
    config.stages = ("text", "train")
    config.student.evaluate_every_steps = 0
    config.student.total_steps = 4
    config.student.guided_steps, config.student.self_training_steps = (1, 2), (3, -1)
    config.student.optim.learning_rate = 0.001  # a larger one amplifies the order of sums
    config.run.devices = devices
    main.run(config, folder)
    made = build_maskclip_plus(load_trained(folder / "student.safetensors", MASKCLIP_PLUS))
    return {path: np.asarray(leaf) for path, leaf in flat_arrays(made).items()}


@pytest.mark.long
def test_devices_agree(painted, tmp_path):
    """1, 2 and 4 devices: batch norms see the whole batch, so only the order of sums differs.

    Where that turns a ReLU, single entries of a gradient jump (seen: 4e-3 of the largest).
    """
    assert jax.device_count() >= 4
    one, *others = (parameters(painted, tmp_path / str(n), n) for n in (1, 2, 4))
    for other in others:
        assert one.keys() == other.keys()
        for path, value in one.items():
            scale = np.abs(value).max() + 1e-6
            gap = np.abs(value - other[path]) / scale
            assert np.mean(gap < 1e-4) >= 0.9, path
            assert gap.max() < 1e-2, path


def test_what_users_get_wrong(painted, tmp_path):
    config = demo(painted)
    for stages, message in (
        (("train",), "run the stage `text` first"),
        (("evaluate_guided",), "run the stage `train` with a self-training phase"),
    ):
        config.stages = stages
        with pytest.raises(ValueError, match=message):
            main.run(config, tmp_path / stages[0])
    config.stages = ("text",)
    main.run(config, tmp_path / "text")
    config.stages = ("train",)

    def fails(message, **changes):
        other = config.copy_and_resolve_references()
        other.update_from_flattened_dict(changes)
        (tmp_path / "text/config.json").unlink(missing_ok=True)  # or it would refuse the change
        with pytest.raises(ValueError, match=message):
            main.run(other, tmp_path / "text")

    fails("no initial weights; pass", **{"student.init_weights": None})
    fails("is no released CLIP, the config is for rn50", **{"clip.tower": "rn50"})
    fails("setting 'few_shot'", **{"student.setting": "few_shot"})
    fails("has no published unseen classes; name some", **{"dataset.unseen": ()})
    fails(r"unseen classes \['zebra'\] are not among", **{"dataset.unseen": ("zebra",)})
    fails("overlap; end one", **{"student.guided_steps": (1, -1)})
    names = ("background", *world.CLASSES[:11])
    background = {"dataset.class_names": names, "student.setting": "annotation_free"}
    fails("has a background, for which there is no label", **background)
