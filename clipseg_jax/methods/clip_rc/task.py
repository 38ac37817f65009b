"""CLIP-RC as a task: prompts and head are trained, inductively, transductively or fully.

Spec clip_rc, sections 6 to 8.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from clipseg_jax.core.checks import check_number, check_whole
from clipseg_jax.core.optim import Group
from clipseg_jax.methods.clip_rc.loss import mask_losses, recovery_loss
from clipseg_jax.methods.clip_rc.model import CLIPRC
from clipseg_jax.ops.cross_entropy import IGNORED
from clipseg_jax.ops.image import IMAGENET_MEAN, IMAGENET_STD, network_input, valid_mask
from clipseg_jax.ops.upsample import upsampled_argmax
from clipseg_jax.task import Metrics, Task

UNSEEN = -1  # pixels of classes whose labels are withheld from training

# Published, all trained parameters decay alike: the rules that exempt norms match names that, for
# parameters of the backbone and the head, an earlier rule has taken. This is what they intend.
NORMS_DO_NOT_DECAY = (Group(r"(^|\.)(prompt_)?norm\d?\.", weight_decay=0.0),)


@dataclasses.dataclass(frozen=True)
class CLIPRCTaskConfig:
    """Which labels train the network, and the weights of its losses: VOC's (section 8)."""

    setting: Literal["inductive", "transductive", "fully"] = "inductive"
    # Classes whose labels training sees, ascending; all for "fully".
    seen: tuple[int, ...] = tuple(range(15))
    mask_weight: float = 100.0
    dice_weight: float = 1.0
    recovery_weight: float = 2.0
    # Transductive: the step from which unseen pixels are labelled by the model itself. Published:
    # the first, for the run starts from the inductive one's half-way checkpoint. Before it unseen
    # pixels are ignored, and their classes have no part in the losses of masks.
    self_training_step: int = 0
    # Published, transductive: pixels of unseen classes are told apart from those of no class (255)
    # by their true labels. "hidden": both are labelled by the model.
    unlabelled: Literal["told", "hidden"] = "told"
    # Subtracted from the scores of seen classes at test time; transductive: nothing is.
    seen_offset: float = 0.1
    train_regions: bool = False  # published: region tokens stay as they start
    mean: tuple[float, float, float] = IMAGENET_MEAN  # pixel values, of training crops
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        for name in ("mask_weight", "dice_weight", "recovery_weight"):
            check_number(name, getattr(self, name), 0)
        check_number("seen_offset", self.seen_offset)
        check_whole("self_training_step", self.self_training_step, least=0)


def build(model: CLIPRC, cfg: CLIPRCTaskConfig) -> Task:
    """A model from `init_clip_rc` or a checkpoint as a task.

    Training batches hold `image` uint8 (b, h, w, 3), `image_size` (b, 2) and `label` (b, h, w) int,
    the dataset's own ids with 255 ignored; h = w = the model's crop.

    Raises:
      ValueError: an unknown choice, or seen classes that aren't some of the model's.
    """
    classes = model.text_embeddings.shape[0]
    for name, allowed in (
        ("setting", ("inductive", "transductive", "fully")),
        ("unlabelled", ("told", "hidden")),
    ):
        if getattr(cfg, name) not in allowed:
            raise ValueError(f"{name} {getattr(cfg, name)!r}: choose {', '.join(allowed)}")
    if list(cfg.seen) != sorted(set(cfg.seen) & set(range(classes))) or not cfg.seen:
        raise ValueError(f"seen {cfg.seen}: give some of 0 to {classes - 1}, ascending, each once")
    if (cfg.setting == "fully") != (len(cfg.seen) == classes):
        raise ValueError(
            f"{len(cfg.seen)} of {classes} classes are seen in the setting {cfg.setting!r}; all of "
            "them are seen in fully, and only there"
        )
    offsets = np.zeros(classes, np.float32)
    if cfg.setting != "transductive":
        offsets[list(cfg.seen)] = cfg.seen_offset
    return Task(
        model=model,
        predict=lambda model, images, sizes: model(images, sizes),
        grid_size=model.grid_sizes,
        pixel_scores=lambda logits: jax.nn.sigmoid(logits) - offsets,
        trainable=lambda path: trainable(path, regions=cfg.train_regions),
        loss=lambda model, batch, key, step: loss(model, batch, key, step, cfg),
    )


