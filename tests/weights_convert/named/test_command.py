"""`python -m weights_convert download` and `list`, and names where the command takes files."""

from __future__ import annotations

import pytest

from tests.weights_convert import toys
from weights_convert.__main__ import main
from weights_convert.formats.torch_writer import write_torch
from weights_convert.named.names import KNOWN


@pytest.fixture
def toy(known, tmp_path):
    return known(write_torch(tmp_path / "clip.pt", toys.as_released(toys.vit())).read_bytes())


def test_list(toy, cache, capsys):
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(KNOWN) + 1
    assert not lines[-2].endswith("here")
    assert lines[-1] == f"Names are downloaded once, into {cache} (set CLIPSEG_JAX_CACHE)."
    assert "8 digits of sha256" in next(line for line in lines if line.startswith("resnet50_v1c"))
    assert main(["download", "Toy/1"]) == 0
    capsys.readouterr()
    assert main(["list"]) == 0
    assert capsys.readouterr().out.splitlines()[-2].endswith("here")


def test_download(toy, cache, capsys):
    assert main(["download", "Toy/1", "demo"]) == 0
    out, err = capsys.readouterr()
    first, second = out.splitlines()
    assert first == f"Toy/1: {cache}/weights/toy.pt ({toy.size:,} bytes)"
    assert second.startswith("demo: ")
    assert err.splitlines()[0].startswith("downloading Toy/1 from ")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["Toy/1", "nonsense"], "nonsense is no known name; `python -m weights_convert list` has"),
        (["ViT-B-16"], "is the name ViT-B/16 meant?"),
        (["https://host/a.pt"], "has no checksum"),
        ([], "the following arguments are required: NAME"),
    ],
)
def test_names_that_are_wrong_are_said_before_anything_is_downloaded(
    toy, server, names, message, capsys
):
    try:
        code = main(["download", *names])
    except SystemExit as stop:
        code = stop.code
    err = capsys.readouterr().err
    assert code == 2
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1
    assert server.asked == []


def test_without_a_network(toy, server, capsys):
    server.faults.status = [503] * 10
    assert main(["download", "Toy/1"]) == 74
    assert main(["--inspect", "Toy/1"]) == 74
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("error: cannot download Toy/1: the server says HTTP 503")


def test_names_in_place_of_files(toy, tmp_path, capsys):
    assert main(["--inspect", "Toy/1"]) == 0
    assert toy.sha256 in capsys.readouterr().out
    target = tmp_path / "toy.safetensors"
    assert main(["Toy/1", "-o", str(target)]) == 0
    assert "from toy.pt (torch zip" in capsys.readouterr().out
    assert main(["https://host/a.pt", "-o", str(target)]) == 2
    assert "has no checksum" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [["--help"], ["list", "--help"], ["download", "--help"]])
def test_help_names_the_cache(argv, cache, capsys):
    with pytest.raises(SystemExit):
        main(argv)
    out = " ".join(capsys.readouterr().out.split())
    assert "Names are downloaded once, into" in out
    assert str(cache) in out.replace("- ", "-")
