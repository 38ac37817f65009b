"""The one evaluation loop: batches in, a confusion matrix over all hosts and pictures out."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import nnx
from jax import Array
from jax.sharding import Mesh
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from clipseg_jax.core.files import write_atomic
from clipseg_jax.core.mesh import own_rows, replicate, shard_batch
from clipseg_jax.core.metrics import SegmentationMetrics, confusion_matrix
from clipseg_jax.inference import InferenceConfig, network_shapes, network_sizes, segmenter
from clipseg_jax.task import Task

Batch = dict[str, Any]
Step = Callable[..., tuple[Array, Array, Array]]
OnLabels = Callable[[int, np.ndarray, np.ndarray], None]  # example, image, labels


@dataclasses.dataclass
class Progress:
    """What an interrupted evaluation has counted so far."""

    confusion: np.ndarray  # (classes, classes) int64
    images: int = 0
    batches: int = 0
    plan: str = ""  # identifies the batches: counts of another plan are worth nothing

    @classmethod
    def load(cls, path: Path | None, classes: int, plan: str) -> Progress:
        """From the file that an earlier run with the same batches left, or from nothing."""
        fresh = cls(np.zeros((classes, classes), np.int64), plan=plan)
        if path is None or not path.exists():
            return fresh
        with np.load(path) as saved:
            if str(saved["plan"]) != plan:
                logging.warning("%s was made with other batches; starting over", path)
                return fresh
            return cls(saved["confusion"], int(saved["images"]), int(saved["batches"]), plan)

    def save(self, path: Path) -> None:
        """Replaces the file at once, so that a kill leaves the old or the new."""
        fields = dataclasses.asdict(self)
        write_atomic(path, lambda file: np.savez(file, **fields))


def evaluation_step(task: Task, cfg: InferenceConfig, *, classes: int, ignore: int = 255) -> Step:
    """The jitted part: (state, batch, static network shapes) -> pixel counts, images, labels.

    Compiles once for each bucket; serves every state of the same network.
    """
    _, segment = segmenter(task, cfg)

    def step(state: Any, batch: dict[str, Array], shapes: tuple) -> tuple[Array, Array, Array]:
        labels, _ = segment(
            state, batch["image"], batch["image_size"], batch["network_size"], shapes
        )
        truth = jnp.where(batch["valid"][:, None, None], batch["label"], ignore)
        counts = confusion_matrix(truth, labels, classes, ignore)
        return counts, jnp.sum(batch["valid"]), labels.astype(jnp.uint8)

    return jax.jit(step, static_argnums=2)


def evaluate(
    task: Task,
    cfg: InferenceConfig,
    batches: Callable[[int], Iterable[Batch]],
    *,
    classes: int,
    mesh: Mesh,
    total: int | None = None,
    ignore: int = 255,
    plan: str = "",
    progress_path: Path | None = None,
    save_every_s: float = 60.0,
    on_labels: OnLabels | None = None,
    step: Step | None = None,
) -> Progress:
    """Segments every batch and counts its pixels; the result is the same on every process.

    Args:
      batches: batches from the given number on, as `input_pipeline.batches.evaluation` yields
        them: this process's rows of each global batch, every process the same number.
      classes: of the labels. total: images, for the progress bar.
      plan: any text that is equal for equal batches.
      progress_path: where to keep what was counted, at most `save_every_s` seconds old; a run that
        finds the file goes on from there. Removed by the caller when the result is safe.
      on_labels: called for each of this process's images with its number, pixels and label map.
      step: from `evaluation_step`, by those who evaluate the same network again and again.
    """
    state = replicate(mesh, nnx.state(task.model))
    step = step or evaluation_step(task, cfg, classes=classes, ignore=ignore)
    progress = Progress.load(progress_path, classes, plan)
    main_process = jax.process_index() == 0
    saved_at = time.monotonic()
    pending: tuple[Array, Array, Array, Batch] | None = None

    def finish(done: tuple[Array, Array, Array, Batch], bar: tqdm) -> None:
        counts, images, labels, batch = done
        progress.confusion += np.asarray(jax.device_get(counts), np.int64)
        seen = int(images)
        progress.images += seen
        progress.batches += 1
        bar.update(seen)
        if on_labels:
            _hand_out(labels, batch, on_labels)

    with tqdm(
        total=total, initial=progress.images, unit="image", disable=None if main_process else True
    ) as bar:
        for batch in batches(progress.batches):
            rows = {name: batch[name] for name in ("image", "image_size", "label", "valid")}
            sizes = [network_sizes((int(h), int(w)), cfg) for h, w in batch["image_size"]]
            rows["network_size"] = np.asarray(sizes, np.int32)
            shapes = network_shapes(batch["network_hw"], cfg)
            started = step(state, shard_batch(mesh, rows), shapes)
            # The device works on this batch while the last one's counts are fetched.
            if pending:
                finish(pending, bar)
            pending = (*started, batch)
            due = time.monotonic() - saved_at > save_every_s
            if due and main_process and progress_path is not None:
                progress.save(progress_path)
                saved_at = time.monotonic()
        if pending:
            finish(pending, bar)
    if main_process and progress_path is not None:
        progress.save(progress_path)
    return progress


def _hand_out(labels: Array, batch: Batch, on_labels: OnLabels) -> None:
    """Calls `on_labels` with this process's rows, cut to their real size."""
    own = own_rows(labels)
    for row, valid in enumerate(batch["valid"]):
        if valid:
            h, w = batch["image_size"][row]
            image = batch["image"][row, :h, :w]
            on_labels(int(batch["index"][row]), image, own[row, :h, :w])


