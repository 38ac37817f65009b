"""The recipe of CLIP-RC: text embeddings, training in one of three settings, evaluation, counts.

Source: Zhang et al., "Exploring Regional Clues in CLIP for Zero-Shot Semantic Segmentation", 2024.
Spec clip_rc.

    python -m clipseg_jax.main --config=configs/voc_clip_rc.py:inductive \\
        --config.clip.weights=ViT-B/16

Hardware: any number of devices that divides the batch of 16 (published for VOC: 2 GPUs). Hours: not
measured. Paper, VOC: hIoU inductive 88.4, transductive 93.0. Ours: 60.1 and 62.0 on the demo world;
VOC not run.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

import weights_convert
from clipseg_jax.core.files import load_array, write_atomic
from clipseg_jax.core.optim import OptimConfig
from clipseg_jax.core.processes import barrier
from clipseg_jax.methods.clip_rc import task
from clipseg_jax.methods.clip_rc.build import (
    HALF,
    LAST,
    build_model,
    class_words,
    inference_config,
    load_model,
    network,
    task_config,
    unseen,
)
from clipseg_jax.methods.clip_rc.counts import count
from clipseg_jax.methods.clip_rc.model import CLIPRC
from clipseg_jax.stages import training
from clipseg_jax.stages.clip import EMBEDDINGS, embed_words
from clipseg_jax.stages.data import check_splits, find_dataset
from clipseg_jax.stages.evaluation import Evaluation, validation
from clipseg_jax.stages.image_classes import check_label_maps
from clipseg_jax.stages.network import recorded
from input_pipeline.batches.training import TrainingBatches, random_view_batches
from input_pipeline.batches.zero_shot import hide_unseen

_COMPUTED = "text_embeddings_computed.npy"
# Both are of float16, the published file at least once more rounded.
_LEAST_COSINE = 0.999


def data(config: ConfigDict, workdir: Path) -> dict:
    """Checks that the dataset's two splits are there; paints the demo world."""
    checked = check_splits(config.dataset, config.dataset.train_split, config.dataset.split)
    if not config.clip_rc.trained_weights:
        check_label_maps(config, workdir, config.dataset.train_split, "CLIP-RC")
    return checked


def text(config: ConfigDict, workdir: Path) -> dict:
    """Class embeddings (classes, e) into text_embeddings.npy: a published file's, or computed.

    Published ones are float16; their values are taken exactly.

    Raises:
      ValueError: a file of other classes, or rows that aren't unit vectors.
    """
    if not config.text.file:
        return embed_words(config, workdir, class_words(config))
    rows = _published_rows(config)
    if jax.process_index() == 0:
        write_atomic(workdir / EMBEDDINGS, lambda file: np.save(file, rows))
    barrier("text")
    return {"rows": len(rows), "file": str(config.text.file)}


def check_text(config: ConfigDict, workdir: Path) -> dict:
    """Whether `text.file` is what the CLIP's text tower makes of the prompts.

    With the released ViT-B/16 and the published files: the answer to "are these the same prompts?".

    Raises:
      ValueError: rows that differ by more than rounding; the classes are named.
    """
    if not config.text.file:
        raise ValueError("no file to check; pass --config.text.file=voc12_single.npy")
    rows, names = _published_rows(config), class_words(config)
    embed_words(config, workdir, names, _COMPUTED)
    barrier("text computed")
    computed = load_array(workdir / _COMPUTED, "delete it and run the stage again")
    if computed.shape != rows.shape:
        raise ValueError(
            f"{config.text.file} has rows of {rows.shape[1]} numbers, the CLIP makes "
            f"{computed.shape[1]}; give the CLIP that it was made with"
        )
    cosines = np.sum(rows * computed, axis=1) / np.linalg.norm(rows, axis=1)
    wrong = [name for name, cosine in zip(names, cosines, strict=True) if cosine < _LEAST_COSINE]
    if wrong:
        raise ValueError(
            f"{config.text.file} differs from what {config.clip.weights} makes of the prompts "
            f"({config.text.templates}) for {len(wrong)} of {len(names)} classes: "
            f"{', '.join(wrong[:5])}; least cosine {cosines.min():.4f}. Check weights, templates, "
            "class names and their order"
        )
    return {
        "rows": len(rows),
        "least_cosine": float(cosines.min()),
        "largest_difference": float(np.abs(rows - computed).max()),
    }


