"""What would stop a later stage is said before the first."""

from __future__ import annotations

import importlib
from pathlib import Path

import jax
import pytest
from ml_collections import ConfigDict

import configs
from clipseg_jax.stages import preflight
from clipseg_jax.stages.completion import completed
from configs import (
    demo_maskclip,
    demo_maskclip_plus,
    demo_reclippp,
    own_clip_es,
    voc_clip_es,
    voc_reclippp,
)

TRAINING = ("data", "text", "tags", "rectify", "distill")


@pytest.fixture
def cluster(monkeypatch):
    """(processes, devices) that JAX is said to have."""

    def has(processes, devices):
        monkeypatch.setattr(jax, "process_count", lambda: processes)
        monkeypatch.setattr(jax, "device_count", lambda: devices)

    return has


@pytest.mark.parametrize(
    ("processes", "devices", "settings", "message"),
    [
        (2, 2, {}, r"rectifier\.batch_size=1 cannot be shared by 2 devices of 2 proc.* to 2 or"),
        (4, 32, {"rectifier.batch_size": 33}, r"rectifier\.batch_size=33 .* 32 devices .* to 64 "),
        (4, 32, {"rectifier.batch_size": 32}, r"student\.batch_size=16 .* set it to 32 "),
        (
            4, 32, {"rectifier.batch_size": 32, "student.batch_size": 32},
            r"run\.batch_size=8 .* set it to 32 ",
        ),
        (1, 16, {}, r"run\.batch_size=8 cannot be shared by 16 devices of 1 processes"),
        (1, 1, {"rectifier.batch_size": 0}, r"rectifier\.batch_size=0 "),
        (2, 4, {"rectifier.batch_size": 4, "train.accumulate_steps": 2}, "2 accumulated .* to 8"),
    ],
)  # fmt: skip
def test_batches(cluster, processes, devices, settings, message):
    config = demo_reclippp.get_config()
    config.student.batch_size, config.rectifier.batch_size, config.run.batch_size = 16, 1, 8
    config.update_from_flattened_dict(settings)
    cluster(processes, devices)
    with pytest.raises(ValueError, match=message):
        preflight.check(config, TRAINING)


@pytest.mark.parametrize(
    ("module", "key"),
    [(demo_maskclip_plus, "student.teacher_read_out"), (demo_reclippp, "rectifier.read_out")],
)
def test_an_unknown_read_out_is_refused(module, key):
    config = module.get_config()
    config.update_from_flattened_dict({key: "naclipp"})
    with pytest.raises(ValueError, match=rf"--config\.{key} is 'naclipp'; give 'value' or 'clip'"):
        preflight.check(config, ("data", "text"))


@pytest.mark.parametrize("stages", [("data", "text"), ("data", "text", "evaluate"), ()])
def test_only_stages_to_come_count(cluster, stages):
    config = demo_reclippp.get_config()
    config.rectifier.batch_size = 1
    cluster(2, 2)
    preflight.check(config, stages)


def test_trained_weights_need_no_batch(cluster, tmp_path):
    config = demo_reclippp.get_config()
    config.rectifier.batch_size = 1
    config.rectifier.trained_weights = str(tmp_path)
    cluster(2, 2)
    preflight.check(config, ("text", "rectify", "evaluate"))


def test_the_published_batch_of_one_device_runs_on_more(cluster):
    config = demo_reclippp.get_config()
    config.rectifier.batch_size = 1
    cluster(1, 8)
    preflight.check(config, TRAINING)


@pytest.mark.parametrize(
    "name",
    ["clip.weights", "rectifier.trained_weights", "student.init_weights", "tags.file"],
)
@pytest.mark.parametrize("path", ["/nowhere/file.pt", "gs://bucket/file.pt", ""])
def test_files_of_later_stages(name, path):
    config = demo_reclippp.get_config()
    config.update_from_flattened_dict({name: path})
    said = f"={path}" if path else " is empty"  # as a variable of the shell that is not set
    with pytest.raises((FileNotFoundError, ValueError), match=rf"--config\.{name}{said}"):
        preflight.check(config, ("data", "text"))


def test_initial_weights_by_name_are_for_training(monkeypatch, tmp_path):
    """Masks alone, or an evaluation, download no backbone."""
    asked = []
    monkeypatch.setattr(preflight, "_found", lambda *names: asked.append(names) or tmp_path)
    config = own_clip_es.get_config()
    config.dataset.root, config.dataset.class_names = str(tmp_path), ("background", "cat")
    for stages in (("cams", "masks"), ("evaluate_student",)):
        preflight.fetch(config, stages)
        preflight._check_paths(config, stages)
    assert not asked
    preflight.fetch(config, ("text", "train"))
    assert asked == [("clip", "weights", "ViT-B/16"), ("student", "init_weights", "resnet50")]


def test_after_the_texts_a_run_may_do_without_clip():
    config = demo_reclippp.get_config()
    config.clip.weights = "/nowhere/file.pt"
    preflight.check(config, ("evaluate_distilled",))


def test_a_list_of_labels(tmp_path):
    config = voc_clip_es.get_config()
    config.dataset.root = str(tmp_path)
    config.labels.file = str(tmp_path / "labels.txt")
    with pytest.raises(FileNotFoundError, match=r"labels\.file=.*labels\.txt does not exist"):
        preflight.check(config, ("data",))


