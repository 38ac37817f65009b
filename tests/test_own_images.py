"""The recipes for a user's own images, whole, on small painted folders by the demo's CLIP.

Every method writes label maps of images without labels, from each of its stages that segment.
"""

from __future__ import annotations

import importlib
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from clipseg_jax import main
from clipseg_jax.demo.world import CLASSES
from clipseg_jax.stages import work_directory
from configs import demo_maskclip_plus, own_clip_es, own_clip_rc, own_deeplab, own_weclip
from configs.base import own
from tests import folders

# Networks and lengths for seconds, by the sections that a recipe has.
SMALL = {
    "head": {"width": 32, "heads": 2, "batch_size": 2, "total_steps": 2, "late_step": 1},
    "par": {"iterations": 2},
    "crf": {"iterations": 2},
    "rectifier": {"batch_size": 2, "total_steps": 2},
    "student": {
        "blocks": (1, 1, 1, 1),
        "width": 8,
        "batch_size": 2,
        "total_steps": 2,
        "init_weights": "random",
    },
    "clip_rc": {"heads": 4, "hidden": 64, "batch_size": 2, "total_steps": 2},
    "run": {"batch_size": 2, "devices": 1, "pictures": 1, "max_buckets": 2},
    "text": {"usual_background": False, "background_words": ("water", "grass")},
}
DISTILLED = ("data", "text", "tags", "evaluate_maskclip", "rectify", "evaluate", "distill",
             "evaluate_distilled")  # fmt: skip


@pytest.fixture
def mine(tmp_path):
    """A user's folder with everything; tests take away what they do without."""
    root = folders.write_painted(tmp_path / "mine", 2, 4)
    (root / "classes.txt").write_text("\n".join(("background", *CLASSES)))
    lines = []
    for path in sorted((root / "train/labels").iterdir()):
        ids = np.unique(np.asarray(Image.open(path)))
        shown = ", ".join(CLASSES[i - 1] for i in ids if 0 < i < 255)
        lines.append(f"{path.stem}.png: {shown}\n")
    (root / "train/tags.txt").write_text("".join(lines))
    return root


def small(config, root):
    for section, values in SMALL.items():
        for name, value in values.items():
            if section in config and name in config[section]:
                config[section][name] = value
    config.dataset.root = str(root)
    if "optim" in config.get("clip_rc", {}):
        config.clip_rc.optim.warmup_steps = 1
    if "text" in config.stages:
        config.clip.weights = "demo"
    if config.dataset.reduce_zero_label and "usual_background" in config.text:
        config.text.background_words = ()
    return config


def check_predictions(work, *suffixes, classes=13):
    """Label maps of both images from each stage, and nothing scored."""
    assert not [*work.glob("metrics*.json")]
    for suffix in suffixes:
        paths = sorted((work / f"predictions{suffix}").iterdir())
        assert [path.name for path in paths] == ["0000.png", "0001.png"]
        for path in paths:
            labels = np.asarray(Image.open(path))
            assert labels.shape == (64, 64)
            assert labels.max() < classes
        assert len([*(work / f"pictures{suffix}").iterdir()]) == 1


NAMES_ALONE = [
    pytest.param("own_maskclip:maskclip", (), ("",), marks=pytest.mark.slow),
    pytest.param("own_maskclip:naclip", (), ("",), marks=pytest.mark.slow),
    pytest.param(
        "own_reclippp", DISTILLED, ("_maskclip", "_rectified", "_distilled"), marks=pytest.mark.long
    ),
]


@pytest.mark.parametrize(("recipe", "stages", "suffixes"), NAMES_ALONE)
def test_names_alone(recipe, stages, suffixes, mine, tmp_path, capsys):
    """Photos in one folder and a list of words: nothing else is asked for."""
    for given in ("labels", "train"):
        shutil.rmtree(mine / given)
    name, _, string = recipe.partition(":")
    module = importlib.import_module(f"configs.{name}")
    config = small(module.get_config(*filter(None, [string])), mine)
    config.stages = stages or config.stages
    work = tmp_path / "work"
    records = main.run(config, work)
    check_predictions(work, *suffixes)
    assert "nothing, without label maps" in {r.get("scored") for r in records.values()}
    if stages:
        assert records["rectify"]["steps"] == records["distill"]["steps"] == 2
        assert "images/ is what is learned from" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    "train",
    [True, pytest.param(False, marks=pytest.mark.long)],
    ids=["train", "one folder"],
)
def test_tags_and_weclip(train, mine, tmp_path):
    shutil.rmtree(mine / "labels")
    shutil.rmtree(mine / "train/labels")
    if not train:  # tags.txt is beside the images that it is of
        for path in (mine / "train/images").iterdir():
            path.rename(mine / "images" / path.name)
        shutil.move(mine / "train/tags.txt", mine / "tags.txt")
        shutil.rmtree(mine / "train")
    config = small(own_weclip.get_config(), mine)
    config.stages = (*config.stages, "masks")
    records = main.run(config, work := tmp_path / "work")
    assert records["train"]["images"] == records["masks"]["images"] == 4
    assert json.loads((work / "labels_problems.json").read_text()) == {}
    if train:
        check_predictions(work, "", "_crf")
    # All that a later use of the head needs is recorded.
    recorded = json.loads((work / "config.json").read_text())
    assert recorded["dataset"]["class_names"] == ["background", *CLASSES]
    values = work_directory.flat(recorded)
    assert None not in [values[name] for name in recorded["clip"]["decides"]]


