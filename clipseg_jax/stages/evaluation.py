"""Evaluation on a split of a dataset: batches, table, metrics files, overlays, predictions."""

from __future__ import annotations

import copy
import functools
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from flax import nnx
from ml_collections import ConfigDict
from rich.console import Console

from clipseg_jax.core.files import write_json
from clipseg_jax.core.label_images import overlay, save_image, save_labels
from clipseg_jax.core.mesh import make_mesh
from clipseg_jax.core.metrics import SegmentationMetrics
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
from input_pipeline.batches.evaluation import EvaluationBatches, Skipped


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
        self._examples = self.dataset.index(config.dataset.root, split or config.dataset.split)
        self._published = config.evaluate.published_metric
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
        )
        self._step: Any = None

    def corrupted(self, kind: str, level: int, seed: int) -> Evaluation:
        """The same split with corrupted images; shares the compiled programs."""
        other = copy.copy(self)
        other._batches = self._batches.corrupted(kind, level, seed)
        return other

    def count(
        self, task: Task, *, progress_path: Path | None = None, on_labels: OnLabels | None = None
    ) -> tuple[Progress, list[Skipped]]:
        """Pixel counts of the whole split, and the files left out."""
        rest = self._batches

        def batches(start: int) -> EvaluationBatches:
            nonlocal rest
            rest = self._batches.starting_at(start)
            return rest

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
        return progress, rest.skipped

    def figures(self, task: Task) -> dict[str, float]:
        """The summary alone, in percent, for evaluations during training."""
        progress, _ = self.count(task)
        return SegmentationMetrics.from_confusion(progress.confusion).summary(self._unseen)

    def write(self, task: Task, workdir: Path, suffix: str = "") -> dict:
        """Stage: the table into metrics.json; resumes after an interruption.

        As `config.run` says, overlays into pictures/ and all label maps into predictions/. `suffix`
        is added to the names of files and folders.
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
        progress, skipped = self.count(
            task,
            progress_path=partial,
            on_labels=picture if self._pictures or self._predictions else None,
        )
        for one in skipped:
            logging.warning("skipped %s: %s", one.name, one.reason)
        main_process = jax.process_index() == 0
        console = Console(quiet=not main_process)  # one table, not one for each process
        names = self.dataset.class_names
        figures = report(
            progress, names, published=self._published, unseen=self._unseen, console=console
        )
        figures["skipped"] = [f"{one.name}: {one.reason}" for one in skipped]
        if main_process:
            path = workdir / f"metrics{suffix}.json"
            write_json(path, figures)
            partial.unlink(missing_ok=True)
            print(f"metrics: {path}")
            if self._pictures:
                print(f"pictures: {folder}")
            if self._predictions:
                print(f"predictions: {predictions}")
        left_out = len(self._examples) - progress.images
        return {"images": progress.images, "skipped": left_out, **headline(figures)}


def validation(
    make: Callable[[], Evaluation], as_task: Callable[[Any], Task]
) -> Callable[[nnx.Module, int], dict[str, float]]:
    """(model, step) -> metrics of the whole split, as the training loop calls it.

    `make` is called once, at the first evaluation.
    """
    evaluation = functools.cache(make)
    return lambda model, _: evaluation().figures(as_task(model))
