"""Is the tiny CLIP worth showing? Its figures on held-out pictures, beside an untrained control.

python -m clipseg_jax.demo_clip.gates [--weights DIRECTORY]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

import weights_convert
from clipseg_jax.core.metrics import SegmentationMetrics, confusion_matrix
from clipseg_jax.demo import TINY_CLIP, world
from clipseg_jax.demo_clip import training, vocabulary
from clipseg_jax.inference import InferenceConfig, network_shapes, network_size, segmenter
from clipseg_jax.methods.maskclip import task as maskclip
from clipseg_jax.methods.maskclip.model import MaskCLIPConfig
from clipseg_jax.models.clip import CLIP, Tokenizer, l2_normalize
from clipseg_jax.ops.image import CLIP_MEAN, CLIP_STD, normalize
from clipseg_jax.prompts import class_embeddings, templates, text_encoder

_BATCH = 60
Figures = dict[str, float]


def tags(clip: CLIP, rows: np.ndarray, count: int) -> Figures:
    """Share of single objects whose class the class token names, by the commonness of colours."""
    predict = jax.jit(lambda visual, images: l2_normalize(visual(images)[0]))
    hits: dict[bool, list[bool]] = {True: [], False: []}
    pictures = list(world.pictures("test", count, clip.cfg.vision.image_px))
    for start in range(0, count, _BATCH):
        batch = pictures[start : start + _BATCH]
        images = normalize(jnp.asarray([p.image for p in batch]), CLIP_MEAN, CLIP_STD)
        best = np.asarray(predict(clip.visual, images) @ rows.T).argmax(1)
        for picture, i in zip(batch, best, strict=True):
            hits[picture.typical].append(picture.things[0].name == world.CLASSES[i])
    return {
        "tags, common colours": float(np.mean(hits[True])),
        "tags, odd colours": float(np.mean(hits[False])),
    }


def masks(clip: CLIP, rows: np.ndarray, count: int, *, side_px: int) -> tuple[Figures, np.ndarray]:
    """MaskCLIP on `count` held-out pictures of 128 pixels, seen at `side_px`; and the IoU by class.

    Rows (16, e): the twelve classes, then the sceneries, which compete and all become label 0.
    """
    classes = len(world.CLASSES)
    total = np.zeros((classes + 1, classes + 1), np.int64)
    right = objects = 0
    pictures = list(world.pictures("evaluation", count, 128))
    settings = {"mean": CLIP_MEAN, "std": CLIP_STD, "scale_px": (side_px, side_px)}
    named = InferenceConfig(row_labels=(*range(1, classes + 1), 0, 0, 0, 0), **settings)  # type: ignore[arg-type]
    alone = InferenceConfig(row_labels=tuple(range(1, classes + 1)), **settings)  # type: ignore[arg-type]
    runs = []
    for cfg, used in ((named, rows), (alone, rows[:classes])):
        state, segment = segmenter(maskclip.build(clip.visual, used, MaskCLIPConfig()), cfg)  # type: ignore[arg-type]
        runs.append((cfg, state, jax.jit(segment, static_argnums=4)))
    for start in range(0, count, _BATCH):
        batch = pictures[start : start + _BATCH]
        images = jnp.asarray([p.image for p in batch])
        labels = np.asarray([p.label for p in batch])
        sizes = jnp.full((len(batch), 2), 128)
        found = []
        for cfg, state, segment in runs:
            at = network_size(128, 128, cfg)
            network = jnp.broadcast_to(jnp.asarray(at), (len(batch), 1, 2))
            shapes = network_shapes(at, cfg)
            found.append(np.asarray(segment(state, images, sizes, network, shapes)[0]))
        total += np.asarray(confusion_matrix(labels, found[0], classes + 1))
        inside = (labels > 0) & (labels != world.BOUNDARY)
        right += int(np.sum(found[1][inside] == labels[inside]))
        objects += int(inside.sum())
    metrics = SegmentationMetrics.from_confusion(total)
    figures = {
        "object pixels, 12 names": right / objects,
        "mIoU, 13 classes": float(np.nanmean(metrics.iou)),
        "background IoU": float(metrics.iou[0]),
    }
    return figures, metrics.iou


def figures(
    clip: CLIP, tokenizer: Tokenizer, *, pictures: int = 120, tests: int = 480, side_px: int = 96
) -> tuple[Figures, np.ndarray]:
    """All figures of a tiny CLIP, and the IoU of background and each class."""
    names = [*world.CLASSES, *world.SCENERY]
    rows = class_embeddings(
        names,
        text_encoder(clip.text),
        tokenizer,
        prompt_templates=templates("demo_world"),
        context_length=clip.text.cfg.context_length,
    )
    dense, iou = masks(clip, rows, pictures, side_px=side_px)
    return tags(clip, rows[: len(world.CLASSES)], tests) | dense, iou


def main() -> None:
    """Prints both columns, and the IoU of each class."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, default=TINY_CLIP)
    parser.add_argument("--pictures", type=int, default=120)
    args = parser.parse_args()
    loaded = weights_convert.load_clip(args.weights)
    assert loaded.tokenizer is not None
    trained, iou = figures(loaded.model, loaded.tokenizer, pictures=args.pictures)
    control, _ = figures(training.initial(0), vocabulary.tokenizer(), pictures=args.pictures)
    table = Table("", "trained", "untrained")
    for name, value in trained.items():
        table.add_row(name, f"{value:.3f}", f"{control[name]:.3f}")
    table.add_section()
    for name, value in zip(("background", *world.CLASSES), iou, strict=True):
        table.add_row(f"IoU {name}", f"{value:.3f}", "")
    Console().print(table)


if __name__ == "__main__":
    main()
