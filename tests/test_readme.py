"""The README, as a newcomer types it: its examples and commands run, with the demo's weights."""

from __future__ import annotations

import re
import shlex

import numpy as np
import pytest
from PIL import Image

import weights_convert
from clipseg_jax import main, predict
from clipseg_jax.demo import TINY_CLIP, world
from clipseg_jax.reproduce import __main__ as reproduce
from tests import folders
from tests.test_docs import MODULE, ROOT, commands_of, fences, resolve

pytestmark = pytest.mark.slow
README = ROOT / "README.md"
# A training of seconds instead of the recipe's own length.
SHORT = "--config.head.total_steps=2 --config.head.late_step=1 --config.head.batch_size=2"


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A folder with a photo, photos, own images; ViT-B/16 is stood in for by the tiny CLIP."""
    find = weights_convert.find_weights
    monkeypatch.setattr(
        weights_convert,
        "find_weights",
        lambda name: TINY_CLIP if name == "ViT-B/16" else find(name),
    )
    picture = world.make("evaluation", 0, 64).image
    for name in ("photo.jpg", "photos/a.jpg", "photos/b.jpg", "new_photos/c.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(picture).save(tmp_path / name)
    own = folders.write_painted(tmp_path / "my_data", 2, 4)
    (own / "classes.txt").write_text("\n".join(["background", *world.CLASSES]))
    for name in ("data", "weights"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_examples(home):
    page: dict = {}
    blocks = [text for language, text in fences(README) if language == "python"]
    assert blocks
    for text in blocks:
        exec(compile(text, "README.md", "exec"), page)
    assert page["masks"][0].labels.shape == (64, 64)
    # What the comments show is what comes.
    assert set(page["masks"][0].summary()) <= {"background", "cat", "sofa", "tv monitor"}


def test_the_commands(home, capsys):
    """Those that need no network, in their order; `make` and `pip` are the tests' own set-up."""
    ran = []
    for line in commands_of(README):
        words = shlex.split(line, comments=True)
        if words[:2] != ["python", "-m"]:
            assert words[0] in ("make", "pip")
            continue
        ran.append(words[2])
        if words[2] == "clipseg_jax.predict":
            assert predict.main(words[3:]) == 0
        elif words[2] == "clipseg_jax.main":
            command = re.sub(r"--workdir=\S+", "", line)
            config = resolve(f"{command} --config.clip.weights=demo {SHORT}")
            config.run.devices = 1
            main.run(config, home / re.search(r"--workdir=(\S+)", line)[1])
        elif words[2] == "clipseg_jax.reproduce":
            assert reproduce.main(words[3:]) == 0
        else:
            assert words[2] == "clipseg_jax.web"  # tests/web drives it in a browser
    assert ran.count("clipseg_jax.predict") == 2
    assert {MODULE.split()[-1], "clipseg_jax.reproduce", "clipseg_jax.web"} <= {*ran}
    for folder, count in (("masks", 2), ("new_masks", 1)):
        assert len(list((home / folder).glob("*.png"))) == count
        assert (home / folder / "index.html").exists()
        assert np.asarray(Image.open(next((home / folder).glob("*.png")))).shape == (64, 64)
    assert (home / "masks/annotations.json").exists()
    assert (home / "workdir/mine/report.html").exists()
