"""MaskCLIP+'s training step: images/s and memory of ours next to a PyTorch DeepLab of one shape.

    python -m benchmarks.maskclip_plus_step [--crop 512] [--student r101] [--json FILE]

A DeepLabV2 student of ViT-B/16 in both phases, zero-shot: guided by MaskCLIP, then by itself.
Weights and images are random. Without torch only our side is measured.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Both sides live in one process: JAX must not take the whole GPU for itself.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.console import Console
from rich.table import Table

from benchmarks.reclip_sides import SEED, Batch, Ours, process_peak, rounds
from clipseg_jax.core.modules import initialised
from clipseg_jax.models.clip import CLIP, CLIPConfig, ViTConfig
from clipseg_jax.models.maskclip_plus import MaskCLIPPlus, make_student
from clipseg_jax.models.resnet import RESNET50, RESNET101, DilatedResNetConfig
from clipseg_jax.ops.image import IMAGENET_MEAN, IMAGENET_STD, network_input
from clipseg_jax.tasks import maskclip_plus
from clipseg_jax.tasks.base import Task
from clipseg_jax.tasks.maskclip_plus import MaskCLIPPlusConfig

PHASES = {"guided": 0, "self_training": 1000}  # the steps at which they are measured
# Largest relative differences: some labels hang on scores that nearly tie.
TOLERANCE = {"loss": 1e-3, "gradient_norm": 1e-2}
Figures = dict[str, Any]


def make_task(args: argparse.Namespace) -> Task:
    """Student and teacher with random weights; both phases in one program, as in training."""
    vision = ViTConfig(224, 16, 768, 12, 12, 512, dtype=args.dtype)
    cfg = DilatedResNetConfig({"r50": RESNET50, "r101": RESNET101}[args.student], dtype=args.dtype)
    if args.tiny:
        vision = ViTConfig(64, 16, 64, 2, 2, 32, dtype=args.dtype)
        cfg = DilatedResNetConfig((1, 1, 1, 1), 8, dtype=args.dtype)

    def make(rngs: Any) -> MaskCLIPPlus:
        visual = CLIP(CLIPConfig(vision, None), rngs=rngs).visual
        student = make_student("deeplabv2", cfg, vision.embed_dim, rngs=rngs)
        rows = np.random.default_rng(SEED).standard_normal((args.classes, vision.embed_dim))
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        return MaskCLIPPlus(student, rows.astype(np.float32), visual, rngs=rngs)

    model = initialised(make, SEED)
    for layer in model.student.backbone.layers:
        for block in layer:  # or random blocks double the variance each, and rounding with it
            block.norm3.scale[...] *= 0.1
    switch = PHASES["self_training"]
    choices = MaskCLIPPlusConfig(
        guided_steps=(1, switch),
        self_training_steps=(switch + 1, -1),
        unlabelled_classes=unseen(args.classes),
    )
    return maskclip_plus.build(model, choices)


def unseen(classes: int) -> tuple[int, ...]:
    """The last sixth of the classes."""
    return tuple(range(classes - max(classes // 6, 2), classes))


def make_batch(args: argparse.Namespace) -> Batch:
    """Crops of coarse random colours; labels of random seen classes, a third to be found."""
    rng = np.random.default_rng(SEED)
    b, crop = args.batch, args.crop
    small = rng.integers(0, 256, (b, crop // 8, crop // 8, 3), np.uint8)
    label = rng.integers(0, min(unseen(args.classes)), (b, crop // 8, crop // 8), np.int32)
    label[:, : crop // 24] = maskclip_plus.UNLABELLED
    label[:, -1] = 255
    return {
        "image": small.repeat(8, axis=1).repeat(8, axis=2),
        "image_size": np.full((b, 2), crop, np.int32),
        "label": label.repeat(8, axis=1).repeat(8, axis=2),
        "index": np.arange(b, dtype=np.int32),
    }


class Peer:
    """The same in PyTorch, which only making one imports."""

    def __init__(self, args: argparse.Namespace, task: Task, batch: Batch):
        import torch

        from benchmarks import torch_maskclip_plus, torch_reclip

        self.torch = torch
        gpu = torch.cuda.is_available() and jax.default_backend() == "gpu"
        self.device = torch.device("cuda" if gpu else "cpu")
        self.half = args.dtype == "bfloat16"
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        ours: Any = task.model
        flat = nnx.to_flat_state(nnx.state(ours))
        arrays = {".".join(map(str, path)): np.array(value[...]) for path, value in flat}
        model = torch_maskclip_plus.MaskCLIPPlus(
            ours.teacher.cfg,
            ours.student.backbone.cfg,
            torch.from_numpy(arrays["text_embeddings"]),
            list(unseen(args.classes)),
        )
        torch_reclip.load(model, arrays)
        self.model = model.to(self.device).train()
        self.optimizer = torch_reclip.optimizer(self.model)
        crops, real = map(jnp.asarray, (batch["image"], batch["image_size"]))
        images = network_input(crops, real, IMAGENET_MEAN, IMAGENET_STD)
        # Their loader normalises; ours leaves that to the step.
        self.images = self._tensor(images).permute(0, 3, 1, 2).contiguous()
        self.labels = self._tensor(batch["label"]).long()
        self.set_tf32(True)

    def _tensor(self, x: Any) -> Any:
        return self.torch.from_numpy(np.array(x)).to(self.device)

    def set_tf32(self, on: bool) -> None:
        """Whether a GPU may round factors of float32 products, as JAX's default does."""
        self.torch.backends.cuda.matmul.allow_tf32 = self.torch.backends.cudnn.allow_tf32 = on

    def __call__(self, phase: str, norm: bool = False) -> dict[str, float]:
        """One step: its loss, with `norm` also its gradient norm."""
        with self.torch.autocast(self.device.type, self.torch.bfloat16, enabled=self.half):
            loss = self.model.loss(self.images, self.labels, phase == "guided")
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


