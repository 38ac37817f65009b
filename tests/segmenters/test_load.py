"""`load` of CLIPs: words, scores, features, any kind of image; and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from jax import numpy as jnp
from PIL import Image

import clipseg_jax
from clipseg_jax import segment_options
from clipseg_jax.demo import world
from clipseg_jax.segment_options import SegmentOptions
from clipseg_jax.segmenters import runner
from input_pipeline.datasets.images import BadImage

NAMES = list(world.CLASSES)
WORDS = list(world.SCENERY)
MASKCLIP = SegmentOptions(method="maskclip", prompt_templates="demo_world")


@pytest.fixture(scope="module")
def model():
    return clipseg_jax.load("demo")


@pytest.fixture(scope="module")
def picture():
    return world.make("evaluation", 1, 128)


def test_words_as_segment_has_them(model, picture):
    """By default NACLIP with PAMR; the function for one call gives the same."""
    (result,) = model.segment(picture.image, NAMES, background=WORDS)
    (alone,) = clipseg_jax.segment(picture.image, NAMES, background=WORDS, weights="demo")
    np.testing.assert_array_equal(result.labels, alone.labels)
    scored = picture.label != world.BOUNDARY
    assert np.mean((result.labels == picture.label)[scored]) > 0.7
    assert model.classes is None


@pytest.mark.parametrize("refine", [None, "pamr", "par", "crf"])
def test_scores_have_the_labels_of_segment(model, picture, refine):
    given, part = {"background": WORDS, "refine": refine}, picture.image[40:72, 40:88]
    (scores,) = model.scores(part, NAMES, **given)
    (result,) = model.segment(part, NAMES, **given)
    assert scores.values.shape == (32, 48, 13)
    assert len(np.unique(result.labels)) > 1
    assert scores.names == ("background", *NAMES) == result.names
    np.testing.assert_array_equal(scores.segmentation().labels, result.labels)
    np.testing.assert_allclose(scores.values.max(axis=2), result.scores, atol=1e-6)


def test_a_threshold_needs_no_second_pass(model, picture):
    (scores,) = model.scores(picture.image, NAMES, refine=None)
    assert not scores.values[..., 0].any()  # no words for the background
    for threshold in (0.3, 0.6):
        (result,) = model.segment(picture.image, NAMES, background=threshold, refine=None)
        np.testing.assert_array_equal(scores.segmentation(threshold).labels, result.labels)
    with pytest.raises(ValueError, match="background is 7"):
        scores.segmentation(7)


def test_scores_of_a_large_image_are_small(model, picture, monkeypatch):
    monkeypatch.setattr(segment_options, "REFINE_PX", 340)  # this one's longest side is longer
    large = np.kron(picture.image, np.ones((2, 3, 1), np.uint8))
    (scores,) = model.scores(large, NAMES, longest_px=100)
    assert scores.values.shape[:2] == (67, 100)
    assert scores.image_size == (256, 384)
    (whole,) = model.scores(large, NAMES, longest_px=None)
    assert whole.values.shape[:2] == (256, 384)
    rows, columns = (
        np.arange(n) * side // n + side // (2 * n) for n, side in ((67, 256), (100, 384))
    )
    small = whole.values[np.ix_(rows, columns)].argmax(2)
    assert len(np.unique(small)) > 2
    assert np.mean(small == scores.values.argmax(2)) > 0.8


def test_features_and_words_have_the_cosines_of_the_scores(model, picture):
    """On whole images MaskCLIP's scores are a softmax of them."""
    (features,) = model.features(picture.image, method="maskclip")
    assert features.shape == (12, 12, 96)
    np.testing.assert_allclose(np.linalg.norm(features, axis=-1), 1, atol=1e-5)
    rows = model.embed(NAMES, prompt_templates="demo_world")
    (scores,) = model.scores(picture.image, NAMES, options=MASKCLIP)
    cosines = features @ rows.T
    best = scores.values[5::11, 5::11, 1:].argmax(2)[:12, :12]
    assert np.mean(best == cosines.argmax(2)) > 0.7


def test_any_kind_of_image(model, picture, tmp_path):
    """Paths, Pillow and NumPy and JAX, 8 and 16 bits, grey and RGBA, turned by EXIF."""
    image, path = picture.image, tmp_path / "a.png"
    Image.fromarray(image).save(path)
    alpha = np.dstack([image, np.full((128, 128), 7, np.uint8)])
    same = [path, str(path), Image.open(path), image, jnp.asarray(image), alpha]
    same += [image.astype(np.uint16) * 256 + 3]
    results = model.segment(same, NAMES, options=MASKCLIP)
    for result in results[1:]:
        np.testing.assert_array_equal(result.labels, results[0].labels)
    grey = image.mean(axis=2).astype(np.uint8)
    assert model.segment(grey, NAMES)[0].labels.shape == (128, 128)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned by 90 degrees
    Image.fromarray(np.rot90(image[:96])).save(tmp_path / "b.png", exif=exif)
    (turned,) = model.segment(Image.open(tmp_path / "b.png"), NAMES, options=MASKCLIP)
    (upright,) = model.segment(image[:96], NAMES, options=MASKCLIP)
    np.testing.assert_array_equal(turned.labels, upright.labels)


