"""The two systems that `clip_rc_step` measures: a training step and inference, both ways."""

from __future__ import annotations

import dataclasses
import os
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.reclip_sides import process_peak
from clipseg_jax.core.mesh import make_mesh, shard_batch
from clipseg_jax.core.modules import initialised
from clipseg_jax.core.optim import optimizer
from clipseg_jax.inference import InferenceConfig, segmenter
from clipseg_jax.models.clip import VisionTransformer, ViTConfig
from clipseg_jax.models.clip_rc import CLIPRCConfig, initial
from clipseg_jax.ops.image import IMAGENET_MEAN, IMAGENET_STD, normalise
from clipseg_jax.tasks import clip_rc
from clipseg_jax.tasks.base import Task
from clipseg_jax.train_step import make_update, place, take_apart
from weights_convert.build import flat_arrays
from weights_convert.clip_rc_published import to_published

Kind = Literal["training", "inference"]
Batch = dict[str, np.ndarray]
SEED = 0
STEPS = 40_000  # of the schedule


@dataclasses.dataclass(frozen=True)
class Work:
    """What both sides do."""

    vision: ViTConfig
    cfg: CLIPRCConfig
    classes: int
    seen: tuple[int, ...]
    weights: tuple[float, float, float]  # of mask, dice and recovery
    batch: int


def work(batch: int, dataset: str, dtype: str, *, crop: int, remat: bool, tiny: bool) -> Work:
    """The inductive step of "voc" or "coco" on a ViT-B/16; `tiny`: of networks of a second.

    Raises:
      ValueError: a crop that isn't an even number of patches.
    """
    if crop % 32:
        raise ValueError(f"crops of {crop} pixels: choose a multiple of 32")
    classes, unseen, prompts, weights = {
        "voc": (20, 5, 10, (100.0, 1.0, 2.0)),
        "coco": (171, 15, 100, (200.0, 3.0, 50.0)),
    }[dataset]
    vision = ViTConfig(224, 16, 768, 12, 12, 512, dtype=dtype)
    cfg = CLIPRCConfig(crop_px=crop, prompts=prompts, remat=remat)
    if tiny:
        vision = ViTConfig(64, 16, 64, 2, 2, 32, dtype=dtype)
        cfg = dataclasses.replace(cfg, hidden=64, heads=4)
    return Work(vision, cfg, classes, tuple(range(classes - unseen)), weights, batch)


