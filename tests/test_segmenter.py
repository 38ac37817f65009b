"""`segment` and `Segmenter`: masks from words, and arguments that are checked before any work."""

from __future__ import annotations

import warnings

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import clipseg_jax
import weights_convert
from clipseg_jax import segmenter_images
from clipseg_jax.demo import world
from clipseg_jax.methods.maskclip.model import MaskCLIPConfig
from clipseg_jax.prompts import read_words
from clipseg_jax.segmenter import Segmenter
from clipseg_jax.segmenters import runner
from input_pipeline.datasets.images import BadImage

NAMES = list(world.CLASSES)
OPTIONS = {
    "weights": "demo",
    "method": "maskclip",
    "background": list(world.SCENERY),
    "prompt_templates": "demo_world",
    "short_side_px": 96,
    "batch_size": 8,
}


@pytest.fixture(scope="module")
def pictures():
    return [world.make("evaluation", i, 128) for i in range(8)]


@pytest.fixture(scope="module")
def segmenter():
    return Segmenter(NAMES, **OPTIONS)


def test_words_to_masks(pictures):
    results = clipseg_jax.segment([p.image for p in pictures], NAMES, **OPTIONS)
    hits = total = 0
    for picture, result in zip(pictures, results, strict=True):
        assert result.labels.shape == result.scores.shape == (128, 128)
        scored = picture.label != world.BOUNDARY
        hits += np.sum((result.labels == picture.label) & scored)
        total += scored.sum()
    assert hits / total > 0.7  # the tiny CLIP on its own world
    assert result.names == ("background", *NAMES)
    shares = [part["share"] for part in result.summary().values()]
    assert sum(shares) == pytest.approx(1, abs=1e-3)


@pytest.fixture(scope="module")
def by_default():
    """With the default method and refinement."""
    given = {name: OPTIONS[name] for name in ("weights", "background", "prompt_templates")}
    return Segmenter(NAMES, **given)


def test_the_default_method_is_better_than_maskclip(pictures, segmenter, by_default):
    """On the tiny CLIP's own world, pixels of the wrong class become half as many."""
    wrong = {}
    for name, used in (("default", by_default), ("maskclip", segmenter)):
        results = dict(used([picture.image for picture in pictures]))
        wrong[name] = sum(
            np.sum((results[i].labels != picture.label) & (picture.label != world.BOUNDARY))
            for i, picture in enumerate(pictures)
        )
    assert 0 < wrong["default"] < 0.6 * wrong["maskclip"]


@pytest.mark.slow
def test_images_of_any_size_by_default(by_default):
    """One pixel, thin, smaller than a window and a patch, longer than what is refined at once."""
    rng = np.random.default_rng(0)
    shapes = [(1, 1), (1, 90), (7, 5), (40, 1500), (130, 97)]
    images = [rng.integers(0, 256, (*shape, 3)).astype(np.uint8) for shape in shapes]
    results = dict(by_default(images))
    for i, shape in enumerate(shapes):
        assert results[i].labels.shape == shape
        assert np.all((results[i].scores > 0) & (results[i].scores <= 1))


def test_one_image_a_file_or_an_array(pictures, segmenter, tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(pictures[0].image).save(path)
    results = dict(segmenter([path, pictures[0].image]))
    np.testing.assert_array_equal(results[0].labels, results[1].labels)


def test_few_images_make_a_small_batch(pictures, segmenter, monkeypatch):
    rows, run = [], segmenter._runner.functions.segment

    def noted(state, images, *others):
        rows.append(len(images))
        return run(state, images, *others)

    functions = segmenter._runner.functions._replace(segment=noted)
    monkeypatch.setattr(segmenter._runner, "functions", functions)
    for count in (1, 2):
        assert len(list(segmenter([p.image for p in pictures[:count]]))) == count
    devices = segmenter._runner._mesh.size
    assert rows == [devices * -(-count // devices) for count in (1, 2)]


@pytest.mark.slow
def test_odd_images(segmenter, tmp_path):
    """Grey, CMYK, one pixel high, and 6000 pixels wide: all get masks of their own size."""
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (40, 60)).astype(np.uint8)).save(tmp_path / "grey.png")
    cmyk = Image.fromarray(rng.integers(0, 256, (40, 60, 4)).astype(np.uint8), mode="CMYK")
    cmyk.save(tmp_path / "cmyk.jpg")
    thin = rng.integers(0, 256, (1, 90, 3)).astype(np.uint8)
    Image.fromarray(thin).save(tmp_path / "thin.png")
    wide = np.kron(rng.integers(0, 256, (10, 75, 3)), np.ones((80, 80, 1), int)).astype(np.uint8)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    names = ["grey.png", "cmyk.jpg", "thin.png", "wide.png"]
    results = dict(segmenter([tmp_path / name for name in names]))
    shapes = [results[i].labels.shape for i in range(4)]
    assert shapes == [(40, 60), (40, 60), (1, 90), (800, 6000)]


def test_a_truncated_jpeg_is_named(tmp_path, pictures):
    whole = tmp_path / "whole.jpg"
    Image.fromarray(pictures[0].image).save(whole)
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(whole.read_bytes()[:900])
    with pytest.raises(BadImage, match=r"cut\.jpg"):
        clipseg_jax.segment([cut], ["sheep"], **OPTIONS)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "class list is empty"),
        (["cat", "Cat "], "'Cat ' is listed twice"),
        (["cat", " "], "class 2 of 2 has an empty name"),
        ("cat", "pass \\['cat'\\]"),
        (["sheep", "water"], "'water' is listed twice"),  # also a background word
    ],
)
def test_class_names_are_checked(names, message):
    with pytest.raises(ValueError, match=message):
        Segmenter(names, **OPTIONS)


