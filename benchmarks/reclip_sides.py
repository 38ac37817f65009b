"""The two systems that `reclip_step` measures: ReCLIP++'s training steps, ours and the peer's."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.reclip_counts import Work
from clipseg_jax.core.mesh import make_mesh, shard_batch
from clipseg_jax.core.modules import initialised
from clipseg_jax.core.optim import OptimConfig, optimizer
from clipseg_jax.models.clip import CLIP, CLIPConfig, TextConfig, ViTConfig
from clipseg_jax.models.deeplab import DeepLab
from clipseg_jax.models.reclip import RECLIP_PP, frozen_reference
from clipseg_jax.models.resnet import DilatedResNetConfig
from clipseg_jax.ops.gumbel import gumbel_noise
from clipseg_jax.ops.image import IMAGENET_MEAN, IMAGENET_STD, network_input
from clipseg_jax.tasks import reclip, reclip_distill
from clipseg_jax.tasks.base import Task
from clipseg_jax.train_step import make_update, place, take_apart

Kind = Literal["rectification", "distillation"]
Batch = dict[str, np.ndarray]
SEED = 0
CONSTANT_SGD = OptimConfig(schedule="constant")
TEACHER_THRESHOLD = 0.95  # VOC's; random logits pass it, being as sharp as trained ones


def work(batch: int, crop: int, classes: int, dtype: str, tiny: bool) -> Work:
    """A step of CLIP ViT-B/16 and a ResNet-50; `tiny`: of networks that run in a second."""
    if crop % 16:
        raise ValueError(f"crops of {crop} pixels: choose a multiple of 16")
    vision = ViTConfig(224, 16, 768, 12, 12, 512, dtype=dtype)
    text = TextConfig(77, 49408, 512, 12, 8, 512, dtype=dtype)
    student = DilatedResNetConfig(dtype=dtype)
    if tiny:
        vision = ViTConfig(64, 16, 64, 2, 2, 32, dtype=dtype)
        text = TextConfig(77, 64, 32, 2, 2, 32, dtype=dtype)
        student = DilatedResNetConfig(blocks=(1, 1, 1, 1), width=8, dtype=dtype)
    vision = dataclasses.replace(vision, activation="gelu", block_norm_eps=1e-6)
    tags = max(2, classes * 3 // 20)  # about the published share: 2 of 20, 13 of 59, 22 of 150
    return Work(vision, text, student, classes, tags, batch, crop)


def make_batch(work: Work) -> Batch:
    """Crops of coarse random colours, random tags; labels to be filled in, but for a border."""
    rng = np.random.default_rng(SEED)
    b, crop, c = work.batch, work.crop, work.classes
    small = rng.integers(0, 256, (b, crop // 8, crop // 8, 3), np.uint8)
    tags = np.zeros((b, c), bool)
    for row in tags:
        row[rng.permutation(c)[: work.tags]] = True
    label = np.full((b, crop, crop), reclip_distill.UNLABELLED, np.int32)
    label[:, : crop // 8] = 255
    return {
        "image": small.repeat(8, axis=1).repeat(8, axis=2),
        "image_size": np.full((b, 2), crop, np.int32),
        "label": label,
        "index": np.arange(b, dtype=np.int32),
        "tags": tags,
    }


def make_task(work: Work, kind: Kind) -> Task:
    """The task with random weights."""
    clip = initialised(lambda rngs: CLIP(CLIPConfig(work.vision, work.text), rngs=rngs), SEED)
    clip.logit_scale[...] = jnp.asarray(math.log(100.0))
    rng = np.random.default_rng(SEED)
    rows = rng.standard_normal((work.classes, work.vision.embed_dim)).astype(np.float32)
    end = work.text.vocabulary - 1
    ids = [(int(i), end, 0) for i in rng.integers(1, end - 1, work.classes)]
    model = reclip.initial(
        clip,
        rows / np.linalg.norm(rows, axis=1, keepdims=True),
        ids,
        RECLIP_PP,
        activation="gelu",
        rngs=nnx.Rngs(SEED),
    )
    if kind == "rectification":
        return reclip.build(model, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    student = initialised(
        lambda rngs: DeepLab(work.student, work.vision.embed_dim, rngs=rngs), SEED
    )
    for layer in student.backbone.layers:
        for block in layer:  # or random blocks double the variance each, and rounding with it
            block.norm3.scale[...] *= 0.1
    cfg = reclip_distill.DistillConfig(teacher_thresh=TEACHER_THRESHOLD)
    return reclip_distill.build(frozen_reference(model), student, cfg)


class Ours:
    """The training loop's update, compiled for one batch that stays on the devices."""

    def __init__(
        self, task: Task, batch: Batch, devices: int = 1, optim: OptimConfig = CONSTANT_SGD
    ):
        mesh = make_mesh(devices)
        parts = take_apart(task)
        tx = optimizer(optim, 1)
        self.state, self.frozen, shardings = place(parts, tx, mesh)
        self.batch = shard_batch(mesh, batch)
        update = jax.jit(
            make_update(task, parts, tx, seed=SEED),
            donate_argnums=0,
            out_shardings=(shardings, None),
        )
        self.compiled = update.lower(self.state, self.frozen, self.batch).compile()

    def __call__(self) -> dict[str, float]:
        """One step; waits for its loss and gradient norm."""
        self.state, metrics = self.compiled(self.state, self.frozen, self.batch)
        jax.block_until_ready(self.state)
        return {name: float(metrics[name]) for name in ("loss", "gradient_norm")}

    def compiler_flops(self) -> float | None:
        """What the compiler counts: a loop's body once, and no calls of libraries."""
        cost = self.compiled.cost_analysis()
        return cost.get("flops") if cost else None

    def temporary_bytes(self) -> int | None:
        """What the program takes of the device's memory beside weights, optimiser and batch."""
        memory = self.compiled.memory_analysis()
        return memory.temp_size_in_bytes if memory else None


