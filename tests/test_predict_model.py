"""`predict --model` with what was trained: a work directory, a file; options that it lacks."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from clipseg_jax import main, predict
from clipseg_jax.core.modules import initialised
from clipseg_jax.demo import world
from clipseg_jax.models.deeplab_v2 import DeepLabV2
from clipseg_jax.models.resnet import DilatedResNetConfig
from configs import demo_maskclip
from tests import folders
from weights_convert import DEEPLAB, save_trained

NAMES = list(world.CLASSES)


@pytest.fixture(scope="module")
def painted(tmp_path_factory):
    return folders.write_painted(tmp_path_factory.mktemp("world"), 2, 1)


@pytest.fixture(scope="module")
def workdir(painted, tmp_path_factory):
    config, folder = demo_maskclip.get_config(), tmp_path_factory.mktemp("run")
    config.dataset.name, config.dataset.root = "folder", str(painted)
    config.run.predictions, config.run.devices = True, 1
    main.run(config, folder)
    return folder


@pytest.fixture(scope="module")
def deeplab(tmp_path_factory):
    """A random DeepLabV2 without a recipe in its record, as a released one is."""
    cfg = DilatedResNetConfig(blocks=(1, 1, 1, 1), width=8, variant="caffe")
    model = initialised(lambda rngs: DeepLabV2(3, cfg, rngs=rngs), 0)
    path = tmp_path_factory.mktemp("trained") / "student.safetensors"
    return save_trained(path, DEEPLAB, model, classes=["background", "cat", "dog"])


def command(model, images, out, *more):
    return predict.main([str(images), "--model", str(model), "--out", str(out), *more])


def test_a_work_directory(workdir, painted, tmp_path):
    """The masks are its own predictions; a second run does nothing."""
    assert command(workdir, painted / "images", tmp_path / "masks", "--refine", "none") == 0
    for path in (painted / "images").iterdir():
        name = f"{path.stem}.png"
        mask, expected = (
            np.asarray(Image.open(folder / name))
            for folder in (tmp_path / "masks", workdir / "predictions")
        )
        assert np.mean(mask == expected) > 0.999
    settings = json.loads((tmp_path / "masks/settings.json").read_text())
    assert settings["classes"] == NAMES
    assert settings["method"] == "trained"


def test_it_goes_on_where_it_stopped(workdir, painted, tmp_path, capsys):
    for _ in range(2):
        assert command(workdir, painted / "images", tmp_path / "masks") == 0
    assert "2 of 2 images already have masks" in capsys.readouterr().out
    assert command(workdir, painted / "images", tmp_path / "masks", "--background=0.5") == 2
    assert "other settings (background)" in capsys.readouterr().err


def test_a_trained_file(deeplab, painted, tmp_path):
    assert command(deeplab, painted / "images", tmp_path / "masks", "--format=npz") == 0
    labels = np.asarray(Image.open(next((tmp_path / "masks").glob("*.png"))))
    assert set(np.unique(labels)) <= {0, 1, 2}
    with np.load(next((tmp_path / "masks").glob("*.npz")), allow_pickle=False) as stored:
        assert list(stored["names"]) == ["background", "cat", "dog"]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--background-words=sky"], "--background-words is of CLIPs"),
        (["--method=clip"], "--method is of CLIPs"),
        (["--dtype=bfloat16"], "--dtype is of CLIPs"),
        (["--short-side=9"], "--short-side is of CLIPs"),
        (["--background=7"], "--background is 7"),
        (["--batch-size=0"], "--batch-size is 0"),
        (["--clip=none.pt"], "none.pt"),
    ],
)
def test_options_of_a_trained_model(workdir, painted, tmp_path, capsys, option, message):
    assert command(workdir, painted / "images", tmp_path / "masks", *option) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line
    assert not (tmp_path / "masks").exists()


def test_clip_is_of_trained_models(painted, tmp_path, capsys):
    more = ["--clip=x.pt", "--classes=cow,duck"]
    assert command("demo", painted / "images", tmp_path / "masks", *more) == 2
    assert "--clip is of trained models, and demo is a CLIP" in capsys.readouterr().err


def test_names_of_another_number(deeplab, painted, tmp_path, capsys):
    """A file that names its classes keeps them."""
    assert command(deeplab, painted / "images", tmp_path / "masks", "--classes=cow") == 2
    assert "names its classes itself" in capsys.readouterr().err


def test_a_folder_that_is_neither(painted, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    more = ["--classes=cow,duck"]
    assert command(tmp_path / "empty", painted / "images", tmp_path / "masks", *more) == 2
    assert "empty" in capsys.readouterr().err