@pytest.mark.parametrize(
    "bad",
    [np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8), np.zeros((4, 4, 5), np.uint8), 7, b"x"],
)
def test_what_is_no_image_is_refused(segmenter, bad):
    with pytest.raises(ValueError, match=r"image 1 is .* give a path, a Pillow image, or an array"):
        segmenter([np.zeros((4, 4, 3), np.uint8), bad])


def test_images_of_any_kind(pictures, segmenter):
    """Pillow, JAX, RGBA, a generator: the same labels. Grey arrays as grey files."""
    image = pictures[0].image
    opaque = np.dstack([image, np.full(image.shape[:2], 255, np.uint8)])
    several = [image, Image.fromarray(image), jnp.asarray(image), opaque, Image.fromarray(opaque)]
    results = dict(segmenter(each for each in several))
    assert len(results) == len(several)
    for result in results.values():
        np.testing.assert_array_equal(result.labels, results[0].labels)
    grey = image[..., 0]
    results = dict(segmenter([grey, Image.fromarray(grey), grey[..., None], np.dstack([grey] * 3)]))
    for result in results.values():
        np.testing.assert_array_equal(result.labels, results[3].labels)
    assert len(dict(segmenter(grey))) == len(dict(segmenter(Image.fromarray(grey)))) == 1


