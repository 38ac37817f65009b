"""The evaluation loop: sums a confusion matrix over all processes and hands out its images."""

from __future__ import annotations

import collections
import dataclasses
import functools
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
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from clipseg_jax.core.files import load_arrays, write_atomic
from clipseg_jax.core.mesh import batch_sharding, local_rows, on_mesh, replicate, shard_batch
from clipseg_jax.core.metrics import SegmentationMetrics, confusion_matrix, percent_text
from clipseg_jax.core.processes import barrier
from clipseg_jax.core.progress import progress_bar
from clipseg_jax.inference import InferenceConfig, make_segment_fn, network_shapes, network_sizes
from clipseg_jax.task import HostBatch, Task

# (state, sharded batch, static network shapes) -> pixel counts, [images, pixels], pixels of each
# image, labels
EvaluationStep = Callable[..., tuple[Array, Array, Array, Array]]


@dataclasses.dataclass(frozen=True)
class Segmented:
    """One image of this process and what became of it; the devices are asked for what is used."""

    index: int  # of the example
    image: np.ndarray  # (h, w, 3) uint8
    truth: np.ndarray | None  # (h, w) int32; None: it has no label map
    # () -> (h, w) uint8: the label map.
    labels: Callable[[], np.ndarray]
    # () -> (3, classes) int32: pixels of each class that are right, labelled and predicted.
    counts: Callable[[], np.ndarray]


OnImage = Callable[[Segmented], None]

_SAVED = ("plan", "confusion", "images", "batches", "pixels")
_MUCH_IGNORED = 0.1  # share of ignored pixels that is mentioned if a class has no pixel at all


@dataclasses.dataclass
class Progress:
    """Counts of an evaluation so far; saved so that an interrupted one can resume."""

    confusion: np.ndarray  # (classes, classes) int64
    images: int = 0
    batches: int = 0
    plan: str = ""  # identifies the batches; counts of another plan are discarded
    pixels: int = 0  # of the images, with those that are ignored; 0: not known
    # Not in the file: how many images were left out, and "name: reason" of those that are known.
    left_out: int = 0
    skipped: tuple[str, ...] = ()

    @classmethod
    def load(cls, path: Path | None, classes: int, plan: str) -> Progress:
        """Counts saved by an earlier run with the same `plan`; zeros if there are none.

        A damaged file is logged and counts as none: it only saves time.
        """
        fresh = cls(np.zeros((classes, classes), np.int64), plan=plan)
        if path is None or not path.exists():
            return fresh
        try:
            saved = load_arrays(path, "starting over", *_SAVED)
        except ValueError as error:
            logging.warning("%s", error)
            return fresh
        confusion, *numbers = (saved[name] for name in _SAVED[1:])
        shapes = [confusion.shape, *(number.shape for number in numbers)]
        if (
            shapes != [(classes, classes), (), (), ()]
            or any(each.dtype != np.int64 for each in (confusion, *numbers))
            or min(confusion.min(), *numbers) < 0
        ):
            logging.warning("%s holds no counts of %d classes; starting over", path, classes)
            return fresh
        images, batches, pixels = map(int, numbers)
        if str(saved["plan"]) != plan:
            logging.warning("%s belongs to other batches; starting over", path)
            return fresh
        return cls(confusion.copy(), images, batches, plan, pixels)

    def copy(self) -> Progress:
        """The counts as they are now."""
        return dataclasses.replace(self, confusion=self.confusion.copy())

    def save(self, path: Path) -> None:
        """Writes the counts atomically."""
        fields = {name: getattr(self, name) for name in _SAVED}
        write_atomic(path, lambda file: np.savez(file, **fields))


def evaluation_step(
    task: Task, cfg: InferenceConfig, *, classes: int, mesh: Mesh, ignore: int = 255
) -> EvaluationStep:
    """The jitted step; see `EvaluationStep`. Pixels of each image are `Segmented.counts`.

    Compiles once per bucket of image sizes and serves every state of the same network.

    Args:
      classes: number of labels.
      mesh: devices over which batches are sharded.
      ignore: label of pixels that are not counted.
    """
    _, segment = make_segment_fn(task, cfg)
    count = functools.partial(confusion_matrix, classes=classes, ignore=ignore)

    def step(
        state: Any, batch: dict[str, Array], shapes: tuple
    ) -> tuple[Array, Array, Array, Array]:
        labels, _ = segment(
            state, batch["image"], batch["image_size"], batch["network_size"], shapes
        )
        if "label" in batch:
            truth = jnp.where(batch["valid"][:, None, None], batch["label"], ignore)
            counts = jax.vmap(count)(truth, labels)
        else:  # images without label maps are segmented, not scored
            counts = jnp.zeros((labels.shape[0], classes, classes), jnp.int32)
        right = jnp.diagonal(counts, axis1=1, axis2=2)
        each = jnp.stack([right, counts.sum(axis=2), counts.sum(axis=1)], axis=1)
        areas = jnp.where(batch["valid"], jnp.prod(batch["image_size"], axis=1), 0)
        sizes = jnp.stack([jnp.sum(batch["valid"]), jnp.sum(areas)])
        return counts.sum(axis=0), sizes, each, labels.astype(jnp.uint8)

    everywhere, rows = NamedSharding(mesh, PartitionSpec()), batch_sharding(mesh)
    shardings = (everywhere, everywhere, rows, rows)
    return jax.jit(on_mesh(mesh, step), static_argnums=2, out_shardings=shardings)


