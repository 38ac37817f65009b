"""`python -m clipseg_jax.compile` on CPU devices in place of a topology, with a small CLIP."""

from __future__ import annotations

import json
import subprocess
import sys

import jax
import pytest
from ml_collections import ConfigDict

from clipseg_jax.compile import programs as programs_module
from clipseg_jax.compile import topologies
from clipseg_jax.compile.__main__ import main
from clipseg_jax.compile.cost import Cost
from clipseg_jax.compile.programs import (
    TooLarge,
    compile_program,
    prepared,
    programs_of,
    what_fits,
)
from clipseg_jax.compile.report import advice, lines, record
from clipseg_jax.compile.topologies import Chip, Topology, find_topology
from clipseg_jax.core.config_arguments import resolve
from clipseg_jax.main import RECIPES
from clipseg_jax.models.clip import CLIPConfig, ViTConfig
from clipseg_jax.models.clip.text import TextConfig
from weights_convert.clip import architectures

CHIP = Chip("cpu", 2**34, 1e12, 1e11, 1e10)
SMALL = CLIPConfig(ViTConfig(64, 16, 64, 3, 1, 32), TextConfig(77, 49408, 32, 1, 1, 32))
SMALLER = [
    "--config.student.blocks=(1,1,1,1)", "--config.student.width=8",
    "--config.student.crop_px=(64,64)", "--config.student.batch_size=4",
]  # fmt: skip
BLOCKS = ["--config.cams.affinity_blocks=(1,2)", "--config.tags.affinity_blocks=(1,)"]
# A recipe of every family, with the sizes that make it small; its programs.
FAMILIES = {
    "voc_maskclip": ([], "evaluate"),
    "voc21_readout": (
        ["--config.inference.crop_px=(64,64)", "--config.inference.stride_px=(32,32)"],
        "evaluate",
    ),
    "voc_maskclip_plus": ([*SMALLER, "--config.student.decoder=deeplabv2"], "train evaluate"),
    "voc_reclip": (
        [*SMALLER, "--config.rectifier.crop_px=(64,64)"],
        "tags rectify evaluate distill evaluate_distilled",
    ),
    "voc_reclippp": (
        [*SMALLER, "--config.rectifier.crop_px=(64,64)"],
        "tags rectify evaluate distill evaluate_distilled",
    ),
    "voc_clip_rc:inductive": (["--config.clip_rc.crop_px=64"], "train evaluate"),
    "voc_clip_es": ([*SMALLER, *BLOCKS], "cams masks train evaluate_student evaluate_student_crf"),
    "voc_tagclip": (BLOCKS, "tags cams masks"),
    "voc_weclip": (["--config.head.crop_px=(64,64)"], "train evaluate evaluate_crf masks"),
    "voc_wtclip": (["--config.head.crop_px=(64,64)"], "train evaluate evaluate_crf masks"),
}
TWINS = ("voc_reclip", "voc_tagclip", "voc_wtclip")  # another of these has the same programs


@pytest.fixture(autouse=True)
def small_clip(monkeypatch):
    monkeypatch.setitem(architectures.ARCHITECTURES, "ViT-B/16", SMALL)


def config_of(recipe, *values, images=None, devices=1):
    path, colon, variant = recipe.partition(":")
    config = resolve([f"--config=configs/{path}.py{colon}{variant}", *values], RECIPES)
    return prepared(config, images_per_device=images, devices=devices, dtype=None)


def here(count=1):
    return Topology("here", CHIP, jax.devices()[:count])


@pytest.mark.parametrize(
    "recipe",
    [pytest.param(name, marks=[pytest.mark.long] if name in TWINS else []) for name in FAMILIES],
)
def test_each_family_has_its_programs_and_they_trace(recipe):
    values, names = FAMILIES[recipe]
    config = config_of(recipe, *values)
    found = []
    for program in programs_of(config, (48, 64)):
        mesh = programs_module.devices_of(program, config, here())
        traced = program.trace(mesh)
        assert programs_module.product_flops(traced.jaxpr.jaxpr) >= 0
        found.append(program.name)
    assert found == names.split()


def test_a_program_is_compiled_and_reported():
    config = config_of("voc_maskclip", "--config.run.batch_size=4")
    (program,) = programs_of(config, (48, 64))
    cost = compile_program(program, config, here(2))
    assert isinstance(cost, Cost)
    assert (cost.devices, cost.images) == (2, 4)
    assert cost.flops > 1e6
    assert 0 < cost.floor < cost.seconds
    text = "\n".join(lines("evaluate", cost))
    assert "4 images on 2 devices" in text
    assert json.loads(json.dumps(record("evaluate", cost)))["fits"]


def test_what_does_not_fit_is_tried_smaller():
    config = config_of("voc_maskclip", "--config.run.batch_size=4")
    (program,) = programs_of(config, (48, 64))
    whole = compile_program(program, config, here())
    half = config_of("voc_maskclip", "--config.run.batch_size=1")
    least = compile_program(*programs_of(half, (48, 64)), half, here())
    limit = (whole.needed + least.needed) // 2
    topology = Topology("small", CHIP._replace(memory=limit), jax.devices()[:1])
    result = compile_program(program, config, topology)
    assert result == TooLarge(whole.needed, limit)
    assert "does not fit" in lines("evaluate", result)[0]
    tried = list(what_fits(program, config, topology, (48, 64)))
    assert any(isinstance(each.result, Cost) for each in tried)
    assert any("--config.run.batch_size=" in each.options for each in tried)
    assert any("fits" in line for line in advice(tried))


def test_batches_follow_the_devices():
    config = config_of("voc_reclippp", images=8, devices=16)
    assert config.rectifier.batch_size == config.student.batch_size == 128
    assert config.run.batch_size == 128
    alone = config_of("voc_reclippp")
    mesh = programs_module.devices_of(
        next(iter(programs_of(alone, (48, 64), ["rectify"]))), alone, here(8)
    )
    assert mesh.size == 1  # the published batch is one image


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v9x:2x2", "no accelerator 'v9x'"),
        ("v5e", "v5e:4x4"),
        ("v5p:4x4", "v5p:2x2x2"),
        ("v5e:0x2", "v5e:4x4"),
        ("h100:many", "h100:8"),
    ],
)
def test_a_wrong_topology_is_one_line(monkeypatch, name, message):
    monkeypatch.setattr(topologies, "_need", lambda package, extra: None)
    with pytest.raises(ValueError, match=message):
        find_topology(name)


def test_a_missing_package_names_the_extra(monkeypatch, capsys):
    monkeypatch.setattr(topologies.importlib.util, "find_spec", lambda name: None)
    assert main(["--config=configs/voc_maskclip.py", "--topology=v5e:2x2"]) == 2
    error = capsys.readouterr().err
    assert "clipseg_jax[aot-tpu]" in error
    assert error.count("\n") == 1


def test_weights_that_are_no_name_are_refused():
    config = ConfigDict({"clip": {"weights": "here.pt"}})
    with pytest.raises(ValueError, match="no architecture that is known by name"):
        prepared(config, images_per_device=None, devices=1, dtype=None)


@pytest.mark.slow
def test_help_needs_no_jax():
    code = (
        "import sys; sys.argv = ['compile', '--help']\n"
        "from clipseg_jax.compile.__main__ import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "assert 'jax' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) <= 48