def at(ours: Ours, phase: str) -> Callable[[], dict[str, float]]:
    """Our step in a phase."""

    def step() -> dict[str, float]:
        old = ours.state.step
        new = jax.device_put(np.asarray(PHASES[phase], old.dtype), old.sharding)
        ours.state = ours.state._replace(step=new)
        return ours()

    return step


def agree(args: argparse.Namespace, ours: Ours, peer: Peer) -> dict[str, dict[str, float]]:
    """Relative differences of each phase's first step: the second one's weights have moved.

    Raises:
      ValueError: they are too large.
    """
    peer.set_tf32(False)
    found = {}
    for phase in PHASES:
        theirs = peer(phase, norm=True)
        found[phase] = {name: abs(x / theirs[name] - 1) for name, x in at(ours, phase)().items()}
    peer.set_tf32(True)
    if any(found["guided"][name] > most for name, most in TOLERANCE.items()):
        raise ValueError(f"the two sides differ by {found}, relative; allowed are {TOLERANCE}")
    return found


def measure(args: argparse.Namespace) -> Figures:
    """Speed and memory of both sides in both phases."""
    task, batch = make_task(args), make_batch(args)
    peer = Peer(args, task, batch) if importlib.util.find_spec("torch") else None
    figures: Figures = {"differences": None, "phases": {}}
    if peer and args.dtype == "float32":
        with jax.default_matmul_precision("highest"):
            figures["differences"] = agree(args, Ours(task, batch), peer)
    ours = Ours(task, batch)
    for phase in PHASES:
        step = at(ours, phase)
        # First steps: for memory, and out of the way of the times.
        memory = process_peak(step)
        if jax.default_backend() == "gpu":
            memory = ours.temporary_bytes()
        steps: list[Callable[[], Any]] = [step]
        sides: Figures = {"ours": {"memory_bytes": memory}}
        if peer:

            def theirs(phase: str = phase) -> Any:
                return peer(phase)

            steps.append(theirs)
            sides["peer"] = {"memory_bytes": peer.peak_bytes(theirs)}
        seconds = zip(*rounds(steps, args.repeats), strict=True)
        for side, times in zip(sides.values(), seconds, strict=True):
            side |= {"images_per_s": args.batch / statistics.median(times), "seconds": list(times)}
        if peer:
            sides["ratio"] = sides["ours"]["images_per_s"] / sides["peer"]["images_per_s"]
        figures["phases"][phase] = sides
    return figures


def print_figures(figures: Figures, console: Console) -> None:
    """A row for each phase and side."""
    table = Table("phase", "", "images/s", "memory", "ratio")
    for phase, sides in figures["phases"].items():
        for name in ("ours", "peer"):
            if name in sides:
                memory = sides[name]["memory_bytes"]
                table.add_row(
                    phase,
                    {"ours": "ours", "peer": "PyTorch"}[name],
                    f"{sides[name]['images_per_s']:.3g}",
                    "" if memory is None else f"{memory / 2**20:.0f} MB",
                    f"{sides['ratio']:.2f}" if name == "ours" and "ratio" in sides else "",
                )
    console.print(table)
    for phase, found in (figures["differences"] or {}).items():
        shown = ", ".join(f"{name} {value:.1e}" for name, value in found.items())
        console.print(f"relative differences, {phase}: {shown}")
    if "ratio" not in next(iter(figures["phases"].values())):
        console.print("PyTorch: not measured; it comes with `pip install clipseg_jax[torch]`")


def main(argv: list[str] | None = None) -> None:
    """Prints the table; `--json` also writes the figures."""
    gpu = jax.default_backend() == "gpu"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--student", choices=("r50", "r101"), default="r101" if gpu else "r50")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--batch", type=int, default=16 if gpu else 2, help="published: 16")
    parser.add_argument("--crop", type=int, default=512 if gpu else 256, help="side in pixels")
    parser.add_argument("--classes", type=int, default=59)
    parser.add_argument("--repeats", type=int, default=3, help="timed steps of each")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--tiny", action="store_true", help="tiny networks, to try it out")
    args = parser.parse_args(argv)
    if args.crop % 16:
        parser.error(f"crops of {args.crop} pixels: choose a multiple of 16")
    console = Console(width=100, markup=False)
    device = jax.devices()[0].device_kind
    device = platform.processor() or "cpu" if device == "cpu" else device
    console.print(
        f"{device}, {len(os.sched_getaffinity(0))} cores: DeepLabV2-{args.student}, "
        f"{args.batch} x {args.crop} px, {args.classes} classes, {args.dtype}"
    )
    figures = {"device": device, "settings": {k: str(v) for k, v in vars(args).items()}}
    figures |= measure(args)
    print_figures(figures, console)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
