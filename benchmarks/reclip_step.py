"""ReCLIP++'s training steps: images/s of ours next to the published way in PyTorch.

    python -m benchmarks.reclip_step [--crop 512] [--classes 20] [--batches 1,4] [--json FILE]

Rectification (ViT-B/16), distillation (ResNet-50 DeepLab) and the overhead of splitting a batch
over devices. Weights and images are random. Without torch only our side is measured.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# Both sides live in one process: JAX must not take the whole GPU for itself.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
from rich.console import Console
from rich.table import Table

from benchmarks import reclip_counts as counts
from benchmarks import reclip_sides as sides
from benchmarks.dense_vit import PEAK_FLOPS
from benchmarks.reclip_sides import Kind, Ours, Peer
from clipseg_jax.models.clip import transformer
from clipseg_jax.ops import upsample

SECTIONS = ("rectification", "distillation", "scaling")
# Largest relative differences. Gradients come from the few positions where two classes nearly tie.
TOLERANCE = {"loss": 1e-3, "gradient_norm": 1e-2}
Figures = dict[str, Any]


def measure(kind: Kind, dtype: str, batches: Sequence[int], args: argparse.Namespace) -> Figures:
    """Ours at each batch size, the peer at the first; the ratios of images/s.

    Raises:
      ValueError: the two sides' losses or gradients differ.
    """
    crop = args.crop if kind == "rectification" else args.distill_crop
    on_gpu = jax.default_backend() == "gpu"
    figures: Figures = {"kind": kind, "dtype": dtype, "crop": crop, "ours": [], "peer": None}
    for batch in batches:
        work = sides.work(batch, crop, args.classes, dtype, args.tiny)
        task, images = sides.make_task(work, kind), sides.make_batch(work)
        ours, peer = Ours(task, images), None
        if batch == batches[0] and importlib.util.find_spec("torch"):
            peer = Peer(kind, work, task, images)
            if dtype == "float32":
                figures["differences"] = _agree(work, task, images, ours, peer)
        # First steps: for memory, and out of the way of the times.
        memory = sides.process_peak(ours)
        memory = ours.temporary_bytes() if on_gpu else memory
        peer_memory = peer and peer.peak_bytes(peer)
        steps: list[Callable] = [ours, peer] if peer else [ours]
        seconds = list(zip(*sides.rounds(steps, args.repeats), strict=True))
        flops, held = _formulas(kind, work, on_gpu)
        figures["ours"].append(
            {
                "batch": batch,
                "memory_bytes": memory,
                "compiler_flops": ours.compiler_flops(),
                "flops": flops,
                "bytes": held,
                "text_tokens": counts.text_tokens(work) if kind == "rectification" else None,
                **_speed(batch, seconds[0], flops, 0, dtype),
            }
        )
        if peer:
            speed = _speed(batch, seconds[1], flops, 1, dtype)
            figures["peer"] = {"batch": batch, "memory_bytes": peer_memory, **speed}
    if figures["peer"]:
        for row in figures["ours"]:
            row["ratio"] = row["images_per_s"] / figures["peer"]["images_per_s"]
    return figures


def _agree(work: counts.Work, task: Any, images: Any, ours: Ours, peer: Peer) -> list[dict]:
    """The differences from the peer; on a GPU in full float32, by a program of its own.

    Raises:
      ValueError: they are too large.
    """
    if jax.default_backend() == "gpu":
        with jax.default_matmul_precision("highest"):
            ours = Ours(task, images)
    peer.set_tf32(False)
    found = sides.agreement(work, ours, peer)
    peer.set_tf32(True)
    if any(found[0][name] > most for name, most in TOLERANCE.items()):
        raise ValueError(f"the two sides differ by {found[0]}, relative; allowed are {TOLERANCE}")
    return found


def _formulas(
    kind: Kind, work: counts.Work, on_gpu: bool
) -> tuple[dict[str, counts.Pair], dict[str, counts.Pair]]:
    """FLOPs and bytes of each part, ours and the published way's."""
    scores = None if on_gpu else transformer._SCORES_AT_ONCE
    if kind == "rectification":
        return counts.rectification_flops(work), counts.rectification_bytes(work, scores)
    block = upsample._NUMBERS_AT_ONCE
    return counts.distillation_flops(work), counts.distillation_bytes(work, scores, block)


