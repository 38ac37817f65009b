"""The installed commands: what they are, their help, and as processes their exit codes."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

from clipseg_jax import console

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
PRESENT = [
    name
    if find_spec(module.removesuffix(".__main__"))
    else pytest.param(name, marks=pytest.mark.skip(reason=f"{module} is not there"))
    for name, module in console.MODULES.items()
]


def command(name):
    path = Path(sys.executable).with_name(name)
    if not path.exists():
        pytest.skip(f"{name} is not installed; make .venv/.done")
    return str(path)


def run(*arguments, folder=ROOT):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    name, *rest = map(str, arguments)
    return subprocess.run(
        [command(name), *rest], cwd=folder, env=environment, capture_output=True, text=True
    )


def lines_on_a_screen(text):
    return sum(max(1, len(textwrap.wrap(line, 80))) for line in text.splitlines())


def helped(name, *arguments, monkeypatch, capsys):
    """What the command says when it is started by its name, in this process."""
    if name == "clipseg-train":  # absl changes the logging of its process
        done = run(name, *arguments)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "argv", [f"/usr/bin/{name}", *arguments])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(console.MODULES[name]).main()
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_every_command_has_a_function():
    assert {*SCRIPTS} == {*console.MODULES}
    for name, target in SCRIPTS.items():
        assert target == f"clipseg_jax.console:{name.removeprefix('clipseg-')}"
        assert f'_run("{name}")' in inspect.getsource(getattr(console, target.partition(":")[2]))


@pytest.mark.parametrize("name", PRESENT)
def test_help_fits_a_screen(name, monkeypatch, capsys):
    text = helped(name, "--help", monkeypatch=monkeypatch, capsys=capsys)
    assert lines_on_a_screen(text) <= 50
    assert name in text
    assert "python -m" not in text


@pytest.mark.parametrize("name", PRESENT)
def test_help_is_forty_lines_of_a_wide_screen(name):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "COLUMNS": "100"}
    done = subprocess.run(
        [command(name), "--help"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    lines = done.stdout.splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 100


QUICK = [
    "input_pipeline.prepare",
    "clipseg_jax.reproduce",
    "clipseg_jax.web",
    "clipseg_jax.reports",
]


@pytest.mark.parametrize("arguments", [["--help"], ["--wrnog"]])
@pytest.mark.parametrize("module", QUICK)
def test_help_and_mistakes_are_answered_without_jax(module, arguments):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", module, *arguments],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert done.returncode == (2 if "--wrnog" in arguments else 0)
    assert "input_pipeline.commands" in imported
    assert not {"jax", "flax"} & imported


@pytest.mark.parametrize("name", ["clipseg-predict", "clipseg-convert"])
def test_all_help_has_the_rest(name, monkeypatch, capsys):
    short = helped(name, "--help", monkeypatch=monkeypatch, capsys=capsys)
    long = helped(name, "--help-all", monkeypatch=monkeypatch, capsys=capsys)
    assert "--heads" in long
    assert "--heads" not in short
    assert {*re.findall(r"--[\w-]+", short)} < {*re.findall(r"--[\w-]+", long)}


@pytest.mark.parametrize("word", ["download", "list"])
def test_help_of_a_word(word, monkeypatch, capsys):
    text = helped("clipseg-convert", word, "--help", monkeypatch=monkeypatch, capsys=capsys)
    assert text.startswith(f"usage: clipseg-convert {word} ")
    assert "clipseg-convert list" in text
    assert "python -m" not in text


@pytest.mark.parametrize("name", PRESENT)
def test_version(name, monkeypatch, capsys):
    assert re.fullmatch(
        r"clipseg_jax \d\S+\n", helped(name, "--version", monkeypatch=monkeypatch, capsys=capsys)
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESENT)
def test_a_wrong_option_is_one_line(name):
    done = run(name, "--wrnog")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["clipseg-predict", "lost.jpg", "--classes=a,b", "--weights=demo"],
            "lost.jpg is neither a file nor a folder",
        ),
        (["clipseg-train", "--config=lost"], "no config lost"),
        (["clipseg-convert", "lost.pt", "--inspect"], "lost.pt"),
        (["clipseg-prepare", "voc", "--root=lost"], "--root lost is not a folder"),
    ],
    ids=lambda each: each[0],
)
@pytest.mark.slow
def test_a_missing_file_is_one_line(tmp_path, arguments, message):
    done = run(*arguments, folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not [*tmp_path.iterdir()]


@pytest.mark.slow
def test_recipes_are_found_from_any_folder(tmp_path):
    done = run("clipseg-train", "--config=demo_maskclip", "--show", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "clip.weights = " in done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="sees by /proc what a process has loaded")
@pytest.mark.parametrize("name", ["clipseg-train", "clipseg-predict"])
def test_ctrl_c_while_it_starts(tmp_path, name):
    """In the middle of its imports, of which Python would print a traceback."""
    process = subprocess.Popen(
        [command(name), "--config=demo_maskclip", f"--workdir={tmp_path}"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    maps = Path(f"/proc/{process.pid}/maps")
    while process.poll() is None and "jaxlib" not in maps.read_text():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopped; run the same command again" in said
    assert said.count("\n") == 1
