"""CLIP-RC's training step and 512 px inference: images/s of ours next to the published way.

    python -m benchmarks.clip_rc_step [--dataset coco] [--batches 1,4] [--json FILE]

ViT-B/16, inductive, all of head and losses. Weights and images are random. The peer is PyTorch
(`torch_clip_rc.py`); without torch only our side is measured.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# Both sides live in one process: JAX must not take the whole GPU for itself.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks import clip_rc_sides as sides
from benchmarks.clip_rc_sides import Kind, Ours, Peer
from benchmarks.reclip_sides import process_peak, rounds

SECTIONS: tuple[Kind, ...] = ("training", "inference")
# Largest relative differences, without dropout, and the least share of equal labels.
TOLERANCE = {"loss": 1e-4, "gradient_norm": 1e-3}
LABELS = 0.999
Figures = dict[str, Any]


def measure(kind: Kind, dtype: str, args: argparse.Namespace) -> Figures:
    """Ours at each batch size, the peer at the first; the ratios of images/s.

    Raises:
      ValueError: the two sides' losses, gradients or labels differ.
    """
    on_gpu = jax.default_backend() == "gpu"
    has_torch = importlib.util.find_spec("torch") is not None
    figures: Figures = {"kind": kind, "dtype": dtype, "ours": [], "peer": None}
    for batch in args.batches:
        work = sides.work(
            batch, args.dataset, dtype, crop=args.crop, remat=args.remat, tiny=args.tiny
        )
        images, peer = sides.make_batch(work), None
        if has_torch and batch == args.batches[0] and dtype == "float32":
            figures["differences"] = _agree(kind, work, images)
        dropout = work.cfg.dropout
        task = sides.make_task(work, dropout)
        ours = Ours(kind, work, task, images)
        if has_torch and batch == args.batches[0]:
            peer = Peer(kind, work, task, images, dropout)
            peer.set_tf32(True)
        # First steps: for memory, and out of the way of the times.
        memory = process_peak(ours)
        memory = ours.temporary_bytes() if on_gpu else memory
        peer_memory = peer.peak_bytes() if peer else None
        steps: list[Callable] = [ours, peer] if peer else [ours]
        seconds = list(zip(*rounds(steps, args.repeats), strict=True))
        figures["ours"].append(_row(batch, memory, seconds[0]))
        if peer:
            figures["peer"] = _row(batch, peer_memory, seconds[1])
    if figures["peer"]:
        for row in figures["ours"]:
            row["ratio"] = row["images_per_s"] / figures["peer"]["images_per_s"]
    return figures


def _row(batch: int, memory: int | None, seconds: Sequence[float]) -> Figures:
    return {
        "batch": batch,
        "memory_bytes": memory,
        "images_per_s": batch / statistics.median(seconds),
        "seconds": list(seconds),
    }


def _agree(kind: Kind, work: sides.Work, images: sides.Batch) -> dict[str, float]:
    """How far the two sides' first results differ without dropout, in full float32.

    Raises:
      ValueError: too far.
    """
    task = sides.make_task(work, 0.0)
    peer = Peer(kind, work, task, images, 0.0)
    peer.set_tf32(False)
    with jax.default_matmul_precision("highest"):
        ours = Ours(kind, work, task, images)()
    if kind == "inference":
        share = float(np.mean(ours["labels"] == peer()["labels"]))
        if share < LABELS:
            raise ValueError(f"only {share:.4%} of the labels are equal; at least {LABELS:.1%}")
        return {"labels": 1 - share}
    theirs = peer(norm=True)
    found = {name: abs(value / theirs[name] - 1) for name, value in ours.items()}
    if any(found[name] > most for name, most in TOLERANCE.items()):
        raise ValueError(f"the two sides differ by {found}, relative; allowed are {TOLERANCE}")
    return found


def print_figures(figures: Figures, console: Console) -> None:
    """One kind of work and type: speeds and memory."""
    table = Table("", "batch", "images/s", "s", "memory", "ratio")
    table.title = f"{figures['kind']}, {figures['dtype']}"
    for name, row in [("ours", r) for r in figures["ours"]] + [("PyTorch", figures["peer"])]:
        if row is None:
            continue
        ratio, memory = row.get("ratio"), row["memory_bytes"]
        table.add_row(
            name,
            str(row["batch"]),
            f"{row['images_per_s']:.3g}",
            f"{row['batch'] / row['images_per_s']:.3g}",
            "" if memory is None else f"{memory / 2**20:.0f} MB",
            "" if ratio is None else f"{ratio:.2f}",
            style="" if name == "ours" else "dim",
        )
    console.print(table)
    if found := figures.get("differences"):
        told = ", ".join(f"{name} {value:.1e}" for name, value in found.items())
        console.print(f"differences without dropout: {told}")
    if figures["peer"] is None:
        console.print("PyTorch: not measured; it comes with `pip install clipseg_jax[torch]`")


def main(argv: list[str] | None = None) -> None:
    """Prints the tables; `--json` also writes the figures."""
    args = _arguments(argv)
    console = Console(width=100, markup=False)
    device = jax.devices()[0].device_kind
    result: Figures = {
        "device": platform.processor() or "cpu" if device == "cpu" else device,
        "cores": len(os.sched_getaffinity(0)),
        "settings": {name: str(value) for name, value in vars(args).items()},
        "sections": [],
    }
    console.print(f"{result['device']}, {result['cores']} cores, {args.dataset}, {args.crop} px")
    for kind in args.sections:
        for dtype in args.dtypes:
            figures = measure(kind, dtype, args)
            print_figures(figures, console)
            result["sections"].append(figures)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    gpu = jax.default_backend() == "gpu"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])

    def several(choices: Sequence[str] | None = None) -> Any:
        def parse(text: str) -> tuple:
            parts = text.split(",")
            if choices and set(parts) - set(choices):
                raise argparse.ArgumentTypeError(f"{text!r}: choose from {', '.join(choices)}")
            return tuple(parts if choices else map(int, parts))

        return parse

    types = ("float32", "bfloat16")
    add = parser.add_argument
    add("--sections", default=SECTIONS, type=several(SECTIONS), help="what to measure")
    add("--dtypes", default=types if gpu else types[:1], type=several(types))
    add("--dataset", default="voc", choices=("voc", "coco"), help="its classes, prompts, weights")
    add("--crop", default=512, type=int, help="side of the images")
    add("--batches", default=(8, 16) if gpu else (1, 2), type=several(), help="peer: the first")
    add("--repeats", default=3, type=int, help="timed runs of each")
    add("--remat", action="store_true", help="ours runs blocks again instead of keeping them")
    add("--json", default=None, type=Path, help="file for the figures")
    add("--tiny", action="store_true", help="tiny networks, to try it out")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
