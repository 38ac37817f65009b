"""The Hugging Face hub, played by a server on this machine."""

from __future__ import annotations

import builtins
import json
import logging
import os
import subprocess
import sys

import numpy as np
import pytest
from huggingface_hub import constants

import weights_convert
from tests.weights_convert import toys
from tests.weights_convert.named.hub_server import COMMIT, Repository
from weights_convert import CheckpointError, find_cached, find_weights
from weights_convert.formats.torch_writer import write_torch
from weights_convert.named import hub as by_hub
from weights_convert.named.download import CannotDownload
from weights_convert.named.find import content_files

NAME = "hf:toys/clip"


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Files of a tiny CLIP as `transformers` saves it, and those that a repository has beside."""
    folder = tmp_path_factory.mktemp("exported")
    converted = weights_convert.convert(write_torch(folder / "toy.pt", toys.vit()))
    made = weights_convert.export(converted, folder / "hf", "huggingface")
    files = {file.name: file.read_bytes() for file in made.iterdir()}
    assert {"model.safetensors", "config.json"} <= files.keys()
    unwanted = ("README.md", "flax_model.msgpack", "pytorch_model.bin", "onnx/model.onnx")
    return files | dict.fromkeys(unwanted, b"never downloaded")


@pytest.fixture
def hub(hub, exported):
    hub.repositories["toys/clip"] = Repository(exported, revisions=("main", "v1"))
    return hub


def another_process(monkeypatch):
    """What this process remembers is gone; what is on the disk stays."""
    monkeypatch.setattr(by_hub, "_fetched", {})


def offline(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def test_only_what_is_needed_is_downloaded(hub, exported):
    folder = find_weights(NAME)
    assert folder.name == COMMIT
    assert {*hub.asked} == {file.name for file in folder.iterdir()} == {*content_files_of(exported)}
    assert [file.name for file in content_files(folder)] == sorted(content_files_of(exported))
    loaded = weights_convert.load_clip(NAME)
    assert loaded.tokenizer is not None
    value = np.asarray(loaded.model.visual.proj[...])
    np.testing.assert_array_equal(value, toys.vit()["visual.proj"])


def content_files_of(exported):
    side = {"config.json", "preprocessor_config.json", "vocab.json", "merges.txt", "tokenizer.json"}
    return (side | {"model.safetensors"}) & {*exported}


def test_pickles_where_there_is_nothing_else(hub, exported):
    hub.repositories["toys/clip"].files = {"pytorch_model.bin": b"x", "config.json": b"{}"}
    assert find_weights(NAME).joinpath("pytorch_model.bin").exists()


def test_shards(hub, monkeypatch):
    names = ["model-1.safetensors", "model-2.safetensors"]
    index = {"weight_map": {"a": names[0], "b": names[1], "c": "../../outside", "d": "lost.bin"}}
    files = {name: name.encode() for name in (*names, "model-3.safetensors")}
    hub.repositories["toys/clip"].files = files | {
        "model.safetensors.index.json": json.dumps(index).encode()
    }
    folder = find_weights(NAME)
    assert {*hub.asked} == {*names, "model.safetensors.index.json"}
    with pytest.raises(CheckpointError, match="names the shard"):
        weights_convert.load_clip(folder)


def test_the_second_time_nothing_is_fetched(hub, monkeypatch):
    folder, before = find_weights(NAME), len(hub.asked)
    another_process(monkeypatch)
    assert find_weights(NAME) == folder
    assert len(hub.asked) == before
    assert find_cached(NAME) == folder


def test_revisions(hub):
    assert find_weights(f"{NAME}@v1").name == COMMIT
    assert find_weights(f"{NAME}@{COMMIT}").name == COMMIT
    with pytest.raises(CheckpointError, match=r"toys/clip has no revision 'v2'; give a branch"):
        find_weights(f"{NAME}@v2")


def test_main_moves_between_two_runs_but_not_within_one(hub, exported, monkeypatch):
    first = find_weights(NAME)
    hub.repositories["toys/clip"].commit = "f" * 40
    assert find_weights(NAME) == first
    another_process(monkeypatch)
    assert find_weights(NAME).name == "f" * 40


def test_without_a_network(hub, monkeypatch, caplog):
    folder = find_weights(NAME)
    another_process(monkeypatch)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with caplog.at_level(logging.WARNING):
        assert find_weights(NAME) == folder
    assert "hf:toys/clip: as downloaded before; the hub is not reached" in caplog.text
    with pytest.raises(CannotDownload, match="hf download toys/other --local-dir FOLDER"):
        find_weights("hf:toys/other")


def test_offline(hub, monkeypatch):
    folder = find_weights(NAME)
    another_process(monkeypatch)
    asked = len(hub.asked)
    offline(monkeypatch)
    assert find_weights(NAME) == folder
    with pytest.raises(CannotDownload, match=r"HF_HUB_OFFLINE is set; .*--revision v1 --local-dir"):
        find_weights("hf:toys/other@v1")
    assert find_cached("hf:toys/other") is None
    assert len(hub.asked) == asked


def test_a_repository_that_is_not_there(hub):
    with pytest.raises(CheckpointError, match=r"no repository http.*/toys/clap, or it is private"):
        find_weights("hf:toys/clap")


def test_a_gated_repository(hub, monkeypatch):
    hub.repositories["toys/clip"].gated = True
    hub.repositories["toys/clip"].token = "hf_secret"
    with pytest.raises(CheckpointError, match=r"accept its terms: do so at .*HF_TOKEN") as error:
        find_weights(NAME)
    assert "secret" not in str(error.value)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert find_weights(NAME).name == COMMIT


def test_a_repository_without_weights(hub):
    hub.repositories["toys/clip"].files = {"README.md": b"", "tf_model.h5": b""}
    with pytest.raises(CheckpointError, match=r"no weights that are read .*README\.md, tf_mod"):
        find_weights(NAME)


def test_damage_on_the_way(hub):
    hub.damaged = ("model.safetensors",)
    with pytest.raises(CheckpointError, match=r"arrived with sha256 .*, the hub says .*removed"):
        find_weights(NAME)
    hub.damaged = ()
    assert find_weights(NAME).name == COMMIT


@pytest.mark.parametrize(
    "text",
    ["hf:", "hf:clip", "hf:a/b/c", "hf:a/b@", "hf:a b/c", "hf:../..", "hf:a/b@../x", "hf:a//b"],
)
def test_other_forms(hub, text):
    with pytest.raises(CheckpointError, match=r"form hf:owner/name|cannot be a repository|no rev"):
        find_weights(text)


def test_without_the_library(hub, monkeypatch):
    load = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("huggingface_hub"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return load(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(CheckpointError, match=r"hf:toys/clip needs: pip install 'clipseg_jax\[hub"):
        find_weights(NAME)


@pytest.mark.slow
def test_the_command_honours_the_librarys_variables(hub, server, tmp_path):
    environment = {**os.environ, "HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-m", "weights_convert", "download", NAME]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / f"home/hub/models--toys--clip/snapshots/{COMMIT}"
    assert done.stdout.startswith(f"{NAME}: {folder} (")
    command[-1] = "hf:toys/other"
    done = subprocess.run(
        command, env=environment | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 74
    assert done.stderr.startswith("error: cannot download hf:toys/other: HF_HUB_OFFLINE is set;")
    assert done.stderr.count("\n") == 1
