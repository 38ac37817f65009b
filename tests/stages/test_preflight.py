"""What would stop a later stage is said before the first."""

from __future__ import annotations

import jax
import pytest

from clipseg_jax.stages import preflight
from configs import demo_maskclip, demo_reclippp, voc_clip_es, voc_reclippp

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
@pytest.mark.parametrize("path", ["/nowhere/file.pt", "gs://bucket/file.pt"])
def test_files_of_later_stages(name, path):
    config = demo_reclippp.get_config()
    config.update_from_flattened_dict({name: path})
    with pytest.raises((FileNotFoundError, ValueError), match=rf"--config\.{name}={path}"):
        preflight.check(config, ("data",))


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
