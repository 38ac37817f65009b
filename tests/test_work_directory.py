"""Old names of config values, work directories of an earlier version, and paths that move."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from clipseg_jax import main
from clipseg_jax.core.config_names import check_arguments, is_free, new_name, with_new_names
from clipseg_jax.core.run_lock import RunLock
from clipseg_jax.demo import TINY_CLIP, world
from clipseg_jax.stages import work_directory
from configs import demo_maskclip, demo_reclip
from tests.test_configs import RECIPES, load, strings

ROOT = Path(__file__).resolve().parent.parent
# config.json of some recipes as the version before the renaming wrote it.
BEFORE = json.loads((ROOT / "tests/golden/configs/before_renaming.json").read_text())


def config_of(recipe):
    name, _, string = recipe.partition(":")
    module = importlib.import_module(f"configs.{name}")
    return module.get_config(*([string] if ":" in recipe else []))


@pytest.mark.parametrize("recipe", BEFORE)
def test_work_directories_of_the_version_before_resume(recipe, tmp_path):
    config, old = config_of(recipe), dict(BEFORE[recipe])
    if "demo" in recipe:  # some values of these have changed since; this is about names
        old["clip"] = {**old["clip"], "weights": config.clip.weights}
        old["dataset"] = {name: config.dataset[name] for name in old["dataset"]}
    (tmp_path / "config.json").write_text(json.dumps(old))
    (tmp_path / "data.done.json").write_text("{}")
    work_directory.check(config, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["run"]  # by the new names

    # Every value of then has a place today, but for those that were never set.
    named = with_new_names(work_directory.flat(old))
    values = work_directory.flat(config.to_dict())
    assert named.keys() - values.keys() <= {"NETWORK.total_steps"}


def test_a_changed_value_of_an_earlier_version_is_named(tmp_path):
    old = json.loads(json.dumps(BEFORE["voc_weclip"]))
    old["fit"]["total_steps"], old["train"]["steps"] = 7, 5
    (tmp_path / "config.json").write_text(json.dumps(old))
    (tmp_path / "text.done.json").write_text("{}")
    config = config_of("voc_weclip")
    with pytest.raises(ValueError, match=r"head\.total_steps: 7 -> 30000") as error:
        work_directory.check(config, tmp_path)
    assert "NETWORK.total_steps: 5 -> no such value any more" in str(error.value)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_no_recipe_has_an_old_name(path):
    for string in strings(path):
        config = load(path).get_config(*([] if string is None else [string]))
        names = work_directory.flat(config.to_dict())
        assert {name: new_name(name) for name in names if new_name(name) != name} == {}


def test_only_run_and_stages_are_free():
    names = work_directory.flat(demo_reclip.get_config().to_dict())
    assert {name.partition(".")[0] for name in names if is_free(name)} == {"run", "stages"}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("fit.total_steps", "head.total_steps"),
        ("fit.validate_every_steps", "head.evaluate_every_steps"),
        ("learn.start", "clip_rc.init_weights"),
        ("task.dice_weight", "clip_rc.dice_weight"),
        ("rectify.epochs", "rectifier.total_epochs"),
        ("distill.optim.least_rate", "student.optim.min_learning_rate"),
        ("student.optim.rate", "student.optim.learning_rate"),
        ("maskclip.ks_thresh", "maskclip.ks_threshold"),
        ("evaluate.batch_size", "run.batch_size"),
        ("train.devices", "run.devices"),
    ],
)
def test_an_old_name_says_the_new_one(old, new):
    with pytest.raises(ValueError, match=rf"--config\.{old} is called --config\.{new} now"):
        check_arguments(["main", f"--config.{old}=1"])
    check_arguments(["main", f"--config.{new}=1", f"--workdir={old}"])


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.evaluate.pictures=3", "--config.run.pictures now"),
        ("--config.inference.scales=3", "scales"),
    ],
)
def test_the_command_refuses_names_in_one_line(argument, message, tmp_path):
    command = ["-m", "clipseg_jax.main", "--config=configs/voc_maskclip.py", argument]
    done = subprocess.run(
        [sys.executable, *command, f"--workdir={tmp_path}"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    (line,) = [each for each in done.stderr.splitlines() if each.startswith("error: ")]
    assert message in line
    assert "Traceback" not in done.stderr


@pytest.fixture
def config(tmp_path):
    world.write_dataset(tmp_path / "world", 4, 64)
    config = demo_maskclip.get_config()
    config.dataset.name, config.dataset.root = "folder", str(tmp_path / "world")
    config.clip.weights = str(shutil.copytree(TINY_CLIP, tmp_path / "clip"))
    config.stages = ("data",)
    return config


def test_paths_may_change_and_what_is_behind_them_may_not(config, tmp_path):
    work = tmp_path / "work"
    main.run(config, work)
    content = json.loads((work / "content.json").read_text())
    assert {*content} == {"clip.weights", "dataset.root"}
    assert Path(content["clip.weights"]["absolute"]) == tmp_path / "clip"
    for section, name in ((config.clip, "weights"), (config.dataset, "root")):
        section[name] = str(Path(section[name]).rename(tmp_path / f"moved_{name}"))
    main.run(config, work)
    (work / "text.done.json").write_text("{}")  # the CLIP has been read

    other = tmp_path / "other"
    world.write_dataset(other, 3, 64)
    config.dataset.root = str(other)
    with pytest.raises(ValueError, match=r"dataset\.root: .*moved_root' -> .*other'"):
        main.run(config, work)
    config.dataset.root = str(tmp_path / "moved_root")
    weights = Path(config.clip.weights) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match=r"clip\.weights: other content"):
        main.run(config, work)
    config.clip.weights = str(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"clip\.weights: .*moved_weights' -> .*nowhere'"):
        main.run(config, work)


def test_a_path_of_unknown_content_must_stay(config, tmp_path):
    main.run(config, tmp_path / "work")
    (tmp_path / "work/content.json").unlink()  # as earlier versions left it
    main.run(config, tmp_path / "work")
    config.dataset.root = str(shutil.copytree(config.dataset.root, tmp_path / "copy"))
    with pytest.raises(ValueError, match=r"dataset\.root"):
        main.run(config, tmp_path / "work")


def test_values_that_are_new_count_when_they_are_given(config, tmp_path):
    main.run(config, tmp_path)
    old = json.loads((tmp_path / "config.json").read_text())
    del old["inference"]["flip"]
    (tmp_path / "config.json").write_text(json.dumps(old))
    with pytest.raises(ValueError, match=r"inference\.flip: no such value -> False"):
        main.run(config, tmp_path, ["inference.flip"])
    main.run(config, tmp_path, ["run.pictures"])


def test_a_failed_start_locks_nothing(config, tmp_path):
    """What no finished stage has read may change: here the stage `data` is all that ran."""
    work = tmp_path / "work"
    config.stages = ("data",)
    main.run(config, work)
    right, config.clip.weights = config.clip.weights, str(tmp_path / "mistyped.pt")
    config.stages = ("data", "text")
    with pytest.raises(FileNotFoundError, match="mistyped"):
        main.run(config, work)
    config.text.templates, config.clip.weights = "single", right
    work_directory.check(config, work)
    config.dataset.class_names = config.dataset.class_names[:-1]
    with pytest.raises(ValueError, match=r"another configuration \(dataset\.class_names"):
        work_directory.check(config, work)


def test_what_an_unfinished_stage_has_left_locks(config, tmp_path):
    work = tmp_path / "work"
    main.run(config, work)
    (work / work_directory.LOG).write_text("stage data\n")  # is no result
    config.maskclip.ks_threshold = 1.0
    work_directory.check(config, work)
    (work / "checkpoints").mkdir()
    config.maskclip.ks_threshold = 2.0
    with pytest.raises(ValueError, match=r"maskclip\.ks_threshold: 1\.0 -> 2\.0"):
        work_directory.check(config, work)


def test_differences(config, tmp_path):
    main.run(config, tmp_path)
    assert work_directory.differences(config, tmp_path) == {}
    config.dataset.root, config.clip.weights = "elsewhere", "other.pt"
    config.run.pictures, config.stages = 5, ("data",)
    config.maskclip.ks_threshold, config.inference.scale_px = 2.0, (32, 32)
    made = json.loads((tmp_path / "config.json").read_text())
    assert work_directory.differences(config, tmp_path) == {
        "inference.scale_px": (made["inference"]["scale_px"], [32, 32]),
        "maskclip.ks_threshold": (0.0, 2.0),
    }
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"config\.json is damaged"):
        work_directory.differences(config, tmp_path)


def test_no_file_is_trusted_for_its_date(config, tmp_path):
    """Other content of the same size, with the date set back to that of the first."""
    work = tmp_path / "work"
    main.run(config, work)
    (work / "text.done.json").write_text("{}")
    weights = Path(config.clip.weights) / "model.safetensors"
    date = weights.stat()
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    os.utime(weights, ns=(date.st_atime_ns, date.st_mtime_ns))
    with pytest.raises(ValueError, match=r"clip\.weights: other content"):
        main.run(config, work)


@pytest.mark.parametrize("name", ["config.json", "content.json", "data.done.json"])
@pytest.mark.parametrize("content", [b"", b"[]", b"\xff\xfe", b'{"a": {"b": 1'])
def test_damaged_state_is_named_with_its_remedy(config, tmp_path, name, content):
    main.run(config, tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} is damaged .*delete") as error:
        main.run(config, tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [{"clip.weights": 1}, {"clip.weights": {"path": "x"}}])
def test_content_of_another_form(config, tmp_path, content):
    main.run(config, tmp_path)
    (tmp_path / "content.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"content\.json is damaged .*delete it"):
        main.run(config, tmp_path)


def test_a_second_run_is_refused(config, tmp_path):
    with RunLock(tmp_path), pytest.raises(ValueError, match=r"in use by a run on .*process"):
        main.run(config, tmp_path)
    main.run(config, tmp_path)
    assert not [path for path in tmp_path.iterdir() if "lock" in path.name]


def test_a_record_cannot_steer_the_terminal(config, tmp_path, capsys):
    main.run(config, tmp_path)
    (tmp_path / "data.done.json").write_text(json.dumps({"\x1b[31mred": "\x1b]0;title\x07"}))
    main.run(config, tmp_path)
    assert "\x1b" not in capsys.readouterr().out