def _published_rows(config: ConfigDict) -> np.ndarray:
    """Rows (classes, e) float32 of `text.file`."""
    path, names = config.text.file, class_words(config)
    rows = load_array(path, "give a .npy file of class embeddings")
    if rows.dtype.kind != "f":
        raise ValueError(f"{path} holds {rows.dtype}; give a file of float class embeddings")
    rows = rows.astype(np.float32)
    if rows.ndim != 2 or len(rows) != len(names):
        raise ValueError(
            f"{path} has shape {rows.shape} for {len(names)} classes; give a file with a row for "
            f"each of {', '.join(names[:3])}, ..."
        )
    if not np.all(np.abs(np.linalg.norm(rows, axis=1) - 1) <= 1e-2):  # nor NaN
        raise ValueError(f"{path}: its rows are not of length 1; divide each by its norm")
    return rows


def train(config: ConfigDict, workdir: Path) -> dict:
    """Trains prompts and head; writes clip_rc_last.safetensors, inductively also clip_rc_half.

    Raises:
      ValueError: a transductive run without the inductive run's weights to start from.
    """
    section = config.clip_rc
    if section.trained_weights:
        return {"skipped": f"config.clip_rc.trained_weights is {section.trained_weights}"}
    cfg = task_config(config)
    groups = () if section.decay_norms else task.NORMS_DO_NOT_DECAY
    half = section.total_steps // 2

    def keep(name: str, figures: dict[str, Any]) -> Callable[[nnx.Module], None]:
        def write(model: Any) -> None:
            if jax.process_index() == 0:
                weights_convert.save_trained(
                    workdir / name,
                    weights_convert.CLIP_RC,
                    model,
                    classes=class_words(config),
                    details={
                        "seen": cfg.seen,
                        "setting": cfg.setting,
                        "figures": figures,
                        **recorded(config),
                    },
                )

        return write

    inductive = cfg.setting == "inductive"
    trained = training.run(
        config,
        task.build(_initial_model(config, workdir), cfg),
        _batches(config),
        OptimConfig(**section.optim.to_dict(), groups=groups),
        workdir,
        "train",
        total_steps=section.total_steps,
        evaluate_every_steps=section.evaluate_every_steps,
        evaluate=validation(lambda: _evaluation(config), lambda model: task.build(model, cfg)),
        # What the transductive run starts from, as published.
        at={half: keep(HALF, {"steps": half})} if inductive else {},
    )
    keep(LAST, trained.metrics)(trained.model)
    barrier("trained")
    return trained.metrics


def _initial_model(config: ConfigDict, workdir: Path) -> CLIPRC:
    """The model that training begins with."""
    path = config.clip_rc.init_weights
    if path:
        return load_model(config, workdir, path)
    if config.clip_rc.setting == "transductive" and config.clip_rc.self_training_step == 0:
        raise ValueError(
            "a model that labels its own training images must be trained already: pass "
            f"--config.clip_rc.init_weights=.../{HALF} of an inductive run, or a "
            "--config.clip_rc.self_training_step that it reaches first"
        )
    return build_model(config, workdir)


def _batches(config: ConfigDict) -> TrainingBatches:
    """Views of the training split, without the labels that the setting withholds."""
    dataset = find_dataset(config.dataset)
    crop = config.clip_rc.crop_px
    data = random_view_batches(
        dataset,
        dataset.index(config.dataset.root, config.dataset.train_split),
        batch_size=config.clip_rc.batch_size,
        scale=tuple(config.clip_rc.scale_px),
        ratio_range=tuple(config.clip_rc.ratio_range),
        crop_hw=(crop, crop),
        seed=config.train.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        on_bad="skip",
    )
    return hide_unseen(
        data,
        config.clip_rc.setting,
        unseen(config),
        before_crop=not config.clip_rc.crops_by_unseen,
    )


def _evaluation(config: ConfigDict) -> Evaluation:
    return Evaluation(config, inference_config(config), unseen=unseen(config))


def evaluate(config: ConfigDict, workdir: Path) -> dict:
    """pAcc, mIoU of seen and of unseen classes, hIoU on the val split: metrics.json."""
    return _evaluation(config).write(network(config, workdir).task, workdir)


STAGES = {
    "data": data,
    "text": text,
    "check_text": check_text,
    "train": train,
    "evaluate": evaluate,
    "count": count,
}