def evaluate(
    task: Task,
    cfg: InferenceConfig,
    batches: Callable[[int], Iterable[HostBatch]],
    *,
    classes: int,
    mesh: Mesh,
    total: int | None = None,
    ignore: int = 255,
    plan: str = "",
    progress_path: Path | None = None,
    save_every_s: float = 60.0,
    on_image: OnImage | None = None,
    step: EvaluationStep | None = None,
) -> Progress:
    """Segments every batch and counts its pixels; every process returns the same counts.

    Args:
      task: model and `predict`.
      cfg: how images reach the network and logits become labels.
      batches: number of batches to skip -> the remaining ones, as
        `input_pipeline.batches.evaluation` yields them: this process's rows of each global batch,
        every process the same number. Without label maps nothing is counted but images.
      classes: number of labels.
      mesh: devices over which batches are sharded.
      total: images, for the progress bar.
      ignore: label of pixels that are not counted.
      plan: any text that is equal for equal batches.
      progress_path: file for the counts, written every `save_every_s` seconds; a run that finds it
        resumes from it. The caller removes it once the result is stored.
      save_every_s: seconds between writes of `progress_path`.
      on_image: called for each of this process's images; all calls of a batch have been made, in
        every process, before its counts are in the file.
      step: from `evaluation_step`, to avoid recompilation when one network is evaluated repeatedly.
    """
    state = replicate(mesh, nnx.state(task.model))
    step = step or evaluation_step(task, cfg, classes=classes, mesh=mesh, ignore=ignore)
    progress = Progress.load(progress_path, classes, plan)
    main_process = jax.process_index() == 0
    saved_at = time.monotonic()
    pending: tuple[Array, Array, Array, Array, HostBatch] | None = None
    # Another process begins a batch, without which this one gets no counts of it, when it has
    # handed out the last but one: so the oldest of three counts is safe to save.
    settled = collections.deque([progress.copy()], maxlen=3)

    def finish(results: tuple[Array, Array, Array, Array, HostBatch], bar: tqdm) -> None:
        counts, sizes, each, labels, batch = results
        progress.confusion += np.asarray(jax.device_get(counts), np.int64)
        images, pixels = (int(size) for size in jax.device_get(sizes))
        progress.images += images
        progress.pixels += pixels
        progress.batches += 1
        bar.update(images)
        if on_image:
            _hand_out(labels, each, batch, on_image)
        settled.append(progress.copy())

    with progress_bar(total=total, initial=progress.images, unit="image", desc="evaluate") as bar:
        for batch in batches(progress.batches):
            wanted = ("image", "image_size", "label", "valid")
            rows = {name: batch[name] for name in wanted if name in batch}
            sizes = [network_sizes((int(h), int(w)), cfg) for h, w in batch["image_size"]]
            rows["network_size"] = np.asarray(sizes, np.int32)
            shapes = network_shapes(batch["network_hw"], cfg)
            results = step(state, shard_batch(mesh, rows), shapes)
            # The devices compute this batch while the previous one's counts are fetched.
            if pending:
                finish(pending, bar)
            pending = (*results, batch)
            due = time.monotonic() - saved_at > save_every_s
            if due and main_process and progress_path is not None:
                settled[0].save(progress_path)
                saved_at = time.monotonic()
        if pending:
            finish(pending, bar)
    if progress_path is not None:
        barrier("evaluated")
        if main_process:
            progress.save(progress_path)
    return progress