def test_a_generator_is_read_in_pieces(model, picture, monkeypatch):
    monkeypatch.setattr(runner, "AT_ONCE", 2)
    read = 0

    def pictures():
        nonlocal read
        for _ in range(5):
            read += 1
            yield picture.image

    stream = model.stream(pictures(), NAMES, refine=None)
    indices = []
    for index, result in stream:
        indices.append(index)
        assert result.labels.shape == (128, 128)
        assert read <= 2 * (1 + (len(indices) - 1) // 2)
    assert sorted(indices) == list(range(5))


def test_an_unreadable_file_is_named_and_the_others_done(model, picture, tmp_path):
    path = tmp_path / "a.jpg"
    path.write_text("no image")
    results = dict(model.stream([path, picture.image], NAMES, refine=None))
    assert isinstance(results[0], BadImage)
    assert results[1].labels.shape == (128, 128)
    with pytest.raises(BadImage, match=r"a\.jpg"):
        model.segment([path], NAMES)


@pytest.mark.parametrize("as_iterator", [False, True])
def test_an_array_of_an_extreme_size_is_named_and_the_others_done(
    model, picture, as_iterator, monkeypatch
):
    """As a file of that size; what is no image at all is refused before anything is done."""
    monkeypatch.setattr(runner, "AT_ONCE", 2)
    thin = np.zeros((1, 5000, 3), np.uint8)
    vast = np.broadcast_to(np.uint8(0), (20_000, 20_000))
    images = [picture.image, thin, vast, picture.image]
    results = dict(model.stream(iter(images) if as_iterator else images, NAMES, options=MASKCLIP))
    assert {*results} == {0, 1, 2, 3}
    assert results[0].labels.shape == results[3].labels.shape == (128, 128)
    for index, words in ((1, "1 x 5000 pixels"), (2, "20000 x 20000 pixels")):
        assert isinstance(results[index], BadImage)
        assert str(results[index]).startswith(f"image {index}: ")
        assert words in str(results[index])
    with pytest.raises(BadImage, match="image 1: an image of 1 x 5000 pixels"):
        model.segment([picture.image, thin], NAMES, options=MASKCLIP)
    with pytest.raises(ValueError, match="image 1 is int64"):
        model.stream([thin, np.zeros((4, 4), np.int64)], NAMES)


def test_a_folder_is_no_image(model, tmp_path):
    with pytest.raises(BadImage, match=r"is a folder; give the photos in it") as caught:
        model.segment(tmp_path, NAMES)
    assert "split" not in str(caught.value)


@pytest.mark.parametrize("background", [None, 0.3, 0.7])
def test_nothing_is_compiled_again(model, picture, background):
    """For other words of the same number, and for other thresholds."""
    model.segment(picture.image, ["cow", "duck"], refine=None)
    before = len(model._functions)
    functions = next(reversed(model._functions.values()))
    traced = functions.segment._cache_size()
    model.segment(picture.image, ["car", "bus"], refine=None, background=background)
    assert len(model._functions) == before
    assert functions.segment._cache_size() == traced


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "words is None; a CLIP has no classes"),
        ({"words": []}, "the class list is empty"),
        ({"words": NAMES, "options": MASKCLIP, "method": "clip"}, "options and one of"),
        ({"words": NAMES, "method": "dog"}, "method is 'dog'"),
        ({"words": NAMES, "short_side_px": 0}, "short_side_px is 0"),
        ({"words": NAMES, "background": "0.5"}, "background is the text '0.5'"),
        ({"words": NAMES, "background": "wall"}, r"the text 'wall'; .* background=\['wall'\]"),
    ],
)
def test_what_cannot_be_meant(model, picture, given, message):
    with pytest.raises(ValueError, match=message):
        model.segment(picture.image, **given)


def test_scores_take_no_threshold(model, picture):
    with pytest.raises(ValueError, match=r"background is 0\.5; give words or None"):
        model.scores(picture.image, NAMES, background=0.5)
    with pytest.raises(ValueError, match="give words or None"):
        model.scores(picture.image, NAMES, background=np.float32(0.5))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": ""}, "model is ''; give"),
        *(
            ({"model": bad}, r"model is .*; give a name")
            for bad in (7, None, ["demo"], b"demo", " ")
        ),
        ({"model": "a\0b"}, "model is .*; no name or path has a NUL character"),
        ({"model": "demo", "clip": "x"}, "clip is given with demo, which is no trained"),
        ({"model": "demo", "classes": ["a"]}, "classes is given with demo"),
        ({"model": "demo", "dtype": "int8"}, "dtype is 'int8'"),
        ({"model": "demo", "devices": 0}, "devices is 0"),
    ],
)
def test_what_is_no_model(arguments, message):
    with pytest.raises(ValueError, match=message):
        clipseg_jax.load(**arguments)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.pt"):
        clipseg_jax.load(tmp_path / "none.pt")


def test_a_small_clip_sees_images_at_the_size_it_was_trained_for(model):
    """96 px of 64; MaskCLIP's published 512 are of 224."""
    for method in ("naclip", "maskclip"):
        cfg = SegmentOptions(method=method).inference(model.clip.cfg.vision, (1,), 0.0)
        assert cfg.scale_px == (384, 96)
