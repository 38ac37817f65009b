"""Evaluation on a split of a dataset: batches, table, metrics files, pictures, predictions."""

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
from clipseg_jax.core.files import write_atomic, write_json
from clipseg_jax.core.json_lines import append_partial, json_line, partial_files, read_partial
from clipseg_jax.core.label_images import overlay, save_image, save_labels
from clipseg_jax.core.mesh import make_mesh
from clipseg_jax.core.metrics import SegmentationMetrics, metric_names
from clipseg_jax.core.processes import barrier
from clipseg_jax.core.writer import Events
from clipseg_jax.evaluate import (
    Progress,
    Segmented,
    evaluate,
    evaluation_step,
    headline,
    report,
)
from clipseg_jax.inference import InferenceConfig, network_size
from clipseg_jax.stages.data import find_dataset, readable_batches
from clipseg_jax.stages.showcase import Panel, Showcase, clear_pictures, panel_of, shown
from clipseg_jax.task import Task
from clipseg_jax.train import Evaluated
from input_pipeline.places import is_remote

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
        self,
        task: Task,
        *,
        progress_path: Path | None = None,
        showcase: Showcase | None = None,
        on_image: Callable[[Segmented], None] | None = None,
    ) -> Progress:
        """Pixel counts of the whole split, and the files left out.

        What is left out is written beside the counts, for a run that resumes; with several
        processes, without `progress_path`, each knows its own only. `showcase` gets every image,
        and so does `on_image`.
        """
        folder = progress_path and progress_path.with_suffix("")
        left_out: dict[int, str] = {}
        record: list[Callable[[Mapping], object]] = []

        def batches(start: int) -> Iterator[dict[str, Any]]:
            rest = self._batches.starting_at(start)
            record.append(write := stack.enter_context(_record(folder, fresh=start == 0)))
            if showcase:
                showcase.begin()
            for batch in itertools.chain(rest, [None]):  # None: after the last one
                for one in rest.skipped:
                    if one.index not in left_out:
                        left_out[one.index] = f"{one.name}: {one.reason}"
                        write({"index": one.index, "reason": left_out[one.index]})
                if batch is not None:
                    yield batch

        def each(one: Segmented) -> None:
            if on_image:
                on_image(one)
            if showcase:
                showcase.add(one, record[0])

        classes = self.dataset.num_classes
        # A run that wrote fewer files can't be resumed: its label maps would be missing.
        files = (self._pictures, self._predictions, "scores")
        plan = repr((self._batches.plan, files))
        self._step = self._step or evaluation_step(
            task, self._cfg, classes=classes, mesh=self._mesh
        )
        with contextlib.ExitStack() as stack:
            progress = evaluate(
                task,
                self._cfg,
                batches,
                classes=classes,
                mesh=self._mesh,
                total=len(self._examples),
                plan=hashlib.sha256(plan.encode()).hexdigest(),
                # A bucket has lines some seconds late: counts that are ahead of them would lose
                # images. What was interrupted there begins again.
                progress_path=progress_path if folder and not is_remote(folder) else None,
                on_image=each if showcase or on_image else None,
                step=self._step,
            )
        if folder:
            barrier("counted")
            lines = read_partial(folder, index=int)
            left_out |= {line["index"]: line["reason"] for line in lines if "reason" in line}
            barrier("left out")
        progress.skipped = tuple(reason for _, reason in sorted(left_out.items()))
        progress.left_out = len(self._examples) - progress.images
        return progress

    def figures(self, task: Task) -> dict[str, float]:
        """The summary alone, in percent.

        Raises:
          ValueError: the split has no label maps.
        """
        self._check_labelled()
        progress = self.count(task)
        return SegmentationMetrics.from_confusion(progress.confusion).summary(self._unseen)

    def validate(self, task: Task) -> Evaluated:
        """The summary in percent, the IoU of each class and the panel, while a network is trained.

        The first of several processes has the panel.

        Raises:
          ValueError: the split has no label maps.
        """
        self._check_labelled()
        panel = Panel(self.dataset, panel_of(self._batches.plan))
        on_image = panel.add if jax.process_index() == 0 else None
        progress = self.count(task, on_image=on_image)
        metrics = SegmentationMetrics.from_confusion(progress.confusion)
        per_class = metrics.per_class(self.dataset.class_names)
        return Evaluated(
            metrics.summary(self._unseen), shown(per_class, panel.pictures(self._names))
        )

    def _check_labelled(self) -> None:
        if not self._labelled:
            raise ValueError(f"split {self._split} of {self.dataset.name} has no label maps")

    @property
    def _names(self) -> list[str]:
        return [example.name for example in self._examples]

    def write(self, task: Task, workdir: Path, suffix: str = "") -> dict:
        """Stage: the table into metrics.json; resumes after an interruption.

        Beside it confusion.npy (classes, classes) int64, image_scores.jsonl, the best and the worst
        images in examples/, and all of it for TensorBoard in tensorboard/evaluate/. As `config.run`
        says, overlays into pictures/ and all label maps into predictions/. `suffix` is added to the
        names of files and folders. A split without label maps gets overlays and predictions alone.
        """
        folder, predictions = workdir / f"pictures{suffix}", workdir / f"predictions{suffix}"
        colours = np.asarray(self.dataset.palette, np.uint8)
        clear = (0, 255) if self.dataset.background else (255,)

        def picture(one: Segmented) -> None:
            name = self._examples[one.index].name
            if self._predictions:
                path = predictions / f"{name}.png"
                save_labels(path, one.labels(), coloured=self._palette)
            if 0 <= self._pictures <= one.index:
                return
            painted = overlay(one.image, one.labels(), colours, self._opacity, clear=clear)
            save_image(folder / f"{name}.png", painted)

        partial = workdir / f"evaluate{suffix}.partial.npz"
        panel = panel_of(self._batches.plan)
        showcase = Showcase(self.dataset, panel, partial.with_suffix(""))
        progress = self.count(
            task,
            progress_path=partial,
            showcase=showcase if self._labelled else None,
            on_image=picture if self._pictures or self._predictions else None,
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
            write_confusion(workdir / f"confusion{suffix}.npy", progress.confusion)
            showcase.store(workdir, suffix, self._names)
            self._log(figures, showcase, workdir / "tensorboard" / f"evaluate{suffix}")
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

    def _log(self, figures: Mapping[str, Any], showcase: Showcase, folder: Path) -> None:
        """The evaluation as events in `folder`, instead of those of an earlier one."""
        for path in folder.glob("events.*"):
            path.unlink(missing_ok=True)
        known = metric_names(self._unseen)
        events = Events(folder)
        scalars = {name: figures[name] for name in known if figures[name] is not None}
        events.write(0, scalars, shown(figures["classes"], showcase.panel(self._names)))
        events.close()


def write_confusion(path: Path, counts: np.ndarray) -> None:
    """Writes pixel counts (classes, classes) int64 beside a metrics file, for the report."""
    write_atomic(path, lambda file: np.save(file, counts))


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
    clear_pictures(folder)


def _remove(partial: Path) -> None:
    """Removes the counts of an evaluation, its scores and pictures, and what was left out."""
    partial.unlink(missing_ok=True)
    _clear(partial.with_suffix(""))


def validation(
    make: Callable[[], Evaluation], as_task: Callable[[Any], Task]
) -> Callable[[nnx.Module, int], Evaluated]:
    """(model, step) -> what the training loop logs of the whole split.

    `make` is called once, at the first evaluation.
    """
    evaluation = functools.cache(make)
    return lambda model, _: evaluation().validate(as_task(model))