def _hand_out(labels: Array, each: Array, batch: HostBatch, on_image: OnImage) -> None:
    """Calls `on_image` with this process's valid rows, cropped to their real size."""
    all_labels = functools.cache(lambda: local_rows(labels))
    all_counts = functools.cache(lambda: local_rows(each))

    def one(row: int) -> Segmented:
        h, w = (int(side) for side in batch["image_size"][row])
        return Segmented(
            index=int(batch["index"][row]),
            image=batch["image"][row, :h, :w],
            truth=batch["label"][row, :h, :w] if "label" in batch else None,
            labels=lambda: all_labels()[row, :h, :w],
            counts=lambda: all_counts()[row],
        )

    for row in np.flatnonzero(batch["valid"]):
        on_image(one(int(row)))


def report(
    progress: Progress,
    class_names: Sequence[str],
    *,
    published: str,
    unseen: Sequence[int] = (),
    console: Console | None = None,
) -> dict[str, Any]:
    """Prints the table of a finished evaluation and returns its metrics, in percent.

    Args:
      progress: the counts.
      class_names: name of each label.
      published: the metric that the method's paper reports: a key of `SegmentationMetrics.summary`.
      unseen: labels without pixel annotations in training (zero-shot segmentation); they are marked
        in the table and averaged separately.
      console: where the table is printed; default: standard output.

    Raises:
      ValueError: no pixel was counted, or more images were left out than counted.
    """
    _check(progress)
    if jax.process_index() == 0:
        _warn_of_absent(progress, class_names)
    metrics = SegmentationMetrics.from_confusion(progress.confusion)
    summary, per_class = metrics.summary(unseen), metrics.per_class(class_names)
    left_out = f", {progress.left_out} left out" if progress.left_out else ""
    title = f"{progress.images} images{left_out}"
    table = Table("class", "IoU", "Acc", "Prec", title=title)
    for column in table.columns[1:]:
        column.justify = "right"
    for label, (name, row) in enumerate(per_class.items()):
        title = f"{name} (unseen)" if label in unseen else name
        table.add_row(title, *map(percent_text, row.values()))
    table.add_section()
    means = ("mIoU", "mAcc", "mPrec")
    table.add_row(", ".join(means), *(percent_text(summary[key]) for key in means))
    shown = {name: percent_text(value) for name, value in summary.items()}
    table.caption = f"aAcc {shown['aAcc']}"
    if len(unseen):
        table.add_section()
        table.add_row("mIoU(S), seen classes", shown["mIoU(S)"])
        table.add_row("mIoU(U), unseen classes", shown["mIoU(U)"])
        table.caption = f"pAcc {shown['pAcc']}, hIoU {shown['hIoU']}"
    table.caption += f"\n{published} {shown[published]} (the mean that the paper prints)"
    (console or Console()).print(table)
    known = {name: None if np.isnan(value) else value for name, value in summary.items()}
    result: dict[str, Any] = {"images": progress.images, "published_metric": published, **known}
    if len(unseen):
        result["unseen"] = [class_names[label] for label in unseen]
    return result | {"skipped": list(progress.skipped), "classes": per_class}


def _check(progress: Progress) -> None:
    """Raises ValueError where the counts are no score of the split."""
    images, left_out = progress.images, progress.left_out
    if left_out > images:
        first = f"the first is {progress.skipped[0]}" if progress.skipped else "see the warnings"
        raise ValueError(
            f"{left_out} of {images + left_out} images were left out, so that the rest is no score "
            f"of the split; {first}"
        )
    if not progress.confusion.sum():
        raise ValueError(
            f"no labelled pixel in {images} images; check that the label folder belongs to the "
            "image folder, and that not all labels are 255 (ignored)"
        )


def _warn_of_absent(progress: Progress, names: Sequence[str]) -> None:
    """Warns of classes without any labelled pixel, which may hide behind the ignored label."""
    labelled = progress.confusion.sum(axis=1)
    absent = [name for name, pixels in zip(names, labelled, strict=True) if not pixels]
    if not absent:
        return
    some = ", ".join(absent[:5]) + (f" and {len(absent) - 5} more" if len(absent) > 5 else "")
    ignored = 1 - labelled.sum() / progress.pixels if progress.pixels else 0.0
    hint = (
        f", and {ignored:.0%} of all pixels are 255 (ignored); binary masks need the labels 0 and 1"
        if ignored >= _MUCH_IGNORED
        else ""
    )
    logging.warning("no labelled pixel of %s%s", some, hint)


def headline(metrics: dict[str, Any]) -> dict[str, Any]:
    """The subset of `report`'s metrics that a stage's record repeats, mostly mean IoUs."""
    names = (
        *("published_metric", "mIoU", "mIoU_of_labelled", "mIoU_absent_as_0"),
        *("pAcc", "mIoU(S)", "mIoU(U)", "hIoU"),
    )
    return {name: metrics[name] for name in names if name in metrics}
