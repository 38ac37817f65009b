"""Hostile records in trained files: one error each, in seconds, or a model that works."""

from __future__ import annotations

import copy
import json
import resource
import time
from types import SimpleNamespace

import numpy as np
import pytest

import clipseg_jax
from clipseg_jax.core.cache_folder import VARIABLE
from clipseg_jax.demo import TINY_CLIP, world
from clipseg_jax.methods.clip_es import student as clip_es
from clipseg_jax.methods.clip_rc import build as clip_rc
from clipseg_jax.methods.maskclip_plus import build as maskclip_plus
from clipseg_jax.methods.reclip import build as reclip
from clipseg_jax.methods.weclip import build as weclip
from clipseg_jax.segmenters.recorded import recorded_config
from clipseg_jax.stages.clip import embed_words, row_words, word_lists
from clipseg_jax.stages.network import CONFIG, recorded
from configs import (
    demo_clip_es,
    demo_clip_rc,
    demo_maskclip_plus,
    demo_reclippp,
    demo_weclip,
    own_clip_es,
    own_clip_rc,
    own_reclippp,
    own_weclip,
)
from tests.methods.maskclip_plus.test_recipe import small
from weights_convert import (
    CLIP_RC,
    DEEPLAB,
    MASKCLIP_PLUS,
    RECLIP,
    WECLIP,
    CheckpointError,
    save_trained,
)
from weights_convert.formats.converted import Converted, load_converted, save_converted
from weights_convert.named import download, hub

pytestmark = pytest.mark.slow
CLASSES = tuple(world.CLASSES)
BACKGROUND = ("background", *CLASSES)
HUGE = 10**9


def _config(module, names, *arguments):
    config = module.get_config(*arguments)
    config.dataset.name, config.dataset.class_names = "folder", names
    config.dataset.root = ""
    config.clip.weights = "demo"
    return config


def _weclip(folder):
    config = _config(demo_weclip, BACKGROUND)
    config.head.width, config.head.layers, config.head.heads = 32, 1, 1
    config.inference.scale_px = (64, 64)
    embed_words(config, folder, [word for words in word_lists(config) for word in words])
    return config, WECLIP, weclip.build_model(config, folder), BACKGROUND


def _clip_rc(folder):
    config = _config(demo_clip_rc, CLASSES, "inductive")
    config.dataset.unseen = ("sheep", "tent", "bus")
    config.clip_rc.hidden, config.clip_rc.decoder_blocks = 32, 1
    embed_words(config, folder, CLASSES)
    return config, CLIP_RC, clip_rc.build_model(config, folder), CLASSES


def _reclip(folder):
    config = _config(demo_reclippp, CLASSES)
    config.inference.scale_px = (64, 64)
    embed_words(config, folder, row_words(config))
    return config, RECLIP, reclip.build_rectifier(config, folder)[0], CLASSES


def _maskclip_plus(folder):
    config = small(_config(demo_maskclip_plus, CLASSES, "zero_shot"))
    embed_words(config, folder, CLASSES)
    return config, MASKCLIP_PLUS, maskclip_plus.build(config, folder)[0], CLASSES


def _clip_es(folder):
    config = _config(demo_clip_es, BACKGROUND)
    config.student.width, config.student.init_weights = 8, "random"
    return config, DEEPLAB, clip_es.build(config), BACKGROUND


METHODS = {
    "weclip": _weclip,
    "clip_rc": _clip_rc,
    "reclip": _reclip,
    "maskclip_plus": _maskclip_plus,
    "clip_es": _clip_es,
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Method -> arrays and record of an untrained network's file; each is made once."""
    made = {}

    def of(method):
        if method not in made:
            folder = tmp_path_factory.mktemp(method)
            config, fmt, model, classes = METHODS[method](folder)
            details = recorded(config)
            if method == "reclip":
                details["revision"] = config.revision
            path = save_trained(folder / "it", fmt, model, classes=classes, details=details)
            made[method] = load_converted(path, fmt.tag)
        return copy.deepcopy(made[method].record), made[method].arrays

    return of


def written(folder, record, arrays):
    return save_converted(folder / "strange.safetensors", Converted(arrays, record))


def put(record, name, value):
    *sections, key = name.split(".")
    for section in sections:
        record = record[section]
    record[key] = value


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """Whoever opens an address fails the test."""

    def never(*arguments, **more):
        raise AssertionError(f"opened {arguments}")

    monkeypatch.setattr(download, "fetch", never)
    monkeypatch.setattr(hub, "fetch", never)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))


