"""CLIP-RC's training step and 512 px inference: images/s, compared with PyTorch.

    python -m benchmarks.clip_rc_step [--dataset coco] [--batch 1,4] [--out FILE]

ViT-B/16 in the inductive setting, with head and losses. Weights and images are random. The peer is
`torch_clip_rc.py`; without torch only our side is measured.
"""

from __future__ import annotations

import argparse

import jax
import numpy as np

from benchmarks import clip_rc_sides, inputs, report, sides
from benchmarks.clip_rc_sides import Kind, Work
from benchmarks.report import TYPES, Metrics, several

SECTIONS: tuple[Kind, ...] = ("training", "inference")
# Largest relative differences without dropout, and the largest share of differing labels.
TOLERANCE = {"loss": 1e-4, "gradient_norm": 1e-3}
OTHER_LABELS = 0.001


def measure(kind: Kind, dtype: str, args: argparse.Namespace, metrics: Metrics) -> None:
    """Adds a section: ours at each batch size, the peer at the first.

    Raises:
      ValueError: the two sides' losses, gradients or labels differ.
    """
    rows: list[Metrics] = []
    difference = None
    for batch in args.batch:
        work = clip_rc_sides.make_work(
            batch, args.dataset, dtype, crop=args.size, remat=args.remat, tiny=args.tiny
        )
        images, dropout = clip_rc_sides.make_batch(work), work.cfg.dropout
        compared = sides.HAS_TORCH and batch == args.batch[0]
        if compared and dtype == "float32":
            with sides.full_float32():
                difference = differences(kind, work, images)
        task = clip_rc_sides.make_task(work, dropout)
        ours = clip_rc_sides.ours(kind, work, task, images)
        steps: dict[str, sides.Side] = {"ours": ours}
        if compared:
            steps["peer"] = clip_rc_sides.peer(kind, work, task, images, dropout)
        rows += report.compare(steps, batch, args.repeats, compiled=ours.compiled)
    report.add(metrics, f"{kind}, {args.size} px, {dtype}", rows, differences=difference)


def differences(kind: Kind, work: Work, images: inputs.CropBatch) -> dict[str, float]:
    """Differences of the two sides' first results without dropout.

    Raises:
      ValueError: a difference exceeds `TOLERANCE` or `OTHER_LABELS`.
    """
    task = clip_rc_sides.make_task(work, 0.0)
    peer = clip_rc_sides.peer(kind, work, task, images, 0.0)
    result = clip_rc_sides.ours(kind, work, task, images)()
    if kind == "training":
        return sides.agreement(result, peer(norm=True), TOLERANCE)
    share = float(np.mean(result != peer()))
    if share > OTHER_LABELS:
        raise ValueError(f"{share:.4%} of the labels differ; at most {OTHER_LABELS:.1%} may")
    return {"share of other labels": share}


def main(argv: list[str] | None = None) -> None:
    """Prints the tables; `--out` also writes them as JSON."""
    gpu = jax.default_backend() == "gpu"
    parser = report.parser(
        __doc__, batch=(8, 16) if gpu else (1, 2), size=512, dtype=TYPES if gpu else TYPES[:1]
    )
    add = parser.add_argument
    add("--sections", default=SECTIONS, type=several(SECTIONS), help="what to measure")
    add("--dataset", default="voc", choices=("voc", "coco"), help="its classes, prompts, weights")
    add("--remat", action="store_true", help="rematerialise blocks in our backward pass")
    args = parser.parse_args(argv)
    metrics = report.begin(args, f"{args.dataset}, {args.size} px")
    for kind in args.sections:
        for dtype in args.dtype:
            measure(kind, dtype, args, metrics)
    report.finish(metrics, args.out)


if __name__ == "__main__":
    main()
