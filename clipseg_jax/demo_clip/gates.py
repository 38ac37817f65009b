"""Evaluates the tiny CLIP on held-out pictures, compared with an untrained one.

python -m clipseg_jax.demo_clip.gates [--weights DIRECTORY]
"""

from __future__ import annotations

import argparse
import dataclasses
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
from clipseg_jax.inference import InferenceConfig, make_segment_fn, network_shapes, network_size
from clipseg_jax.methods.maskclip import task as maskclip
from clipseg_jax.methods.maskclip.model import MaskCLIPConfig
from clipseg_jax.models.clip import CLIP, Tokenizer, l2_normalize
from clipseg_jax.ops.image import CLIP_MEAN, CLIP_STD, normalize
from clipseg_jax.prompts import class_embeddings, templates, text_encoder

_BATCH = 60
Metrics = dict[str, float]


def tags(clip: CLIP, text_embeddings: np.ndarray, count: int) -> Metrics:
    """Accuracy of the class token on pictures of one object, for common and other colours."""
    predict = jax.jit(lambda visual, images: l2_normalize(visual(images)[0]))
    hits: dict[bool, list[bool]] = {True: [], False: []}
    pictures = list(world.pictures("test", count, clip.cfg.vision.image_px))
    for start in range(0, count, _BATCH):
        batch = pictures[start : start + _BATCH]
        images = normalize(jnp.asarray([p.image for p in batch]), CLIP_MEAN, CLIP_STD)
        best = np.asarray(predict(clip.visual, images) @ text_embeddings.T).argmax(1)
        for picture, i in zip(batch, best, strict=True):
            hits[picture.typical].append(picture.things[0].name == world.CLASSES[i])
    return {
        "tags, common colours": float(np.mean(hits[True])),
        "tags, odd colours": float(np.mean(hits[False])),
    }


def masks(
    clip: CLIP, text_embeddings: np.ndarray, count: int, *, side_px: int
) -> tuple[Metrics, np.ndarray]:
    """Metrics of MaskCLIP on `count` held-out pictures of 128 pixels, and the IoU of each label.

    Args:
      clip: the model.
      text_embeddings: (16, e), the twelve classes, then the four sceneries, which become label 0.
      count: number of pictures.
      side_px: size at the network.
    """
    classes = len(world.CLASSES)
    total = np.zeros((classes + 1, classes + 1), np.int64)
    right = objects = 0
    pictures = list(world.pictures("evaluation", count, 128))
    cfg = InferenceConfig(mean=CLIP_MEAN, std=CLIP_STD, scale_px=(side_px, side_px))
    class_labels = tuple(range(1, classes + 1))
    with_scenery = dataclasses.replace(cfg, embedding_labels=(*class_labels, 0, 0, 0, 0))
    without_scenery = dataclasses.replace(cfg, embedding_labels=class_labels)
    runs = []
    for cfg, embeddings in (
        (with_scenery, text_embeddings),
        (without_scenery, text_embeddings[:classes]),
    ):
        state, segment = make_segment_fn(
            maskclip.build(clip.visual, embeddings, MaskCLIPConfig()), cfg
        )  # type: ignore[arg-type]
        runs.append((cfg, state, jax.jit(segment, static_argnums=4)))
    for start in range(0, count, _BATCH):
        batch = pictures[start : start + _BATCH]
        images = jnp.asarray([p.image for p in batch])
        labels = np.asarray([p.label for p in batch])
        sizes = jnp.full((len(batch), 2), 128)
        predictions = []
        for cfg, state, segment in runs:
            at = network_size(128, 128, cfg)
            network = jnp.broadcast_to(jnp.asarray(at), (len(batch), 1, 2))
            shapes = network_shapes(at, cfg)
            predictions.append(np.asarray(segment(state, images, sizes, network, shapes)[0]))
        total += np.asarray(confusion_matrix(labels, predictions[0], classes + 1))
        inside = (labels > 0) & (labels != world.BOUNDARY)
        right += int(np.sum(predictions[1][inside] == labels[inside]))
        objects += int(inside.sum())
    metrics = SegmentationMetrics.from_confusion(total)
    result = {
        "object pixels, 12 names": right / objects,
        "mIoU, 13 classes": float(np.nanmean(metrics.iou)),
        "background IoU": float(metrics.iou[0]),
    }
    return result, metrics.iou


def evaluate_clip(
    clip: CLIP, tokenizer: Tokenizer, *, pictures: int = 120, tests: int = 480, side_px: int = 96
) -> tuple[Metrics, np.ndarray]:
    """All metrics of a tiny CLIP, and the IoU (13,) of background and each class.

    Args:
      clip: the model.
      tokenizer: its tokenizer.
      pictures: number of pictures for `masks`.
      tests: number of pictures for `tags`.
      side_px: size at the network for `masks`.
    """
    names = [*world.CLASSES, *world.SCENERY]
    text_embeddings = class_embeddings(
        names,
        text_encoder(clip.text),
        tokenizer,
        prompt_templates=templates("demo_world"),
        context_length=clip.text.cfg.context_length,
    )
    dense, iou = masks(clip, text_embeddings, pictures, side_px=side_px)
    return tags(clip, text_embeddings[: len(world.CLASSES)], tests) | dense, iou


def main() -> None:
    """Prints the metrics of the trained and an untrained CLIP, and the IoU of each class."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, default=TINY_CLIP)
    parser.add_argument("--pictures", type=int, default=120)
    args = parser.parse_args()
    loaded = weights_convert.load_clip(args.weights)
    assert isinstance(loaded.tokenizer, Tokenizer)
    trained, iou = evaluate_clip(loaded.model, loaded.tokenizer, pictures=args.pictures)
    control, _ = evaluate_clip(training.initial(0), vocabulary.tokenizer(), pictures=args.pictures)
    table = Table("", "trained", "untrained")
    for name, value in trained.items():
        table.add_row(name, f"{value:.3f}", f"{control[name]:.3f}")
    table.add_section()
    for name, value in zip(("background", *world.CLASSES), iou, strict=True):
        table.add_row(f"IoU {name}", f"{value:.3f}", "")
    Console().print(table)


if __name__ == "__main__":
    main()