def make_batch(work: Work) -> Batch:
    """Crops of coarse random colours, and labels of a few classes in coarse blocks."""
    rng = np.random.default_rng(SEED)
    b, crop = work.batch, work.cfg.crop_px
    image = rng.integers(0, 256, (b, crop // 8, crop // 8, 3), np.uint8)
    shown = rng.integers(0, work.classes, (b, 6))
    label = np.take_along_axis(shown, rng.integers(0, 6, (b, (crop // 32) ** 2)), axis=1)
    label = label.reshape(b, crop // 32, crop // 32).repeat(32, axis=1).repeat(32, axis=2)
    label[:, : crop // 8] = 255
    return {
        "image": image.repeat(8, axis=1).repeat(8, axis=2),
        "image_size": np.full((b, 2), crop, np.int32),
        "label": label.astype(np.int32),
        "index": np.arange(b, dtype=np.int32),
    }


def make_task(work: Work, dropout: float) -> Task:
    """The task with random weights."""
    rng = np.random.default_rng(SEED)
    rows = rng.standard_normal((work.classes, work.vision.embed_dim)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    cfg = dataclasses.replace(work.cfg, dropout=dropout)
    visual = initialised(lambda rngs: VisionTransformer(work.vision, rngs=rngs), SEED)
    model = initial(visual, rows, cfg, seed=SEED)
    mask, dice, recovery = work.weights
    return clip_rc.build(
        model,
        clip_rc.CLIPRCTaskConfig(
            seen=work.seen, mask_weight=mask, dice_weight=dice, recovery_weight=recovery
        ),
    )


class Ours:
    """The training loop's update or the evaluation's segmentation, compiled for one batch."""

    def __init__(self, kind: Kind, work: Work, task: Task, batch: Batch):
        mesh = make_mesh(1)
        self.kind = kind
        if kind == "training":
            parts = take_apart(task)
            tx = optimizer(clip_rc.OPTIM, STEPS)
            self.state, self.frozen, shardings = place(parts, tx, mesh)
            self.batch = shard_batch(mesh, batch)
            update = jax.jit(
                make_update(task, parts, tx, seed=SEED),
                donate_argnums=0,
                out_shardings=(shardings, None),
            )
            self.compiled = update.lower(self.state, self.frozen, self.batch).compile()
            return
        crop = work.cfg.crop_px
        cfg = InferenceConfig(
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
            scale_px=None,
            mode="slide",
            crop_px=(crop, crop),
            stride_px=(crop * 5 // 6, crop * 5 // 6),
        )
        self.state, segment = segmenter(task, cfg)
        sizes = jnp.asarray(batch["image_size"])
        self.inputs = jnp.asarray(batch["image"]), sizes, sizes[:, None]
        jitted = jax.jit(segment, static_argnums=4)
        self.compiled = jitted.lower(self.state, *self.inputs, ((crop, crop),)).compile()

    def __call__(self) -> dict[str, Any]:
        """One step, or one batch of label maps; waits for it."""
        if self.kind == "inference":
            return {"labels": np.asarray(self.compiled(self.state, *self.inputs)[0])}
        self.state, metrics = self.compiled(self.state, self.frozen, self.batch)
        jax.block_until_ready(self.state)
        return {name: float(metrics[name]) for name in ("loss", "gradient_norm")}

    def temporary_bytes(self) -> int | None:
        """What the program takes of the device's memory beside weights, optimiser and batch."""
        memory = self.compiled.memory_analysis()
        return memory.temp_size_in_bytes if memory else None


class Peer:
    """The same in PyTorch, which only making one imports."""

    def __init__(self, kind: Kind, work: Work, task: Task, batch: Batch, dropout: float):
        import torch

        from benchmarks import torch_clip_rc

        self.kind, self.torch = kind, torch
        gpu = torch.cuda.is_available() and jax.default_backend() == "gpu"
        self.device = torch.device("cuda" if gpu else "cpu")
        self.half = work.vision.dtype == "bfloat16"
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        vision, cfg = work.vision, work.cfg
        sizes = torch_clip_rc.Sizes(
            cfg.crop_px, vision.patch_px, vision.width, vision.layers, vision.heads,
            vision.embed_dim, cfg.prompts, cfg.region_side, cfg.rounds, cfg.heads, cfg.hidden,
            dropout,
        )  # fmt: skip
        arrays = {path: np.array(x) for path, x in flat_arrays(task.model).items()}
        rows = self._tensor(arrays.pop("text_embeddings"))
        seen = list(work.seen)
        model = torch_clip_rc.ClipRC(sizes, rows[seen], work.weights)
        stored = {k: torch.from_numpy(np.array(v)) for k, v in to_published(arrays).items()}
        model.load_state_dict(stored)
        self.model = model.to(self.device).train(kind == "training")
        images = normalise(jnp.asarray(batch["image"]), IMAGENET_MEAN, IMAGENET_STD)
        # Their loader normalises; ours leaves that to the step.
        self.images = self._tensor(images).permute(0, 3, 1, 2).contiguous()
        if kind == "inference":
            known = np.isin(np.arange(work.classes), seen)
            self.seen, self.rows = self._tensor(known), rows
            return
        label = np.where(np.isin(batch["label"], seen), batch["label"], 255)
        self.labels = self._tensor(label).long()
        trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=2e-10, weight_decay=0.01)  # of step 0

    def _tensor(self, x: Any) -> Any:
        return self.torch.from_numpy(np.array(x)).to(self.device)

    def __call__(self, norm: bool = False) -> dict[str, Any]:
        """One step: its loss, with `norm` also its gradient norm; or one batch of label maps."""
        with self.torch.autocast(self.device.type, self.torch.bfloat16, enabled=self.half):
            if self.kind == "inference":
                labels = self.model.labels(self.images, self.seen, self.rows)
                return {"labels": labels.cpu().numpy()}
            loss = self.model.loss(self.images, self.labels)
        self.optimizer.zero_grad()
        loss.backward()
        figures = {"loss": loss.item()}
        if norm:
            grads = [p.grad.norm() for p in self.model.parameters() if p.grad is not None]
            figures["gradient_norm"] = float(self.torch.stack(grads).norm())
        self.optimizer.step()
        return figures

    def peak_bytes(self) -> int | None:
        """Memory that a step takes beyond what was held before it."""
        if self.device.type == "cpu":
            return process_peak(self)
        self.torch.cuda.reset_peak_memory_stats()
        before = self.torch.cuda.memory_allocated()
        self()
        return self.torch.cuda.max_memory_allocated() - before

    def set_tf32(self, on: bool) -> None:
        """Whether a GPU may round factors of float32 products, as JAX's default does."""
        self.torch.backends.cuda.matmul.allow_tf32 = self.torch.backends.cudnn.allow_tf32 = on
