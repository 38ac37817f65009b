"""The words of the command line: recipes by name, tuples with commas, and one line for mistakes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from clipseg_jax.core.config_arguments import complete, installed
from clipseg_jax.core.config_arguments import resolve as config_of
from clipseg_jax.core.config_show import shown
from clipseg_jax.main import RECIPES
from configs import voc_reclippp
from tests.test_docs import resolve

ROOT = Path(__file__).resolve().parents[2]


def value(*arguments, config="configs/voc_reclippp.py"):
    return resolve(f"python -m clipseg_jax.main --config={config} " + " ".join(arguments))


@pytest.mark.parametrize(
    ("argument", "name", "expected"),
    [
        ("--config.stages=data,text", "stages", ("data", "text")),
        ("--config.stages=data,", "stages", ("data",)),
        ("--config.stages=data,text --config.stages=evaluate", "stages", ("evaluate",)),
        ("--config.stages=evaluate", "stages", ("evaluate",)),
        ("--config.stages data,text", "stages", ("data", "text")),
        ("--config.stages=\"('data','text')\"", "stages", ("data", "text")),
        ("--config.stages=\"('data',)\"", "stages", ("data",)),
        ("--config.stages=\"['data', 'text']\"", "stages", ("data", "text")),
        ("'--config.dataset.class_names=cat, sofa,tv monitor'", "dataset.class_names",
         ("cat", "sofa", "tv monitor")),
        ("\"--config.dataset.class_names='cat','tv monitor'\"", "dataset.class_names",
         ("cat", "tv monitor")),
        ("'--config.dataset.class_names=()'", "dataset.class_names", ()),
        ("--config.clip.heads=12,8", "clip.heads", (12, 8)),
        ("'--config.clip.heads=(12, 8)'", "clip.heads", (12, 8)),
        ("--config.rectifier.crop_px=96,64", "rectifier.crop_px", (96, 64)),
        ("--config.rectifier.crop_px=(96,64)", "rectifier.crop_px", (96, 64)),
        ("--config.student.dilations=1,1", "student.dilations", (1, 1)),
        ("--config.clip.mean=1.5,2,3", "clip.mean", (1.5, 2, 3)),
        ("--config.rectifier.total_steps=7", "rectifier.total_steps", 7),
        ("--config.run.palette=true", "run.palette", True),
        ("--config.dataset.root=a,b", "dataset.root", "a,b"),
    ],
)  # fmt: skip
def test_values(argument, name, expected, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = value(argument)
    for part in name.split("."):
        config = config[part]
    assert config == expected
    assert type(config) is type(expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.total_steps=5"], r"mean rectifier\.total_steps or student\.total_steps"),
        (["--config.inference.scael_px=1,2"], r"did you mean inference\.scale_px"),
        (["--config.clip.weights.x=1"], r"no config value clip\.weights\.x"),
        (["--config.rectifier.crop_px=96"], r"crop_px=96: it takes 2 values, such as 512,512"),
        (["--config.rectifier.crop_px=a,b"], r"crop_px=a,b: .* such as 512,512"),
        (["--config.rectifier.crop_px=1.5,2"], "crop_px=1.5,2: it takes values"),
        (["--config.stages=('data'"], r"stages=\('data': it takes values separated by commas"),
        (["--config.stages='data,text"], "stages='data,text: it takes values separated"),
        (["--config.stages="], r"--config\.stages is empty; give values such as data,text,"),
        (["--config.dataset.class_names= "], "class_names is empty; .* or \\(\\) for none"),
        (["--config.clip.heads=a,b"], "heads=a,b: it takes values separated by commas"),
        (["--config.student.batch_size=many"], "many: it takes a whole number, such as 16"),
        (["--config.rectifier.total_steps=None"], "None: it takes a whole number$"),
        (["--config.run.palette=maybe"], "it takes True or False"),
        (["--config.rectifier.optim=3"], r"is a section; set one of its values: rectifier\.optim"),
        (["--config.train.steps=3"], r"rectifier\.total_steps or --config\.student\.total_steps"),
        (["--config.stages"], "has no value"),
    ],
)  # fmt: skip
def test_wrong_values(arguments, message):
    with pytest.raises(ValueError, match=message) as wrong:
        complete(["main", "--config=configs/voc_reclippp.py", *arguments], RECIPES)
    assert "\n" not in str(wrong.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("voc_reclippp:2026", r"no state '2026'.*choose one of"),
        ("voc_maskclip:zero", "has no variants; omit ':zero'"),
        ("voc_maskclip_plus:teacher=rn51", "teacher=rn51"),
        ("configs/voc_masclip.py", "did you mean voc_maskclip"),
        ("elsewhere/voc_maskclip.py", "no config elsewhere/voc_maskclip.py"),
        ("README.md", "README.md"),
        ("pyproject.toml", "pyproject.toml"),
        ("", "pass --config=NAME"),
    ],
)
def test_wrong_recipes(config, message, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(ValueError, match=message):
        complete(["main", f"--config={config}"], RECIPES)


def run(*arguments, cwd=ROOT, python=()):
    return subprocess.run(
        [sys.executable, *python, "-m", "clipseg_jax.main", *arguments],
        cwd=cwd, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["demo_maskclip", "configs/demo_maskclip.py"])
def test_an_installed_recipe_in_another_folder(name, tmp_path):
    """Also where another package of the name `configs` is in the way."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/__init__.py").write_text("raise RuntimeError('not this one')")
    done = run(f"--config={name}", "--show", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "run.fsdp = 1  # devices that share one copy of the trained parameters" in done.stdout


def test_the_config_of_arguments():
    before = [*sys.argv]
    config = config_of(["--config=voc_reclippp:2025", "--config.stages=data,text"], RECIPES)
    assert (config.revision, config.stages) == ("2025", ("data", "text"))
    assert sys.argv == before
    for wrong in ("--config.run.device=1", "--workdir=here"):
        with pytest.raises(ValueError, match=r"run\.devices|workdir"):
            config_of(["--config=voc_reclippp", wrong], RECIPES)
    assert sys.argv == before


def test_show_has_every_value_and_most_comments():
    lines = [*shown(voc_reclippp.get_config(), (RECIPES / "base").glob("*.py"))]
    by_name = dict(line.split(" = ", 1) for line in lines)
    assert by_name["student.total_steps"] == "None  # None: total_epochs"
    assert by_name["train.accumulate_steps"] == "1  # parts of a batch, one after another"
    assert by_name["student.optim.clip_norm"] == "0.0  # no limit"
    assert sum("  # " in line for line in lines) > len(lines) / 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["--config=voc_maskclip", "--nonsense=3"],
        ["--config=voc_maskclip", "evaluate"],
        ["--config=voc_maskclip", "--processes=many"],
        ["--config=voc_maskclip", "--workdir=gs://bucket/run"],
        ["--config=voc_maskclip", "--workdir=hdfs:/run"],
        ["--config=voc_maskclip", "--workdir="],
        ["--config=voc_maskclip", "--workdir=README.md"],
        ["--config=voc_maskclip", "--workdir=/proc/nothing"],
        [],
    ],
)
def test_wrong_commands_end_in_one_line(arguments):
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