def _speed(
    batch: int, seconds: Sequence[float], flops: dict[str, counts.Pair], side: int, dtype: str
) -> Figures:
    """Speed from the median; the share of a known device's peak."""
    median = statistics.median(seconds)
    per_s = sum(pair[side] for pair in flops.values()) / median
    kind = jax.devices()[0].device_kind
    peaks = [peak[dtype] for name, peak in PEAK_FLOPS.items() if name in kind]
    return {
        "images_per_s": batch / median,
        "gflop_per_s": per_s / 1e9,
        "share_of_peak": per_s / peaks[0] if peaks else None,
        "seconds": list(seconds),
    }


def scaling(args: argparse.Namespace) -> list[Figures]:
    """The same batch over more and more fake CPU devices, each count in a process of its own."""
    rows = []
    for devices in args.scaling_devices:
        work = _scaling_work(args)
        command = [
            *(sys.executable, "-m", "benchmarks.reclip_step", "--scaling-child"),
            *(f"--scaling-devices={devices}", f"--scaling-batch={args.scaling_batch}"),
            *(f"--scaling-crop={args.scaling_crop}", f"--classes={args.classes}"),
            *(f"--repeats={args.repeats}", *["--tiny"] * args.tiny),
        ]
        env = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
        if done.returncode:
            raise RuntimeError(f"measuring {devices} devices failed:\n{done.stderr}")
        seconds = json.loads(done.stdout.splitlines()[-1])
        flops = counts.rectification_flops(work)
        whole = sum(ours for ours, _ in flops.values())
        # Every device computes the whole reference; images are divided.
        again = (devices - 1) * flops["reference prompt"][0] / whole
        rows.append(
            {
                "devices": devices,
                "seconds": seconds,
                "median": statistics.median(seconds),
                "flops_ratio": 1 + again,
            }
        )
        rows[-1]["time_ratio"] = rows[-1]["median"] / rows[0]["median"]
    return rows


def _scaling_work(args: argparse.Namespace) -> counts.Work:
    sizes = args.scaling_batch, args.scaling_crop, args.classes
    return sides.work(*sizes, "float32", args.tiny)


def scaling_child(args: argparse.Namespace) -> list[float]:
    """Seconds of rectification steps over all devices of this process."""
    work = _scaling_work(args)
    task = sides.make_task(work, "rectification")
    ours = Ours(task, sides.make_batch(work), args.scaling_devices[0])
    ours()
    return [seconds for (seconds,) in sides.rounds([ours], args.repeats)]


def print_figures(figures: Figures, console: Console) -> None:
    """One kind of step and type: speeds, and where the work is."""
    title = f"{figures['kind']}, {figures['crop']} px, {figures['dtype']}"
    table = Table("", "batch", "images/s", "GFLOP/s", "of peak", "memory", "ratio", title=title)
    for name, row in [("ours", r) for r in figures["ours"]] + [("PyTorch", figures["peer"])]:
        if row is None:
            continue
        ratio = row.get("ratio")
        table.add_row(
            name,
            str(row["batch"]),
            f"{row['images_per_s']:.3g}",
            f"{row['gflop_per_s']:.0f}",
            "" if row["share_of_peak"] is None else f"{row['share_of_peak']:.1%}",
            "" if row["memory_bytes"] is None else f"{row['memory_bytes'] / 2**20:.0f} MB",
            "" if ratio is None else f"{ratio:.2f}",
            style="" if name == "ours" else "dim",
        )
    console.print(table)
    for step, found in enumerate(figures.get("differences", ())):
        differences = ", ".join(f"{name} {value:.1e}" for name, value in found.items())
        console.print(f"relative differences after {step} updates: {differences}")
    if figures["peer"] is None:
        console.print("PyTorch: not measured; it comes with `pip install clipseg_jax[torch]`")

    first = figures["ours"][0]
    table = Table("", "ours", "published", "ratio", title=f"by formula, batch {first['batch']}")
    if first["text_tokens"]:
        ours, peer = first["text_tokens"]
        table.add_row("text tokens", str(ours), str(peer), f"{peer / ours:.1f}", end_section=True)
    for unit, scale, parts in (("GFLOP", 1e9, first["flops"]), ("MB", 2**20, first["bytes"])):
        total = {"all": [sum(side) for side in zip(*parts.values(), strict=True)]}
        for name, (ours, peer) in (parts | (total if unit == "GFLOP" else {})).items():
            share = f"{peer / ours:.1f}" if ours else ""
            table.add_row(
                f"{name}, {unit}", f"{ours / scale:.4g}", f"{peer / scale:.4g}", share,
                end_section=name == "all",
            )  # fmt: skip
    console.print(table)
    if first["compiler_flops"]:
        console.print(
            f"the compiler counts {first['compiler_flops'] / 1e9:.4g} GFLOP for ours (loops once)"
        )


