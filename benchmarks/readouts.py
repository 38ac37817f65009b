"""Read-outs of CLIP ViT-B/16: images/s and memory of each beside MaskCLIP's plain values.

    python -m benchmarks.readouts [--batch 1,8] [--size 224] [--dtype float32|bfloat16]

All run the same random tower on the same images, alternately; the first row, `value`, is what the
others are compared with. `resclip, feedback` adds ResCLIP's second pass with its PAMR, `proxyclip`
a DINO ViT-B/8. Memory is that of a program's temporaries. No PyTorch takes part.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx

from benchmarks import inputs, report, sides
from clipseg_jax.core.modules import initialised
from clipseg_jax.methods.readouts.feedback import FeedbackConfig
from clipseg_jax.methods.readouts.model import ReadOutModel
from clipseg_jax.methods.readouts.proxy import ProxyCLIP
from clipseg_jax.models.clip.read_outs import READ_OUTS
from clipseg_jax.models.dino import DINO, DINOConfig

CLASSES = 21  # of VOC
FEEDBACK, PROXY = "resclip, feedback", "proxyclip"


def models(dtype: str, tiny: bool) -> dict[str, nnx.Module]:
    """The models by the names of their rows; they share one image tower."""
    cfg = inputs.vision(dtype, tiny, position_offset=0.1, position_keep_count=True)
    cfg = dataclasses.replace(cfg, layers=4 if tiny else cfg.layers, pad_to_patch=False)
    visual = inputs.sharp_tower(cfg)
    rng = np.random.default_rng(inputs.SEED)
    text = inputs.random_embeddings(rng, CLASSES, cfg.embed_dim)
    result: dict[str, nnx.Module] = {
        name: ReadOutModel(visual, text, each) for name, each in READ_OUTS.items()
    }
    # Random towers give nearly equal scores; with them every pixel is labelled.
    feedback = FeedbackConfig(threshold=0.0)
    result[FEEDBACK] = ReadOutModel(visual, text, READ_OUTS["resclip"], feedback)
    sizes = (64, 8, 64, 2, 2) if tiny else (224, 8, 768, 12, 12)
    dino = initialised(lambda rngs: DINO(DINOConfig(*sizes, dtype=dtype), rngs=rngs))
    result[PROXY] = ProxyCLIP(visual, dino, text)
    return result


def compiled(model: nnx.Module, images: jax.Array) -> tuple[sides.Side, Any]:
    """A step, which returns cosines (b, hp, wp, c), and its program."""
    graph, state = nnx.split(model)

    def forward(state: nnx.State, images: jax.Array) -> jax.Array:
        merged: Callable[..., jax.Array] = nnx.merge(graph, state)  # type: ignore[assignment]
        return merged(images)

    program = jax.jit(forward).lower(state, images).compile()
    return lambda: np.asarray(program(state, images)), program


def measure(
    networks: dict[str, nnx.Module], args: argparse.Namespace, batch: int
) -> list[report.Metrics]:
    """A row for each read-out at one batch size."""
    shape = (batch, args.size, args.size, 3)
    pixels = np.random.default_rng(inputs.SEED).standard_normal(shape, np.float32)
    images = jax.device_put(pixels)
    steps, memory = {}, {}
    for name, model in networks.items():
        steps[name], program = compiled(model, images)
        analysis = program.memory_analysis()
        memory[name] = analysis.temp_size_in_bytes if analysis else None
        steps[name]()
    rows = [
        report.row(name, batch, seconds, memory_bytes=memory[name])
        for name, seconds in sides.in_turn(steps, args.repeats).items()
    ]
    first = statistics.median(rows[0]["seconds"])
    for row in rows:
        row["times_first"] = row["median"] / first
    return rows


def main(argv: list[str] | None = None) -> None:
    """Prints a table for each batch size; `--out` also writes them as JSON."""
    args = report.parser(__doc__, batch=(1, 8), size=224, repeats=5).parse_args(argv)
    metrics = report.begin(args, f"{args.size} px, {args.dtype}")
    networks = models(args.dtype, args.tiny)
    for batch in args.batch:
        report.add(metrics, f"read-outs, batch {batch}", measure(networks, args, batch))
    if args.out:
        report.write(metrics, args.out)


if __name__ == "__main__":
    main()
