"""MaskCLIP+ as a task: MaskCLIP labels what has no label, later the student itself.

Spec maskclip, section 12.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from clipseg_jax.core.checks import check_number
from clipseg_jax.methods.maskclip.model import MaskCLIPConfig, classify
from clipseg_jax.methods.maskclip_plus.model import MaskCLIPPlus
from clipseg_jax.models.clip import l2_normalize
from clipseg_jax.models.clip.read_outs import read_out
from clipseg_jax.ops.cross_entropy import (
    IGNORED,
    upsampled_cross_entropy_and_accuracy,
    upsampled_l1,
)
from clipseg_jax.ops.image import IMAGENET_MEAN, IMAGENET_STD, network_input, valid_mask
from clipseg_jax.ops.upsample import upsampled_argmax
from clipseg_jax.task import Metrics, Task

UNLABELLED = -1  # pixels that the teacher or the student itself labels
NEVER = (-1, -1)


@dataclasses.dataclass(frozen=True)
class MaskCLIPPlusConfig:
    """The published choices, and where they may be changed (spec maskclip, sections 12 and 16)."""

    # First and last step (counted from 1; last -1: to the end; first -1: never) at which MaskCLIP
    # labels. Annotation-free: (1, -1) and never itself; zero-shot: (1, n - 1) and (n, -1), with n a
    # tenth of the run.
    guided_steps: tuple[int, int] = (1, -1)
    self_training_steps: tuple[int, int] = NEVER
    # The classes that unlabelled pixels may be, as channels of the logits (with a background: from
    # 1). Zero-shot: the unseen ones. Empty: all but the background.
    unlabelled_classes: tuple[int, ...] = ()
    # Published annotation-free runs skip pixels that the ground truth ignores; False labels them.
    use_gt_ignore: bool = True
    # Of the teacher's scores of `unlabelled_classes`.
    refine: MaskCLIPConfig = dataclasses.field(default_factory=MaskCLIPConfig)
    # How the teacher, a ViT, is read: a name of `models/clip/read_outs.py`. Published: "value".
    teacher_read_out: str = "value"
    # Instead of labels, the teacher's features for targets, beside the given labels.
    distill: bool = False
    distill_labelled: bool = True  # at labelled pixels as well, not only at unlabelled ones
    distill_weight: float = 1.0
    distill_detach: bool = True  # published: that term trains nothing
    mean: tuple[float, float, float] = IMAGENET_MEAN  # pixel values, RGB, of training crops
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        check_number("distill_weight", self.distill_weight, 0)
        read_out(self.teacher_read_out)


PUBLISHED = MaskCLIPPlusConfig()


class Targets(NamedTuple):
    """Inputs of the loss for a batch."""

    features: Array  # (b, g, k, e) of the student
    logits: Array  # (b, g, k, classes) of the student
    labels: Array  # (b, h, w) int32, each a class or 255
    distilled: Array | None  # (b, hp, wp, e) unit rows of the teacher, with `cfg.distill`
    at: Array | None  # (b, h, w) bool, where to distil


def trainable(path: str) -> bool:
    """Whether the optimiser owns the parameter of a dotted path."""
    return path.startswith("student.") or path == "background_embedding"


def build(model: MaskCLIPPlus, cfg: MaskCLIPPlusConfig = PUBLISHED) -> Task:
    """A model as a task.

    Training batches hold `image` (b, h, w, 3) uint8, `image_size` (b, 2) and `label` (b, h, w):
    classes as channels of the logits, -1 where the task finds one, 255 ignored.

    Raises:
      ValueError: phases that overlap, a phase that needs a teacher without one, or classes that
        the model doesn't have.
    """
    _check(model, cfg)
    return Task(
        model=model,
        predict=lambda model, images, sizes: model(images, sizes),
        grid_size=model.student.grid_sizes,
        trainable=trainable,
        loss=lambda model, batch, key, step: loss(teacher_targets(model, batch, step, cfg), cfg),
    )


def _check(model: MaskCLIPPlus, cfg: MaskCLIPPlusConfig) -> None:
    (a, b), (c, d) = cfg.guided_steps, cfg.self_training_steps
    guided, alone = a >= 0, c >= 0
    if guided and alone and (b < 0 or c <= b) and (d < 0 or a <= d):
        raise ValueError(
            f"guided_steps {cfg.guided_steps} and self_training_steps {cfg.self_training_steps} "
            "overlap; end one before the other begins"
        )
    if (guided or cfg.distill) and model.teacher is None:
        raise ValueError(
            "the model has no teacher; build it with one, or set guided_steps to (-1, -1) and "
            "distill to False"
        )
    wrong = [i for i in cfg.unlabelled_classes if not 0 <= i < model.classes]
    if wrong:
        raise ValueError(f"unlabelled_classes {wrong}: the model has {model.classes} classes")


def teacher_targets(
    model: MaskCLIPPlus, batch: dict[str, Array], step: Array, cfg: MaskCLIPPlusConfig
) -> Targets:
    """The student's view of a batch, and the labels of it; moves the batch statistics."""
    images = network_input(batch["image"], batch["image_size"], cfg.mean, cfg.std)
    features = model.student(images, train=True)
    logits = model.classify(features)
    labels = given_labels(model, batch, cfg)
    if cfg.distill:
        at = labels != IGNORED if cfg.distill_labelled else labels == UNLABELLED
        taught = model.teach(images, read_out(cfg.teacher_read_out))
        distilled = l2_normalize(taught.features)
        return Targets(features, logits, _without(labels), distilled, at)
    labels = completed_labels(model, images, features, labels, step, cfg)
    return Targets(features, logits, labels, None, None)


