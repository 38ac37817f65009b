"""WeCLIP and WTCLIP as a task: each crop's labels are made from the crop.

Spec weclip, sections 5 to 9; what differs in WTCLIP is its head's config.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from clipseg_jax.core.checks import check_number, check_whole
from clipseg_jax.core.modules import initialised
from clipseg_jax.core.optim import Group
from clipseg_jax.methods.weclip.affinity_loss import affinity_loss, affinity_targets
from clipseg_jax.methods.weclip.head import Head, HeadConfig, affinity
from clipseg_jax.methods.weclip.model import WeCLIP, WeCLIPConfig
from clipseg_jax.models.clip import VisionTransformer
from clipseg_jax.ops.cross_entropy import IGNORED, upsampled_balanced_cross_entropy
from clipseg_jax.ops.dropout import dropout
from clipseg_jax.ops.image import IMAGENET_MEAN, IMAGENET_STD, normalize
from clipseg_jax.ops.resize import resize_within
from clipseg_jax.task import Metrics, Task

# The learning rate of all trained parameters is ten times the logged one, and all of them decay,
# biases and norms as well (section 7).
GROUPS = (Group(r"^head\.", rate=10.0),)


def late_step(threshold: int, *, images: int = 0, every: int = 0) -> int:
    """The first step (from 0) of the late phase, which begins after `threshold` forward passes.

    The released code counts those of its evaluations, too: of `images` images after `every` steps.
    On VOC that makes its 15000 step 9144; the paper means steps.
    """
    step = 0
    while step + 1 + (images * (step // every) if every else 0) <= threshold:
        step += 1
    return step


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """The published choices, and where they may be changed."""

    # From this step on the learned affinity refines the labels. What the released VOC config comes
    # to: late_step(15000, images=1464, every=2000). The paper's is 15000; COCO's 40000.
    late_step: int = 9144
    affinity_weight: float = 0.1
    affinity_radius: int = 8  # patches; pairs further apart do not train
    # The padding of crops (black) is labelled and trains as pixels do, as published; "ignored"
    # needs `image_box`.
    padding: Literal["learned", "ignored"] = "learned"
    # Pixel values, RGB. ImageNet's, although CLIP's are others: checkpoints depend on them.
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        check_whole("late_step", self.late_step, least=0)
        check_whole("affinity_radius", self.affinity_radius)
        check_number("affinity_weight", self.affinity_weight, 0)


PUBLISHED = TaskConfig()


def init_weclip(
    visual: VisionTransformer,
    class_embeddings: ArrayLike,
    background_embeddings: ArrayLike,
    cfg: WeCLIPConfig | None = None,
    head: HeadConfig | None = None,
    *,
    seed: int = 0,
) -> WeCLIP:
    """An untrained model: the published initialisation on a frozen image tower.

    The tower's config must have `position_resize="bilinear"` and `pad_to_patch=False` to be the
    published one; `position_half` adds the published rounding of positions.

    Args:
      class_embeddings, background_embeddings: of texts, (c, e) without the background, and (n, e).
    """
    sizes = visual.cfg.width, visual.cfg.layers - 1, jnp.shape(class_embeddings)[0] + 1
    made = initialised(lambda rngs: Head(*sizes, head, rngs=rngs), seed)
    return WeCLIP(visual, class_embeddings, background_embeddings, made, cfg)


def trainable(path: str) -> bool:
    """Whether the optimiser owns the parameter of a dotted path."""
    return path.startswith("head.")


def build(model: WeCLIP, cfg: TaskConfig = PUBLISHED) -> Task:
    """A model as a task; `GROUPS` are its published parameter groups.

    Training batches hold `image` (b, h, w, 3) in pixel values, padding black, and `tags` (b, c)
    bool, the classes of the whole image; with `padding="ignored"` also `image_box` (b, 4) int32,
    (top, left, bottom, right) of what is no padding.

    Raises:
      ValueError: an unknown `padding`.
    """
    if cfg.padding not in ("learned", "ignored"):
        raise ValueError(f"padding {cfg.padding!r}: choose learned or ignored")
    return Task(
        model=model,
        predict=lambda model, images, sizes: model(images, sizes),
        grid_size=model.clip.visual.grid_sizes,
        trainable=trainable,
        loss=lambda model, batch, key, step: loss(model, batch, key, step, cfg),
    )


def loss(
    model: WeCLIP, batch: dict[str, Array], key: Array, step: Array, cfg: TaskConfig
) -> tuple[Array, Metrics]:
    """Cross entropy on the pseudo labels, and the affinity's loss (section 6).

    All means are over the whole batch handed in, on all devices.
    """
    images = normalize(batch["image"], cfg.mean, cfg.std)
    b, h, w, _ = images.shape
    features = model.encode(images, jnp.broadcast_to(jnp.asarray([h, w]), (b, 2)))
    sizes = model.head.cfg
    channel_scale = dropout(jnp.ones((b, sizes.width)), sizes.dropout, key)
    decoded = model.decode(features, channel_scale)
    late = step >= cfg.late_step
    labels = model.label(images, features, decoded.fused, batch["tags"], late).labels
    if cfg.padding == "ignored":
        labels = jnp.where(_in_box(batch["image_box"], (h, w)), labels, IGNORED)
    segmentation = upsampled_balanced_cross_entropy(decoded.logits, labels) / 2
    targets = affinity_targets(labels, features.shape, cfg.affinity_radius)
    pairs = affinity_loss(affinity(decoded.fused), targets)
    metrics = {
        "segmentation_loss": segmentation,
        "affinity_loss": pairs,
        "foreground": jnp.mean((labels != 0) & (labels != IGNORED), dtype=jnp.float32),
        "late": late.astype(jnp.float32),
    }
    return segmentation + cfg.affinity_weight * pairs, metrics


def pseudo_labels(
    model: WeCLIP,
    images: Array,
    tags: Array,
    *,
    late: ArrayLike = True,
    size: tuple[int, int] | None = None,
    sizes: Array | None = None,
    label_sizes: Array | None = None,
) -> Array:
    """Labels (b, *size) int32 of normalised images (b, h, w, 3), for evaluation.

    Spec weclip, sections 5 and 10.

    Args:
      tags: (b, c) bool. size: of the labels; None: the images'.
      sizes, label_sizes: (b, 2) real pixels of padded images and of their padded labels; both, or
        None: nothing is padded.
    """
    b, h, w, _ = images.shape
    real = jnp.broadcast_to(jnp.asarray([h, w]), (b, 2)) if sizes is None else sizes
    features = model.encode(images, real)
    fused = model.decode(features).fused
    if label_sizes is not None:
        size = size or (h, w)
        images = resize_within(images, real, label_sizes, size, align_corners=True)
    return model.label(images, features, fused, tags, late, size, label_sizes).labels


def _in_box(boxes: Array, shape: tuple[int, int]) -> Array:
    """(b, h, w) bool, true within boxes (b, 4) = (top, left, bottom, right), half open."""
    top, left, bottom, right = (boxes[:, i, None] for i in range(4))
    row, column = jnp.arange(shape[0]), jnp.arange(shape[1])
    rows, columns = (row >= top) & (row < bottom), (column >= left) & (column < right)
    return rows[:, :, None] & columns[:, None]
