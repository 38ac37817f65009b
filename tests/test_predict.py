"""The public API and command line: `segment`, `predict`, and errors on invalid input."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from PIL import Image

import clipseg_jax
from clipseg_jax import predict
from clipseg_jax.demo import TINY_CLIP, world
from clipseg_jax.segmenter import Segmenter
from input_pipeline.datasets.images import BadImage

NAMES = list(world.CLASSES)
OPTIONS = {
    "weights": TINY_CLIP,
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


def command(tmp_path, *paths, classes="sheep, tent, bus", more=()):
    return predict.main(
        [
            *map(str, paths),
            f"--classes={classes}",
            "--weights=demo",
            f"--out={tmp_path / 'masks'}",
            "--templates=demo_world",
            "--short-side=64",
            "--batch-size=8",
            "--background-words=water, grass, sand, sky",
            *more,
        ]
    )


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


def test_one_image_a_file_or_an_array(pictures, segmenter, tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(pictures[0].image).save(path)
    results = dict(segmenter([path, pictures[0].image]))
    np.testing.assert_array_equal(results[0].labels, results[1].labels)


def test_few_images_make_a_small_batch(pictures, segmenter, monkeypatch):
    rows, run = [], segmenter._segment_fn

    def noted(state, images, *others):
        rows.append(len(images))
        return run(state, images, *others)

    monkeypatch.setattr(segmenter, "_segment_fn", noted)
    for count in (1, 2):
        assert len(list(segmenter([p.image for p in pictures[:count]]))) == count
    devices = segmenter._mesh.size
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
    "bad", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)]
)
def test_arrays_are_checked(segmenter, bad):
    with pytest.raises(ValueError, match=r"image 0 is .* give uint8 RGB"):
        list(segmenter([bad]))


def test_a_folder_from_the_command_line(tmp_path, pictures, capsys):
    folder = tmp_path / "photos" / "trip"
    folder.mkdir(parents=True)
    for i in range(3):
        Image.fromarray(pictures[i].image).save(folder / f"{i}.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    assert command(tmp_path, tmp_path / "photos") == 0
    said = capsys.readouterr()
    assert "3 masks" in said.out
    assert "1 images skipped" in said.out
    assert "broken.jpg" in said.err

    out = tmp_path / "masks"
    mask = Image.open(out / "trip" / "0.png")
    assert mask.mode == "P"
    assert np.asarray(mask).shape == (128, 128)
    assert set(np.unique(np.asarray(mask))) <= {0, 1, 2, 3}
    shown = Image.open(out / "trip" / "0_overlay.jpg")
    assert shown.height > 128  # the legend below
    rows = [json.loads(line) for line in (out / "summary.jsonl").read_text().splitlines()]
    assert {row["mask"] for row in rows} == {"trip/0.png", "trip/1.png", "trip/2.png"}
    assert not [path for path in out.rglob("*") if path.name.startswith(".")]

    # Again: nothing is made twice; what is missing is made.
    (out / "trip" / "1.png").unlink()
    before = (out / "trip" / "0.png").stat().st_mtime_ns
    assert command(tmp_path, tmp_path / "photos") == 0
    assert "2 of 4 images already have masks" in capsys.readouterr().out
    assert (out / "trip" / "0.png").stat().st_mtime_ns == before
    assert (out / "trip" / "1.png").exists()

    # Other classes into the same folder would mix masks of two meanings.
    assert command(tmp_path, tmp_path / "photos", classes="boat") == 2
    assert "other settings (classes)" in capsys.readouterr().err


def test_user_errors_are_one_line(tmp_path, capsys, pictures):
    path = tmp_path / "a.png"
    Image.fromarray(pictures[0].image).save(path)
    for arguments, message in [
        ({"paths": [tmp_path / "none.jpg"]}, "neither a file nor a folder"),
        ({"paths": [path], "classes": " , "}, "class list is empty"),
        ({"paths": [path], "classes": "cat, cat"}, "is listed twice"),
        ({"paths": [path], "more": ["--weights=nowhere.pt"]}, "nowhere.pt"),
        ({"paths": [path], "more": ["--templates=none"]}, "no template set 'none'"),
    ]:
        paths = arguments.pop("paths")
        assert command(tmp_path / message[:3], *paths, **arguments) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ")
        assert message in said
        assert said.count("\n") == 1


def test_an_unwritable_folder(tmp_path, capsys, pictures):
    path = tmp_path / "a.png"
    Image.fromarray(pictures[0].image).save(path)
    blocked = tmp_path / "masks"
    blocked.write_text("a file where the folder should be")
    assert command(tmp_path, path) == 2
    assert "cannot write" in capsys.readouterr().err
    if os.geteuid():  # root may write anywhere
        locked = tmp_path / "locked"
        locked.mkdir(mode=0o500)
        assert command(locked, path) == 2
        assert "cannot write" in capsys.readouterr().err


def test_names_of_results_are_unique(tmp_path):
    for name in ("a/x.png", "a/x.jpg", "b/x.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    names = [name for _, name in predict.find_images([tmp_path / "a", tmp_path / "b"])]
    assert len(set(names)) == 3
    with pytest.raises(FileNotFoundError, match="no images"):
        predict.find_images([tmp_path.joinpath("empty").mkdir() or tmp_path / "empty"])