@pytest.mark.parametrize("method", METHODS)
def test_files_as_training_writes_them_segment(trained, method, tmp_path):
    model = clipseg_jax.load(written(tmp_path, *trained(method)))
    assert model.classes == CLASSES
    (result,) = model.segment(np.zeros((64, 64, 3), np.uint8))
    assert result.labels.shape == (64, 64)


SIZES = {
    "weclip": ("head.width", "head.layers", "head.wavelet_levels", "head.heads"),
    "clip_rc": ("clip_rc.prompts", "clip_rc.decoder_blocks", "clip_rc.hidden", "clip_rc.crop_px"),
}
HOSTILE = [
    *(("weclip", f"config.{name}", value) for name in SIZES["weclip"] for value in (HUGE, -1)),
    *(("clip_rc", f"config.{name}", value) for name in SIZES["clip_rc"] for value in (HUGE, -1)),
    ("clip_rc", "config.clip_rc.region_side", HUGE),
    ("clip_rc", "config.clip_rc.heads", 7),
    ("weclip", "config.head.width", 31),
    ("weclip", "config.head.width", 32.5),
    ("weclip", "config.head.width", "32"),
    ("weclip", "config.head.width", {"a": 32}),
    ("weclip", "config.head.width", None),
    ("weclip", "config.head.gate", 1),
    ("weclip", "config.head", 5),
    ("weclip", "config.cams.temperature", float("nan")),
    ("weclip", "config.cams.early_blocks", 10**30),
    ("weclip", "config.par.iterations", HUGE),
    ("weclip", "config.par.dilations", [1, HUGE]),
    ("weclip", "config.par.dilations", []),
    ("weclip", "config.text.background_words", ["word"] * 1_000_000),
    ("weclip", "config.text.templates", "{0.__class__}"),
    ("weclip", "config.text.templates", 5),
    ("weclip", "config.text.words", "/etc/passwd"),
    ("weclip", "config.inference.scale_px", [HUGE, HUGE]),
    ("weclip", "config.inference.scale_px", [0, -1]),
    ("weclip", "config.inference.scale_px", [64]),
    ("weclip", "config.inference.ratios", [1.0] * 100),
    ("weclip", "config.inference.ratios", [1e-9]),
    ("weclip", "config.method", "readouts"),
    ("weclip", "config.method", ["weclip"]),
    ("weclip", "config.dataset.name", "../secret"),
    ("weclip", "config.dataset.class_names", []),
    ("weclip", "config.dataset.class_names", [f"class {i}" for i in range(1_000_000)]),
    ("weclip", "config.dataset.class_names", ["background", *["boat"] * 12]),
    ("weclip", "config.dataset.class_names", ["background", "a\x1b[2J", *CLASSES[1:]]),
    ("weclip", "config.dataset.class_names", ["background", "", *CLASSES[1:]]),
    ("weclip", "config.dataset.class_names", "background"),
    ("weclip", "config.clip.dtype", "float1"),
    ("weclip", "config.clip.heads", [0, 0]),
    ("weclip", "config.clip.mean", [1, 2]),
    ("weclip", "config.clip.mean", None),
    ("weclip", "config.text.background_words", None),
    ("weclip", "config.clip.std", [0, 0, 0]),
    ("weclip", "config.clip", "demo"),
    ("weclip", "config", 5),
    ("clip_rc", "config.inference.mode", "both"),
    ("clip_rc", "config.inference.crop_px", [HUGE, HUGE]),
    ("clip_rc", "config.inference.stride_px", [0, 0]),
    ("clip_rc", "config.inference.stride_px", [1, 1]),
    ("clip_rc", "config.inference.keep_ratio", "yes"),
    ("clip_rc", "config.train.seed", 10**30),
    ("clip_rc", "classes", ["boat"]),
    ("reclip", "config.rectifier.read_out", "everything"),
    ("reclip", "config.rectifier.norm_over", "x"),
    ("reclip", "config.rectifier.temperature", "hot"),
    ("reclip", "config.inference.class_threshold", float("inf")),
    ("reclip", "config.revision", "1999"),
    ("reclip", "config.model", "x"),
    ("maskclip_plus", "config.inference.pamr.steps", HUGE),
    ("maskclip_plus", "config.inference.pamr.dilations", [HUGE]),
    ("maskclip_plus", "config.inference.refine", "all"),
    ("maskclip_plus", "config.inference.refine_px", 0),
    ("maskclip_plus", "student.width", HUGE),
    ("maskclip_plus", "student.blocks", [1000, 1000, 1000, 1000]),
    ("clip_es", "config.student.ratios", [HUGE]),
    ("clip_es", "config.student.variant", "none"),
    ("clip_es", "config.dataset.longest_px", -1),
    ("clip_es", "blocks", [1000, 1000, 1000, 1000]),
]


