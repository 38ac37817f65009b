"""Trained files that an earlier version wrote are read, and give the same arrays."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest

import weights_convert
from tests.weights_convert import toys
from weights_convert.clip.build import flat_arrays
from weights_convert.trained.kinds import kind_of

STORED = toys.GOLDEN / "stored"
EXPECTED = json.loads((STORED / "expected.json").read_text())
NAMES = ["background", "cat", "dog"]
RECLIP = {"classes": NAMES, "revision": "2024"}


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


def model_arrays(model):
    return {path: np.asarray(leaf) for path, leaf in flat_arrays(model).items()}


@pytest.fixture(scope="module")
def clip():
    return weights_convert.load_clip(STORED / "clip.safetensors").model


def test_every_file_is_of_its_kind():
    kinds = {name: kind_of(STORED / f"{name}.safetensors") for name in EXPECTED}
    assert kinds == {
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


def test_reclip(clip):
    path = STORED / "reclip_rectified.safetensors"
    loaded = weights_convert.load_rectification(path, plus_plus=False, visual=clip.visual, **RECLIP)
    assert_expected("reclip_rectified", loaded.arrays)
    assert loaded.record["figures"] == {"steps": 4}
    path = STORED / "reclip_pp_distilled.safetensors"
    loaded = weights_convert.load_distillation(path, plus_plus=True, visual=clip.visual, **RECLIP)
    assert_expected("reclip_pp_distilled", loaded.arrays)


@pytest.mark.parametrize("method", ["WeCLIP", "WTCLIP"])
def test_weclip(method, clip):
    name = method.lower()
    loaded = weights_convert.load_weclip(
        STORED / f"{name}.safetensors", method=method, classes=NAMES, visual=clip.visual
    )
    assert_expected(name, loaded.arrays)


def test_clip_rc(clip, tmp_path):
    loaded = weights_convert.load_clip_rc(STORED / "clip_rc.safetensors")
    assert_expected("clip_rc", loaded.arrays)
    back = weights_convert.export_clip_rc(loaded, tmp_path / "iter_4.pth", clip)
    whole = weights_convert.load_clip_rc(back)
    assert_expected("clip_rc", {path: whole.arrays[path] for path in loaded.arrays})


def test_students():
    trained = weights_convert.load_maskclip_plus(
        STORED / "maskclip_plus.safetensors", classes=NAMES
    )
    assert_expected("maskclip_plus", model_arrays(weights_convert.maskclip_plus_from(trained)))
    trained = weights_convert.load_deeplab(STORED / "deeplab.safetensors", classes=NAMES)
    assert_expected("deeplab", model_arrays(weights_convert.deeplab_from(trained)))
