"""The published numbers as data: the same as in docs/results.md, and every run can be built."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from clipseg_jax import main
from clipseg_jax.core.config_arguments import flat_names
from clipseg_jax.core.metrics import metric_names
from clipseg_jax.stages.published_rows import Figure, rows, rows_of
from clipseg_jax.stages.work_directory import flat
from tests.test_specs import missing

ROOT = Path(__file__).resolve().parents[2]
RESULTS = (ROOT / "docs/results.md").read_text("utf-8")
ROWS = {row.row: row for row in rows()}
LABELLED, ABSENT = "mIoU_of_labelled", "mIoU_absent_as_0"
# The numbers of a cell "paper" in each section: (file, metric).
COLUMNS = {
    "MaskCLIP": [("metrics.json", "mIoU")] * 3,  # of three towers
    "MaskCLIP+": [("metrics.json", "mIoU"), ("metrics.json", "mIoU(U)")],
    "ReCLIP and ReCLIP++": [
        ("metrics_rectified.json", ABSENT), ("metrics_distilled.json", ABSENT),
    ],
    "CLIP-ES and TagCLIP": [
        ("metrics_cams.json", LABELLED), ("metrics_masks.json", LABELLED),
        ("metrics_student.json", LABELLED),
    ],
    "WeCLIP and WTCLIP": [("metrics.json", LABELLED), ("metrics_crf.json", LABELLED)],
    "CLIP-RC": [("metrics.json", name) for name in ("pAcc", "mIoU(S)", "mIoU(U)", "hIoU")],
}  # fmt: skip
# Values of a command that name files, or where files are.
NOT_OVERRIDES = ("weights", "init_weights", "root")


def config_of(row, choice=None):
    choice = row.choice if choice is None else choice
    get_config = importlib.import_module(f"configs.{row.config}").get_config
    return get_config(choice) if choice else get_config()


def table(section):
    """The cells of each row of the section's first table, without its head."""
    text = re.split(rf"^## {re.escape(section)}$", RESULTS, flags=re.M)[1]
    lines = re.search(r"(?:^\|.*\n)+", text, re.M)[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def runs_of(command):
    """The rows that a cell "command" runs."""
    config, choice = re.search(r"--config=configs/(\w+)\.py:?([\w=,]*)", command).groups()
    given = dict(re.findall(r"--config\.([\w.]+)=([^\s`]+)", command))
    overrides = {k: v for k, v in given.items() if k.rpartition(".")[2] not in NOT_OVERRIDES}
    found = rows_of(config, choice)
    return [row for row in found if dict(row.overrides) == overrides]


def told():
    """(row, its figures by file and metric) of every number of docs/results.md."""
    for section, columns in COLUMNS.items():
        for cells in table(section):
            paper, command = cells[2], cells[-1]
            numbers = [] if paper in ("-", "no numbers") else paper.split(" / ")
            runs = runs_of(command)
            if section == "MaskCLIP":
                pairs = zip(runs, numbers, strict=True)
                yield from ((row, {columns[0]: float(value)}) for row, value in pairs)
            elif "tags" in command:
                yield runs[0], {("metrics_tags.json", "mAP"): float(paper)}
            else:
                figures = dict(zip(columns, numbers, strict=False))
                assert len(runs) == bool(numbers), command
                yield from (
                    (row, {k: float(v) for k, v in figures.items() if v != "-"}) for row in runs
                )
    datasets = re.search(r"^\| read-out \| (.*) \| mean", RESULTS, re.M)[1].split(" | ")
    for cells in table("Read-outs of CLIP"):
        for dataset, value in zip(datasets, cells[1:9], strict=True):
            if cells[0] != "same, its README":
                (row,) = runs_of(cells[-1].replace("voc21", dataset))
                yield row, {("metrics.json", "mIoU"): float(value)}


def test_results_have_the_same_numbers():
    seen = set()
    for row, figures in told():
        assert {(each.file, each.metric): each.paper for each in row.figures} == figures, row.row
        seen.add(row.row)
    assert seen == {*ROWS}


def test_the_readme_of_sclip_is_its_spread():
    (cells,) = [cells for cells in table("Read-outs of CLIP") if cells[0] == "same, its README"]
    datasets = re.search(r"^\| read-out \| (.*) \| mean", RESULTS, re.M)[1].split(" | ")
    for dataset, value in zip(datasets, cells[1:9], strict=True):
        spread = ROWS[f"{dataset}_sclip"].figures[0].spread
        assert f"its README {value}" in spread.source
        assert spread.low <= float(value) <= spread.high


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.row)
def test_every_row_can_be_built(row):
    config = config_of(row)
    names = flat_names(config)
    assert {*row.overrides, *row.files, *row.after} <= {*names}
    for name, value in row.overrides.items():
        assert flat(config.to_dict())[name] != value
    stages = row.overrides.get("stages", ",".join(config.stages)).split(",")
    assert {*stages} <= {*main.stages_of(config.method)}
    metrics = {*metric_names([1]), "mAP"}
    for figure in row.figures:
        assert figure.metric in metrics
        assert 0 < figure.paper < 100
        if figure.metric not in ("mAP", "mIoU(U)", "mIoU(S)", "pAcc"):
            assert figure.metric == config.evaluate.published_metric
        trained = {*stages} & {"train", "rectify", "distill"}
        if figure.file in ("metrics_cams.json", "metrics_masks.json"):  # before anything is trained
            trained = set()
        assert figure.random == bool(trained or "dataset.corruption" in row.overrides)
    for place in row.after.values():
        earlier = [*ROWS].index(place.partition("/")[0])
        assert earlier < [*ROWS].index(row.row)


def test_every_source_is_a_place_in_a_specification():
    sources = [row.source for row in rows()]
    sources += [each.spread.source for row in rows() for each in row.figures if each.spread]
    for source in sources:
        spec, place = re.search(r"\(spec (\w+), (section \d+)\)$", source).groups()
        assert not [*missing(spec, place)]


def test_spreads_are_near_the_paper():
    spreads = [(each, each.spread) for row in rows() for each in row.figures if each.spread]
    assert len(spreads) > 20
    for figure, spread in spreads:
        assert spread.low <= spread.high
        assert abs(figure.paper - spread.low) < 4


def test_rows_of_a_variant():
    assert rows_of("voc_reclippp", "") == rows_of("voc_reclippp", "2024") != ()
    assert rows_of("voc_reclippp", "2025") != rows_of("voc_reclippp", "2024")
    (row,) = rows_of("context_maskclip_plus", "teacher=vit_b16,student=deeplabv2_r50")
    assert row.figures == (Figure("metrics.json", "mIoU", 31.1, random=True),)
    assert rows_of("voc_maskclip_plus", "setting=zero_shot,classes=21,teacher=rn50") == ()
    assert rows_of("voc_wtclip", "") == ()
    assert [row.files["clip.weights"] for row in rows_of("voc_maskclip", "")][:3] == [
        "RN50.pt", "RN50x16.pt", "ViT-B-16.pt",
    ]  # fmt: skip


@pytest.mark.parametrize("row", [row for row in rows() if row.choice], ids=lambda row: row.row)
def test_defaults_of_choices(row):
    """`rows_of` takes a choice for the default exactly where the recipe does."""
    plain = config_of(row, "")
    assert (row in rows_of(row.config, "")) == (plain == config_of(row)), row.row
