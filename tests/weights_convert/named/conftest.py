"""A server on this machine, a cache of the test's own, and no other network."""

from __future__ import annotations

import hashlib

import pytest
from huggingface_hub import constants

from tests.weights_convert.named.hub_server import Hub
from tests.weights_convert.named.server import serving
from weights_convert.named import download
from weights_convert.named import hub as by_hub
from weights_convert.named.names import KNOWN, Weights


@pytest.fixture
def server():
    with serving() as running:
        yield running


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The folder of the cache; proxies of the machine are not asked."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    monkeypatch.setenv("CLIPSEG_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(download, "_WAIT_S", 0.01)
    return tmp_path / "cache"


@pytest.fixture
def known(server, monkeypatch):
    """Publishes bytes under a name; facts that are not given are right."""

    def publish(data, name="Toy/1", file="toy.pt", **facts):
        server.files[f"/{file}"] = data
        facts = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)} | facts
        weights = Weights(name, f"{server.url}/{file}", **facts)
        monkeypatch.setitem(KNOWN, name, weights)
        return weights

    return publish


@pytest.fixture
def hub(server, tmp_path, monkeypatch):
    """The Hugging Face hub, without repositories, and an empty cache of its library."""
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setattr(by_hub, "_fetched", {})
    server.hub = Hub()
    return server.hub
