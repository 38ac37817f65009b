"""The two sides of `clip_rc_step`: a training step and inference, ours and the peer's."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import inputs
from benchmarks.sides import Ours, TorchStep, autocast, channels_first, torch_device
from clipseg_jax.core.modules import initialised
from clipseg_jax.core.optim import OptimConfig
from clipseg_jax.inference import InferenceConfig, make_segment_fn
from clipseg_jax.methods.clip_rc import task as clip_rc
from clipseg_jax.methods.clip_rc.model import CLIPRCConfig, init_clip_rc
from clipseg_jax.models.clip import VisionTransformer, ViTConfig
from clipseg_jax.ops.image import IMAGENET_MEAN, IMAGENET_STD, normalize
from clipseg_jax.task import Task
from configs.base import clip_rc as defaults
from weights_convert.clip.build import flat_arrays
from weights_convert.trained.clip_rc.published import to_published

Kind = Literal["training", "inference"]
STEPS = 40_000  # of the schedule


@dataclasses.dataclass(frozen=True)
class Work:
    """Sizes of the workload of both sides."""

    vision: ViTConfig
    cfg: CLIPRCConfig
    classes: int
    seen: tuple[int, ...]
    weights: tuple[float, float, float]  # of mask, dice and recovery losses
    batch: int


def make_work(batch: int, dataset: str, dtype: str, *, crop: int, remat: bool, tiny: bool) -> Work:
    """The inductive step of "voc" or "coco" on a ViT-B/16; `tiny`: on one that runs in a second.

    Raises:
      ValueError: a crop that isn't an even number of patches.
    """
    inputs.whole_patches(crop, 32)
    classes, unseen, prompts, weights = {
        "voc": (20, 5, 10, (100.0, 1.0, 2.0)),
        "coco": (171, 15, 100, (200.0, 3.0, 50.0)),
    }[dataset]
    cfg = CLIPRCConfig(crop_px=crop, prompts=prompts, remat=remat)
    if tiny:
        cfg = dataclasses.replace(cfg, hidden=64, heads=4)
    return Work(
        inputs.vision(dtype, tiny), cfg, classes, tuple(range(classes - unseen)), weights, batch
    )


def make_batch(work: Work) -> inputs.CropBatch:
    """Crops of coarse random colours, and labels of a few classes in coarse blocks."""
    rng = np.random.default_rng(inputs.SEED)
    b, crop = work.batch, work.cfg.crop_px
    batch = inputs.crops(rng, b, crop)
    classes = rng.integers(0, work.classes, (b, 6))
    label = np.take_along_axis(classes, rng.integers(0, 6, (b, (crop // 32) ** 2)), axis=1)
    label = label.reshape(b, crop // 32, crop // 32).repeat(32, axis=1).repeat(32, axis=2)
    label[:, : crop // 8] = 255
    return batch | {"label": label.astype(np.int32)}


def make_task(work: Work, dropout: float) -> Task:
    """The task with random weights."""
    text_embeddings = inputs.random_embeddings(
        np.random.default_rng(inputs.SEED), work.classes, work.vision.embed_dim
    )
    cfg = dataclasses.replace(work.cfg, dropout=dropout)
    visual = initialised(lambda rngs: VisionTransformer(work.vision, rngs=rngs), inputs.SEED)
    model = init_clip_rc(visual, text_embeddings, cfg, seed=inputs.SEED)
    mask, dice, recovery = work.weights
    return clip_rc.build(
        model,
        clip_rc.CLIPRCTaskConfig(
            seen=work.seen, mask_weight=mask, dice_weight=dice, recovery_weight=recovery
        ),
    )


class Segmentation:
    """The evaluation's segmentation of a batch, compiled."""

    def __init__(self, work: Work, task: Task, batch: inputs.CropBatch):
        crop = work.cfg.crop_px
        cfg = InferenceConfig(
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
            scale_px=None,
            mode="slide",
            crop_px=(crop, crop),
            stride_px=(crop * 5 // 6, crop * 5 // 6),
        )
        self.state, segment_fn = make_segment_fn(task, cfg)
        sizes = jnp.asarray(batch["image_size"])
        self.inputs = jnp.asarray(batch["image"]), sizes, sizes[:, None]
        jitted = jax.jit(segment_fn, static_argnums=4)
        self.compiled = jitted.lower(self.state, *self.inputs, ((crop, crop),)).compile()

    def __call__(self) -> np.ndarray:
        """Label maps (b, h, w)."""
        return np.asarray(self.compiled(self.state, *self.inputs)[0])


def ours(kind: Kind, work: Work, task: Task, batch: inputs.CropBatch) -> Any:
    """The training loop's update or the evaluation's segmentation."""
    if kind == "inference":
        return Segmentation(work, task, batch)
    optim = OptimConfig(**defaults.get_config().clip_rc.optim.to_dict())
    return Ours(task, batch, optim=optim, steps=STEPS)


def peer(kind: Kind, work: Work, task: Task, batch: inputs.CropBatch, dropout: float) -> Any:
    """The same in PyTorch."""
    import torch

    from benchmarks import torch_clip_rc

    device, vision, cfg = torch_device(), work.vision, work.cfg
    sizes = torch_clip_rc.Sizes(
        cfg.crop_px, vision.patch_px, vision.width, vision.layers, vision.heads,
        vision.embed_dim, cfg.prompts, cfg.region_side, cfg.decoder_blocks, cfg.heads, cfg.hidden,
        dropout,
    )  # fmt: skip
    arrays = {path: np.array(x) for path, x in flat_arrays(task.model).items()}
    text_embeddings = torch.from_numpy(arrays.pop("text_embeddings"))
    seen = list(work.seen)
    model = torch_clip_rc.ClipRC(sizes, text_embeddings[seen], work.weights)
    stored = {k: torch.from_numpy(np.array(v)) for k, v in to_published(arrays).items()}
    model.load_state_dict(stored)
    model = model.to(device).train(kind == "training")
    # The published loader normalises images; our step does so itself.
    pixels = normalize(jnp.asarray(batch["image"]), IMAGENET_MEAN, IMAGENET_STD)
    images = channels_first(pixels)
    if kind == "training":
        label = np.where(np.isin(batch["label"], seen), batch["label"], 255)
        labels = torch.from_numpy(label).long().to(device)
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=2e-10, weight_decay=0.01)  # of step 0
        return TorchStep(lambda: model.loss(images, labels), optimizer, vision.dtype)
    is_seen = torch.from_numpy(np.isin(np.arange(work.classes), seen)).to(device)
    text_embeddings = text_embeddings.to(device)

    def segment() -> np.ndarray:
        with autocast(vision.dtype):
            return model.labels(images, is_seen, text_embeddings).cpu().numpy()

    return segment
