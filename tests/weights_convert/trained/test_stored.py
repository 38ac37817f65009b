"""Trained files that an earlier version wrote are read, and give the same arrays."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest

import weights_convert
from tests.weights_convert import toys
from weights_convert.clip.build import flat_arrays
from weights_convert.trained.kinds import format_of

STORED = toys.GOLDEN / "stored"
EXPECTED = json.loads((STORED / "expected.json").read_text())
NAMES = ["background", "cat", "dog"]


def fingerprint(arrays):
    """As `write.py` computes it."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
    return digest.hexdigest()


def assert_expected(name, arrays):
    assert len(arrays) == EXPECTED[name]["arrays"]
    assert fingerprint(arrays) == EXPECTED[name]["sha256"]


def load(name, fmt, **checks):
    return weights_convert.load_trained(STORED / name, fmt, classes=NAMES, **checks)


def model_arrays(model):
    return {path: np.asarray(leaf) for path, leaf in flat_arrays(model).items()}


@pytest.fixture(scope="module")
def clip():
    return weights_convert.load_clip(STORED / "clip.safetensors").model


def test_every_file_is_of_its_kind():
    formats = {name: format_of(STORED / f"{name}.safetensors") for name in EXPECTED}
    assert {name: fmt and fmt.name for name, fmt in formats.items()} == {
        "clip": None,
        "reclip_rectified": "reclip",
        "reclip_pp_distilled": "reclip",
        "weclip": "weclip",
        "wtclip": "weclip",
        "clip_rc": "clip_rc",
        "maskclip_plus": "maskclip_plus",
        "deeplab": "deeplab",
    }


def test_clip(clip):
    assert_expected("clip", model_arrays(clip))


@pytest.mark.parametrize(
    ("name", "stage", "method"),
    [
        ("reclip_rectified", "rectification", "ReCLIP"),
        ("reclip_pp_distilled", "distillation", "ReCLIP++"),
    ],
)
def test_reclip(name, stage, method, clip):
    loaded = load(
        f"{name}.safetensors",
        weights_convert.RECLIP,
        expected={"stage": stage, "method": method, "revision": "2024"},
        visual=clip.visual,
    )
    assert_expected(name, loaded.arrays)
    assert loaded.record["figures"] == {"steps": 4}


@pytest.mark.parametrize("method", ["WeCLIP", "WTCLIP"])
def test_weclip(method, clip):
    name = method.lower()
    loaded = load(
        f"{name}.safetensors",
        weights_convert.WECLIP,
        expected={"method": method},
        visual=clip.visual,
    )
    assert_expected(name, loaded.arrays)


def test_clip_rc(clip, tmp_path):
    fmt = weights_convert.CLIP_RC
    loaded = weights_convert.load_trained(STORED / "clip_rc.safetensors", fmt, visual=clip.visual)
    assert_expected("clip_rc", loaded.arrays)
    weights = weights_convert.clip_to_state_dict(clip)
    back = weights_convert.export_trained(loaded, tmp_path / "iter_4.pth", fmt, clip=weights)
    whole = weights_convert.load_trained(back, fmt)
    assert_expected("clip_rc", {path: whole.arrays[path] for path in loaded.arrays})


def test_students():
    trained = load("maskclip_plus.safetensors", weights_convert.MASKCLIP_PLUS)
    assert_expected("maskclip_plus", model_arrays(weights_convert.build_maskclip_plus(trained)))
    trained = load("deeplab.safetensors", weights_convert.DEEPLAB)
    assert_expected("deeplab", model_arrays(weights_convert.build_deeplab(trained)))
