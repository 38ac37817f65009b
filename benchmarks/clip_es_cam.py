"""CLIP-ES's class activation maps: images/s, compared with the published method in PyTorch.

    python -m benchmarks.clip_es_cam [--batch 8] [--size 375,500] [--dtype float32|bfloat16]

From resized images on the device to float16 maps at full size in host memory, one per class of
each image. Ours is `CLIPES`, jitted, one batch at a time; the peer (torch_clip_es.py) processes one
image and one class at a time. Weights, text and images are random. Without torch only ours is
measured.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks import inputs, report, sides
from clipseg_jax.methods.clip_es.model import CLIPES, CLIPESConfig, saved_maps
from clipseg_jax.ops.image import CLIP_MEAN, CLIP_STD, normalize
from weights_convert.clip.build import flat_arrays

COUNTS = (1, 1, 2, 1, 3, 1, 2, 5)  # numbers of classes of successive images, about as in VOC
CLASSES, BACKGROUND = 20, 25
Step = Callable[[], list[np.ndarray]]  # maps (m, h, w) float16 of each image


@dataclasses.dataclass(frozen=True)
class Work:
    """Inputs of both sides."""

    model: CLIPES
    images: np.ndarray  # (b, h, w, 3) uint8, resized to whole patches
    size: tuple[int, int]  # of the maps
    ids: tuple[tuple[int, ...], ...]


def make_work(args: argparse.Namespace) -> Work:
    """Random weights, images and classes, from fixed seeds."""
    cfg = inputs.vision(args.dtype, args.tiny, position_resize="bilinear")
    visual = inputs.sharp_tower(cfg)
    rng = np.random.default_rng(inputs.SEED)
    embeddings = inputs.random_embeddings(rng, CLASSES + BACKGROUND, cfg.embed_dim)
    method = CLIPESConfig(affinity_blocks=tuple(range(max(cfg.layers - 8, 0), cfg.layers)))
    height, width = (-(-side // 16) * 16 for side in args.size)
    images = inputs.photos(rng, args.batch, height, width)
    counts = [args.classes_per_image or COUNTS[i % len(COUNTS)] for i in range(args.batch)]
    ids = inputs.shown_classes(rng, counts, CLASSES)
    return Work(
        CLIPES(visual, embeddings[:CLASSES], embeddings[CLASSES:], method), images, args.size, ids
    )


def ours(work: Work) -> Step:
    """Our step: all images at once."""
    k = max(map(len, work.ids))
    classes = np.zeros((len(work.ids), k), np.int32)
    real = np.zeros(classes.shape, bool)
    for i, ids in enumerate(work.ids):
        classes[i, : len(ids)], real[i, : len(ids)] = ids, True
    sizes = np.broadcast_to(np.asarray(work.images.shape[1:3], np.int32), (len(classes), 2))
    image_sizes = np.broadcast_to(np.asarray(work.size, np.int32), (len(classes), 2))
    graph, state = nnx.split(work.model)

    @jax.jit
    def maps(
        state: nnx.State, images: Any, sizes: Any, classes: Any, real: Any, image_sizes: Any
    ) -> Any:
        model = nnx.merge(graph, state)
        cams = model(images, sizes, classes, real)
        return saved_maps(cams.refined, model.visual.grid_sizes(sizes), image_sizes, work.size)

    batch = jax.device_put((work.images, sizes, classes, real, image_sizes))

    def step() -> list[np.ndarray]:
        refined = np.asarray(maps(state, *batch))
        return [one[: len(ids)] for one, ids in zip(refined, work.ids, strict=True)]

    return step


def peer(work: Work, dtype: str) -> Step:
    """The peer's step: one image and one class at a time."""
    import torch

    from benchmarks import torch_clip_es, torch_vit

    model = work.model
    text = [
        torch.from_numpy(np.array(r[...]))
        for r in (model.class_embeddings, model.background_embeddings)
    ]
    net = torch_clip_es.PublishedCLIPES(model.visual.cfg, model.cfg, *text).eval()
    torch_vit.load(net.visual, flat_arrays(model.visual))
    net = net.to(sides.torch_device())
    images = sides.channels_first(normalize(jnp.asarray(work.images), CLIP_MEAN, CLIP_STD))

    def step() -> list[np.ndarray]:
        with sides.autocast(dtype):
            return [
                net(image[None], list(ids), work.size)
                for image, ids in zip(images, work.ids, strict=True)
            ]

    return step


def differences(ours: list[np.ndarray], theirs: list[np.ndarray]) -> dict[str, float]:
    """Largest and median absolute difference of maps in [0, 1]."""
    values, peer_values = (
        np.concatenate([one.ravel() for one in maps]).astype(np.float32) for maps in (ours, theirs)
    )
    difference = np.abs(values - peer_values)
    return {"largest": float(difference.max()), "median": float(np.median(difference))}


def main(argv: list[str] | None = None) -> None:
    """Prints the comparison; `--out` also writes it as JSON."""
    parser = report.parser(__doc__, batch=8, size=(375, 500), repeats=5)
    parser.add_argument("--classes-per-image", type=int, default=0, help="0: 1 to 5, varying")
    args = parser.parse_args(argv)
    work = make_work(args)
    counts = [len(ids) for ids in work.ids]
    metrics = report.begin(
        args,
        f"{args.batch} images of {args.size[0]} x {args.size[1]} px with "
        f"{sum(counts) / len(counts):.2g} classes",
    )
    steps = {"ours": ours(work)}
    if sides.HAS_TORCH:
        steps["peer"] = peer(work, args.dtype)
    maps = {name: step() for name, step in steps.items()}  # compiles as well
    rows = [
        report.row(name, args.batch, seconds)
        for name, seconds in sides.in_turn(steps, args.repeats).items()
    ]
    difference = differences(maps["ours"], maps["peer"]) if "peer" in maps else None
    report.add(
        metrics, f"CAMs, {args.dtype}", rows, differences=difference, classes_per_image=counts
    )
    report.finish(metrics, args.out)


if __name__ == "__main__":
    main()
