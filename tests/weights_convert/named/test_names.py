"""The table of names is well formed and agrees with what is said elsewhere."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from weights_convert.clip.keys import RELEASED
from weights_convert.named.names import BY_FILE, KNOWN, nearest

ALL = [*KNOWN.values()]


def test_names_and_files_are_different():
    assert len(BY_FILE) == len(ALL) == len({name.lower() for name in KNOWN}) == 25
    assert len({weights.address for weights in ALL}) == len(ALL)


@pytest.mark.parametrize("weights", ALL, ids=lambda weights: weights.name)
def test_every_row(weights):
    parts = urlsplit(weights.address)
    assert (parts.scheme, parts.query, parts.fragment) == ("https", "", "")
    assert re.fullmatch(r"[\w-]+(\.[\w-]+)?\.pth?|[\w.-]+\.pth?", weights.file)
    assert re.fullmatch(r"[0-9a-f]{64}|[0-9a-f]{8}|", weights.sha256)
    assert weights.size is None or 10**7 < weights.size < 10**10
    assert weights.licence in ("MIT", "Apache-2.0", "BSD-3-Clause")
    assert weights.kind in ("clip", "dino", "backbone")


def test_sums_in_addresses_and_files_are_those_of_the_table():
    for weights in ALL:
        in_file = re.search(r"-([0-9a-f]{8})\.pth$", weights.file)
        if weights.publisher == "OpenAI":
            assert weights.address.split("/")[-2] == weights.sha256
        elif weights.kind == "backbone":
            assert weights.sha256.startswith(in_file[1])
        else:
            assert in_file is None


def test_openais_are_those_that_conversion_recognises():
    clips = {w.sha256[:16]: (w.name, w.file) for w in ALL if w.publisher == "OpenAI"}
    assert clips == RELEASED


def test_without_a_checksum_is_only_what_has_none():
    """A new row with less than a full sum is a decision, not an accident."""
    short = {weights.name: weights.sha256 for weights in ALL if len(weights.sha256) < 64}
    assert short == {"resnet50_v1c": "2cccc1ad", "resnet101_v1c": "e67eebb6", "dino_vits8": ""}


def test_the_documents_list_every_name():
    text = (Path(__file__).resolve().parents[3] / "docs/checkpoints.md").read_text("utf-8")
    section = text.split("## Weights by name")[1].split("\n## ")[0]
    listed = {*re.findall(r"`([^`]+)`", section)}
    assert {name for name in KNOWN if not name.endswith("_reg")} <= listed
    with_registers = {name.removesuffix("_reg") for name in KNOWN if name.endswith("_reg")}
    assert with_registers == {name for name in listed if name.startswith("dinov2_")}


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("ViT-B-16", "ViT-B/16"), ("vit-b/16", "ViT-B/16"), ("ViT-L/14@336", "ViT-L/14@336px"),
        ("resnet50v1c", "resnet50_v1c"), ("dino_vitb_8", "dino_vitb8"),
        ("dinov2_vitb14_reg4", "dinov2_vitb14_reg"), ("rn50", "RN50"),
    ],
)  # fmt: skip
def test_misspelt(typed, meant):
    assert nearest(typed)[0] == meant


@pytest.mark.parametrize("path", ["masks", "workdir/run1/student", "nowhere", "random", "x"])
def test_paths_are_no_misspelt_names(path):
    assert nearest(path) == []
