"""Which rows can run with the files that are there, and what the others lack."""

from __future__ import annotations

from pathlib import Path

import pytest

from clipseg_jax.reproduce import listing, sources
from clipseg_jax.reproduce.__main__ import choose, main
from clipseg_jax.reproduce.plan import Folders, check_given, plans
from clipseg_jax.reproduce.sources import WEIGHTS, cached, dataset_source
from clipseg_jax.stages.published_rows import rows
from tests import folders
from tests.test_configs import load
from tests.test_docs import ROOT
from weights_convert import CheckpointError


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Empty folders of datasets and weights, and nothing downloaded."""
    monkeypatch.setenv("CLIPSEG_JAX_CACHE", str(tmp_path / "cache"))
    for name in ("data", "weights"):
        (tmp_path / name).mkdir()
    return Folders(tmp_path / "data", tmp_path / "weights", tmp_path / "out")


def missing(places, row):
    return [each.name for each in plans(places)[row].missing]


def test_nothing_is_there(places):
    for name, plan in plans(places).items():
        names = [each.name for each in plan.missing]
        assert names[0] in str(plan.config.dataset.root), name
        assert names[1:] == [*plan.row.files.values()]
        for each in plan.missing:
            assert each.places or each.command
            assert all(size.endswith((" MB", " GB")) for size, _ in each.places)
            assert " in " in each.reason
            assert each.command or "GitHub" in each.places[0][1] or each.name == "VOC2007"


def test_a_voc_folder_is_enough_for_some_rows(places):
    folders.write_voc(places.datasets / "VOCdevkit/VOC2012")
    for file in ("ViT-B-16.pt", "resnet50_v1c-2cccc1ad.pth"):
        (places.weights / file).write_bytes(b"")
    ready = {name for name, plan in plans(places).items() if not plan.missing}
    assert ready >= {"voc_maskclip_vit_b16", "voc21_naclip", "voc_reclippp", "voc_reclip"}
    assert all(name.startswith("voc") for name in ready)
    assert missing(places, "voc_maskclip_rn50") == ["RN50.pt"]
    assert missing(places, "voc21_proxyclip") == ["dino_vitbase8_pretrain.pth"]
    # Without SBD, nothing that trains on it.
    (lacks,) = plans(places)["voc_weclip"].missing
    assert lacks.reason == f"No folder {places.datasets}/VOCdevkit/VOC2012/SegmentationClassAug"
    assert lacks.command.startswith("python -m input_pipeline.prepare voc_aug --root ")
    assert [place[1].rpartition("/")[2] for place in lacks.places] == [
        "VOCtrainval_11-May-2012.tar", "benchmark.tgz",
    ]  # fmt: skip
    command = plans(places)["voc_maskclip_vit_b16"].command
    assert command[3:] == (
        "--config=voc_maskclip",
        f"--config.dataset.root={places.datasets}/VOCdevkit/VOC2012",
        f"--config.clip.weights={places.weights}/ViT-B-16.pt",
        f"--workdir={places.out}/voc_maskclip_vit_b16",
    )


def test_downloaded_weights_are_found(places, monkeypatch):
    here = places.datasets / "ViT-B-16.pt"
    here.write_bytes(b"")
    found = {"ViT-B/16": here}
    monkeypatch.setattr(sources, "find_cached", lambda name: found[name])
    assert cached("ViT-B-16.pt") == here
    assert cached("resnet101_imagenet.pth") is None  # which has no name
    monkeypatch.setattr(sources, "find_cached", lambda name: found.get(name))
    plan = plans(places)["voc_maskclip_vit_b16"]
    assert plan.config.clip.weights == str(here)
    assert [each.name for each in plan.missing] == ["VOC2012"]
    assert missing(places, "voc_maskclip_rn50") == ["VOC2012", "RN50.pt"]

    def damaged(name):
        raise CheckpointError("it is damaged")

    monkeypatch.setattr(sources, "find_cached", damaged)
    assert missing(places, "voc_maskclip_vit_b16") == ["VOC2012", "ViT-B-16.pt"]
    (places.weights / "ViT-B-16.pt").write_bytes(b"")  # one's own folder first
    monkeypatch.setattr(sources, "find_cached", lambda name: found.get(name))
    plan = plans(places)["voc_maskclip_vit_b16"]
    assert plan.config.clip.weights == str(places.weights / "ViT-B-16.pt")


def test_datasets_by_themselves_and_damaged_ones(places):
    root = folders.write_voc(places.datasets)  # the folder of datasets is VOC2012 itself
    assert missing(places, "voc21_clip") == ["ViT-B-16.pt"]
    next(root.glob("SegmentationClass/2007_000100.png")).unlink()
    lacks, _ = plans(places)["voc21_clip"].missing
    assert "VOC2012 in" in lacks.reason
    folders.write_context(places.datasets / "VOCdevkit/VOC2010")
    next(places.datasets.glob("VOCdevkit/VOC2010/*/2007_000100.png")).unlink()
    lacks, _ = plans(places)["context60_clip"].missing
    assert lacks.name == "VOC2010"
    assert lacks.reason.startswith("1 of 2 files are missing in ")
    assert lacks.reason.endswith("SegmentationClassContext: 2007_000100.png")


def test_image_labels_are_needed_where_they_are_read(places):
    voc = folders.write_voc(places.datasets / "VOCdevkit/VOC2012")
    (voc / "SegmentationClass").rename(voc / "SegmentationClassAug")
    lists = voc / "ImageSets/Segmentation"
    (lists / "train_aug.txt").write_text((lists / "train.txt").read_text())
    assert missing(places, "voc_weclip") == ["ViT-B-16.pt"]
    lacks = plans(places)["voc_clip_es"].missing[0]
    assert lacks.reason.startswith("no image labels of train_aug")
    (voc / "Annotations").mkdir()
    assert missing(places, "voc_clip_es") == ["ViT-B-16.pt", "deeplabv1_resnet101-coco.pth"]


def test_rows_that_need_another_row(places):
    plan = plans(places)["voc_clip_rc_transductive"]
    half = places.out / "voc_clip_rc_inductive/clip_rc_half.safetensors"
    assert plan.config.clip_rc.init_weights == str(half)
    assert plan.earlier == ("voc_clip_rc_inductive",)


def test_every_dataset_and_file_of_a_row_is_known():
    for row in rows():
        assert {*row.files.values()} <= {*WEIGHTS}
        module = load(ROOT / f"configs/{row.config}.py")
        config = module.get_config(*filter(None, [row.choice]))
        source = dataset_source(config.dataset.name, [config.dataset.split])
        assert source.archives
        assert source.how


def test_val_alone_needs_no_training_images():
    def names(splits):
        return [place[1].rpartition("/")[2] for place in source(splits).archives]

    def source(splits):
        return dataset_source("coco_stuff_164k", splits)

    assert names(["val"]) == ["val2017.zip", "stuffthingmaps_trainval2017.zip"]
    assert names(["train", "val"])[0] == "train2017.zip"
    command = source(["val"]).command(Path("my data"))
    assert command.endswith(" coco_stuff_171 --root 'my data' --write")


def test_globs():
    names = [row.row for row in choose(["voc_maskclip_v*", "voc21_naclip*"])]
    assert names == ["voc_maskclip_vit_b16", "voc21_naclip", "voc21_naclip_pamr"]
    assert choose([]) == [*rows()]
    assert [row.row for row in choose(["voc_clip_rc_[!it]*"])] == ["voc_clip_rc_fully"]


@pytest.mark.parametrize(
    ("pattern", "near"),
    [("voc_wecip", "voc_weclip"), ("voc21_nacilp*", "voc21_naclip"), ("Voc_*", ""), ("", "")],
)
def test_an_unknown_row_is_refused_with_near_names(pattern, near, places, capsys):
    options = ["--datasets", ".", "--weights", ".", "--out", str(places.out)]
    assert main([*options, "--rows", pattern]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: no row matches --rows {pattern}")
    assert f"near are {near}" in error or not near
    assert error.count("\n") == 1


def test_values_of_the_user(places):
    given = ["--config.head.total_steps=4", "--config.run.devices=1"]
    planned = plans(places, ["voc_weclip", "voc21_clip"], given)
    assert planned["voc_weclip"].config.head.total_steps == 4
    assert planned["voc_weclip"].published.head.total_steps == 30_000
    assert planned["voc21_clip"].config.run.devices == 1  # which has no head
    assert planned["coco_weclip"].config.run.devices is None  # which is not chosen
    check_given(given, choose(["voc_weclip", "voc21_clip"]))


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.head.total_stps=4", "did you mean head.total_steps"),
        ("--config.head.total_steps", "--config.KEY=VALUE"),
        ("head.total_steps=4", "--config.KEY=VALUE"),
        ("--workdir=here", "--config.KEY=VALUE"),
        ("--config.clip.weights=other.pt", "is set by the rows themselves"),
        ("--config.dataset.root=data", "is set by the rows themselves"),
        ("--config.stages=data", "is set by the rows themselves"),
        ("--config.fit.total_steps=4", "is called --config.head.total_steps now"),
        ("--config.student.width=8", "no config value student.width"),
        ("--config.head.total_steps=many", "it takes a whole number"),
    ],
)
def test_wrong_values_of_the_user(argument, message, places, capsys):
    options = ["--datasets", ".", "--weights", ".", "--out", str(places.out), "--dry-run"]
    assert main([*options, "--rows", "voc_weclip", "--", argument]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_dry_run_fits_100_columns_and_lists_all(places, capsys):
    options = ["--datasets", str(places.datasets), "--weights", str(places.weights)]
    assert main([*options, "--out", str(places.out), "--dry-run"]) == 0
    out = capsys.readouterr().out
    states, _, shopping = out.partition("\n\nmissing:\n")
    assert max(map(len, states.splitlines())) <= 100
    listed = [line.split()[0] for line in states.splitlines() if not line.startswith(" ")]
    assert listed == [row.row for row in rows()]
    files = {file for row in rows() for file in row.files.values()}
    assert all(f"\n{file}, for " in shopping for file in files)
    assert "\n  python -m weights_convert download ViT-B/16\n" in shopping
    wide = [line for line in shopping.splitlines() if len(line) > 100]
    assert all("://" in line or " in /" in line or "--root /" in line for line in wide)
    assert not places.out.exists()


def test_a_name_that_steers_a_terminal_is_escaped():
    assert "\x1b" not in listing.states([("row", "missing", "no \x1b[2J here")])


@pytest.mark.parametrize("option", ["datasets", "weights"])
def test_folders_that_are_not_there(option, tmp_path, capsys):
    here = {"datasets": tmp_path, "weights": tmp_path, "out": tmp_path / "out"}
    here[option] = tmp_path / "nothing"
    assert main([part for k, v in here.items() for part in (f"--{k}", str(v))]) == 2
    error = capsys.readouterr().err
    assert error == f"error: --{option} {tmp_path}/nothing is not a folder\n"