@pytest.mark.long
def test_tags_and_clip_es(mine, tmp_path):
    """Also of large photos: masks have their sizes, networks see less of them."""
    shutil.rmtree(mine / "labels")
    shutil.rmtree(mine / "train/labels")
    for path in (*(mine / "images").iterdir(), *(mine / "train/images").iterdir()):
        Image.open(path).resize((300, 240)).save(path)
    config = small(own_clip_es.get_config(), mine)
    records = main.run(config, work := tmp_path / "work")
    assert records["cams"]["images"] == records["masks"]["images"] == 4
    assert records["evaluate_cams"]["scored"] == records["evaluate_masks"]["scored"]
    for folder in ("masks", "crf", "predictions_student", "predictions_student_crf"):
        sizes = {Image.open(path).size for path in (work / folder).iterdir()}
        assert sizes == {(300, 240)}
    with np.load(next((work / "cams").iterdir())) as cam:
        assert cam["maps"].shape[1:] == (15, 18)  # of 115 x 144 pixels, the CLIP's longest side
    assert not [*work.glob("metrics*.json")]


@pytest.mark.long
def test_maskclip_plus_without_labels(mine, tmp_path):
    for given in ("labels", "train/labels"):
        shutil.rmtree(mine / given)
    config = demo_maskclip_plus.get_config("annotation_free")
    config.dataset.name, config.dataset.class_names = "folder", CLASSES
    config.student.evaluate_every_steps = 0
    config.run.predictions = True
    config = small(config, mine)
    with pytest.raises(ValueError, match=r"MaskCLIP\+ has no rows for background words"):
        main.run(config, tmp_path / "words")
    config.text.background_words = ()
    main.run(config, work := tmp_path / "work")
    check_predictions(work, "", "_maskclip")


def test_without_tags_and_labels(mine, tmp_path):
    shutil.rmtree(mine / "train/labels")
    (mine / "train/tags.txt").unlink()
    for module in (own_weclip, own_clip_es):
        config = small(module.get_config(), mine)
        config.stages = tuple(s for s in config.stages if s in ("text", "train", "cams"))[:2]
        with pytest.raises(ValueError, match=r"are unknown; list them in .*train/tags\.txt"):
            main.run(config, tmp_path / module.__name__)
    config = small(own_deeplab.get_config(), mine)
    with pytest.raises(ValueError, match=r"DeepLab learns from label maps.*train/labels"):
        main.run(config, tmp_path / "deeplab")


def test_a_background_is_asked_for(mine, tmp_path):
    (mine / "classes.txt").write_text("\n".join(CLASSES))
    config = small(own_clip_es.get_config(), mine)
    with pytest.raises(ValueError, match="needs the name background before"):
        main.run(config, tmp_path / "words")
    config.text.background_words = ()
    with pytest.raises(ValueError, match="put `background` before"):
        main.run(config, tmp_path / "clip_es")


@pytest.mark.parametrize("module", [own_deeplab, own_clip_rc])
def test_binary_masks_are_noticed(module, mine, tmp_path, caplog):
    """255 means ignored: nothing would be learned of what is labelled so."""
    (mine / "classes.txt").write_text("background\nthing\n")
    for folder in ("labels", "train/labels"):
        for path in (mine / folder).iterdir():
            label = np.asarray(Image.open(path))
            Image.fromarray(np.where(label > 0, 255, 0).astype(np.uint8)).save(path)
    config = small(module.get_config(), mine)
    config.stages = ("data",)
    main.run(config, tmp_path / "work")
    assert "no training image shows thing; masks of 0 and 255 need 1 in place" in caplog.text


def test_recipes_share_one_folder():
    """Every own_* recipe reads the same tree, and segments what is in images/."""
    assert own.of_own_images.__doc__
    for name in ("maskclip", "weclip", "clip_es", "deeplab", "reclippp", "clip_rc"):
        config = importlib.import_module(f"configs.own_{name}").get_config()
        assert (config.dataset.name, config.dataset.root) == ("folder", "my_data")
        assert (config.dataset.split, config.run.predictions) == ("val", True)
        assert {config.dataset.get("train_split", "train")} == {"train"}
