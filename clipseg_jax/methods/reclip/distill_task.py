"""ReCLIP's distillation as a task: the teacher labels each crop, the student learns the labels."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from clipseg_jax.core.checks import check_number
from clipseg_jax.methods.reclip.distill_model import Distillation, TeacherOutputs
from clipseg_jax.methods.reclip.loss import tagged_cross_entropy
from clipseg_jax.methods.reclip.model import (
    FixedReference,
    ReCLIP,
    filter_classes,
    frozen_reference,
)
from clipseg_jax.models.deeplab import DeepLab
from clipseg_jax.ops.cross_entropy import IGNORED, upsampled_cross_entropy, upsampled_l1
from clipseg_jax.ops.image import IMAGENET_MEAN, IMAGENET_STD, network_input, valid_mask
from clipseg_jax.ops.upsample import sum_by_class, upsampled_argmax
from clipseg_jax.task import Metrics, Task

UNLABELLED = -1  # pixels that the teacher labels


@dataclasses.dataclass(frozen=True)
class DistillConfig:
    """The published choices, and where they may be changed (spec reclip, sections 15 and 18)."""

    # A class whose probability stays below it at all positions labels no pixel. ReCLIP: 0.5;
    # ReCLIP++: a value for each dataset, and 0 is no filter.
    teacher_threshold: float = 0.5
    teacher_scale: float = 10.0  # of the logits in that filter's softmax
    # The same of the student's logits at test time; ReCLIP has no such filter.
    test_threshold: float = 0.0
    test_scale: float = 2.0
    # The teacher's batch norms: "fresh_train" starts their statistics anew and uses those of each
    # batch, as published; "loaded_eval" uses the loaded ones and leaves them alone.
    teacher_bn: Literal["fresh_train", "loaded_eval"] = "fresh_train"
    # The two terms beside the mask loss: published, but without a gradient to the student; they
    # cost time. "off" omits them.
    aux: Literal["value", "off"] = "value"
    aux_weight: float = 0.5  # of each
    aux_grad: bool = False  # let them train the student, as the paper describes
    # The published code multiplies cosines by the parameter (log of the scale) itself.
    exp_logit_scale: bool = False
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        for name in ("teacher_threshold", "test_threshold"):
            check_number(name, getattr(self, name), 0, 1)
        for name in ("teacher_scale", "test_scale"):
            check_number(name, getattr(self, name), 0, above=True)
        check_number("aux_weight", self.aux_weight, 0)


def build(teacher: ReCLIP, student: DeepLab, cfg: DistillConfig) -> Task:
    """A rectified CLIP and a student to train as a task.

    The teacher's batch statistics are reset unless `cfg.teacher_bn` is "loaded_eval"; a finished
    student's are to be loaded afterwards.

    Raises:
      ValueError: they don't fit together, or an unknown choice.
    """
    for name, allowed in (
        ("teacher_bn", ("fresh_train", "loaded_eval")),
        ("aux", ("value", "off")),
    ):
        if getattr(cfg, name) not in allowed:
            raise ValueError(f"{name} {getattr(cfg, name)!r}: choose {allowed[0]} or {allowed[1]}")
    if not isinstance(teacher.reference, FixedReference):
        teacher = frozen_reference(teacher)
    if cfg.teacher_bn == "fresh_train":
        _start_anew(teacher.head)
    model = Distillation(student, teacher)
    return Task(
        model=model,
        predict=lambda model, images, sizes: predict(model, images, sizes, cfg),
        grid_size=model.student.grid_sizes,
        trainable=lambda path: path.startswith("student.") or path == "logit_scale",
        loss=lambda model, batch, key, step: loss(model, batch, cfg),
    )


def _start_anew(head: nnx.Module) -> None:
    stats = nnx.to_flat_state(nnx.state(head, nnx.BatchStat))
    fresh = [
        (path, stat.replace(jnp.full_like(stat[...], path[-1] == "var"))) for path, stat in stats
    ]
    nnx.update(head, nnx.from_flat_state(fresh))


def predict(model: Distillation, images: Array, sizes: Array, cfg: DistillConfig) -> Array:
    """The student's logits (b, gh, gw, c), classes filtered, 0 in the padding."""
    logits = model(images, sizes)
    real = valid_mask(model.student.grid_sizes(sizes), (logits.shape[1], logits.shape[2]))
    logits = filter_classes(logits, real, cfg.test_scale, cfg.test_threshold)
    return jnp.where(real[..., None], logits, 0)


def loss(model: Distillation, batch: dict[str, Array], cfg: DistillConfig) -> tuple[Array, Metrics]:
    """Mask loss and auxiliary terms of a training batch; moves the batch statistics."""
    images = network_input(batch["image"], batch["image_size"], cfg.mean, cfg.std)
    head_train = cfg.teacher_bn == "fresh_train"
    teacher = model.teach(images, train=head_train)
    labels = teacher_labels(teacher.logits, batch["label"], cfg)
    features = model.student(images, train=True)
    shape = (images.shape[1], images.shape[2])
    logits = model.classify(features, shape, train=head_train)
    mask = upsampled_cross_entropy(logits, labels)
    if cfg.aux == "off":
        return mask, {"mask_loss": mask}
    features = features if cfg.aux_grad else jax.lax.stop_gradient(features)
    l1 = feature_loss(model, features, teacher, labels)
    text = jnp.mean(text_losses(model, features, labels, batch["tags"], cfg)[0])
    total = mask + cfg.aux_weight * (l1 + text)
    return total, {"mask_loss": mask, "feature_loss": l1, "text_loss": text}


def teacher_labels(logits: Array, labels: Array, cfg: DistillConfig) -> Array:
    """Labels (b, h, w) with -1 replaced by the teacher's class, of logits (b, hp, wp, c)."""
    real = jnp.ones(logits.shape[:3], bool)  # published: padding of a crop counts as pixels
    logits = filter_classes(logits, real, cfg.teacher_scale, cfg.teacher_threshold)
    size = (labels.shape[1], labels.shape[2])
    return jnp.where(labels == UNLABELLED, upsampled_argmax(logits, size), labels)


def feature_loss(
    model: Distillation, features: Array, teacher: TeacherOutputs, labels: Array
) -> Array:
    """L1 between the student's features (b, gh, gw, e) and CLIP's, both at full size.

    ReCLIP averages over labelled pixels, ReCLIP++ over all, as published.
    """
    everywhere = model.teacher.cfg.plus_plus
    counted = jnp.ones(labels.shape, bool) if everywhere else labels != IGNORED
    return upsampled_l1(features, teacher.features, counted)


def text_losses(
    model: Distillation, features: Array, labels: Array, tags: Array, cfg: DistillConfig
) -> tuple[Array, Array]:
    """Cross entropies (b,) of each tagged class's pooled features; similarities (b, c, c).

    Features are divided by all pixels of the image, so that rare classes have short vectors.
    """
    text = model.teacher.text_embeddings[...]
    pooled = sum_by_class(features, labels, text.shape[0]) / (labels.shape[1] * labels.shape[2])
    scale = jnp.exp(model.logit_scale[...]) if cfg.exp_logit_scale else model.logit_scale[...]
    similarities = scale * jnp.matmul(pooled, text.T, precision="highest")
    return tagged_cross_entropy(similarities, tags), similarities
