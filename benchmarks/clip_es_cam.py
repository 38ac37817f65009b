"""CLIP-ES's class activation maps: images/s of ours next to the published way in PyTorch.

    python -m benchmarks.clip_es_cam [--batch 8] [--size 375,500] [--dtype float32|bfloat16]

From resized images on the device to float16 maps at full size in memory, one for each class of
each image. Ours is `CLIPES`, jitted, a batch at a time; the peer (torch_clip_es.py) takes one image
and one class at a time. Weights, text and images are random. Without torch only ours is measured.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Both sides live in one process: JAX must not take the whole GPU for itself.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from clipseg_jax.core.modules import initialised
from clipseg_jax.models.clip import VisionTransformer, ViTConfig
from clipseg_jax.models.clip_es import CLIPES, VOC, saved_maps
from clipseg_jax.ops.image import CLIP_MEAN, CLIP_STD, normalise

COUNTS = (1, 1, 2, 1, 3, 1, 2, 5)  # classes of the images, in turn: about VOC's share
CLASSES, BACKGROUND = 20, 25
Step = Callable[[], list[np.ndarray]]  # maps (m, h, w) float16 of each image


@dataclasses.dataclass(frozen=True)
class Work:
    """What both sides are given."""

    model: CLIPES
    images: np.ndarray  # (b, h, w, 3) uint8, resized to whole patches
    size: tuple[int, int]  # of the maps
    ids: tuple[tuple[int, ...], ...]


def work(args: argparse.Namespace) -> Work:
    """Random weights, images and classes, from fixed seeds.

    Queries and keys are enlarged: attention of plain random weights is flat, and the refined maps
    would only hold rounding noise.
    """
    cfg = ViTConfig(
        224, 16, args.width, args.layers, max(args.width // 64, 1), 512, dtype=args.dtype,
        position_resize="bilinear",
    )  # fmt: skip
    visual = initialised(lambda rngs: VisionTransformer(cfg, rngs=rngs))
    for block in visual.transformer.resblocks:
        kernel = block.attn.in_proj.kernel
        kernel[...] = kernel[...] * jnp.where(jnp.arange(3 * args.width) < 2 * args.width, 3.0, 1.0)
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((CLASSES + BACKGROUND, 512), np.float32)
    method = dataclasses.replace(
        VOC, affinity_blocks=tuple(range(max(args.layers - 8, 0), args.layers))
    )
    height, width = (-(-side // 16) * 16 for side in args.size)
    coarse = rng.integers(0, 256, (args.batch, height // 16, width // 16, 3))
    images = np.kron(coarse, np.ones((1, 16, 16, 1), int))
    images = np.clip(images + rng.integers(-20, 20, images.shape), 0, 255).astype(np.uint8)
    counts = [args.classes or COUNTS[i % len(COUNTS)] for i in range(args.batch)]
    ids = tuple(tuple(int(c) for c in rng.permutation(CLASSES)[:m]) for m in counts)
    return Work(CLIPES(visual, rows[:CLASSES], rows[CLASSES:], method), images, args.size, ids)


def ours(given: Work) -> Step:
    """All images at once."""
    k = max(map(len, given.ids))
    classes = np.zeros((len(given.ids), k), np.int32)
    real = np.zeros(classes.shape, bool)
    for i, ids in enumerate(given.ids):
        classes[i, : len(ids)], real[i, : len(ids)] = ids, True
    sizes = np.broadcast_to(np.asarray(given.images.shape[1:3], np.int32), (len(classes), 2))
    own = np.broadcast_to(np.asarray(given.size, np.int32), (len(classes), 2))
    graph, state = nnx.split(given.model)

    @jax.jit
    def maps(state: nnx.State, images: Any, sizes: Any, classes: Any, real: Any, own: Any) -> Any:
        model = nnx.merge(graph, state)
        cams = model(images, sizes, classes, real)
        return saved_maps(cams.refined, model.visual.grid_sizes(sizes), own, given.size)

    batch = jax.device_put((given.images, sizes, classes, real, own))

    def step() -> list[np.ndarray]:
        found = np.asarray(maps(state, *batch))
        return [one[: len(ids)] for one, ids in zip(found, given.ids, strict=True)]

    return step


def peer(given: Work, dtype: str) -> Step:
    """One image and one class at a time."""
    import torch

    from benchmarks import torch_clip_es, torch_vit

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    device = "cuda" if torch.cuda.is_available() and jax.default_backend() == "gpu" else "cpu"
    model = given.model
    text = [torch.from_numpy(np.array(r[...])) for r in (model.class_rows, model.background_rows)]
    net = torch_clip_es.PublishedCLIPES(model.visual.cfg, model.cfg, *text).eval()
    net.load_state_dict(torch_vit.state_dict(model.visual))
    net = net.to(device)
    # As JAX on GPUs: float32 products may run as TF32.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    pixels = np.moveaxis(
        np.asarray(normalise(jnp.asarray(given.images), CLIP_MEAN, CLIP_STD)), -1, 1
    )
    images = torch.from_numpy(np.ascontiguousarray(pixels)).to(device)

    def step() -> list[np.ndarray]:
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
            return [
                net(image[None], list(ids), given.size)
                for image, ids in zip(images, given.ids, strict=True)
            ]

    return step


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Runs both sides in turn; the figures, ready for JSON."""
    given = work(args)
    sides = {"ours": ours(given)}
    if importlib.util.find_spec("torch"):
        sides["peer"] = peer(given, args.dtype)
    outputs = {name: step() for name, step in sides.items()}  # compiles, too
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(args.repeats):
        for name, step in sides.items():
            start = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - start)
    figures: dict[str, Any] = {
        "device": jax.devices()[0].device_kind,
        "cores": len(os.sched_getaffinity(0)),
        "settings": vars(args) | {"out": None},
        "classes_per_image": [len(ids) for ids in given.ids],
    }
    for name, seconds in times.items():
        speed = args.batch / statistics.median(seconds)
        figures[name] = {"images_per_s": speed, "seconds": seconds}
    if "peer" in sides:
        figures["ratio"] = figures["ours"]["images_per_s"] / figures["peer"]["images_per_s"]
        pairs = zip(outputs["ours"], outputs["peer"], strict=True)
        differences = [np.abs(a.astype(np.float32) - b.astype(np.float32)) for a, b in pairs]
        figures["max_difference"] = max(float(d.max()) for d in differences)
        figures["median_difference"] = float(
            np.median(np.concatenate([d.ravel() for d in differences]))
        )
    return figures