@pytest.mark.parametrize(("method", "name", "value"), HOSTILE)
def test_a_hostile_value_is_one_error(trained, method, name, value, tmp_path, offline):
    record, arrays = trained(method)
    put(record, name, value)
    path = written(tmp_path, record, arrays)
    start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError) as caught:
        clipseg_jax.load(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    assert len(message) < 1000
    assert message.isprintable()
    assert time.process_time() - start < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KB: 1 GB


@pytest.mark.parametrize(
    "weights",
    [
        "http://127.0.0.1:9/x.pt",
        f"https://127.0.0.1:9/x.pt#sha256={'0' * 64}",
        "hf:owner/name",
        "/etc/passwd",
        "../ViT-B-16.pt",
        "folder/ViT-B-16.pt",
        "..",
        str(TINY_CLIP),
    ],
)
def test_no_file_chooses_what_is_read_or_downloaded(trained, weights, tmp_path, offline):
    record, arrays = trained("weclip")
    record[CONFIG]["clip"]["weights"] = weights
    path = written(tmp_path, record, arrays)
    with pytest.raises(CheckpointError, match=r"say yourself which CLIP .* clip='ViT-B/16'"):
        clipseg_jax.load(path)
    assert clipseg_jax.load(path, clip="demo").classes == CLASSES


def test_a_file_beside_the_user_goes_by_its_bare_name(trained, tmp_path, offline, monkeypatch):
    record, arrays = trained("weclip")
    record[CONFIG]["clip"]["weights"] = "mine.safetensors"
    path = written(tmp_path, record, arrays)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"trained on the CLIP mine.safetensors"):
        clipseg_jax.load(path)
    (tmp_path / "mine.safetensors").symlink_to(TINY_CLIP)
    assert clipseg_jax.load(path).classes == CLASSES


@pytest.mark.parametrize(
    ("method", "name"),
    [
        ("weclip", "head.trained_weights"),
        ("weclip", "labels.file"),
        ("weclip", "dataset.root"),
        ("reclip", "student.trained_weights"),
        ("reclip", "student.init_weights"),
        ("reclip", "tags.file"),
        ("clip_rc", "text.file"),
        ("clip_rc", "clip_rc.init_weights"),
        ("maskclip_plus", "clip.weights"),
    ],
)
@pytest.mark.parametrize("value", ["/etc/passwd", "http://127.0.0.1:9/x.pt"])
def test_paths_of_the_record_are_not_read(trained, method, name, value, tmp_path, offline):
    record, arrays = trained(method)
    put(record[CONFIG], name, value)
    assert clipseg_jax.load(written(tmp_path, record, arrays)).classes == CLASSES


@pytest.mark.parametrize(
    ("module", "fmt", "arguments"),
    [
        (own_weclip, WECLIP, ()),
        (own_clip_rc, CLIP_RC, ()),
        (own_reclippp, RECLIP, ()),
        (own_clip_es, DEEPLAB, ()),
    ],
)
def test_values_of_every_recipe_are_taken(module, fmt, arguments, monkeypatch):
    """Those of own images are open until a CLIP decides them."""
    monkeypatch.setattr("clipseg_jax.segmenters.recorded._check_sizes", lambda *_: None)
    config = module.get_config(*arguments)
    record = json.loads(json.dumps({"classes": None, **recorded(config)}))
    if record[CONFIG]["dataset"]["name"] == "folder":
        record[CONFIG]["dataset"]["class_names"] = list(CLASSES)
    taken = recorded_config(record, fmt, {}, "it")
    assert taken.clip.weights == config.clip.weights
    assert SimpleNamespace(**taken.dataset).root is None
