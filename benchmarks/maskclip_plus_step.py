"""MaskCLIP+'s training step: images/s and memory, compared with PyTorch.

    python -m benchmarks.maskclip_plus_step [--size 512] [--student r101] [--out FILE]

A DeepLabV2 student of ViT-B/16 in both phases, zero-shot: guided by MaskCLIP, then self-trained.
Weights and images are random. Without torch only our side is measured.
"""

from __future__ import annotations

import argparse
import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import inputs, report, sides
from benchmarks.report import Metrics
from benchmarks.sides import Ours, TorchStep
from clipseg_jax.core.modules import initialised
from clipseg_jax.methods.maskclip_plus import task as maskclip_plus
from clipseg_jax.methods.maskclip_plus.model import MaskCLIPPlus, make_student
from clipseg_jax.methods.maskclip_plus.task import MaskCLIPPlusConfig
from clipseg_jax.models.clip import CLIP, CLIPConfig
from clipseg_jax.models.resnet import RESNET50, RESNET101, DilatedResNetConfig
from clipseg_jax.ops.image import IMAGENET_MEAN, IMAGENET_STD, network_input
from clipseg_jax.task import Task
from weights_convert.clip.build import flat_arrays

PHASES = {"guided": 0, "self_training": 1000}  # step at which each is measured


def make_task(args: argparse.Namespace) -> Task:
    """Student and teacher with random weights; both phases in one program, as in training."""
    vision = inputs.vision(args.dtype, args.tiny)
    cfg = DilatedResNetConfig({"r50": RESNET50, "r101": RESNET101}[args.student])
    cfg = dataclasses.replace(inputs.TINY_STUDENT if args.tiny else cfg, dtype=args.dtype)

    def make(rngs: Any) -> MaskCLIPPlus:
        visual = CLIP(CLIPConfig(vision, None), rngs=rngs).visual
        student = make_student("deeplabv2", cfg, vision.embed_dim, rngs=rngs)
        rows = inputs.random_embeddings(
            np.random.default_rng(inputs.SEED), args.classes, vision.embed_dim
        )
        return MaskCLIPPlus(student, rows, visual, rngs=rngs)

    model = initialised(make, inputs.SEED)
    inputs.calm_blocks(model.student)
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


def make_batch(args: argparse.Namespace) -> inputs.CropBatch:
    """Crops of coarse random colours; labels of random seen classes, a third of them unlabelled."""
    rng = np.random.default_rng(inputs.SEED)
    b, size = args.batch, args.size
    batch = inputs.crops(rng, b, size)
    label = rng.integers(0, min(unseen(args.classes)), (b, size // 8, size // 8), np.int32)
    label[:, : size // 24] = maskclip_plus.UNLABELLED
    label[:, -1] = 255
    return batch | {"label": label.repeat(8, axis=1).repeat(8, axis=2)}


def make_peer(args: argparse.Namespace, task: Task, batch: inputs.CropBatch) -> TorchStep:
    """The same step in PyTorch; it takes whether the phase is guided."""
    import torch

    from benchmarks import torch_maskclip_plus, torch_reclip, torch_vit

    ours: Any = task.model
    arrays = {path: np.array(leaf) for path, leaf in flat_arrays(ours).items()}
    model = torch_maskclip_plus.MaskCLIPPlus(
        ours.teacher.cfg,
        ours.student.backbone.cfg,
        torch.from_numpy(arrays["text_embeddings"]),
        list(unseen(args.classes)),
    )
    torch_vit.load(model, arrays)
    model = model.to(sides.torch_device()).train()
    crops, real = map(jnp.asarray, (batch["image"], batch["image_size"]))
    # The published loader normalises images; our step does so itself.
    images = sides.channels_first(network_input(crops, real, IMAGENET_MEAN, IMAGENET_STD))
    labels = torch.from_numpy(batch["label"]).long().to(sides.torch_device())
    return TorchStep(partial(model.loss, images, labels), torch_reclip.optimizer(model), args.dtype)


def step_in_phase(ours: Ours, phase: str) -> dict[str, float]:
    """Runs our step in a phase."""
    old = ours.state.step
    new = jax.device_put(np.asarray(PHASES[phase], old.dtype), old.sharding)
    ours.state = ours.state._replace(step=new)
    return ours()


def differences(ours: Ours, peer: TorchStep) -> dict[str, dict[str, float]]:
    """Relative differences of each phase's first step.

    The second phase is not checked against a tolerance: the first step has changed the weights.

    Raises:
      ValueError: those of the first phase are too large.
    """
    result = {}
    for phase, tolerance in (("guided", sides.TOLERANCE), ("self_training", {})):
        theirs = peer(phase == "guided", norm=True)
        result[phase] = sides.agreement(step_in_phase(ours, phase), theirs, tolerance)
    return result


def measure(args: argparse.Namespace, metrics: Metrics) -> None:
    """Adds a section for each phase: speed and memory of both sides."""
    task, batch = make_task(args), make_batch(args)
    phase_differences: dict[str, dict[str, float]] = {}
    if sides.HAS_TORCH:
        peer = make_peer(args, task, batch)
        if args.dtype == "float32":
            with sides.full_float32():
                phase_differences = differences(Ours(task, batch), peer)
    ours = Ours(task, batch)
    for phase in PHASES:
        steps: dict[str, sides.Side] = {"ours": partial(step_in_phase, ours, phase)}
        if sides.HAS_TORCH:
            steps["peer"] = partial(peer, phase == "guided")
        rows = report.compare(steps, args.batch, args.repeats, compiled=ours.compiled)
        report.add(
            metrics, f"{phase}, {args.dtype}", rows, differences=phase_differences.get(phase)
        )


def main(argv: list[str] | None = None) -> None:
    """Prints the tables; `--out` also writes them as JSON."""
    gpu = jax.default_backend() == "gpu"
    parser = report.parser(__doc__, batch=16 if gpu else 2, size=512 if gpu else 256)
    parser.add_argument("--student", choices=("r50", "r101"), default="r101" if gpu else "r50")
    parser.add_argument("--classes", type=int, default=59, help="number of classes")
    args = parser.parse_args(argv)
    inputs.whole_patches(args.size)
    metrics = report.begin(
        args,
        f"DeepLabV2-{args.student}, {args.batch} x {args.size} px, {args.classes} classes",
    )
    measure(args, metrics)
    report.finish(metrics, args.out)


if __name__ == "__main__":
    main()
