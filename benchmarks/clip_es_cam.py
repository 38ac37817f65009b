"""CLIP-ES's class activation maps: images/s of ours next to the published way in PyTorch.

    python -m benchmarks.clip_es_cam [--batch 8] [--size 375,500] [--dtype float32|bfloat16]

From resized images on the device to float16 maps at full size in memory, one for each class of
each image. Ours is `CLIPES`, jitted, a batch at a time; the peer (torch_clip_es.py) takes one image
and one class at a time. Weights, text and images are random. Without torch only ours is measured.
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
    """Random weights, images and classes, from fixed seeds."""
    cfg = inputs.vision(args.dtype, args.tiny, position_resize="bilinear")
    visual = inputs.sharp_tower(cfg)
    rng = np.random.default_rng(inputs.SEED)
    rows = inputs.unit_rows(rng, CLASSES + BACKGROUND, cfg.embed_dim)
    method = CLIPESConfig(affinity_blocks=tuple(range(max(cfg.layers - 8, 0), cfg.layers)))
    height, width = (-(-side // 16) * 16 for side in args.size)
    images = inputs.photos(rng, args.batch, height, width)
    counts = [args.classes_per_image or COUNTS[i % len(COUNTS)] for i in range(args.batch)]
    ids = inputs.shown_classes(rng, counts, CLASSES)
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

    model = given.model
    text = [
        torch.from_numpy(np.array(r[...]))
        for r in (model.class_embeddings, model.background_embeddings)
    ]
    net = torch_clip_es.PublishedCLIPES(model.visual.cfg, model.cfg, *text).eval()
    torch_vit.load(net.visual, flat_arrays(model.visual))
    net = net.to(sides.torch_device())
    images = sides.channels_first(normalize(jnp.asarray(given.images), CLIP_MEAN, CLIP_STD))

    def step() -> list[np.ndarray]:
        with sides.autocast(dtype):
            return [
                net(image[None], list(ids), given.size)
                for image, ids in zip(images, given.ids, strict=True)
            ]

    return step


def differences(ours: list[np.ndarray], theirs: list[np.ndarray]) -> dict[str, float]:
    """Of maps in [0, 1]: the largest and the median one."""
    own, other = (
        np.concatenate([one.ravel() for one in maps]).astype(np.float32) for maps in (ours, theirs)
    )
    found = np.abs(own - other)
    return {"largest": float(found.max()), "median": float(np.median(found))}


def main(argv: list[str] | None = None) -> None:
    """Prints the comparison; `--out` also writes it as JSON."""
    parser = report.parser(__doc__, batch=8, size=(375, 500), repeats=5)
    parser.add_argument("--classes-per-image", type=int, default=0, help="0: 1 to 5 in turn")
    args = parser.parse_args(argv)
    given = work(args)
    counts = [len(ids) for ids in given.ids]
    figures = report.begin(
        args,
        f"{args.batch} images of {args.size[0]} x {args.size[1]} px with "
        f"{sum(counts) / len(counts):.2g} classes",
    )
    steps = {"ours": ours(given)}
    if sides.HAS_TORCH:
        steps["peer"] = peer(given, args.dtype)
    maps = {name: step() for name, step in steps.items()}  # compiles, too
    rows = [
        report.row(name, args.batch, seconds)
        for name, seconds in sides.in_turn(steps, args.repeats).items()
    ]
    found = differences(maps["ours"], maps["peer"]) if "peer" in maps else None
    report.add(figures, f"CAMs, {args.dtype}", rows, differences=found, classes_per_image=counts)
    report.finish(figures, args.out)


if __name__ == "__main__":
    main()
