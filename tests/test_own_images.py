"""The recipes for a user's own images, whole, on small painted folders by the demo's CLIP.

Every method writes label maps of images without labels, from each of its stages that segment.
"""

from __future__ import annotations

import importlib
import json
import shlex
import shutil

import numpy as np
import pytest
from PIL import Image

import clipseg_jax
from clipseg_jax import main, predict
from clipseg_jax.core.modules import initialised
from clipseg_jax.demo.world import CLASSES
from clipseg_jax.models.resnet import DilatedResNet, DilatedResNetConfig
from clipseg_jax.stages import work_directory
from configs import demo_maskclip_plus, own_clip_es, own_clip_rc, own_deeplab, own_weclip
from configs.base import own
from tests import folders, shared
from tests.test_docs import DOCS, fences, resolve
from weights_convert import DEEPLAB, export_imagenet, load_trained

NAMES = ("background", "cat", "dog", "traffic light")  # of the page
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


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Every command of docs/own_images.md in its order, in one folder; the folder and the masks.

    Lengths and networks are small, weights are the demo's and random ones.
    """
    root = shared.folder(tmp_path_factory, "own_images_page", write_page)
    return root, sorted((root / "masks").glob("*.png"))


def write_page(root):
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
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for command in commands():
            words = shlex.split(command)
            if words[2] == "clipseg_jax.predict":
                assert predict.main([*words[3:], "--format", "png"]) == 0
                continue
            config = small(resolve(command), "my_data")
            if "student" in config and config.method == "clip_es":
                config.student.init_weights = "r.pth"
            if config.method == "clip_rc" and config.dataset.unseen:
                config.clip_rc.self_training_step = 1
            (workdir,) = (word for word in words if word.startswith("--workdir="))
            main.run(config, root / workdir.partition("=")[2])


def commands():
    """The commands of the page."""
    for language, text in fences(DOCS / "own_images.md"):
        if language == "sh":
            yield from text.replace("\\\n", " ").splitlines()


@pytest.mark.slow
def test_the_page_runs(page):
    """Each recipe leaves masks and scores, and one of them segments new photos."""
    root, masks = page
    assert [path.stem for path in masks] == ["0000", "0001"]
    for work, suffixes in {
        "my_words": ("",), "my_photos": ("_maskclip", "_rectified"), "mine": ("", "_crf"),
        "my_masks": ("_cams", "_masks", "_student", "_student_crf"),
        "my_deeplab": ("_student", "_student_crf"), "my_clip_rc": ("",), "my_unseen": ("",),
    }.items():  # fmt: skip
        for suffix in suffixes:
            metrics = json.loads((root / f"workdir/{work}/metrics{suffix}.json").read_text())
            # ReCLIP++ has no background.
            assert tuple(metrics["classes"]) == (NAMES[1:] if work == "my_photos" else NAMES)
            if suffix not in ("_cams", "_masks"):
                assert len([*(root / f"workdir/{work}/predictions{suffix}").iterdir()]) == 2
    unseen = json.loads((root / "workdir/my_unseen/metrics.json").read_text())
    assert (unseen["published_metric"], unseen["unseen"]) == ("hIoU", ["traffic light"])
    seen = json.loads((root / "workdir/my_clip_rc/metrics.json").read_text())
    assert seen["published_metric"] == "mIoU"
    assert "mIoU(U)" not in seen


@pytest.mark.slow
@pytest.mark.parametrize("work", ["my_words", "my_photos", "my_masks", "my_deeplab", "my_unseen"])
def test_what_is_trained_can_be_loaded_from_anywhere(page, work, monkeypatch, tmp_path):
    """The label maps that the recipe itself wrote, with no path but the work directory's."""
    root, _ = page
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
    root, _ = page
    stored = load_trained(root / "workdir/my_deeplab/student.safetensors", DEEPLAB)
    assert (stored.record["variant"], stored.record["classes"]) == ("v1", list(NAMES))
    assert not (root / "workdir/my_deeplab/text_embeddings.npy").exists()  # it needs no CLIP


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


@pytest.mark.slow
def test_clip_rc_segments_without_labels(page, tmp_path):
    """What was trained and scored, once more of images without labels."""
    root, _ = page
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "my_data/labels")
    work = tmp_path / "workdir/my_clip_rc"
    for path in (work / "evaluate.done.json", work / "metrics.json"):
        path.unlink()
    shutil.rmtree(work / "predictions")
    config = small(own_clip_rc.get_config(), tmp_path / "my_data")
    assert "scored" in main.run(config, work)["evaluate"]
    check_predictions(work, "", classes=len(NAMES))


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