def test_a_summary_is_plain_numbers(pictures, segmenter):
    ((_, result),) = segmenter(pictures[0].image)
    for part in result.summary().values():
        assert {type(value) for value in part.values()} == {float}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"background": 50}, r"background is 50; give words, or a probability from 0 to 1"),
        ({"background": float("nan")}, "background is nan"),
        ({"background": np.float32(-0.1)}, r"background is .*-0\.1"),
        ({"background": True}, "background is True"),
        ({"background": "0.5"}, "background is the text '0.5'"),
        ({"background": []}, "background is empty"),
        ({"background": ["sky", 3]}, "background: number 2 is 3"),
        ({"class_names": ["cow"], "background": 0.9}, "with one class, whose probability is 1"),
        ({"class_names": [["cow", "ox"], "dog"]}, r"number 1 is \['cow', 'ox'\]"),
        ({"class_names": {"cow"}}, "class_names is of type set"),
        ({"class_names": None}, "class_names is of type NoneType"),
        ({"class_names": ["cow", "Background"]}, "'background' is label 0"),
        ({"class_names": [str(i) for i in range(300)]}, "300 classes"),
        ({"prompt_templates": ["a {}"]}, r"prompt_templates is \['a \{\}'\]"),
        ({"short_side_px": 0}, "short_side_px is 0; give a whole number of at least 1"),
        ({"short_side_px": 96.5}, "short_side_px is 96.5"),
        ({"batch_size": -1}, "batch_size is -1"),
        ({"devices": 0}, "devices is 0"),
        ({"dtype": "float64"}, "dtype is 'float64'; give 'float32' or 'bfloat16'"),
        ({"mode": "sliding"}, "mode is 'sliding'; give 'whole' or 'slide'"),
        ({"mode": "slide", "crop_px": (8, 8), "stride_px": (8, 9)}, "exceeds crop_px"),
        ({"ratios": ()}, "ratios is"),
        ({"method": "dino"}, "method is 'dino'; give 'maskclip' or 'value' or 'clip'"),
        ({"method": "proxyclip"}, "'proxyclip' needs a DINO; give dino= its checkpoint"),
        ({"dino": "dino.pth"}, "dino is given with method None; give method='proxyclip'"),
        ({"method": "proxyclip", "dino": 8}, "dino is 8; give the path"),
        ({"method": 3}, "method is 3"),
        ({"refine": {"steps": 1}}, "refine is {'steps': 1}; give 'auto', 'pamr', 'par', 'crf', a"),
        ({"refine": "CLIP_ES"}, "refine is 'CLIP_ES'; give 'auto', 'pamr'"),
        ({"refine": True}, "refine is True"),
        ({"refine": MaskCLIPConfig()}, "give a MaskCLIPConfig as maskclip="),
        ({"maskclip": {"pd_threshold": 1}, "method": "maskclip"}, "maskclip is {'pd_threshold'"),
        ({"maskclip": MaskCLIPConfig()}, "maskclip is given with method None; give method='maskcl"),
        ({"maskclip": MaskCLIPConfig(), "method": "sclip"}, "with method 'sclip'"),
        ({"crop_px": (0, 8)}, r"crop_px is \(0, 8\)"),
        ({"stride_px": 8}, "stride_px is 8"),
        ({"temperature": 0}, "temperature is 0; give a number above 0"),
        ({"activation": "relu"}, "activation 'relu'"),
        ({"heads": (0, 8)}, "heads"),
        ({"weights": None}, "weights is None"),
    ],
    ids=str,
)
def test_arguments_are_checked_before_the_weights_are_read(monkeypatch, given, message):
    def unexpected(*_, **__):
        raise AssertionError("the weights were read")

    monkeypatch.setattr(weights_convert, "load_clip", unexpected)
    usual = {**OPTIONS, "background": None, "method": None}
    arguments = {"class_names": ["cow", "dog"], **usual, **given}
    with pytest.raises(ValueError, match=message):
        Segmenter(**arguments)


@pytest.mark.parametrize("names", [np.array(["cow", "dog"]), ("cow", "dog")])
@pytest.mark.parametrize("background", [np.float32(0.5), np.array(1), 0, jnp.asarray(0.25)])
def test_names_and_numbers_of_any_kind(names, background):
    listed, words, threshold = read_words(names, background)
    assert (listed, words, threshold) == (["cow", "dog"], [], float(background))


def test_one_class_without_background_is_warned_of():
    with pytest.warns(UserWarning, match="every pixel becomes 'cow'.*--background-words"):
        Segmenter(["cow"], **{**OPTIONS, "background": None})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Segmenter(["cow"], **OPTIONS)


def test_large_images_are_segmented_alone(monkeypatch, pictures, segmenter):
    """In a batch of one image on one device; the labels are those of the usual way."""
    several = [picture.image for picture in pictures[:3]]
    usual = dict(segmenter(several))
    shapes, run = [], segmenter._runner.functions.segment

    def noted(state, images, *others):
        shapes.append((len(images), len(images.sharding.device_set)))
        return run(state, images, *others)

    functions = segmenter._runner.functions._replace(segment=noted)
    monkeypatch.setattr(segmenter._runner, "functions", functions)
    monkeypatch.setattr(runner, "ALONE_PX", 128 * 128 - 1)
    alone = dict(segmenter(several))
    assert shapes == [(1, 1)] * 3
    for i, result in alone.items():
        np.testing.assert_allclose(result.scores, usual[i].scores, atol=1e-4)
        assert np.mean(result.labels == usual[i].labels) > 0.999


def test_a_file_that_changes_meanwhile_is_named(monkeypatch, pictures, segmenter, tmp_path):
    for name in ("a.png", "b.png"):
        Image.fromarray(pictures[0].image).save(tmp_path / name)
    read = segmenter_images.read_image

    def grown(path):
        return np.zeros((300, 200, 3), np.uint8) if path.name == "a.png" else read(path)

    monkeypatch.setattr(segmenter_images, "read_image", grown)
    results = dict(segmenter([tmp_path / "a.png", tmp_path / "b.png"]))
    assert "a.png: has 300 x 200 pixels now and had 128 x 128" in str(results[0])
    assert isinstance(results[0], BadImage)
    assert results[1].labels.shape == (128, 128)
