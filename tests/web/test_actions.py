"""What visitors do, without a browser: results and files by visitor, and what they are told."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipseg_jax.segmentation import ClassScores
from clipseg_jax.web.actions import Actions, Upload, Wish
from clipseg_jax.web.files import Files
from clipseg_jax.web.models import Models
from clipseg_jax.web.photos import Limits, samples
from clipseg_jax.web.sessions import Sessions
from tests.web.test_models import Network

WISH = Wish("cat, dog", "sky", "A", "naclip", "auto")


class Halves(Network):
    """The left half is the first class, the right one the second, with probability 0.6."""

    def scores(self, images, words=None, **options):
        height, width = images[0].shape[:2]
        values = np.full((height, width, len(words) + 1), 0.2, np.float32)
        values[:, : width // 2, 1] = values[:, width // 2 :, 2] = 0.6
        return [ClassScores(values, ("background", *words), (height, width))]


@pytest.fixture
def files():
    found = Files(grace_s=0)
    yield found
    found.close()


@pytest.fixture
def sessions():
    return Sessions(most=10, most_bytes=10**9, idle_s=60)


@pytest.fixture
def actions(files, sessions):
    models = Models(
        {"A": "a", "B": "b"}, lambda source: Halves(("x", "y") if source == "b" else None)
    )
    return Actions(models, sessions, files, Limits(), samples(real=False))


def dropped(files, size=(40, 60)):
    path = files.new("mine.png")
    Image.fromarray(np.zeros((*size, 3), np.uint8)).save(path)
    return Upload(str(path), "../my photo<b>.png")


def count(files):
    """Files that are there once those that should go are gone."""
    files.sweep(idle_s=1e9, most_bytes=10**12)
    return sum(path.is_file() for path in files.root.rglob("*"))


def run(actions, visitor="v"):
    planned, _ = actions.plan(WISH, visitor)
    actions.segment(planned, visitor)


def test_from_an_upload_to_the_downloads(actions, files, capsys):
    upload = dropped(files)
    picture, said = actions.take_photo(upload, "v")
    assert said == "my photo<b>.png, 60 x 40 pixels"
    assert Image.open(picture).size == (660, 440)
    actions.forget_upload("v")
    assert count(files) == 1
    run(actions)
    assert capsys.readouterr().out.startswith("pass: A, naclip, auto, 60 x 40, 3 names, ")
    view = actions.view(0.5, 0.5, "v")
    assert view.compare == (picture, view.overlay)
    assert ">50%<" in view.legend
    assert ">100%<" in actions.view(0.7, 0.5, "v").legend  # all is background
    assert actions.class_at(0, 0, 0.5, "v") == 1
    assert actions.class_at(659, 439, 0.5, "v") == 2
    assert actions.class_at(659, 439, 0.7, "v") == 0
    heat = actions.heat(2, 0.5, "v")
    assert "<b>dog</b>" in heat.caption
    mask = actions.save_mask(0.5, "v")
    assert mask.endswith("/my_photo_b__mask.png")
    assert np.array_equal(np.unique(np.asarray(Image.open(mask))), [1, 2])
    about = json.loads(Path(actions.save_description(0.5, "v")).read_text())
    assert about["photo"] == "my photo<b>.png"
    assert about["settings"]["background_words"] == ["sky"]


def test_visitors_see_their_own_result_alone(actions, files):
    actions.take_photo(dropped(files), "v")
    run(actions)
    with pytest.raises(ValueError, match="no longer kept"):
        actions.view(0, 0.5, "another")
    with pytest.raises(ValueError, match="Drop a photo first"):
        actions.plan(WISH, "another")


def test_a_new_photo_ends_the_old_result(actions, files):
    actions.take_photo(dropped(files), "v")
    run(actions)
    actions.take_sample(0, "v")
    with pytest.raises(ValueError, match="no longer kept"):
        actions.heat(None, 0, "v")
    with pytest.raises(ValueError, match="no such sample"):
        actions.take_sample(99, "v")


def test_a_bad_upload_is_removed_with_the_photo(actions, files):
    path = files.new("a.jpg")
    path.write_text("no photo")
    with pytest.raises(ValueError, match="is not an image"):
        actions.take_photo(Upload(str(path), "a.jpg"), "v")
    actions.forget_photo("v")
    assert count(files) == 0


def test_few_files_stay(actions, files):
    actions.take_photo(dropped(files), "v")
    run(actions)
    threads = [threading.Thread(target=actions.view, args=(i / 20, 0.5, "v")) for i in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert count(files) <= 5  # the upload, the photo, the last overlays
    actions.forget_photo("v")
    assert count(files) == 0


def test_a_trained_model_takes_no_words(actions, files):
    actions.take_photo(dropped(files), "v")
    planned, new = actions.plan(Wish("", "", "B", None, "none"), "v")
    assert (planned.words, planned.background, planned.method, planned.refine) == (
        (),
        (),
        None,
        None,
    )
    assert new