def print_scaling(rows: Sequence[Figures], args: argparse.Namespace, console: Console) -> None:
    """Time per step over fake devices."""
    title = f"rectification, batch {args.scaling_batch}, {args.scaling_crop} px, fake CPU devices"
    table = Table("devices", "s/step", "time, of one device's", "FLOPs, of one device's")
    table.title = title
    for row in rows:
        table.add_row(
            str(row["devices"]), f"{row['median']:.3g}",
            f"{row['time_ratio']:.2f}", f"{row['flops_ratio']:.2f}",
        )  # fmt: skip
    console.print(table)
    cores = len(os.sched_getaffinity(0))
    console.print(
        f"All devices share {cores} cores: no speed-up is expected, only overhead shows. Each "
        "device computes the whole reference prompt, which real devices do at the same time."
    )


def main(argv: list[str] | None = None) -> None:
    """Prints the tables; `--json` also writes the figures."""
    args = _arguments(argv)
    if args.scaling_child:
        print(json.dumps(scaling_child(args)))
        return
    console = Console(width=100, markup=False)
    device = jax.devices()[0].device_kind
    result: Figures = {
        "device": platform.processor() or "cpu" if device == "cpu" else device,
        "cores": len(os.sched_getaffinity(0)),
        "settings": {name: str(value) for name, value in vars(args).items()},
        "steps": [],
        "scaling": None,
    }
    console.print(f"{result['device']}, {result['cores']} cores, {args.classes} classes")
    for kind, batches in (("rectification", args.batches), ("distillation", args.distill_batches)):
        if kind not in args.sections:
            continue
        for dtype in args.dtypes:
            figures = measure(kind, dtype, batches, args)  # type: ignore[arg-type]
            print_figures(figures, console)
            result["steps"].append(figures)
    if "scaling" in args.sections:
        result["scaling"] = scaling(args)
        print_scaling(result["scaling"], args, console)
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

    def add(name: str, default: Any, kind: Any, text: str) -> None:
        parser.add_argument(f"--{name}", default=default, type=kind, help=text)

    add("sections", SECTIONS, several(SECTIONS), "what to measure")
    types = ("float32", "bfloat16")
    add("dtypes", types if gpu else types[:1], several(types), "of the matrix products")
    add("classes", 20, int, "in the class list")
    add("crop", 512, int, "side of the rectification's images")
    add("batches", (1, 2, 4, 8) if gpu else (1, 4), several(), "the peer runs the first")
    add("distill-crop", 512 if gpu else 320, int, "side of the distillation's images")
    add("distill-batches", (16,) if gpu else (2,), several(), "the peer runs the first")
    add("scaling-crop", 224, int, "side of the images that fake devices share")
    add("scaling-batch", 8, int, "a multiple of every number of devices")
    add("scaling-devices", (1, 2, 4, 8), several(), "numbers of devices, from 1")
    add("repeats", 3, int, "timed steps of each")
    add("json", None, Path, "file for the figures")
    parser.add_argument("--tiny", action="store_true", help="tiny networks, to try it out")
    parser.add_argument("--scaling-child", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