def trainable(path: str, *, regions: bool = False) -> bool:
    """Whether the optimiser owns the parameter of a dotted path: prompts and head."""
    return path.startswith(("encoder.prompt", "encoder.deep_prompt", "head.")) or (
        regions and path == "encoder.region_level_bridge"
    )


def loss(
    model: CLIPRC, batch: dict[str, Array], key: Array, step: Array, cfg: CLIPRCTaskConfig
) -> tuple[Array, Metrics]:
    """The sum of the four weighted losses of a training batch, over all devices."""
    images = network_input(batch["image"], batch["image_size"], cfg.mean, cfg.std)
    keys = jax.random.split(key, 3)
    text = model.text_embeddings[...]
    classes = text.shape[0]
    labels = visible_labels(batch["label"], classes, cfg)
    if cfg.setting == "inductive":
        text = text[np.asarray(cfg.seen)]
    encoding = model.encoder(images, key=keys[0])
    decoded = model.head(encoding, text, key=keys[1])
    counted = None
    if cfg.setting == "transductive":
        if cfg.unlabelled == "hidden":
            real = valid_mask(batch["image_size"], (labels.shape[1], labels.shape[2]))
            labels = jnp.where(real & (labels == IGNORED), UNSEEN, labels)
        began = step >= cfg.self_training_step
        labels = jnp.where(began, self_labelled(decoded.logits, labels, cfg.seen), labels)
        counted = began | np.isin(np.arange(classes), cfg.seen)
    labels = jnp.where(labels == UNSEEN, IGNORED, labels)
    masks = mask_losses(decoded.logits, labels, counted)
    parts = {
        "loss_mask": cfg.mask_weight * masks.focal,
        "loss_dice": cfg.dice_weight * masks.dice,
    }
    if cfg.recovery_weight:
        queries, image_tokens = model.head.recovery_decoder(
            decoded.queries, decoded.image_tokens, key=keys[2]
        )
        patches = encoding.patches.reshape(image_tokens.shape)
        parts |= {
            "recovery_loss_q": cfg.recovery_weight * recovery_loss(queries, decoded.query_inputs),
            "recovery_loss_k": cfg.recovery_weight * recovery_loss(image_tokens, patches),
        }
    return jnp.sum(jnp.stack([*parts.values()])), parts | {"pixel_accuracy": masks.accuracy}


def visible_labels(labels: Array, classes: int, cfg: CLIPRCTaskConfig) -> Array:
    """Labels (b, h, w) as training sees them: rows of the text embeddings, `UNSEEN`, or 255.

    The rows are those of the seen classes in the inductive setting, otherwise of all.
    """
    table = np.full(256, UNSEEN, np.int32)
    table[IGNORED] = IGNORED
    seen = np.asarray(cfg.seen)
    table[seen] = np.arange(len(seen)) if cfg.setting == "inductive" else seen
    return jnp.asarray(table)[labels]


def self_labelled(logits: Array, labels: Array, seen: tuple[int, ...]) -> Array:
    """Labels (b, h, w) whose `UNSEEN` pixels became the unseen class with the highest logit.

    Of the same pass's mask logits (b, g, k, c); no threshold, no teacher (section 7).
    """
    unseen = np.setdiff1d(np.arange(logits.shape[-1]), seen)
    best = upsampled_argmax(
        jax.lax.stop_gradient(logits[..., unseen]), (labels.shape[1], labels.shape[2])
    )
    return jnp.where(labels == UNSEEN, jnp.asarray(unseen, jnp.int32)[best], labels)
