"""What users may call weights: paths, names, addresses, and what they get wrong."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

import weights_convert
from clipseg_jax.core.cache_folder import cache_folder
from clipseg_jax.demo import TINY_CLIP
from tests.weights_convert import toys
from tests.weights_convert.dino import toys as dino_toys
from weights_convert import CheckpointError, find_cached, find_weights
from weights_convert.formats.torch_writer import write_torch
from weights_convert.named.find import content_files, is_name

DATA = b"weights" * 1000
HEX = hashlib.sha256(DATA).hexdigest()


def test_a_path_goes_before_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("ViT-B").mkdir()
    Path("ViT-B/16").write_bytes(DATA)
    assert find_weights("ViT-B/16") == find_cached("ViT-B/16") == Path("ViT-B/16")
    assert not is_name("ViT-B/16")
    assert is_name("ViT-B/32")


def test_demo(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("demo").mkdir()  # as a folder of photos may be called
    assert find_weights("demo") == find_cached("demo") == TINY_CLIP
    assert weights_convert.load_clip("demo").tokenizer is not None


@pytest.mark.parametrize("path", ["no/such/file.pt", "/nowhere/masks", "student", "", "random"])
def test_paths_that_do_not_exist_are_for_their_readers(path):
    assert find_weights(path) == Path(path)
    assert find_cached(path) is None


@pytest.mark.parametrize("text", ["ViT-B-16", "vit-b/16", "ViT-B/15"])
def test_misspelt_names(text):
    with pytest.raises(FileNotFoundError, match=rf"no checkpoint at {text}; .*ViT-B/16.* meant\?"):
        weights_convert.load_clip(text)


def test_the_file_of_a_name_that_is_not_here():
    with pytest.raises(FileNotFoundError, match="or the name ViT-B/16, which downloads it"):
        weights_convert.load_clip("weights/ViT-B-16.pt")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("https://host/a.pt", r"a\.pt has no checksum; write https://host/a\.pt#sha256=HEX with"),
        ("https://host/a.pt#sha256=12ab", "has no checksum"),
        ("https://host/a.pt#md5=0", "has no checksum"),
        ("http://host/a.pt", "has no checksum"),
        (f"ftp://host/a.pt#sha256={HEX}", "is an address that is not read here; copy the file"),
        (f"file:///etc/passwd#sha256={HEX}", "is an address that is not read here"),
        ("gs://bucket/a.pt", "is an address that is not read here"),
        (f"https:///a.pt#sha256={HEX}", "is no address of a file"),
        (f"https://[::1/a.pt#sha256={HEX}", "is no address"),
        (f"https://host/ä.pt#sha256={HEX}", "is no address of a file"),
        (f"https://host/a b.pt#sha256={HEX}", "is no address of a file"),
        (f"https://me:secret@host/a.pt#sha256={HEX}", "an address with a password in it"),
        (f"https://host/#sha256={HEX}", "does not end with the name of a file"),
        (f"https://host/..%2f..%2f.bashrc#sha256={HEX}", "does not end with the name of a file"),
        (f"https://host/x/..#sha256={HEX}", "does not end with the name of a file"),
    ],
)
def test_addresses_that_are_refused(address, message):
    with pytest.raises(CheckpointError, match=message) as error:
        find_weights(address)
    assert "secret" not in str(error.value)


def test_an_address(server, cache, capsys):
    server.files["/folder/a%2Bb.pt?download=true"] = DATA
    name = f"{server.url}/folder/a%2Bb.pt?download=true#sha256={HEX.upper()}"
    assert find_cached(name) is None
    path = find_weights(name)
    assert path == cache / "weights" / HEX / "a+b.pt"
    assert capsys.readouterr().err.startswith("downloading a+b.pt from ")
    assert path.read_bytes() == DATA
    assert find_cached(name) == find_weights(name) == path
    assert len(server.asked) == 1


def test_everything_that_reads_weights_takes_names(known, server, tmp_path):
    clip = write_torch(tmp_path / "clip.pt", toys.as_released(toys.vit())).read_bytes()
    dino = write_torch(tmp_path / "dino.pth", dino_toys.state_dict()).read_bytes()
    known(clip, name="Toy/CLIP", file="toy_clip.pt")
    known(dino, name="toy_dino", file="toy_dino.pth")
    loaded = weights_convert.load_clip("Toy/CLIP")
    assert loaded.meta["sha256"] == hashlib.sha256(clip).hexdigest()
    assert weights_convert.convert("Toy/CLIP").record["source"] == "toy_clip.pt"
    assert weights_convert.load_dino("toy_dino").cfg.width == dino_toys.WIDTH
    with pytest.raises(CheckpointError, match=r"toy_clip\.pt"):
        weights_convert.load_imagenet("Toy/CLIP", _Backbone())
    assert len(server.asked) == 2


class _Backbone:
    class cfg:  # noqa: N801
        variant, blocks = "v1c", (3, 4, 6, 3)


def test_what_is_read_of_a_folder(tmp_path):
    for name in ("model.safetensors", "config.json", "README.md", "vocab.json"):
        (tmp_path / name).write_bytes(DATA)
    names = [path.name for path in content_files(tmp_path)]
    assert names == ["config.json", "model.safetensors", "vocab.json"]
    assert content_files(tmp_path / "README.md") == [tmp_path / "README.md"]


def test_where_the_cache_is(monkeypatch, tmp_path):
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.setenv("CLIPSEG_JAX_CACHE", "~/of_clipseg")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "of_clipseg"
    monkeypatch.delenv("CLIPSEG_JAX_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "clipseg_jax"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == tmp_path / ".cache" / "clipseg_jax"


def test_no_place_for_a_cache(monkeypatch, known):
    def homeless():
        raise RuntimeError("no home")

    known(DATA)
    monkeypatch.delenv("CLIPSEG_JAX_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert cache_folder() is None
    with pytest.raises(CheckpointError, match=r"no folder to keep Toy/1 in.*set CLIPSEG_JAX_CACHE"):
        find_weights("Toy/1")


def test_conversions_are_in_the_same_cache(known, cache, tmp_path, monkeypatch):
    monkeypatch.setattr("weights_convert.clip.cache._CACHED_FROM_BYTES", 1)
    known(write_torch(tmp_path / "clip.pt", toys.vit()).read_bytes())
    first = np.asarray(weights_convert.load_clip("Toy/1").model.visual.proj[...])
    assert len([*cache.glob("*.safetensors")]) == 1
    np.testing.assert_array_equal(weights_convert.load_clip("Toy/1").model.visual.proj[...], first)