class Peer:
    """The same in PyTorch, which only making one imports."""

    def __init__(self, kind: Kind, work: Work, task: Task, batch: Batch):
        import torch

        from benchmarks import torch_reclip

        self.kind, self.torch = kind, torch
        gpu = torch.cuda.is_available() and jax.default_backend() == "gpu"
        self.device = torch.device("cuda" if gpu else "cpu")
        self.half = work.vision.dtype == "bfloat16"
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        ours: Any = task.model
        flat = nnx.to_flat_state(nnx.state(ours))
        arrays = {".".join(map(str, path)): np.array(value[...]) for path, value in flat}
        if kind == "rectification":
            rows = torch.from_numpy(arrays["text_embeddings"])
            ids = torch.tensor(ours.reference.name_ids)
            model: Any = torch_reclip.Rectifier(work.vision, work.text, rows, ids)
        else:
            rows, reference = (
                torch.from_numpy(arrays[f"teacher.{name}"])
                for name in ("text_embeddings", "reference.rows")
            )
            model = torch_reclip.Distiller(
                work.vision, work.student, rows, reference, TEACHER_THRESHOLD
            )
        torch_reclip.load(model, arrays)
        self.model = model.to(self.device).train()
        self.optimizer = torch_reclip.optimizer(self.model)
        crops, real = map(jnp.asarray, (batch["image"], batch["image_size"]))
        images = network_input(crops, real, IMAGENET_MEAN, IMAGENET_STD)
        # Their loader normalises; ours leaves that to the step.
        self.images = self._tensor(images).permute(0, 3, 1, 2).contiguous()
        self.labels = self._tensor(batch["label"]).long()
        self.tags = [np.flatnonzero(row).tolist() for row in batch["tags"]]

    def _tensor(self, x: Any) -> Any:
        return self.torch.from_numpy(np.array(x)).to(self.device)

    def __call__(self, noise: np.ndarray | None = None, norm: bool = False) -> dict[str, float]:
        """One step: its loss, with `norm` also its gradient norm.

        `noise` (b, n, c) is for the masks of the rectification; drawn if None.
        """
        with self.torch.autocast(self.device.type, self.torch.bfloat16, enabled=self.half):
            if self.kind == "rectification":
                loss = self.model.loss(
                    self.images, self.tags, None if noise is None else self._tensor(noise)
                )
            else:
                loss = self.model.loss(self.images, self.labels, self.tags)
        self.optimizer.zero_grad()
        loss.backward()
        figures = {"loss": loss.item()}
        if norm:
            grads = [p.grad.norm() for p in self.model.parameters() if p.grad is not None]
            figures["gradient_norm"] = float(self.torch.stack(grads).norm())
        self.optimizer.step()
        return figures

    def peak_bytes(self, step: Callable[[], Any]) -> int | None:
        """Memory that a step takes beyond what was held before it."""
        if self.device.type == "cpu":
            return process_peak(step)
        self.torch.cuda.reset_peak_memory_stats()
        before = self.torch.cuda.memory_allocated()
        step()
        return self.torch.cuda.max_memory_allocated() - before

    def set_tf32(self, on: bool) -> None:
        """Whether a GPU may round factors of float32 products, as JAX's default does."""
        self.torch.backends.cuda.matmul.allow_tf32 = self.torch.backends.cudnn.allow_tf32 = on


def agreement(work: Work, ours: Ours, peer: Peer) -> list[dict[str, float]]:
    """Relative differences of loss and gradient norm, before and after one update.

    Both must be new: of equal weights and images. They get equal Gumbel noise.
    """
    side = work.crop // work.vision.patch_px
    found = []
    for step in range(2):
        key = jax.random.fold_in(jax.random.key(SEED), step)  # as the update makes it
        noise = gumbel_noise(key, (work.batch, side, side, work.classes))
        theirs = peer(np.asarray(noise).reshape(work.batch, side * side, -1), norm=True)
        found.append({name: abs(x / theirs[name] - 1) for name, x in ours().items()})
    return found


def process_peak(step: Callable[[], Any]) -> int | None:
    """How far a call raises this process's memory; None where the kernel can't tell (not Linux)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # what is free already would hide the step's needs
        Path("/proc/self/clear_refs").write_text("5")  # forget the highest value so far
        before = _status("VmRSS")
        step()
        return _status("VmHWM") - before
    return None


def _status(name: str) -> int:
    found = re.search(rf"{name}:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def rounds(steps: Sequence[Callable[[], Any]], repeats: int) -> Iterator[list[float]]:
    """Seconds of each of `steps`, run in turn."""
    for _ in range(repeats):
        seconds = []
        for step in steps:
            start = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - start)
        yield seconds
