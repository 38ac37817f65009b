"""The command `predict`: a folder to masks, and errors of the command line in one line."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from clipseg_jax import predict
from clipseg_jax.demo import world
from clipseg_jax.results.npz import load_scores


@pytest.fixture(scope="module")
def pictures():
    return [world.make("evaluation", i, 128) for i in range(3)]


def command(tmp_path, *paths, classes="sheep, tent, bus", more=()):
    return predict.main(
        [
            *map(str, paths),
            f"--classes={classes}",
            "--weights=demo",
            "--method=maskclip",
            f"--out={tmp_path / 'masks'}",
            "--templates=demo_world",
            "--short-side=64",
            "--batch-size=8",
            "--background-words=water, grass, sand, sky",
            *more,
        ]
    )


def test_a_folder_from_the_command_line(tmp_path, pictures, capsys):
    folder = tmp_path / "photos" / "trip"
    folder.mkdir(parents=True)
    for i in range(3):
        Image.fromarray(pictures[i].image).save(folder / f"{i}.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    assert command(tmp_path, tmp_path / "photos") == 0
    said = capsys.readouterr()
    assert "3 masks" in said.out
    assert "1 images skipped" in said.out
    assert "broken.jpg" in said.err

    out = tmp_path / "masks"
    mask = Image.open(out / "trip" / "0.png")
    assert mask.mode == "P"
    assert np.asarray(mask).shape == (128, 128)
    assert set(np.unique(np.asarray(mask))) <= {0, 1, 2, 3}
    shown = Image.open(out / "trip" / "0_overlay.jpg")
    assert shown.height > 128  # the legend below
    rows = [json.loads(line) for line in (out / "summary.jsonl").read_text().splitlines()]
    assert {row["mask"] for row in rows} == {"trip/0.png", "trip/1.png", "trip/2.png"}
    assert not [path for path in out.rglob("*") if path.name.startswith(".")]

    # Again: nothing is made twice; what is missing is made.
    (out / "trip" / "1.png").unlink()
    before = (out / "trip" / "0.png").stat().st_mtime_ns
    assert command(tmp_path, tmp_path / "photos") == 0
    assert "2 of 4 images already have masks" in capsys.readouterr().out
    assert (out / "trip" / "0.png").stat().st_mtime_ns == before
    assert (out / "trip" / "1.png").exists()

    # Other classes into the same folder would mix masks of two meanings.
    assert command(tmp_path, tmp_path / "photos", classes="boat") == 2
    assert "other settings (classes)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--classes= , "], "class list is empty; name at least one class: --classes, --class"),
        (["--classes=cat, cat"], "is listed twice"),
        (["--classes-file=none.txt"], "--classes-file none.txt does not exist"),
        (["--templates=none"], "no template set 'none'"),
        (["--background-words=", "--background=50"], "--background is 50.0; give a number from 0"),
        (["--background-words=", "--background=nan"], "--background is nan"),
        (["--background=0.5"], "--background 0.5 and --background-words are given"),
        (["--background-words=", "--background=.5", "--classes=cow"], "with one class"),
        (["--short-side=0"], "--short-side is 0; give a whole number of at least 1"),
        (["--batch-size=0"], "--batch-size is 0"),
        (["--opacity=2"], "--opacity is 2.0; give a number from 0 to 1"),
        (["--pd=-1"], "--pd is -1.0"),
        (["--pd=0.5", "--method=sclip"], "--pd is of maskclip alone; add --method maskclip"),
        (["--ks=inf"], "--ks is inf"),
        *(
            ([f"--heads={text}"], f"--heads is '{text}'; give two numbers")
            for text in ("12", "a,b", "-1,2", "", "12,8,4", "12,0", "1.5,2")
        ),
        *(
            ([f"--classes={text}"], "which would be part of the name; write plain names, cat, sofa")
            for text in ("'boat','fish'", "('boat', 'fish')", '"boat, fish"', "[boat, fish]")
        ),
        (["--background-words='sky'"], "--background-words has 'sky' with a quote"),
    ],
    ids=str,
)
def test_options_are_checked_before_any_work(tmp_path, capsys, pictures, more, message):
    path = tmp_path / "a.png"
    Image.fromarray(pictures[0].image).save(path)
    assert command(tmp_path, path, more=more) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "masks").exists()


def test_methods_and_refinements_by_name(tmp_path, capsys, pictures):
    path = tmp_path / "a.png"
    Image.fromarray(pictures[0].image).save(path)
    more = ["--method=naclip", "--refine=none"]
    assert command(tmp_path, path, more=more) == 0
    settings = json.loads((tmp_path / "masks" / "settings.json").read_text())
    assert (settings["method"], settings["refine"]) == ("naclip", "none")
    before = (tmp_path / "masks" / "a.png").read_bytes()
    assert command(tmp_path, path, more=["--method=naclip", "--refine=pamr"]) == 2
    assert "other settings (refine)" in capsys.readouterr().err
    assert command(tmp_path, path, more=["--method=naclip", "--refine=par", "--overwrite"]) == 0
    assert (tmp_path / "masks" / "a.png").read_bytes() != before
    for wrong in ("--method=clip-es", "--refine=sharpen"):
        with pytest.raises(SystemExit):
            command(tmp_path, path, more=[wrong])
        said = capsys.readouterr().err
        assert "invalid choice" in said
        assert said.count("\n") == 1


@pytest.mark.slow
def test_all_formats_with_the_network(tmp_path, capsys, pictures):
    """The scores that are stored are those of the masks."""
    (tmp_path / "photos").mkdir()
    for i, picture in enumerate(pictures):
        Image.fromarray(picture.image).save(tmp_path / f"photos/{i}.png")
    more = ["--format=coco,npz", "--scores-px=128"]
    assert command(tmp_path, tmp_path / "photos", more=more) == 0
    out = tmp_path / "masks"
    annotations = COCO(out / "annotations.json")
    for i in range(3):
        mask = np.asarray(Image.open(out / f"{i}.png"))
        scores = load_scores(out / f"{i}.npz")
        assert scores.names == ("background", "sheep", "tent", "bus")
        assert scores.values.shape == (128, 128, 4)
        assert scores.values.astype(np.float32).sum(axis=2).max() < 1.004
        assert np.mean(scores.segmentation().labels == mask) > 0.999  # float16 has ties
        painted = np.zeros_like(mask)
        for each in annotations.imgToAnns[i + 1]:
            painted[annotations.annToMask(each) > 0] = each["category_id"]
        np.testing.assert_array_equal(painted, mask)


def test_paths_are_checked(tmp_path, capsys, pictures):
    path = tmp_path / "a.png"
    Image.fromarray(pictures[0].image).save(path)
    assert command(tmp_path, tmp_path / "none.jpg") == 2
    assert "none.jpg is neither a file nor a folder" in capsys.readouterr().err
    # Weights that are not there lock nothing and leave nothing: the corrected command goes on.
    assert command(tmp_path, path, more=["--weights=nowhere.pt"]) == 2
    assert "nowhere.pt" in capsys.readouterr().err
    assert not (tmp_path / "masks").exists()


def test_wrong_usage_is_one_line(capsys):
    with pytest.raises(SystemExit) as stopped:
        predict.main(["a.jpg", "--weights=demo", "--clases=cow"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("name", ["images", "--weights", "--out", "--classes-file"])
def test_an_unset_variable_is_no_path(tmp_path, capsys, name):
    """An empty path would be the current folder."""
    paths, more = ([tmp_path, ""], []) if name == "images" else ([tmp_path], [f"{name}="])
    with pytest.raises(SystemExit) as stopped:
        command(tmp_path, *paths, more=more)
    assert stopped.value.code == 2
    option = "--model/--weights" if name == "--weights" else name
    assert f"argument {option}: it is empty; is a variable" in capsys.readouterr().err


def test_an_unwritable_folder(tmp_path, capsys, pictures):
    path = tmp_path / "a.png"
    Image.fromarray(pictures[0].image).save(path)
    blocked = tmp_path / "masks"
    blocked.write_text("a file where the folder should be")
    assert command(tmp_path, path) == 2
    assert "cannot write" in capsys.readouterr().err
    if os.geteuid():  # root may write anywhere
        locked = tmp_path / "locked"
        locked.mkdir(mode=0o500)
        assert command(locked, path) == 2
        assert "cannot write" in capsys.readouterr().err
