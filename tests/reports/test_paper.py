"""A run's numbers beside its paper's: the right row, and every reason to doubt."""

from __future__ import annotations

import dataclasses
import importlib
import json

import pytest

from clipseg_jax.core.files import write_json
from clipseg_jax.reports.evaluation_section import against_paper
from clipseg_jax.reports.paper import Recipe, comparisons, doubts
from clipseg_jax.reports.results import read_results
from clipseg_jax.stages.published_rows import Spread, rows
from tests.reports.pages import Page


def run_of(folder, recipe, changes=None, *, figures=None, recorded=True):
    """A work directory as a finished run of `recipe` leaves it, read."""
    name, _, choice = recipe.partition(":")
    config = importlib.import_module(f"configs.{name}").get_config(*([choice] if choice else []))
    config.update_from_flattened_dict(changes or {})
    folder.mkdir(parents=True)
    write_json(folder / "config.json", config.to_dict())
    for file, values in (figures or {}).items():
        write_json(folder / file, values)
    for stage in config.stages:
        write_json(folder / f"{stage}.done.json", {"seconds": 1.0})
    if recorded:
        line = {"started": "2026-01-01T00:00:00+00:00", "recipe": recipe}
        (folder / "runs.jsonl").write_text(json.dumps(line) + "\n")
    return read_results(folder)


def told(results):
    """(published, ours) of each number, and the doubts."""
    recipe = Recipe(results)
    found = comparisons(results, recipe)
    return [(each.figure.paper, each.ours) for each in found], doubts(results, recipe, found)


WEIGHTS = {"clip.weights": "/data/ViT-B-16.pt"}
VOC = {"images": 1449, "mIoU": 49.2, "skipped": []}


def test_a_published_run_is_compared_without_doubts(tmp_path):
    results = run_of(tmp_path / "a", "voc_maskclip", WEIGHTS, figures={"metrics.json": VOC})
    assert told(results) == ([(49.5, 49.2)], [])


def test_the_table_has_both_numbers_and_what_others_report(tmp_path):
    results = run_of(tmp_path / "a", "voc_maskclip", WEIGHTS, figures={"metrics.json": VOC})
    (each,) = comparisons(results, Recipe(results))
    page = Page(against_paper([each], []))
    assert page.rows == [
        ["number", "paper", "here", "difference"],
        ["MaskCLIP, ViT-B/16, mIoU", "49.5", "49.20", "-0.30"],
    ]
    for low, high, said in ((48.0, 49.1, "48 to 49.1"), (48.0, 48.0, "48")):
        figure = dataclasses.replace(each.figure, spread=Spread(low, high, "an issue"))
        page = Page(against_paper([dataclasses.replace(each, figure=figure)], ["<b>no</b>"]))
        assert page.rows[1][1] == said
        assert "<b>no</b>" in page.text


def test_the_row_is_that_of_the_weights(tmp_path):
    for i, (weights, paper) in enumerate(
        [
            ("RN50.pt", 41.5),
            ("x/RN50x16.pt", 50.9),
            ("ViT-B/16", 49.5),
            ("vit_b_16.safetensors", 49.5),
        ]
    ):
        results = run_of(tmp_path / str(i), "voc_maskclip", {"clip.weights": weights})
        assert told(results)[0] == [(paper, None)]
    found, said = told(run_of(tmp_path / "other", "voc_maskclip", {"clip.weights": "L14.pt"}))
    assert found == []
    assert said == ["No published number is known of voc_maskclip with these weights."]


def test_a_row_with_values_of_its_own(tmp_path):
    changes = {"clip.weights": "RN50.pt", "dataset.corruption": "speckle_noise"}
    found, said = told(run_of(tmp_path / "a", "voc_maskclip", changes))
    assert (found, said) == ([(30.9, None)], [])


def test_several_numbers_of_one_run(tmp_path):
    results = run_of(
        tmp_path / "a",
        "voc_reclippp",
        {**WEIGHTS, "student.init_weights": "resnet50_v1c-2cccc1ad.pth"},
        figures={"metrics_rectified.json": {"images": 1449, "mIoU_absent_as_0": 73.0}},
    )
    assert told(results) == ([(73.5, 73.0), (79.2, None)], [])


@pytest.mark.parametrize(
    ("changes", "figures", "said"),
    [
        ({"maskclip.ks_threshold": 0.5}, VOC, "not the recipe's own: maskclip.ks_threshold."),
        ({"dataset.name": "voc12_21"}, VOC, "not the recipe's own: dataset.name."),
        ({}, VOC | {"images": 500}, "counts 500 images, the published split has 1449."),
        ({}, VOC | {"images": 1447, "skipped": ["a", "b"]}, "without 2 images"),
        ({"clip.weights": "demo"}, VOC, "The CLIP is the tiny one of the demo"),
        ({"dataset.name": "folder", "dataset.class_names": ("a",)}, VOC, "of the user's own"),
    ],
)
def test_what_speaks_against_a_comparison(tmp_path, changes, figures, said):
    results = run_of(
        tmp_path / "a", "voc_maskclip", WEIGHTS | changes, figures={"metrics.json": figures}
    )
    assert said in " ".join(told(results)[1])


@pytest.mark.parametrize("changes", [{"run.pictures": 5}, {"dataset.root": "/elsewhere"}])
def test_what_changes_no_result_is_no_doubt(tmp_path, changes):
    results = run_of(tmp_path / "a", "voc_maskclip", WEIGHTS | changes)
    assert told(results)[1] == []


def test_recipes_that_are_not_known(tmp_path):
    results = run_of(tmp_path / "a", "voc_maskclip", WEIGHTS, recorded=False)
    assert told(results) == (
        [], ["Which recipe this was is not recorded, so that no row of a paper can be named."],
    )  # fmt: skip
    for name in ("own_recipe", "../../etc/passwd", "voc_maskclip:nothing"):
        line = {"started": "2026-01-01T00:00:00+00:00", "recipe": name}
        (tmp_path / "a" / "runs.jsonl").write_text(json.dumps(line) + "\n")
        found, said = told(read_results(tmp_path / "a"))
        assert found == []
        assert f"The recipe {name} is not one of this package's." in said


def test_the_demo_says_nothing_about_a_paper(tmp_path):
    found, said = told(run_of(tmp_path / "a", "demo_weclip"))
    assert found == []
    assert "painted world" in said[0]
    assert not any("No published number" in each for each in said)


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.row)
def test_every_published_row_is_found_by_its_run(tmp_path, row):
    """With the released weights' names and the row's own values."""
    recipe = f"{row.config}:{row.choice}" if row.choice else row.config
    changes = {**row.files, **row.overrides}
    changes |= {name: "x/clip_rc_half.safetensors" for name in row.after}
    if "stages" in changes:
        changes["stages"] = tuple(changes["stages"].split(","))
    results = run_of(tmp_path / "a", recipe, changes)
    recipe = Recipe(results)
    found = comparisons(results, recipe)
    assert {each.row.row for each in found} == {row.row}
    assert doubts(results, recipe, found) == []
