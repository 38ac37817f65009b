"""ReCLIP++'s training steps: images/s, compared with the published method in PyTorch.

    python -m benchmarks.reclip_step [--size 512] [--classes 20] [--batch 1,4] [--out FILE]

Rectification (ViT-B/16) and distillation (ResNet-50 DeepLab). Weights and images are random.
Without torch only our side is measured.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import jax
from rich.table import Table

from benchmarks import reclip_counts as counts
from benchmarks import reclip_sides, report
from benchmarks.reclip_sides import Kind
from benchmarks.report import TYPES, Metrics, console, several
from benchmarks.sides import HAS_TORCH, Ours, Side, full_float32
from clipseg_jax.ops import attention, upsample

SECTIONS: tuple[Kind, ...] = ("rectification", "distillation")


def measure(
    kind: Kind, dtype: str, batches: Sequence[int], args: argparse.Namespace, metrics: Metrics
) -> Metrics:
    """Adds a section: ours at each batch size, the peer at the first.

    Raises:
      ValueError: the two sides' losses or gradients differ.
    """
    size = args.size if kind == "rectification" else args.distill_size
    rows: list[Metrics] = []
    first: Metrics = {}
    for batch in batches:
        work = reclip_sides.make_work(batch, size, args.classes, dtype, args.tiny)
        task, images = reclip_sides.make_task(work, kind), reclip_sides.make_batch(work)
        flops, bytes_of = _formulas(kind, work)
        peer = None
        if HAS_TORCH and batch == batches[0]:
            peer = reclip_sides.peer(kind, work, task, images)
            if dtype == "float32":
                with full_float32():
                    first["differences"] = reclip_sides.differences(work, Ours(task, images), peer)
        ours = Ours(task, images)
        steps: dict[str, Side] = {"ours": ours} | ({"peer": peer} if peer else {})
        if batch == batches[0]:
            tokens = counts.text_tokens(work) if kind == "rectification" else None
            first |= {"flops": flops, "bytes": bytes_of, "text_tokens": tokens}
            first["compiler_flops"] = ours.compiler_flops()
        totals = [sum(side) for side in zip(*flops.values(), strict=True)]
        rows += report.compare(
            steps, batch, args.repeats, compiled=ours.compiled, dtype=dtype,
            flops=dict(zip(("ours", "peer"), totals, strict=True)),
        )  # fmt: skip
    return report.add(metrics, f"{kind}, {size} px, {dtype}", rows, **first)


def _formulas(
    kind: Kind, work: counts.Work
) -> tuple[dict[str, counts.Pair], dict[str, counts.Pair]]:
    """FLOPs and bytes of each part, ours and published."""
    scores = None if jax.default_backend() == "gpu" else attention._SCORES_AT_ONCE
    if kind == "rectification":
        return counts.rectification_flops(work), counts.rectification_bytes(work, scores)
    block = upsample._NUMBERS_AT_ONCE
    return counts.distillation_flops(work), counts.distillation_bytes(work, scores, block)


def print_formulas(section: Metrics) -> None:
    """Prints FLOPs and bytes by formula of a section's first batch."""
    title = f"by formula, batch {section['rows'][0]['batch']}"
    table = Table("", "ours", "published", "ratio", title=title)
    if section["text_tokens"]:
        ours, peer = section["text_tokens"]
        table.add_row("text tokens", str(ours), str(peer), f"{peer / ours:.1f}", end_section=True)
    for unit, scale, parts in (("GFLOP", 1e9, section["flops"]), ("MB", 2**20, section["bytes"])):
        total = {"all": [sum(side) for side in zip(*parts.values(), strict=True)]}
        for name, (ours, peer) in (parts | (total if unit == "GFLOP" else {})).items():
            share = f"{peer / ours:.1f}" if ours else ""
            table.add_row(
                f"{name}, {unit}", f"{ours / scale:.4g}", f"{peer / scale:.4g}", share,
                end_section=name == "all",
            )  # fmt: skip
    console.print(table)
    if section["compiler_flops"]:
        console.print(
            f"XLA counts {section['compiler_flops'] / 1e9:.4g} GFLOP for ours (loop bodies once)"
        )


def main(argv: list[str] | None = None) -> None:
    """Prints the tables; `--out` also writes them as JSON."""
    gpu = jax.default_backend() == "gpu"
    parser = report.parser(
        __doc__,
        batch=(1, 2, 4, 8) if gpu else (1, 4),
        size=512,
        dtype=TYPES if gpu else TYPES[:1],
    )
    add = parser.add_argument
    add("--sections", default=SECTIONS, type=several(SECTIONS), help="what to measure")
    add("--classes", default=20, type=int, help="number of classes")
    add("--distill-size", default=512 if gpu else 320, type=int, help="--size of distillation")
    add(
        "--distill-batch",
        default=(16,) if gpu else (2,),
        type=several(),
        help="--batch of distillation",
    )
    args = parser.parse_args(argv)
    metrics = report.begin(args, f"{args.classes} classes")
    batches = {"rectification": args.batch, "distillation": args.distill_batch}
    for kind in args.sections:
        for dtype in args.dtype:
            print_formulas(measure(kind, dtype, batches[kind], args, metrics))
    report.finish(metrics, args.out)


if __name__ == "__main__":
    main()
