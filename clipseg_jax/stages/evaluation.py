"""Evaluation on a split of a dataset: batches, table, metrics files, overlays, predictions."""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from flax import nnx
from ml_collections import ConfigDict
from rich.console import Console

from clipseg_jax.core.checks import check_choice
from clipseg_jax.core.files import write_json
from clipseg_jax.core.json_lines import append_partial, json_line, partial_files, read_partial
from clipseg_jax.core.label_images import overlay, save_image, save_labels
from clipseg_jax.core.mesh import make_mesh
from clipseg_jax.core.metrics import SegmentationMetrics, metric_names
from clipseg_jax.core.processes import barrier
from clipseg_jax.evaluate import (
    OnLabels,
    Progress,
    evaluate,
    evaluation_step,
    headline,
    report,
)
from clipseg_jax.inference import InferenceConfig, network_size
from clipseg_jax.stages.data import find_dataset, readable_batches
from clipseg_jax.task import Task

# Of the record of a stage whose images, a user's, have no label maps.
UNSCORED = {"scored": "nothing, without label maps"}


class Evaluation:
    """A split with fixed preprocessing, for networks of one structure; compiled once.

    `unseen` labels, of a zero-shot recipe, get metrics of their own.
    """

    def __init__(
        self,
        config: ConfigDict,
        cfg: InferenceConfig,
        *,
        split: str | None = None,
        unseen: Sequence[int] = (),
    ):
        """`split`: instead of the config's."""
        self._cfg, self._unseen = cfg, tuple(unseen)
        self._mesh = make_mesh(config.run.devices)
        self.dataset = find_dataset(config.dataset)
        self._split = split or config.dataset.split
        self._examples = self.dataset.index(config.dataset.root, self._split)
        self._labelled = self._examples[0].label_path is not None
        self._published = config.evaluate.published_metric
        check_choice("evaluate.published_metric", self._published, metric_names(self._unseen))
        self._pictures = config.run.pictures
        self._opacity = config.run.opacity
        self._predictions = config.run.predictions
        self._palette = config.run.palette
        corruption = config.dataset.corruption
        self._batches = readable_batches(
            config,
            self._examples,
            network_size=functools.partial(network_size, cfg=cfg),
            corruption=(corruption, config.dataset.corruption_level) if corruption else None,
            full_size=True,
        )
        self._step: Any = None

    def corrupted(self, kind: str, level: int, seed: int) -> Evaluation:
        """The same split with corrupted images; shares the compiled programs."""
        other = copy.copy(self)
        other._batches = self._batches.corrupted(kind, level, seed)
        return other

    def count(
        self, task: Task, *, progress_path: Path | None = None, on_labels: OnLabels | None = None
    ) -> Progress:
        """Pixel counts of the whole split, and the files left out.

        What is left out is written beside the counts, for a run that resumes; with several
        processes, without `progress_path`, each knows its own only.
        """
        folder = progress_path and progress_path.with_suffix("")
        left_out: dict[int, str] = {}

        def batches(start: int) -> Iterator[dict[str, Any]]:
            rest = self._batches.starting_at(start)
            with _record(folder, fresh=start == 0) as write:
                for batch in itertools.chain(rest, [None]):  # None: after the last one
                    for one in rest.skipped:
                        if one.index not in left_out:
                            left_out[one.index] = f"{one.name}: {one.reason}"
                            write({"index": one.index, "reason": left_out[one.index]})
                    if batch is not None:
                        yield batch

        classes = self.dataset.num_classes
        # A run that wrote fewer files can't be resumed: its label maps would be missing.
        plan = repr((self._batches.plan, self._pictures, self._predictions))
        self._step = self._step or evaluation_step(task, self._cfg, classes=classes)
        progress = evaluate(
            task,
            self._cfg,
            batches,
            classes=classes,
            mesh=self._mesh,
            total=len(self._examples),
            plan=hashlib.sha256(plan.encode()).hexdigest(),
            progress_path=progress_path,
            on_labels=on_labels,
            step=self._step,
        )
        if folder:
            barrier("counted")
            lines = read_partial(folder, index=int, reason=str)
            left_out |= {line["index"]: line["reason"] for line in lines}
            barrier("left out")
        progress.skipped = tuple(reason for _, reason in sorted(left_out.items()))
        progress.left_out = len(self._examples) - progress.images
        return progress

    def figures(self, task: Task) -> dict[str, float]:
        """The summary alone, in percent, for evaluations during training.

        Raises:
          ValueError: the split has no label maps.
        """
        if not self._labelled:
            raise ValueError(f"split {self._split} of {self.dataset.name} has no label maps")
        progress = self.count(task)
        return SegmentationMetrics.from_confusion(progress.confusion).summary(self._unseen)

    def write(self, task: Task, workdir: Path, suffix: str = "") -> dict:
        """Stage: the table into metrics.json; resumes after an interruption.

        As `config.run` says, overlays into pictures/ and all label maps into predictions/. `suffix`
        is added to the names of files and folders. A split without label maps gets overlays and
        predictions alone.
        """
        folder, predictions = workdir / f"pictures{suffix}", workdir / f"predictions{suffix}"
        colours = np.asarray(self.dataset.palette, np.uint8)
        clear = (0, 255) if self.dataset.background else (255,)

        def picture(index: int, image: np.ndarray, predicted: np.ndarray) -> None:
            name = self._examples[index].name
            if self._predictions:
                path = predictions / f"{name}.png"
                save_labels(path, predicted, coloured=self._palette)
            if 0 <= self._pictures <= index:
                return
            painted = overlay(image, predicted, colours, self._opacity, clear=clear)
            save_image(folder / f"{name}.png", painted)

        partial = workdir / f"evaluate{suffix}.partial.npz"
        progress = self.count(
            task,
            progress_path=partial,
            on_labels=picture if self._pictures or self._predictions else None,
        )
        main_process = jax.process_index() == 0
        if main_process:
            for reason in progress.skipped:
                logging.warning("skipped %s", reason)
        console = Console(quiet=not main_process)  # one table, not one for each process
        left_out = len(self._examples) - progress.images
        record = {"images": progress.images, "skipped": left_out}
        if not self._labelled:
            if main_process:
                _remove(partial)
                print(f"split {self._split} has no label maps: nothing is scored")
                self._say_folders(folder, predictions)
            return record | UNSCORED
        names = self.dataset.class_names
        try:
            figures = report(
                progress, names, published=self._published, unseen=self._unseen, console=console
            )
        except ValueError:  # once the files are mended, all must be read again
            if main_process:
                _remove(partial)
            raise
        if main_process:
            path = workdir / f"metrics{suffix}.json"
            write_json(path, figures)
            _remove(partial)
            print(f"metrics: {path}")
            self._say_folders(folder, predictions)
        return record | headline(figures)

    def _say_folders(self, pictures: Path, predictions: Path) -> None:
        if self._pictures:
            print(f"pictures: {pictures}")
        if self._predictions:
            print(f"predictions: {predictions}")


@contextlib.contextmanager
def _record(folder: Path | None, *, fresh: bool) -> Iterator[Callable[[Mapping], object]]:
    """A function that appends a line to this process's file in `folder`; without one, nothing."""
    if folder is None:
        yield lambda line: None
        return
    if fresh and jax.process_index() == 0:
        _clear(folder)
    barrier("counting")
    with append_partial(folder) as file:
        yield lambda line: file.write(json_line(line))


def _clear(folder: Path) -> None:
    for path in partial_files(folder):
        path.unlink(missing_ok=True)


def _remove(partial: Path) -> None:
    """Removes the counts of an evaluation and the lines of what was left out."""
    partial.unlink(missing_ok=True)
    _clear(partial.with_suffix(""))
    with contextlib.suppress(OSError):
        partial.with_suffix("").rmdir()


def validation(
    make: Callable[[], Evaluation], as_task: Callable[[Any], Task]
) -> Callable[[nnx.Module, int], dict[str, float]]:
    """(model, step) -> metrics of the whole split, as the training loop calls it.

    `make` is called once, at the first evaluation.
    """
    evaluation = functools.cache(make)
    return lambda model, _: evaluation().figures(as_task(model))
