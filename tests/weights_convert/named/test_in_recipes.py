"""Names in recipes and in `predict`: downloaded before anything else, and what runs remember."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from clipseg_jax import main, predict
from clipseg_jax.demo import TINY_CLIP, world
from clipseg_jax.stages import clip, preflight
from configs import demo_maskclip, demo_maskclip_plus, voc21_readout
from tests.weights_convert import toys
from tests.weights_convert.named.hub_server import Repository
from weights_convert.formats.torch_writer import write_torch
from weights_convert.named import hub as by_hub
from weights_convert.named.cache import location
from weights_convert.named.download import CannotDownload

NAME = "hf:toys/tiny"


@pytest.fixture
def tiny(hub):
    """The demo's CLIP in a repository of the hub."""
    files = {path.name: path.read_bytes() for path in TINY_CLIP.iterdir()}
    hub.repositories["toys/tiny"] = Repository(files)
    return hub


@pytest.fixture
def config(tmp_path):
    world.write_dataset(tmp_path / "world", 8, 64)
    config = demo_maskclip.get_config()
    config.dataset.name, config.dataset.root = "folder", str(tmp_path / "world")
    config.stages = ("data", "text")
    return config


@pytest.fixture
def toy(known, tmp_path):
    return known(write_torch(tmp_path / "clip.pt", toys.as_released(toys.vit())).read_bytes())


def test_a_recipe_by_name(config, tiny, tmp_path, monkeypatch):
    config.clip.weights = NAME
    work = tmp_path / "work"
    assert main.run(config, work)["text"]["rows"] == 16
    assert json.loads((work / "config.json").read_text())["clip"]["weights"] == NAME
    recorded = json.loads((work / "content.json").read_text())["clip.weights"]
    assert recorded["path"] == NAME
    assert len(recorded["digest"]) == 64

    # Another program fetches more of the repository: still the same weights.
    folder = by_hub.cached(NAME)
    (folder / "pytorch_model.bin").write_bytes(b"x")
    main.run(config, work)
    # The repository has other weights by now, and the cache is empty.
    tiny.repositories["toys/tiny"].files["config.json"] += b"\n"
    tiny.repositories["toys/tiny"].commit = "f" * 40
    monkeypatch.setattr(by_hub, "_fetched", {})
    (work / "text.done.json").unlink()
    with pytest.raises(ValueError, match=r"clip\.weights: other content"):
        main.run(config, work)


def test_what_no_stage_to_come_needs_is_not_downloaded(config, toy, server, tmp_path):
    config.clip.weights, config.stages = "Toy/1", ("data",)
    work = tmp_path / "work"
    main.run(config, work)
    assert server.asked == []
    (work / "text.done.json").write_text("{}")
    main.run(config, work)
    assert server.asked == []


def test_a_finished_run_without_its_weights(config, tiny, tmp_path, monkeypatch):
    """On a machine whose cache is empty, and that has no network."""
    config.clip.weights = NAME
    main.run(config, tmp_path / "work")
    monkeypatch.setattr(by_hub, "_fetched", {})
    monkeypatch.setattr(by_hub, "cached", lambda _: None)
    tiny.repositories.clear()
    main.run(config, tmp_path / "work")


def test_downloads_are_before_the_first_stage(config, toy, server, tmp_path):
    config.clip.weights = "Toy/1"
    server.faults.status = [503] * 20
    with pytest.raises(CannotDownload, match="cannot download Toy/1"):
        main.run(config, tmp_path / "work")
    assert not [*(tmp_path / "work").glob("*.done.json")]


STAGES = ("data", "text", "train")  # the last alone needs what a student starts from


@pytest.mark.parametrize(
    ("section", "key"), [("clip", "weights"), ("student", "init_weights")]
)  # fmt: skip
def test_names_of_each_section(section, key, toy, server):
    config = demo_maskclip_plus.get_config()
    config[section][key] = "Toy/1"
    preflight.fetch(config, STAGES)
    assert location(toy).exists()
    preflight.check(config, STAGES)
    config[section][key] = "ViT-B-16"
    with pytest.raises(FileNotFoundError, match=rf"--config\.{section}\.{key}: no .*ViT-B/16 mea"):
        preflight.check(config, STAGES)
    config[section][key] = "https://host/a.pt"
    with pytest.raises(ValueError, match=rf"--config\.{section}\.{key}: .* has no checksum"):
        preflight.fetch(config, STAGES)


def test_dino(toy, server, tmp_path):
    config = voc21_readout.get_config("proxyclip")
    config.dataset.root = config.clip.weights = str(tmp_path)
    with pytest.raises(ValueError, match=r"--config\.dino\.weights=dino_vitb8 or another name"):
        preflight.check(config, ("data", "text"))
    config.dino.weights = "Toy/1"
    preflight.check(config, ("data", "text"))
    assert location(toy).exists()


def test_check_weights(toy, config):
    config.clip.weights = "Toy/1"
    assert clip.check_weights(config) == location(toy)
    config.clip.weights = "demo"
    assert clip.check_weights(config) == TINY_CLIP


def test_predict(tiny, tmp_path):
    Image.fromarray(world.make("evaluation", 0, 64).image).save(tmp_path / "photo.png")
    options = ["--classes=sheep, tent", "--method=maskclip", "--short-side=64"]
    out = tmp_path / "masks"
    photo = str(tmp_path / "photo.png")
    assert predict.main([photo, *options, f"--weights={NAME}", f"--out={out}"]) == 0
    assert json.loads((out / "settings.json").read_text())["weights"] == NAME


def test_predict_says_where_names_go(cache, capsys):
    with pytest.raises(SystemExit):
        predict.main(["--help"])
    assert str(cache) in "".join(capsys.readouterr().out.split()).replace("- ", "-")
