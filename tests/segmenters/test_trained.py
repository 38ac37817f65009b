"""`load` of work directories and trained files: the label maps that the recipe itself wrote."""

from __future__ import annotations

import functools
import json
import shutil

import numpy as np
import pytest
from PIL import Image

import clipseg_jax
from clipseg_jax import main
from clipseg_jax.demo import world
from clipseg_jax.export import export_model
from clipseg_jax.export.stablehlo import run_stablehlo
from configs import demo_clip_rc, demo_maskclip, demo_readout, demo_reclippp, demo_weclip
from tests import folders, shared
from tests.methods.clip_es import test_recipe as clip_es
from tests.methods.maskclip_plus import test_recipe as maskclip_plus
from tests.methods.reclip import test_recipe as reclip
from tests.methods.weclip import test_recipe as weclip

pytestmark = pytest.mark.slow
CLASSES = tuple(world.CLASSES)


def _maskclip(root):
    return _whole(demo_maskclip.get_config(), root)


def _readout(root):
    return _whole(demo_readout.get_config("naclip"), root)


def _whole(config, root):
    config.dataset.name, config.dataset.root = "folder", str(root)
    return config


def _clip_rc(root):
    config = _whole(demo_clip_rc.get_config("inductive"), root)
    config.dataset.class_names, config.dataset.unseen = CLASSES, ("sheep", "tent", "bus")
    config.clip_rc.hidden, config.clip_rc.decoder_blocks = 32, 1
    config.clip_rc.total_steps, config.clip_rc.batch_size = 2, 2
    return config


def _clip_es(root):
    config = clip_es.small(root)
    config.stages = config.stages[:-1]
    return config


# Method -> config, the trained file, the folder of its label maps.
METHODS = {
    "maskclip": (_maskclip, None, "predictions"),
    "readouts": (_readout, None, "predictions"),
    "maskclip_plus": (maskclip_plus.demo, "student.safetensors", "predictions"),
    "reclip": (
        functools.partial(reclip.small, demo_reclippp),
        "distilled_best.safetensors",
        "predictions_distilled",
    ),
    "clip_es": (_clip_es, "student.safetensors", "predictions_student"),
    "weclip": (
        functools.partial(weclip.small, demo_weclip),
        "head_last.safetensors",
        "predictions",
    ),
    "clip_rc": (_clip_rc, "clip_rc_last.safetensors", "predictions"),
}


# The recipes of tests/test_own_images_page.py are loaded as well, which has these methods.
LONG = ("reclip", "clip_es", "clip_rc")


@pytest.fixture(scope="module")
def painted(tmp_path_factory):
    return shared.folder(
        tmp_path_factory, "trained_world", lambda root: folders.write_painted(root, 3, 6)
    )


@pytest.fixture(
    scope="module",
    params=[pytest.param(n, marks=pytest.mark.long) if n in LONG else n for n in METHODS],
)
def finished(request, painted, tmp_path_factory):
    """Method, its finished work directory, the trained file, the folder of its label maps."""
    make, trained, predictions = METHODS[request.param]
    config = make(painted)
    config.run.predictions, config.run.devices = True, 1
    workdir = shared.folder(
        tmp_path_factory, f"trained_{request.param}", lambda folder: main.run(config, folder)
    )
    return request.param, workdir, trained and workdir / trained, workdir / predictions


def assert_same_labels(model, painted, predictions):
    """The model's labels of the scored images are those of the recipe, to a tie or two."""
    images = sorted((painted / "images").iterdir())
    results = model.segment(images, refine=None)
    assert len(results) == 3
    for path, result in zip(images, results, strict=True):
        expected = np.asarray(Image.open(predictions / f"{path.stem}.png"))
        if model.shift:
            expected = expected + 1
        assert result.names == ("background", *CLASSES)
        assert np.mean(result.labels == expected) > 0.999
    return results


def test_of_a_work_directory_and_of_its_file(finished, painted, tmp_path):
    _, workdir, trained, predictions = finished
    model = clipseg_jax.load(workdir)
    assert model.classes == CLASSES
    background = json.loads((workdir / "config.json").read_text())["dataset"]["class_names"][0]
    model.shift = background != "background"
    results = assert_same_labels(model, painted, predictions)
    image = next((painted / "images").iterdir())
    (scores,), (features,) = model.scores(image, refine=None), model.features(image)
    assert scores.values.shape == (64, 64, 13)
    np.testing.assert_array_equal(
        scores.segmentation().labels, model.segment(image, refine=None)[0].labels
    )
    assert features.ndim == 3
    assert np.isfinite(features).all()
    assert features.std() > 0
    if trained is None:
        return
    # Alone, elsewhere, with nothing but the built-in CLIP.
    alone = clipseg_jax.load(shutil.copy(trained, tmp_path / "alone.safetensors"))
    alone.shift = model.shift
    for one, other in zip(results, assert_same_labels(alone, painted, predictions), strict=True):
        assert one.scores.std() > 0
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-5)


def test_exported(finished, painted, tmp_path):
    """XLA folds weights that are constants; the temperature of 100 multiplies what it rounds."""
    _, workdir, _, _ = finished
    model, path = clipseg_jax.load(workdir, devices=1), next((painted / "images").iterdir())
    export_model(model, tmp_path / "model", size=64, refine=None, outputs="probabilities")
    images = np.asarray(Image.open(path).convert("RGB"))[None]
    (values,) = run_stablehlo((tmp_path / "model").read_bytes(), images)
    (expected,) = model.scores(path, refine=None)
    np.testing.assert_allclose(values[0], expected.values, atol=1e-4)


def test_no_folder_of_the_trainer_is_in_a_trained_file(finished, painted):
    _, workdir, trained, _ = finished
    if trained is not None:
        content = trained.read_bytes()
        assert str(painted).encode() not in content
        assert str(workdir).encode() not in content


@pytest.mark.parametrize("words", [5, "cow", ["cow"], [*CLASSES, "dog"]])
def test_other_words_than_the_classes(finished, painted, words):
    _, workdir, _, _ = finished
    with pytest.raises(ValueError, match="knows only its classes"):
        clipseg_jax.load(workdir).segment(next((painted / "images").iterdir()), words)


def test_a_threshold_and_a_refinement(finished, painted):
    _, workdir, _, _ = finished
    model, image = clipseg_jax.load(workdir), next((painted / "images").iterdir())
    (plain,), (result,) = model.segment(image), model.segment(image, background=0.9)
    sure = plain.scores >= 0.9
    np.testing.assert_array_equal(result.labels, np.where(sure, plain.labels, 0))
    for refine in ("pamr", "par"):
        assert model.segment(image, refine=refine)[0].labels.shape == (64, 64)