def report(
    progress: Progress,
    class_names: Sequence[str],
    *,
    published: str,
    unseen: Sequence[int] = (),
    console: Console | None = None,
) -> dict[str, Any]:
    """Prints the table of a finished evaluation and returns its figures, in percent.

    Args:
      published: the figure that the method's paper prints: a key of `SegmentationMetrics.summary`.
      unseen: labels that are marked in the table; their mean is given apart from the others'.

    Raises:
      ValueError: nothing was counted.
    """
    if not progress.confusion.sum():
        raise ValueError(
            f"no labelled pixel in {progress.images} images; check that the label folder belongs "
            "to the image folder"
        )
    metrics = SegmentationMetrics.from_confusion(progress.confusion)
    summary, per_class = metrics.summary(unseen), metrics.per_class(class_names)
    table = Table("class", "IoU", "Acc", "Prec", title=f"{progress.images} images")
    for column in table.columns[1:]:
        column.justify = "right"
    for label, (name, row) in enumerate(per_class.items()):
        shown = f"{name} (unseen)" if label in unseen else name
        table.add_row(shown, *("-" if v is None else f"{v:.2f}" for v in row.values()))
    table.add_section()
    means = ("mIoU", "mAcc", "mPrec")
    table.add_row(", ".join(means), *(f"{summary[key]:.2f}" for key in means))
    table.caption = f"aAcc {summary['aAcc']:.2f}"
    if len(unseen):
        table.add_section()
        table.add_row("mIoU(S), of seen classes", f"{summary['mIoU(S)']:.2f}")
        table.add_row("mIoU(U), of unseen classes", f"{summary['mIoU(U)']:.2f}")
        table.caption = f"pAcc {summary['pAcc']:.2f}, hIoU {summary['hIoU']:.2f}"
    table.caption += f"\n{published} {summary[published]:.2f} (as the paper prints)"
    (console or Console()).print(table)
    figures = {"images": progress.images, "published_metric": published, **summary}
    if len(unseen):
        figures["unseen"] = [class_names[label] for label in unseen]
    return figures | {"classes": per_class}


def headline(figures: dict[str, Any]) -> dict[str, Any]:
    """Those of `report`'s figures that a stage's record repeats: the means of IoU, by name."""
    names = (
        *("published_metric", "mIoU", "mIoU_of_labelled", "mIoU_absent_as_0"),
        *("pAcc", "mIoU(S)", "mIoU(U)", "hIoU"),
    )
    return {name: figures[name] for name in names if name in figures}
