"""The loop over rows, with programs in place of recipes; the recipes themselves: test_main."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time

import pytest

from clipseg_jax.reproduce import table
from clipseg_jax.reproduce.loop import look, reproduce
from clipseg_jax.reproduce.plan import Folders, Plan
from clipseg_jax.reproduce.sources import WEIGHTS
from clipseg_jax.stages.published_rows import rows
from tests import folders

FILES = ("ViT-B-16.pt", "RN50.pt", "resnet50_v1c-2cccc1ad.pth")
# What a recipe leaves behind: stages' records and files of metrics.
RECIPE = """
import json, pathlib, sys, time
workdir, stages, metrics, images = pathlib.Path(sys.argv[1]), *map(json.loads, sys.argv[2:])
workdir.mkdir(exist_ok=True)
ACTION
(workdir / "config.json").write_text("{}")
start = {"devices": "1 process, 4 devices: TPU v5", "system": "Linux, 4 cores", "python": "3.11",
         "packages": {"jax": "0.10"}}
(workdir / "runs.jsonl").write_text(json.dumps(start) + "\\n")
for name, values in metrics.items():
    (workdir / name).write_text(json.dumps(values))
for name in stages:
    record = {"seconds": 2.5, "images": images}
    (workdir / f"{name}.done.json").write_text(json.dumps(record))
