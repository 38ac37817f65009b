"""What can run: each row's command, and what it lacks."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from ml_collections import ConfigDict

from clipseg_jax.core.config_arguments import flat_names, resolve
from clipseg_jax.main import RECIPES
from clipseg_jax.reproduce.sources import WEIGHTS, Place, cached, dataset_source
from clipseg_jax.stages.published_rows import PublishedRow, rows
from input_pipeline.datasets import records
from input_pipeline.datasets.catalog import BY_NAME, Dataset
from input_pipeline.datasets.image_labels import has_annotations
from input_pipeline.text_lists import printable

# (dataset, splits, split whose image labels are needed) -> its root, and what it lacks.
Look = Callable[[Dataset, frozenset[str], str | None], tuple[Path, str]]


@dataclass(frozen=True)
class Folders:
    """Where datasets and released weights are, and where results go."""

    datasets: Path
    weights: Path
    out: Path


@dataclass(frozen=True)
class Missing:
    """Something that a row lacks.

    Attributes:
      name: a file, or a dataset's folder.
      reason: what was looked for.
      places: where it is had.
      how: what is done with what is had there; "" if it is used as it is.
      command: what makes and checks the rest; "": nothing.
    """

    name: str
    reason: str
    places: tuple[Place, ...] = ()
    how: str = ""
    command: str = ""


@dataclass(frozen=True)
class Plan:
    """How a row runs.

    Attributes:
      workdir: of its results.
      arguments: of `python -m clipseg_jax.main`, but for --workdir.
      published: the config that the numbers are of.
      config: what is run: with the user's own values.
      missing: (): the row can run.
    """

    row: PublishedRow
    workdir: Path
    arguments: tuple[str, ...]
    published: ConfigDict
    config: ConfigDict
    missing: tuple[Missing, ...]

    @property
    def command(self) -> tuple[str, ...]:
        """The whole command."""
        start = (sys.executable, "-m", "clipseg_jax.main")
        return (*start, *self.arguments, f"--workdir={self.workdir}")

    @property
    def earlier(self) -> tuple[str, ...]:
        """The rows that must have run before."""
        return tuple(place.partition("/")[0] for place in self.row.after.values())


def plans(
    folders: Folders, chosen: Collection[str] = (), given: Sequence[str] = ()
) -> dict[str, Plan]:
    """The plan of every row by its name, in the order in which they run.

    Args:
      chosen: the rows that `given` is for.
      given: the user's own `--config.KEY=VALUE`; those that a recipe does not have are left out.

    Raises:
      ValueError: a value of another type.
    """
    look = functools.cache(functools.partial(_look, folders.datasets))
    return {
        row.row: _plan(row, folders, given if row.row in chosen else (), look) for row in rows()
    }


def _plan(row: PublishedRow, folders: Folders, given: Sequence[str], look: Look) -> Plan:
    recipe = [_recipe(row), *(f"--config.{key}={value}" for key, value in row.overrides.items())]
    published = resolve(recipe, RECIPES)
    names = flat_names(published)
    root, missing = _dataset(published, look)
    paths = {"dataset.root": root}
    for key, file in row.files.items():
        paths[key] = folders.weights / file
        if not paths[key].exists():
            paths[key] = cached(file) or paths[key]
        if not paths[key].exists():
            missing.append(_missing_weights(file, folders.weights))
    paths |= {key: folders.out / place for key, place in row.after.items()}
    arguments = [*recipe, *(f"--config.{key}={path}" for key, path in paths.items())]
    arguments += [each for each in given if _key(each) in names]
    config = resolve(arguments, RECIPES)
    workdir = folders.out / row.row
    return Plan(row, workdir, tuple(arguments), published, config, tuple(missing))


def _missing_weights(file: str, folder: Path) -> Missing:
    place, _, name = WEIGHTS[file]
    if not name:
        return Missing(file, f"not in {folder}", (place,))
    reason = f"neither in {folder} nor downloaded before"
    command = f"python -m weights_convert download {name}"
    return Missing(file, reason, (place,), command=command)


def check_given(given: Sequence[str], chosen: Sequence[PublishedRow]) -> None:
    """Refuses the user's own arguments that no chosen row has, or that rows set themselves.

    Raises:
      ValueError: names the argument.
    """
    ours = {"dataset.root", "stages"}
    names: set[str] = set()
    for row in chosen:
        ours |= {*row.files, *row.after, *row.overrides}
        names |= _names(_recipe(row))
    for argument in given:
        if not argument.startswith("--config.") or "=" not in argument:
            raise ValueError(
                f"{printable(argument)}: behind -- stand values of the rows' configs, "
                "--config.KEY=VALUE, such as --config.run.devices=1"
            )
        if _key(argument) in ours:
            raise ValueError(f"--config.{_key(argument)} is set by the rows themselves; omit it")
        if _key(argument) not in names:
            resolve([_recipe(chosen[0]), argument], RECIPES)  # names the nearest one


def _recipe(row: PublishedRow) -> str:
    return f"--config={row.config}" + (f":{row.choice}" if row.choice else "")


def _key(argument: str) -> str:
    """ "head.total_steps" of "--config.head.total_steps=4"."""
    return argument.partition("=")[0].removeprefix("--config.")


@functools.cache
def _names(recipe: str) -> frozenset[str]:
    return frozenset(flat_names(resolve([recipe], RECIPES)))


def _dataset(config: ConfigDict, look: Look) -> tuple[Path, list[Missing]]:
    """The root of the config's dataset, and what is missing there."""
    name, keys = config.dataset.name, config.dataset
    splits = {keys[key] for key in keys if key == "split" or key.endswith("_split")}
    tags_alone = tuple(config.stages) == ("tags",)
    if tags_alone:
        splits = {keys.train_split}
    labels = config.get("labels") or {}
    annotated = tags_alone or labels.get("source") == "annotations"
    root, reason = look(BY_NAME[name], frozenset(splits), keys.train_split if annotated else None)
    if not reason:
        return root, []
    source = dataset_source(name, splits)
    command = source.command(root)
    return root, [Missing(root.name, reason, source.archives, source.how, command)]


def _look(
    datasets: Path, dataset: Dataset, splits: Collection[str], annotated: str | None
) -> tuple[Path, str]:
    """The dataset's root below the folder `datasets`, and what it lacks; "": nothing.

    Args:
      splits: those that are needed.
      annotated: a split whose image labels are needed.
    """
    layout, home = dataset.layout, datasets / dataset.name.lower()
    stored = records.find_records(home)
    if stored is None:
        home = layout.resolve(datasets)
        stored = records.find_records(home, layout.folders)
    try:
        for split in sorted(splits):
            if stored is not None:
                records.index_records(layout, stored, split)
            else:
                layout.index(home, split)
    except (OSError, ValueError) as error:
        if home == datasets:  # none of the usual folders is there
            usual = " or ".join(layout.folders)
            return datasets / layout.folders[0], f"no folder {usual} in {datasets}"
        return home, str(error).partition(". Split ")[0]
    if annotated and not has_annotations(dataset, home, annotated):
        return home, f"no image labels of {annotated}: Annotations/*.xml or annotations/*.json"
    return home, ""
