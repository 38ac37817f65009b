"""The launch scripts: processes that train as one does, installation on hosts, linters."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from clipseg_jax.core.json_lines import read_lines
from clipseg_jax.demo import world
from weights_convert import RECLIP, load_trained

ROOT = Path(__file__).resolve().parent.parent


def launch(processes, devices, root, workdir):
    settings = {
        "dataset.name": "folder", "dataset.root": root, "text.templates": "single",
        "rectifier.scale_px": "(64,64)", "rectifier.crop_px": "(48,48)",
        "rectifier.batch_size": 4, "rectifier.total_epochs": 1,
        "rectifier.evaluate_every_epochs": 1,
        "inference.scale_px": "(64,64)",
        "run.batch_size": 4, "run.pictures": 2,
        "stages": "('data','text','tags','rectify','evaluate')",
    }  # fmt: skip
    arguments = [f"--config.{name}={value}" for name, value in settings.items()]
    # Process 0 alone writes a compile cache, and has been seen to stop for good while doing so.
    inherited = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    environment = {
        **inherited,
        "DEVICES": str(devices), "LOGS": str(workdir.parent), "PYTHON": sys.executable,
        "JAX_DEFAULT_MATMUL_PRECISION": "highest",
    }  # fmt: skip
    done = subprocess.run(
        [
            "bash", ROOT / "launch/local.sh", str(processes),
            "--config=configs/demo_reclippp.py", f"--workdir={workdir}", *arguments,
        ],
        env=environment, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    return done.stdout


@pytest.mark.long
def test_two_processes_do_the_recipe(tmp_path):
    root = tmp_path / "world"
    world.write_dataset(root, 6, 64)
    world.write_dataset(root / "train", 8, 64, "train")
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    launch(1, 4, root, tmp_path / "one" / "work")
    text = launch(2, 2, root, tmp_path / "two" / "work")
    assert text.count("stage rectify") == 1  # one process speaks
    one, two = tmp_path / "one" / "work", tmp_path / "two" / "work"
    tags = [next((folder / "tags").glob("*.json")).read_text() for folder in (one, two)]
    assert tags[0] == tags[1]
    losses = [[line["loss"] for line in read_lines(f / "rectify.jsonl")] for f in (one, two)]
    assert losses[0]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    a, b = (load_trained(f / "rectified_last.safetensors", RECLIP).arrays for f in (one, two))
    for key, value in a.items():
        np.testing.assert_allclose(value, b[key], rtol=1e-5, atol=1e-6, err_msg=key)
    metrics = [json.loads((f / "metrics_rectified.json").read_text()) for f in (one, two)]
    assert metrics[0]["images"] == metrics[1]["images"] == 6
    assert metrics[0]["mIoU"] == pytest.approx(metrics[1]["mIoU"], abs=0.5)


def linter(name):
    """The path of a program of the extra "test"."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if not found:
        pytest.skip(f"{name} is not installed: the extra `test` has it for Linux")
    return found