def given_labels(model: MaskCLIPPlus, batch: dict[str, Array], cfg: MaskCLIPPlusConfig) -> Array:
    """The batch's labels (b, h, w); what is no class of the model's is ignored."""
    labels = batch["label"]
    if not cfg.use_gt_ignore:
        real = valid_mask(batch["image_size"], (labels.shape[1], labels.shape[2]))
        labels = jnp.where(real & (labels == IGNORED), UNLABELLED, labels)
    return jnp.where(labels >= model.classes, IGNORED, labels)


def completed_labels(
    model: MaskCLIPPlus,
    images: Array,
    features: Array,
    labels: Array,
    step: Array,
    cfg: MaskCLIPPlusConfig,
) -> Array:
    """Labels (b, h, w) with -1 replaced by this step's phase; by 255 where no phase is active.

    Args:
      images: normalised (b, h, w, 3); features: the student's (b, g, k, e) of them.
      step: () int32, updates done.
    """
    candidates = _candidates(model, cfg)
    classes = jnp.asarray(candidates, jnp.int32)
    size = (labels.shape[1], labels.shape[2])
    rows = jax.lax.stop_gradient(model.class_embeddings())[classes]
    features = jax.lax.stop_gradient(features)

    def nothing() -> Array:
        return jnp.full(labels.shape, IGNORED, jnp.int32)

    def guided() -> Array:
        taught = model.teach(images, read_out(cfg.teacher_read_out))
        scores = classify(taught, rows, cfg.refine)
        return classes[upsampled_argmax(scores, size)]

    def alone() -> Array:
        return classes[upsampled_argmax(jnp.matmul(features, rows.T), size)]

    phases = [nothing]
    which = jnp.zeros((), jnp.int32)
    for steps, phase in ((cfg.guided_steps, guided), (cfg.self_training_steps, alone)):
        if steps[0] >= 0:
            which = jnp.where(_within(step + 1, steps), len(phases), which)
            phases.append(phase)
    if len(phases) == 1:
        return _without(labels)
    # Ground truth of these classes is never used, whatever the data hold; -1 reads the last entry.
    hidden = jnp.asarray(np.isin(np.arange(IGNORED + 1), candidates))[labels]
    phase_labels = jax.lax.switch(which, phases)
    return jnp.where(hidden | (labels == UNLABELLED), phase_labels, labels)


def _within(count: Array, steps: tuple[int, int]) -> Array:
    first, last = steps
    return (count >= first) & ((count <= last) | (last < 0))


def _candidates(model: MaskCLIPPlus, cfg: MaskCLIPPlusConfig) -> tuple[int, ...]:
    """The classes that unlabelled pixels may be."""
    first = 0 if model.background_embedding is None else 1
    return cfg.unlabelled_classes or tuple(range(first, model.classes))


def _without(labels: Array) -> Array:
    return jnp.where(labels == UNLABELLED, IGNORED, labels)


def loss(seen: Targets, cfg: MaskCLIPPlusConfig) -> tuple[Array, Metrics]:
    """Cross entropy over ALL pixels, ignored ones as 0, and the distillation's term.

    Metrics by the published names; `acc_seg` is in percent, of all pixels.
    """
    entropy, accuracy = upsampled_cross_entropy_and_accuracy(seen.logits, seen.labels)
    metrics = {"loss_ce": entropy, "acc_seg": 100 * accuracy}
    if seen.distilled is None or seen.at is None:
        return entropy, metrics
    features = jax.lax.stop_gradient(seen.features) if cfg.distill_detach else seen.features
    distance = cfg.distill_weight * upsampled_l1(features, seen.distilled, seen.at)
    return entropy + distance, metrics | {"loss_distill": distance}
