"""The command: what it writes and prints, and one line for what a user did wrong."""

from __future__ import annotations

import re
import subprocess
import sys

import numpy as np
import pytest

import weights_convert
from tests.weights_convert import toys
from weights_convert import __main__ as command
from weights_convert.__main__ import main
from weights_convert.formats.torch_writer import write_torch


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_torch(tmp_path_factory.mktemp("source") / "toy.pt", toys.as_released(toys.vit()))


def _fails(capsys, *argv):
    try:
        code = main([str(arg) for arg in argv])
    except SystemExit as stop:
        code = stop.code
    out, err = capsys.readouterr()
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


def test_convert_then_export(source, tmp_path, capsys):
    converted = tmp_path / "new" / "toy.safetensors"
    assert main([str(source), "-o", str(converted)]) == 0
    assert "ViT, patch 8, width 128" in capsys.readouterr().out
    for start in (source, converted):
        back = tmp_path / "back.pt"
        assert main([str(start), "--export", str(back), "--to", "openai"]) == 0
        expected = toys.as_released(toys.vit())
        toys.assert_same(weights_convert.read_state_dict(back), expected)
        for layout in ("huggingface", "maskclip"):
            target = tmp_path / f"{start.suffix}_{layout}"
            assert main([str(start), "--export", str(target), "--to", layout]) == 0
            loaded = weights_convert.load_clip(target)
            value = np.asarray(loaded.model.visual.proj[...])
            np.testing.assert_array_equal(value, expected["visual.proj"].astype(np.float32))


@pytest.mark.parametrize(
    "given", [["", "--inspect"], ["a.pt", "-o", ""], ["gs://bucket/a.pt", "-o", "b.pt"]]
)
def test_what_is_no_path_of_this_machine(given, capsys):
    assert re.search("it is empty|is an address", _fails(capsys, *given))


def test_interrupted(source, tmp_path, capsys, monkeypatch):
    def interrupted(file, arrays, **_):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "save_converted", interrupted)
    assert main([str(source), "-o", str(tmp_path / "new.safetensors")]) == 130
    assert capsys.readouterr().err == "stopped; nothing was written\n"


def test_vision_only(source, tmp_path):
    target = tmp_path / "tower.safetensors"
    assert main([str(source), "-o", str(target), "--vision-only"]) == 0
    loaded = weights_convert.load_clip(target)
    assert loaded.tokenizer is None
    assert loaded.model.cfg.text is None


def test_inspect_clip(source, tmp_path, capsys):
    converted = tmp_path / "toy.safetensors"
    main([str(source), "-o", str(converted)])
    capsys.readouterr()
    for path, kind in ((source, "torch zip"), (converted, "converted")):
        assert main(["--inspect", str(path)]) == 0
        lines = capsys.readouterr().out.splitlines()
        facts = dict(line.split(maxsplit=1) for line in lines[:8])
        assert facts["kind"] == kind
        assert facts["bytes"] == f"{path.stat().st_size:,}"
        assert len(facts["sha256"]) == 64
        assert "patch 8, width 128, 2 layers, 2 heads" in facts["sizes"]
        assert "openai" in facts["layout"]
        assert "float16" in facts["tensors"]
        assert any(line.split()[:2] == ["visual.proj", "float16"] for line in lines[8:])


def test_inspect_what_is_no_clip(tmp_path, capsys):
    content = {"meta": {"epoch": 1}, "state_dict": {"layer1.0.conv1.weight": np.ones((4, 3, 1, 1))}}
    write_torch(tmp_path / "resnet.pth", content)
    write_torch(tmp_path / "text.pth", np.ones((20, 512), np.float32))
    write_torch(tmp_path / "nothing.pth", {"epoch": 3, "best": 0.5, "name": "x", "none": None})
    said = {}
    for path in sorted(tmp_path.iterdir()):
        assert main(["--inspect", str(path)]) == 0
        said[path.stem] = capsys.readouterr().out
        assert "not a complete CLIP" in said[path.stem]
    assert "layer1.0.conv1.weight  float64   [4, 3, 1, 1]" in said["resnet"]
    assert "float32   [20, 512]" in said["text"]
    assert "0 (none)" in said["nothing"]


def test_user_errors_are_one_line(source, tmp_path, capsys):
    out = tmp_path / "out.safetensors"
    text = tmp_path / "notes.txt"
    text.write_text("not a checkpoint at all, but longer than sixteen bytes\n")
    bad = toys.vit()
    del bad["visual.ln_pre.bias"]
    bad["visual.more"] = np.zeros(2, np.float32)
    write_torch(tmp_path / "bad.pt", bad)
    assert "no checkpoint at" in _fails(capsys, tmp_path / "lost.pt", "-o", out)
    assert "not a readable checkpoint" in _fails(capsys, text, "-o", out)
    assert "not a readable checkpoint" in _fails(capsys, "--inspect", text)
    both = _fails(capsys, tmp_path / "bad.pt", "-o", out)
    assert "- visual.ln_pre.bias: missing" in both
    assert "+ visual.more (2,): unexpected" in both
    assert "holds no weights" in _fails(capsys, tmp_path, "-o", out)
    assert "is a directory" in _fails(capsys, source, "-o", tmp_path)
    assert "the source itself" in _fails(capsys, source, "-o", source)
    assert "cannot write" in _fails(capsys, source, "-o", text / "out.safetensors")
    assert "go together" in _fails(capsys, source, "--export", out)
    assert "go together" in _fails(capsys, source, "-o", out, "--to", "openai")
    assert "required" in _fails(capsys, source)
    assert "invalid choice" in _fails(capsys, source, "--export", out, "--to", "onnx")
    assert not out.exists()
    write_torch(tmp_path / "resnet.pt", toys.resnet())
    resnet = _fails(capsys, tmp_path / "resnet.pt", "--export", out, "--to", "huggingface")
    assert "ViT towers" in resnet
    assert not out.exists()


@pytest.mark.slow
def test_as_a_process(source):
    def run(*argv):
        return subprocess.run(
            [sys.executable, "-m", "weights_convert", *map(str, argv)],
            cwd=toys.ROOT, capture_output=True, text=True,
        )  # fmt: skip

    done = run("--help")
    assert done.returncode == 0
    assert "--inspect" in done.stdout
    assert "examples:" in done.stdout
    done = run(source.parent / "lost.pt", "--inspect")
    assert done.returncode == 2
    assert done.stderr.startswith("error: no checkpoint at")
    assert "Traceback" not in done.stderr
