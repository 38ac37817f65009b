"""The commands' own words: every wrong argument is one line and status 2."""

import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from input_pipeline import commands, records_build
from input_pipeline.datasets.catalog import folder
from input_pipeline.datasets.images import BadImage, read_image
from input_pipeline.prepare import __main__ as prepare


def said(main, arguments, capsys):
    """The status and what is printed as error."""
    try:
        status = main(arguments)
    except SystemExit as ended:
        status = ended.code
    return status, capsys.readouterr().err.rstrip("\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "required: NAME, --root"),
        (["banana", "--root", "."], "invalid choice: 'banana'"),
        (["voc", "--root", "gs://bucket/voc"], "gs://bucket/voc is an address"),
        (["voc", "--root", ""], "it is empty"),
        (["voc", "--root", "absent"], "--root absent is not a folder"),
        (["voc", "--root", ".", "--source", "."], "--source needs --write"),
        (["voc", "--root", ".", "--write", "--source", "."], "--source is for voc_aug and context"),
        (["voc_aug", "--root", ".", "--write", "--source", "no"], "--source no is not a folder"),
        (["voc", "--root", ".", "--report", "s3://b/x.json"], "s3://b/x.json is an address"),
        (["voc", "--root", ".", "--report", "absent/x.json"], "must be a file in a folder"),
        (["voc", "--root", ".", "--depe"], "unrecognized arguments: --depe"),
    ],
)
def test_prepare(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, error = said(prepare.main, arguments, capsys)
    assert status == 2
    assert error.startswith("error: ")
    assert words in error
    assert "\n" not in error


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "required: NAME, --root, --out"),
        (["banana", "--root", ".", "--out", "x"], "invalid choice: 'banana'"),
        (["folder", "--root", "", "--out", "x"], "it is empty"),
        (["folder", "--root", ".", "--out", "gs://b/x"], "only be built in a local folder"),
        (["folder", "--root", ".", "--out", "x", "--split", "banana"], "no split 'banana'"),
        (["folder", "--root", ".", "--out", "x", "--split", ","], "no split ''"),
        (["folder", "--root", ".", "--out", "x", "--shards", "two"], "invalid int value: 'two'"),
        (["folder", "--root", "absent", "--out", "x"], "absent is not a folder"),
        (["voc12_20", "--root", ".", "--out", "x"], "No folder JPEGImages"),
    ],
)
def test_records_build(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, error = said(records_build.main, arguments, capsys)
    assert status == 2
    assert error.startswith("error: ")
    assert words in error
    assert "\n" not in error


@pytest.mark.parametrize(
    ("raised", "code", "words"),
    [
        (ValueError("a thing"), 2, "error: a thing"),
        (PermissionError(13, "Permission denied", "/data/x"), 2, "no permission for /data/x"),
        (PermissionError("not now"), 2, "no permission: not now"),
        (OSError(28, "No space left on device"), 74, "error: [Errno 28] No space"),
        (MemoryError(), 74, "error: out of memory"),
        (KeyboardInterrupt(), 130, "stopped"),
    ],
)
def test_errors_are_one_line(raised, code, words, capsys):
    def run():
        raise raised

    assert commands.exit_code(run) == code
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


SAYS = """
import sys
from input_pipeline.commands import begin, exit_code, say
begin()
assert open(__import__("os").devnull).fileno() > 2
sys.exit(exit_code(lambda: say("a warning", error=True) or say("done") or 0))
"""


@pytest.mark.parametrize(
    ("streams", "status"),
    [
        ("2>&-", 0),
        ("2>/dev/full", 0),
        (">&-", 0),
        ("> >(exec true)", 0),  # a reader that has gone
        (">/dev/full", 74),
    ],
)
def test_streams_that_cannot_be_written(streams, status):
    command = f"sleep 0.2; {shlex.quote(sys.executable)} -c {shlex.quote(SAYS)}"
    done = subprocess.run(
        ["bash", "-c", f"({command}) {streams}"], capture_output=True, text=True, check=False
    )
    assert done.returncode == status
    assert ("error: cannot write to standard output: No space left" in done.stderr) == bool(status)
    assert "Traceback" not in done.stderr


@pytest.fixture
def nobody():
    """Runs a test as a user who is not root, in a folder that this user may enter."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        os.seteuid(65534)
        try:
            yield Path(name)
        finally:
            os.seteuid(0)


def test_what_a_user_may_not_read_is_named(nobody, capsys):
    os.seteuid(0)
    for name in ("images", "labels"):
        (nobody / name).mkdir(mode=0o755)
        for i in range(2):
            Image.fromarray(np.zeros((4, 5), np.uint8)).save(nobody / name / f"{i}.png")
    os.chmod(nobody / "images/1.png", 0)
    os.chmod(nobody / "labels", 0)
    os.seteuid(65534)
    with pytest.raises(
        BadImage, match=r"1\.png: cannot be opened \(Permission denied\); check its"
    ):
        read_image(nobody / "images/1.png")
    assert commands.exit_code(lambda: len(folder(nobody, ["a"]).index(""))) == 2
    error = f"error: this user has no permission for {nobody.resolve() / 'labels'}; change its mode"
    assert capsys.readouterr().err.strip() == error
    arguments = ["folder", "--root", str(nobody), "--out", str(nobody / "out"), "--split", "val"]
    assert said(records_build.main, arguments, capsys) == (2, error)