def test_shell_scripts_pass_shellcheck():
    scripts = sorted((ROOT / "launch").glob("*.sh"))
    done = subprocess.run(
        [linter("shellcheck"), *scripts], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_the_container_recipe_passes_hadolint():
    done = subprocess.run(
        [linter("hadolint"), ROOT / "launch/Dockerfile"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def test_the_container_recipe_holds_what_it_needs_and_no_more():
    text = (ROOT / "launch/Dockerfile").read_text()
    assert re.search(r"^FROM \S+:[\w.-]*\d[\w.-]*$", text, re.M), "the base image has a tag"
    assert text.count("uv sync --locked") == 2
    lines = text.splitlines()
    assert "USER 1000" in lines
    assert not re.search(r"secret|token|password", text, re.I)
    shown = [
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[0] == "!"
    ]
    copied = [word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]]
    assert sorted(shown) == sorted(copied)
    assert all((ROOT / name).exists() for name in copied)


def stub(folder, name, body):
    """A program of a shell's lines, which adds its arguments to NAME.log."""
    folder.mkdir(exist_ok=True, parents=True)
    path = folder / name
    path.write_text(f'#!/usr/bin/env bash\nprintf "%s\\n" "$*" >> "{folder}/{name}.log"\n{body}\n')
    path.chmod(0o755)


def pod(tmp_path, *arguments, **environment):
    """What tpu_pod.sh asks of gcloud; the archive is kept in tmp_path."""
    stub(tmp_path / "bin", "gcloud", f'[[ $4 == scp ]] && cp "$5" "{tmp_path}/sent.tar.gz"; exit 0')
    done = subprocess.run(
        ["bash", ROOT / "launch/tpu_pod.sh", *arguments],
        env={**os.environ, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}", **environment},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    log = tmp_path / "bin/gcloud.log"
    return done, log.read_text().splitlines() if log.exists() else []


RUN = ("pod", "us-z", "--config=voc_weclip", "--config.dataset.root=a folder")


def test_a_pod_is_installed_before_it_runs(tmp_path):
    done, (copy, install, run) = pod(tmp_path, *RUN)
    assert done.returncode == 0, done.stderr
    for line in (copy, install, run):
        assert line.startswith("compute tpus tpu-vm s")
        assert "--zone=us-z --worker=all" in line
    assert "pod:clipseg_jax.tar.gz" in copy
    assert "tar -xzf ~/clipseg_jax.tar.gz" in install
    assert install.endswith("bash ~/clipseg_jax/launch/install.sh tpu")
    assert run.endswith(
        "cd ~/clipseg_jax && .venv/bin/python -m clipseg_jax.main --distributed "
        "--config=voc_weclip --config.dataset.root=a\\ folder "
    )
    with tarfile.open(tmp_path / "sent.tar.gz") as archive:
        names = archive.getnames()
    assert {"uv.lock", "clipseg_jax/main.py", "configs/voc_weclip.py"} <= {*names}
    assert not any(name.startswith((".venv", ".git/", "workdir")) for name in names)


@pytest.mark.parametrize(("install", "calls"), [("0", 1), ("only", 2)])
def test_a_pod_is_installed_or_run_alone(tmp_path, install, calls):
    done, lines = pod(tmp_path, *RUN, INSTALL=install)
    assert (done.returncode, len(lines)) == (0, calls)


def test_the_pod_script_says_how_it_is_used(tmp_path):
    done, lines = pod(tmp_path, "pod")
    assert done.returncode != 0
    assert "usage: launch/tpu_pod.sh NAME ZONE" in done.stderr
    assert not lines


def test_installing_on_a_host(tmp_path):
    home = tmp_path / "clipseg_jax"
    (home / "launch").mkdir(parents=True)
    shutil.copy(ROOT / "launch/install.sh", home / "launch")
    stub(home / ".venv/bin", "python", "echo clipseg_jax 1.0")
    stub(tmp_path / "bin", "uv", "exit ${UV_FAILS:-0}")

    def install(*arguments, **environment):
        return subprocess.run(
            ["bash", home / "launch/install.sh", *arguments],
            env={**os.environ, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}", **environment},
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    for _ in range(2):
        done = install("tpu")
        assert done.returncode == 0, done.stderr
        assert done.stdout.endswith(f"{home}/.venv is ready: clipseg_jax 1.0\n")
    asked = (tmp_path / "bin/uv.log").read_text().splitlines()
    assert asked == 2 * [
        "sync --locked --quiet --python 3.11 --extra data --extra gcs --extra hub --extra tpu"
    ]
    assert install("tpu", UV_FAILS="1").returncode == 74
    wrong = install("tqu")
    assert (wrong.returncode, wrong.stderr) == (
        2, "error: launch/install.sh tqu: choose tpu, gpu or cpu\n",
    )  # fmt: skip
