"""Overhead of ReCLIP++'s rectification step on a growing number of simulated CPU devices.

    python -m benchmarks.reclip_scaling [--batch 8] [--size 224] [--devices 1,2,4,8]

Each number of devices is measured in a process of its own. All devices share the same cores, so no
speed-up is possible.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys

from rich.table import Table

from benchmarks import reclip_counts as counts
from benchmarks import reclip_sides, report
from benchmarks.report import Metrics, console
from benchmarks.sides import Ours, in_turn


def scaling(args: argparse.Namespace, argv: list[str]) -> list[Metrics]:
    """Seconds of a step for each number of devices."""
    work = reclip_sides.make_work(args.batch, args.size, args.classes, args.dtype, args.tiny)
    flops = counts.rectification_flops(work)
    whole = sum(ours for ours, _ in flops.values())
    rows: list[Metrics] = []
    for devices in args.devices:
        command = [sys.executable, "-m", "benchmarks.reclip_scaling", *argv, f"--child={devices}"]
        env = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
        if done.returncode:
            raise RuntimeError(f"measuring {devices} devices failed:\n{done.stderr}")
        seconds = json.loads(done.stdout.splitlines()[-1])
        # Every device computes the whole reference; images are split over devices.
        again = (devices - 1) * flops["reference prompt"][0] / whole
        row = {"devices": devices, "seconds": seconds, "median": statistics.median(seconds)}
        rows.append(row | {"flops_ratio": 1 + again})
        rows[-1]["time_ratio"] = rows[-1]["median"] / rows[0]["median"]
    return rows


def child(args: argparse.Namespace) -> list[float]:
    """Seconds of rectification steps over all devices of this process."""
    work = reclip_sides.make_work(args.batch, args.size, args.classes, args.dtype, args.tiny)
    task = reclip_sides.make_task(work, "rectification")
    ours = Ours(task, reclip_sides.make_batch(work), args.child)
    ours()
    return in_turn({"ours": ours}, args.repeats)["ours"]


def main(argv: list[str] | None = None) -> None:
    """Prints the table; `--out` also writes it as JSON."""
    argv = sys.argv[1:] if argv is None else argv
    parser = report.parser(__doc__, batch=8, size=224)
    parser.add_argument("--classes", default=20, type=int, help="number of classes")
    parser.add_argument(
        "--devices", default=(1, 2, 4, 8), type=report.several(),
        help="starting with 1; each must divide --batch",
    )  # fmt: skip
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.child:
        print(json.dumps(child(args)))
        return
    metrics = report.begin(args, f"batch {args.batch}, {args.size} px, {args.classes} classes")
    metrics["scaling"] = scaling(args, argv)
    table = Table("devices", "s/step", "time / one device", "FLOPs / one device")
    for row in metrics["scaling"]:
        table.add_row(
            str(row["devices"]), f"{row['median']:.3g}",
            f"{row['time_ratio']:.2f}", f"{row['flops_ratio']:.2f}",
        )  # fmt: skip
    console.print(table)
    console.print(
        "All devices share the cores, so only overhead is visible. Each device computes the whole "
        "reference prompt, which real devices do in parallel."
    )
    report.finish(metrics, args.out)


if __name__ == "__main__":
    main()
