"""WeCLIP's training step: images/s of ours next to the published way in PyTorch.

    python -m benchmarks.weclip_step [--batch 4] [--crop 320] [--early] [--out FILE]

From crops on the device to the updated head: frozen ViT-B/16, pseudo labels (Grad-CAM, refinement,
PAR), losses, gradient, AdamW. Ours is `train.py`'s update, one program for the whole batch; the
peer (torch_weclip.py) labels one image after the other. Weights, text and images are random, and no
channel is dropped, so that both sides must agree. Without torch only ours is measured.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

# Both sides live in one process: JAX must not take the whole GPU for itself.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax

from benchmarks import weclip_sides as sides
from benchmarks.dense_vit import PEAK_FLOPS
from benchmarks.reclip_sides import Ours, process_peak
from benchmarks.weclip_sides import Step, Work
from clipseg_jax.tasks import weclip


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Runs both sides in turn; the figures, ready for JSON."""
    given = sides.work(args)
    task = weclip.build(given.model, given.task_config)
    figures: dict[str, Any] = {
        "device": jax.devices()[0].device_kind,
        "cores": len(os.sched_getaffinity(0)),
        "settings": vars(args) | {"out": None},
        "classes_per_image": [len(own) for own in given.ids],
    }
    ours = Ours(task, given.batch, optim=sides.OPTIM)
    steps: dict[str, Step] = {"ours": ours}
    if importlib.util.find_spec("torch"):
        peer = sides.Peer(given, args.dtype)
        steps["peer"] = peer
        if args.dtype == "float32" and jax.default_backend() == "cpu":
            figures["differences"] = sides.agreement(ours, peer)
    for name, step in steps.items():  # the first steps: for memory, out of the way of the times
        figures[name] = {"memory_bytes": process_peak(step)}
    if jax.default_backend() == "gpu":
        figures["ours"]["memory_bytes"] = ours.temporary_bytes()
        figures.get("peer", {})["memory_bytes"] = None
    times: dict[str, list[float]] = {name: [] for name in steps}
    shares: list[dict[str, float]] = []
    for _ in range(args.repeats):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - start)
        if "peer" in steps:
            shares.append(dict(peer.net.seconds))
    for name, seconds in times.items():
        speed = args.batch / statistics.median(seconds)
        figures[name] |= {"images_per_s": speed, "seconds": seconds}
    _own_figures(given, args, figures)
    if shares:
        figures["ratio"] = figures["ours"]["images_per_s"] / figures["peer"]["images_per_s"]
        whole = statistics.median(times["peer"])
        found = {name: statistics.median(row[name] for row in shares) / whole for name in shares[0]}
        figures["peer"]["shares"] = found
    return figures


def _own_figures(given: Work, args: argparse.Namespace, figures: dict[str, Any]) -> None:
    """Adds our parts' shares, FLOP/s and the share of a known device's peak."""
    whole, own = statistics.median(figures["ours"]["seconds"]), figures["ours"]
    own["shares"] = {}
    for name, step in sides.parts(given).items():
        step()  # compiles
        seconds = []
        for _ in range(args.repeats):
            start = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - start)
        own["shares"][name] = statistics.median(seconds) / whole
    own["shares"]["loss, gradient, update"] = 1 - sum(own["shares"].values())
    own["flops"] = sides.flops(given)
    per_s = sum(own["flops"].values()) / whole
    peaks = [peak[args.dtype] for name, peak in PEAK_FLOPS.items() if name in figures["device"]]
    own |= {"gflop_per_s": per_s / 1e9, "share_of_peak": per_s / peaks[0] if peaks else None}


def main(argv: list[str] | None = None) -> None:
    """Prints the comparison; `--out` also writes it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--crop", type=int, default=320, help="side of the crops in pixels")
    parser.add_argument("--classes", type=int, default=0, help="of each image; 0: 1 to 3 in turn")
    parser.add_argument("--early", action="store_true", help="the phase without learned affinity")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--repeats", type=int, default=3, help="timed steps of each side")
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    args = parser.parse_args(argv)
    figures = measure(args)
    counts = figures["classes_per_image"]
    print(
        f"{figures['device']}, {figures['cores']} cores, {args.batch} crops of {args.crop} px with "
        f"{sum(counts) / len(counts):.2g} classes, {args.dtype}, "
        f"{'early' if args.early else 'late'} phase"
    )
    for name in ("ours", "peer"):
        if name not in figures:
            print("peer: not measured; PyTorch comes with `pip install clipseg_jax[torch]`")
            continue
        row = figures[name]
        memory = row["memory_bytes"]
        shown = "" if memory is None else f", {memory / 2**20:.0f} MB"
        shares = ", ".join(f"{part} {share:.0%}" for part, share in row["shares"].items())
        print(f"{name}: {row['images_per_s']:.3g} images/s{shown}; {shares}")
    peak = figures["ours"]["share_of_peak"]
    of_peak = "" if peak is None else f" ({peak:.1%} of the device's peak)"
    print(f"ours: {figures['ours']['gflop_per_s']:.0f} GFLOP/s{of_peak}")
    if "ratio" in figures:
        print(f"ratio ours/peer: {figures['ratio']:.2f}")
    for name, value in figures.get("differences", {}).items():
        print(f"relative difference of the first {name}: {value:.1e}")
    if args.out:
        args.out.write_text(json.dumps(figures, indent=1, default=str) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