def test_roots(tmp_path):
    config = demo_maskclip.get_config()
    config.dataset.root = str(tmp_path / "painted later")
    preflight.check(config, ("data", "text", "evaluate"))
    config.dataset.name, config.dataset.root = "voc12_20", "gs://bucket/records"
    preflight.check(config, ("data",))  # records are read from there
    config.dataset.root = ""
    with pytest.raises(ValueError, match=r"--config\.dataset\.root is empty"):
        preflight.check(config, ("data",))
    config.dataset.root = str(tmp_path / "missing")
    with pytest.raises(FileNotFoundError, match=r"--config\.dataset\.root=.*missing does not"):
        preflight.check(config, ("data",))


def test_weights_that_are_not_named(tmp_path):
    config = voc_reclippp.get_config()
    config.dataset.root = str(tmp_path)
    with pytest.raises(ValueError, match=r"no CLIP weights; pass --config\.clip\.weights"):
        preflight.check(config, ("data", "text"))
    config.clip.weights = str(tmp_path)
    config.run.batch_size = jax.device_count()
    with pytest.raises(ValueError, match=r"pass --config\.student\.init_weights"):
        preflight.check(config, TRAINING)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"inference.mode": "sliding"}, "inference: mode is 'sliding'; give 'whole' or 'slide'"),
        (
            {"inference.mode": "slide", "inference.stride_px": (600, 600)},
            r"inference: stride_px \(600, 600\) exceeds crop_px",
        ),
        ({"inference.crop_px": (96,)}, r"inference\.crop_px is \(96,\); give two whole numbers"),
        ({"inference.scale_px": (0, 96)}, r"inference\.scale_px is \(0, 96\)"),
        ({"inference.ratios": ()}, r"inference: ratios is \(\)"),
        ({"inference.background_threshold": 50.0}, "inference: background_threshold is 50.0"),
        ({"inference.temperature": 0.0}, "inference: temperature is 0.0"),
        ({"clip.norm_eps": -1.0}, r"--config\.clip\.norm_eps is -1.0; give a number above 0"),
        ({"clip.activation": "relu"}, r"--config\.clip\.activation is 'relu'; give 'quick"),
        ({"clip.trained_activation": "GELU"}, r"--config\.clip\.trained_activation is 'GELU'"),
        ({"clip.dtype": "float16"}, r"--config\.clip\.dtype is 'float16'; give 'float32' or"),
        ({"clip.heads": (12,)}, r"--config\.clip: heads \(12,\)"),
        ({"clip.std": (0.0, 1.0, 1.0)}, r"--config\.clip: std is"),
        ({"run.opacity": 7.0}, r"--config\.run\.opacity is 7.0; give a number from 0 to 1"),
        ({"run.fsdp": 0}, r"--config\.run\.fsdp is 0; give a whole number of at least 1"),
        ({"run.pictures": -5}, r"--config\.run\.pictures is -5"),
        ({"run.log_every_steps": 0}, r"--config\.run\.log_every_steps is 0"),
        ({"run.loader_processes": -1}, r"--config\.run\.loader_processes is -1; give a whole"),
        ({"dataset.corruption": "fog"}, r"--config\.dataset\.corruption: No corruption 'fog'"),
    ],
    ids=str,
)
def test_values_without_meaning(settings, message):
    config = demo_maskclip.get_config()
    config.update_from_flattened_dict(settings)
    with pytest.raises(ValueError, match=message):
        preflight.check(config, config.stages)


def test_pairs_of_training_are_checked():
    config = demo_reclippp.get_config()
    config.rectifier.crop_px = (96,)
    with pytest.raises(ValueError, match=r"--config\.rectifier\.crop_px is \(96,\)"):
        preflight.check(config, ())
    config.rectifier.crop_px, config.tags.crop_px = (96, 96), 0
    with pytest.raises(ValueError, match=r"--config\.tags\.crop_px is 0"):
        preflight.check(config, ())


def test_a_network_without_weights_of_elsewhere(cluster):
    """A new method's section may have a batch size alone (docs/new_method.md)."""
    config = demo_maskclip.get_config()
    with config.unlocked():
        config.probe, config.train = ConfigDict({"batch_size": 3}), ConfigDict()
        config.train.accumulate_steps = 1
    cluster(2, 2)
    with pytest.raises(ValueError, match=r"--config\.probe\.batch_size=3 cannot be shared"):
        preflight.check(config, ("train",))


RECIPES = sorted(path.stem for path in Path(configs.__file__).parent.glob("[a-z]*_*.py"))


@pytest.mark.parametrize("name", RECIPES)
def test_no_recipe_is_refused(name, monkeypatch, tmp_path):
    monkeypatch.setattr(preflight, "_check_paths", lambda *_: None)  # of data that is not here
    config = importlib.import_module(f"configs.{name}").get_config()
    if name.startswith("own_"):
        config.clip.weights, config.dataset.root = "demo", str(tmp_path)
        config.dataset.class_names = ("background", "cat", "dog")
        config = completed(config, tmp_path)
    preflight.check(config, ())
