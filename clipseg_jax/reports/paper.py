"""A run's numbers beside those of its paper, and what makes them no comparison."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ml_collections import ConfigDict

from clipseg_jax.core.config_arguments import installed
from clipseg_jax.core.config_names import is_free, new_name
from clipseg_jax.reports.results import Evaluation, Results
from clipseg_jax.stages.data import find_dataset
from clipseg_jax.stages.published_rows import Figure, PublishedRow, rows_of
from clipseg_jax.stages.work_directory import flat, names_path

# Beside this package, in a checkout as in an installation.
_RECIPES = Path(__file__).resolve().parents[2] / "configs"
_OWN = ("demo_world", "folder")  # datasets that no paper reports on


@dataclass(frozen=True)
class Comparison:
    """One published number and ours; None: the run has none yet."""

    row: PublishedRow
    figure: Figure
    ours: float | None


class Recipe:
    """The recipe of a work directory, as its newest run and its config tell."""

    def __init__(self, results: Results):
        self._results = results
        runs = results.runs
        name = runs[-1].get("recipe") if runs else None
        self.name = name if isinstance(name, str) else ""  # "voc_reclippp:2025"; "": not known

    @cached_property
    def values(self) -> dict[str, object]:
        """The config's values by full name, those of earlier versions by today's."""
        return {new_name(name): value for name, value in flat(self._results.config).items()}

    @cached_property
    def defaults(self) -> dict[str, object] | None:
        """The recipe's own values by full name; None where the recipe is not known here."""
        try:
            config = installed(self.name, _RECIPES)
        except ValueError:
            return None
        return flat(json.loads(json.dumps(config.to_dict())))

    def changed(self) -> dict[str, object]:
        """The values that are not the recipe's own, which may change results.

        Paths are not among them, but what is left out or new in this version is.
        """
        if self.defaults is None:
            return {}
        return {
            name: value
            for name, value in self.values.items()
            if not is_free(name)
            and not names_path(name)
            and value != self.defaults.get(name, _Missing)
        }


class _Missing:
    """Equal to no value of a config."""


def comparisons(results: Results, recipe: Recipe) -> list[Comparison]:
    """The published numbers of the run's recipe with its weights and values, and ours."""
    config, _, choice = recipe.name.partition(":")
    found = [row for row in rows_of(config, choice) if _is_of(row, recipe)]
    most = max((len(row.overrides) for row in found), default=0)
    found = [row for row in found if len(row.overrides) == most]  # the closest
    evaluations = {each.file: each for each in results.evaluations}
    return [
        Comparison(row, figure, _ours(evaluations, figure))
        for row in found
        for figure in row.figures
    ]


def _ours(evaluations: Mapping[str, Evaluation], figure: Figure) -> float | None:
    evaluation = evaluations.get(figure.file)
    return evaluation.number(figure.metric) if evaluation else None


def _is_of(row: PublishedRow, recipe: Recipe) -> bool:
    """Whether the run is one of this row: its weights, by their names, and its other values."""
    named = (_same_file(file, recipe.values.get(name)) for name, file in row.files.items())
    given = (_argument(recipe.values.get(name)) == text for name, text in row.overrides.items())
    return all(named) and all(given)


def _argument(value: object) -> str:
    """A value as the command line has it."""
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _same_file(released: str, value: object) -> bool:
    """Whether a value of a config names a released file: a path to it, or its name as ViT-B/16."""

    def plain(text: str) -> str:
        return re.sub(r"[^a-z0-9]", "", re.sub(r"\.(pt|pth|safetensors)$", "", text.lower()))

    return isinstance(value, str) and plain(value).endswith(plain(released))


def doubts(results: Results, recipe: Recipe, found: Sequence[Comparison]) -> list[str]:
    """Why the run's numbers say less than a paper's, in whole sentences; []: no reason is known."""
    return [*_doubts(results, recipe, found)]


def _doubts(results: Results, recipe: Recipe, found: Sequence[Comparison]) -> Iterator[str]:
    values = recipe.values
    dataset, weights = values.get("dataset.name"), str(values.get("clip.weights"))
    if dataset == "demo_world":
        yield "The pictures are those of the painted world, on which no paper reports."
    elif dataset in _OWN:
        yield "The pictures are a folder of the user's own, on which no paper reports."
    if weights == "demo" or Path(weights).name == "tiny_clip":
        yield "The CLIP is the tiny one of the demo, which knows the painted world only."
    if not recipe.name:
        yield "Which recipe this was is not recorded, so that no row of a paper can be named."
    elif recipe.defaults is None:
        yield f"The recipe {recipe.name} is not one of this package's."
    elif not found and dataset not in _OWN:
        yield f"No published number is known of {recipe.name} with these weights."
    changed = recipe.changed().keys() - {n for each in found for n in each.row.overrides}
    if changed:
        yield f"Values that are not the recipe's own: {', '.join(sorted(changed))}."
    if (published := _published_images(results)) is not None:
        for each in results.evaluations:
            images = each.number("images")
            skipped = each.figures.get("skipped")
            total = (images or 0) + (len(skipped) if isinstance(skipped, list) else 0)
            if images is not None and _is_val(each) and total not in published:
                yield (
                    f"{each.file} counts {total:.0f} images, the published split has "
                    f"{' or '.join(map(str, published))}."
                )
    for each in results.evaluations:
        skipped = each.figures.get("skipped")
        if isinstance(skipped, list) and skipped:
            yield f"{each.file} is without {len(skipped)} images that could not be read."


def _is_val(evaluation: Evaluation) -> bool:
    """Whether it is of the split that the recipe evaluates; CAMs and masks are of another one."""
    return evaluation.file not in ("metrics_cams.json", "metrics_masks.json", "metrics_tags.json")


def _published_images(results: Results) -> tuple[int, ...] | None:
    """How many images the evaluated split has as published; None: not known."""
    section = results.config.get("dataset")
    try:
        dataset = find_dataset(ConfigDict(section))
        split = dataset.layout.split(ConfigDict(section).split)
    except (ValueError, TypeError, KeyError, AttributeError, OSError):
        return None
    return None if split.count is None else (split.count, *split.also)