# As after `pip install .`, without the extra "data".
PLAIN = """
import runpy, sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("cv2", "tensorflow", "tensorflow_datasets", "pycocotools"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
sys.argv = ["main", *sys.argv[1:]]
runpy.run_module("clipseg_jax.main", run_name="__main__")
"""


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--help"], 0, "--workdir"),
        (["--config=demo_maskclip", "--show"], 0, "clip.weights = "),
        (["--config=demo_maskclip"], 2, "pip install 'clipseg_jax[data]'"),
    ],
)
def test_without_the_extra_of_datasets(arguments, code, text, tmp_path):
    if code:
        arguments = [*arguments, f"--workdir={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, *arguments],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert text in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_an_installed_recipe_has_its_own_values():
    assert installed("voc_maskclip", RECIPES).dataset.name == "voc12_20"
    assert installed("voc_clip_rc:transductive", RECIPES).clip_rc.setting == "transductive"
    for name in ("voc_maskclip.py", "../configs/voc_maskclip", "nothing", "", "__init__"):
        with pytest.raises(ValueError, match=r"no recipe|no function get_config"):
            installed(name, RECIPES)
    with pytest.raises(ValueError, match=r"voc_clip_rc\.py:nothing"):
        installed("voc_clip_rc:nothing", RECIPES)