def main(argv: list[str] | None = None) -> None:
    """Prints the comparison; `--out` also writes it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument(
        "--size", type=_size, default=(375, 500), help="height,width of the images in pixels"
    )
    parser.add_argument("--classes", type=int, default=0, help="of each image; 0: 1 to 5 in turn")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--repeats", type=int, default=5, help="timed steps of each side")
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    args = parser.parse_args(argv)
    figures = measure(args)
    counts = figures["classes_per_image"]
    print(
        f"{figures['device']}, {figures['cores']} cores, {args.batch} images of {args.size[0]} x "
        f"{args.size[1]} px with {sum(counts) / len(counts):.2g} classes, {args.dtype}"
    )
    for name in ("ours", "peer"):
        if name in figures:
            print(f"{name}: {figures[name]['images_per_s']:.3g} images/s")
        else:
            print("peer: not measured; PyTorch comes with `pip install clipseg_jax[torch]`")
    if "ratio" in figures:
        print(
            f"ratio ours/peer: {figures['ratio']:.2f} (maps in [0, 1] differ by at most "
            f"{figures['max_difference']:.1e}, median {figures['median_difference']:.1e})"
        )
    if args.out:
        args.out.write_text(json.dumps(figures, indent=1, default=str) + "\n")


def _size(text: str) -> tuple[int, int]:
    height, width = map(int, text.split(","))
    return height, width


if __name__ == "__main__":
    main(sys.argv[1:])