"""
IMAGES = {"val": 1449, "train": 1464, "trainaug": 10582, "train_aug": 10582}


class Recipes:
    """Programs in place of rows: what they do before they are done, and their numbers."""

    def __init__(self):
        self.actions, self.changes, self.images = {}, {}, dict(IMAGES)

    def command(self, plan):
        metrics = {}
        for figure in plan.row.figures:
            ours = round(figure.paper + self.changes.get(plan.row.row, 0.0), 2)
            metrics.setdefault(figure.file, {})[figure.metric] = ours
        splits = {plan.config.dataset[k] for k in plan.config.dataset if k.endswith("split")}
        images = {split: self.images[split] for split in splits}
        if len(images) == 1:
            (images,) = images.values()
        code = RECIPE.replace("ACTION", self.actions.get(plan.row.row, ""))
        values = map(json.dumps, (plan.config.stages, metrics, images))
        return (sys.executable, "-c", code, str(plan.workdir), *values)


@pytest.fixture
def recipes(monkeypatch):
    made = Recipes()
    monkeypatch.setattr(Plan, "command", property(made.command))
    return made


@pytest.fixture
def places(tmp_path, monkeypatch):
    """VOC and some weights."""
    monkeypatch.setenv("CLIPSEG_JAX_CACHE", str(tmp_path / "cache"))
    folders.write_voc(tmp_path / "data/VOCdevkit/VOC2012")
    (tmp_path / "weights").mkdir()
    for file in FILES:
        (tmp_path / "weights" / file).write_bytes(b"")
    return Folders(tmp_path / "data", tmp_path / "weights", tmp_path / "out")


def start(places, *names, given=()):
    """The exit code of the command for these rows."""
    chosen = [row.row for row in rows() if row.row in names]
    assert len(chosen) == len(names)
    return reproduce(look(places, chosen, given))


def entries(places):
    return table.read(places.out)


def test_rows_run_and_are_not_run_again(places, recipes, capsys):
    recipes.changes = {"voc21_naclip": -0.3, "voc_reclip": 0.4}
    names = ("voc_maskclip_vit_b16", "voc21_naclip", "voc_reclip")
    assert start(places, *names) == 0
    out = capsys.readouterr().out
    assert out.startswith("3 to run, 0 done before, 0 lack something\n")
    assert "[2/3] voc21_naclip: done in 0:00:0" in out
    assert ": mIoU 58.6, paper 58.9, 0.30 below\n" in out
    made = entries(places)
    assert [*made] == [row.row for row in rows() if row.row in names]
    numbers = made["voc_reclip"]["numbers"]
    assert [(each["ours"], each["difference"], each["verdict"]) for each in numbers] == [
        (58.9, 0.4, "equal within 0.5"), (75.8, 0.4, "equal within 0.5"),
    ]  # fmt: skip
    assert made["voc_reclip"]["seconds"] == 7 * 2.5
    assert made["voc_reclip"]["devices"] == "1 process, 4 devices: TPU v5"
    assert made["voc_reclip"]["notes"] == []
    assert made["voc_reclip"]["system"] == "Linux, 4 cores"
    assert made["voc_reclip"]["versions"] == {"python": "3.11", "jax": "0.10"}
    text = (places.out / "table.md").read_text()
    assert start(places, *names) == 0
    assert "0 to run, 3 done before" in capsys.readouterr().out
    assert (places.out / "table.md").read_text() == text
    assert (places.out / "voc_reclip/log.txt").read_text().count(sys.executable) == 1


def test_a_failing_row_stops_no_other(places, recipes, capsys):
    recipes.actions["voc_maskclip_rn50"] = "print('error: out of memory; shrink'); sys.exit(74)"
    names = ("voc_maskclip_rn50", "voc_maskclip_rn50x16", "voc_maskclip_vit_b16")
    assert start(places, *names) == 2
    made = entries(places)
    assert [made[name]["state"] for name in names] == ["failed", "missing", "done"]
    assert made["voc_maskclip_rn50"]["reason"] == "out of memory; shrink"
    assert made["voc_maskclip_rn50x16"]["reason"] == "RN50x16.pt"
    assert "failed in 0:00:00: out of memory; shrink" in capsys.readouterr().out
    text = (places.out / "table.md").read_text()
    assert "- voc_maskclip_rn50: failed: out of memory; shrink\n" in text
    assert "- voc_maskclip_rn50x16: missing: RN50x16.pt\n" in text
    # Other rows later: what failed and what is done stay in the table.
    assert start(places, "voc21_clip") == 0
    assert [entry["state"] for entry in entries(places).values()] == ["failed", "done", "done"]
    # It is run again where it is chosen.
    recipes.actions.clear()
    assert start(places, *names) == 0
    assert entries(places)["voc_maskclip_rn50"]["state"] == "done"


def test_nothing_can_run(places, recipes, capsys):
    assert start(places, "voc_maskclip_rn50x16", "ade20k_reclip") == 2
    assert "0 to run, 0 done before, 2 lack something (--dry-run" in capsys.readouterr().out
    assert {entry["state"] for entry in entries(places).values()} == {"missing"}


def test_a_run_that_ends_without_its_numbers_failed(places, recipes):
    recipes.actions["voc21_clip"] = "print('all done'); sys.exit(0)"
    assert start(places, "voc21_clip") == 2
    assert entries(places)["voc21_clip"]["reason"] == "exit code 0: all done"


@pytest.mark.parametrize("fails", [True, False])
def test_rows_after_other_rows(fails, places, recipes):
    voc = places.datasets / "VOCdevkit/VOC2012"
    (voc / "SegmentationClassAug").mkdir()
    lists = voc / "ImageSets/Segmentation"
    (lists / "aug.txt").write_text("2007_000000\n")
    (lists / "train.txt").write_text("2007_000001\n")
    (voc / "SegmentationClass/2007_000000.png").rename(voc / "SegmentationClassAug/2007_000000.png")
    first, second = "voc_clip_rc_inductive", "voc_clip_rc_transductive"
    assert start(places, second) == 2  # alone
    assert entries(places)[second]["reason"] == f"the row {first}"
    if fails:
        recipes.actions[first] = "print('error: no'); sys.exit(2)"
    assert start(places, first, second) == (2 if fails else 0)
    made = entries(places)
    assert made[second]["state"] == ("missing" if fails else "done")
    if not fails:
        assert start(places, second) == 0


WAIT = "(workdir / 'began').touch(); time.sleep(60)"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_and_resumed(number, places, recipes, capsys):
    names = ("voc_maskclip_rn50", "voc_maskclip_vit_b16", "voc21_clip")
    recipes.actions["voc_maskclip_vit_b16"] = WAIT

    def stop():
        while not (places.out / "voc_maskclip_vit_b16/began").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=stop)
    thread.start()
    assert start(places, *names) == 128 + number
    thread.join()
    said = capsys.readouterr()
    assert said.err.endswith("stopped; run the same command again to resume\n")
    made = entries(places)
    assert [made[name]["state"] for name in names] == ["done", "interrupted", "ready"]
    recipes.actions.clear()
    assert start(places, *names) == 0
    assert "2 to run, 1 done before" in capsys.readouterr().out


def test_other_runs_than_the_papers_are_not_compared(places, recipes):
    recipes.images["val"] = 1400
    assert start(places, "voc_maskclip_vit_b16", "voc_reclip") == 0
    made = entries(places)
    for name in ("voc_maskclip_vit_b16", "voc_reclip"):
        assert made[name]["notes"] == ["val has 1400 images (published: 1449)"]
        assert {each["verdict"] for each in made[name]["numbers"]} == {"not comparable"}
    config = places.out / "voc_reclip/config.json"
    config.write_text(json.dumps({"rectifier": {"total_epochs": 3}, "run": {"devices": 2}}))
    data = places.out / "voc_reclip/evaluate.done.json"
    data.write_text(json.dumps({"skipped": 4, "seconds": 1.0}))
    assert start(places, "voc21_clip") == 0  # rows that are not chosen, too
    assert entries(places)["voc_reclip"]["notes"] == [
        "rectifier.total_epochs=3 (published: 200)",
        "val has 1400 images (published: 1449)",
        "4 images were left out in the stage evaluate",
    ]
    # Of other values than are asked for: that is the recipe's own to refuse.
    recipes.actions["voc_reclip"] = "print('error: another configuration'); sys.exit(2)"
    assert start(places, "voc_reclip") == 2
    given = ["--config.rectifier.total_epochs=3"]
    assert start(places, "voc_reclip", given=given) == 0


def test_damaged_results_are_told(places, recipes):
    assert start(places, "voc21_clip", "voc20_clip") == 0
    (places.out / "voc21_clip/metrics.json").write_text("{")
    recipes.actions["voc21_clip"] = "sys.exit(0)"
    assert start(places, "voc21_clip", "voc20_clip") == 2
    made = entries(places)
    assert made["voc21_clip"]["reason"].startswith(f"{places.out}/voc21_clip/metrics.json is dam")
    assert made["voc20_clip"]["state"] == "done"


def test_the_table_is_made_of_work_directories_alone(places, recipes):
    assert start(places, "voc21_clip") == 0
    before = entries(places)
    (places.out / "table.json").unlink()
    assert start(places, "voc21_clip") == 0
    assert entries(places) == before
    (places.out / "voc21_clip/runs.jsonl").unlink()  # of an earlier version
    assert start(places, "voc21_clip") == 0
    after = entries(places)["voc21_clip"]
    assert (after["devices"], after["system"], after["versions"]) == ("", "", {})
    assert after["numbers"] == before["voc21_clip"]["numbers"]


@pytest.mark.parametrize(
    ("content", "notes"),
    [
        ({"sha256": WEIGHTS["ViT-B-16.pt"].sha256}, []),
        ({"sha256": "12" * 32}, [f"ViT-B-16.pt is not the released file (sha256 {'12' * 32})"]),
        ({}, ["ViT-B-16.pt is not the released file (sha256 of a folder)"]),
    ],
)
def test_the_checksum_of_weights(content, notes, places, recipes):
    assert start(places, "voc21_clip") == 0
    recorded = {"clip.weights": {"path": "x", "digest": "y", **content}}
    (places.out / "voc21_clip/content.json").write_text(json.dumps(recorded))
    assert start(places, "voc21_clip") == 0
    assert entries(places)["voc21_clip"]["notes"] == notes


def test_a_checksum_of_which_the_beginning_is_known(places, recipes):
    assert start(places, "voc_reclip") == 0
    recorded = {"path": "x", "digest": "y", "sha256": "2cccc1ad" + "0" * 56}
    content = json.dumps({"student.init_weights": recorded})
    (places.out / "voc_reclip/content.json").write_text(content)
    assert start(places, "voc_reclip") == 0
    assert entries(places)["voc_reclip"]["notes"] == []
