"""Models: which are offered, how many are kept, what a run asks of them."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from clipseg_jax.models.clip import ResNetConfig, ViTConfig
from clipseg_jax.segment_options import METHODS
from clipseg_jax.segmentation import ClassScores
from clipseg_jax.web import __main__ as command
from clipseg_jax.web import models
from clipseg_jax.web.models import Models, Run, find_models

PIXELS = np.zeros((40, 60, 3), np.uint8)
RESNET = ResNetConfig(image_px=32, width=1, blocks=(1, 1, 1, 1), heads=1, embed_dim=1)
VIT = ViTConfig(image_px=32, patch_px=16, width=1, layers=1, heads=1, embed_dim=1)


class Network:
    """Stands for a loaded model, and notes how it is called."""

    def __init__(self, classes=None, vision=VIT):
        self.classes, self.calls, self.busy = classes, [], 0
        self.clip = SimpleNamespace(cfg=SimpleNamespace(vision=vision))

    def scores(self, images, words=None, **options):
        self.busy += 1
        assert self.busy == 1, "two passes at once"
        time.sleep(0.01)
        self.busy -= 1
        self.calls.append((words, options))
        names = ("background", *(self.classes or words))
        return [ClassScores(np.zeros((40, 60, len(names)), np.float32), names, (40, 60))]


@pytest.fixture
def loaded():
    return {}


@pytest.fixture
def three(loaded):
    def load(source):
        loaded[source] = loaded.get(source, 0) + 1
        networks = {"a.pt": Network(), "b": Network(("cat", "dog")), "c": Network(vision=RESNET)}
        return networks[source]

    return Models({"A": "a.pt", "B": "b", "C": "c"}, load, most=2)


def test_what_each_can(three):
    assert three.names == ["A", "B", "C"]
    clip, trained, resnet = (three.get(name) for name in three.names)
    assert clip.classes is None
    assert clip.methods == tuple(each for each in METHODS if each != "proxyclip")
    assert clip.method == "naclip"
    assert (trained.classes, trained.methods, trained.method) == (("cat", "dog"), (), None)
    assert (resnet.methods, resnet.method) == (("maskclip",), "maskclip")
    with pytest.raises(ValueError, match=r"no model '\.\./secret' is offered"):
        three.get("../secret")


def test_the_least_recently_used_goes(three, loaded):
    for name in ("A", "B", "A", "C", "A", "B"):
        three.get(name)
    assert loaded == {"a.pt": 1, "b": 2, "c": 1}
    assert three.is_loaded("A")
    assert not three.is_loaded("C")
    assert three.trained() == {"B": ("cat", "dog")}


def test_what_a_run_asks_for(three):
    run = Run("A", ("cat", "dog"), ("sky",), "sclip", None)
    scores, seconds = three.scores(run, PIXELS)
    assert scores.names == ("background", "cat", "dog")
    assert seconds > 0
    words, options = three.get("A").network.calls[0]
    assert words == ("cat", "dog")
    assert options == {"background": ("sky",), "method": "sclip", "refine": None, "longest_px": 60}
    three.scores(Run("B", (), (), None, "crf"), PIXELS)
    assert three.get("B").network.calls[0] == (None, {"refine": "crf", "longest_px": 60})


def test_maps_of_many_classes_are_smaller(three, monkeypatch):
    monkeypatch.setattr(models, "_MOST_VALUES", 3000)
    three.scores(Run("B", (), (), None, None), PIXELS)
    assert three.get("B").network.calls[0][1]["longest_px"] == 31  # 31 * 31 * 3 numbers


def test_one_pass_at_a_time(three):
    run = Run("A", ("cat", "dog"), (), None, None)
    threads = [threading.Thread(target=three.scores, args=(run, PIXELS)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(three.get("A").network.calls) == 8


def test_what_was_compiled(three, loaded, monkeypatch):
    run = Run("A", ("cat", "dog"), (), None, None)
    assert three.is_new(run, PIXELS.shape)
    three.scores(run, PIXELS)
    assert not three.is_new(run, (64, 64, 3))
    assert three.is_new(run, (65, 64, 3))
    assert not three.is_new(Run("A", ("cow", "sheep"), (), None, None), PIXELS.shape)
    assert three.is_new(Run("A", ("cow",), ("grass",), None, None), PIXELS.shape)
    monkeypatch.setattr(models, "_MOST_COMPILED", 1)
    three.scores(Run("A", ("cow",), ("grass",), None, None), PIXELS)
    assert loaded == {"a.pt": 2}
    assert three.is_new(run, PIXELS.shape)


def test_models_of_a_folder(tmp_path):
    for name in ("b.safetensors", "a.pt", "notes.txt", "photo.jpg"):
        (tmp_path / name).write_bytes(b"x")
    for name, files in {
        "hf": ["config.json", "model.safetensors"],
        "done": ["config.json", "text.done.json"],
        "other": ["readme.md"],
    }.items():
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / file).write_text("{}")
    (tmp_path / "failed").mkdir()
    (tmp_path / "failed/config.json").write_text('{"stages": []}')
    assert list(find_models(tmp_path)) == ["a.pt", "b.safetensors", "done", "hf"]
    with pytest.raises(ValueError, match=r"has no weights \(.pt, .* and no work directory"):
        find_models(tmp_path / "other")
    with pytest.raises(NotADirectoryError, match="is no folder"):
        find_models(tmp_path / "none")


def test_what_the_command_offers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "head.safetensors").write_bytes(b"")
    assert command.offered([], None) == {"demo": "demo"}
    found = command.offered(["demo", "x/head.safetensors", "y/head.safetensors"], None)
    assert found == {
        "demo": "demo",
        "head.safetensors": tmp_path / "x/head.safetensors",
        "y/head.safetensors": "y/head.safetensors",
    }
    assert list(command.offered([], tmp_path / "x")) == ["head.safetensors", "demo"]
    with pytest.raises(FileNotFoundError, match=r"--model none\.pt does not exist"):
        command.offered(["none.pt"], None)
