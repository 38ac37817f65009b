"""The command-line options that benchmarks share, and the format of their results."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from benchmarks.sides import Side, in_turn, step_bytes

Metrics = dict[str, Any]
TYPES = ("float32", "bfloat16")
# Dense peak FLOP/s of the matrix units; float32 products run as TF32 on these.
PEAK_FLOPS = {
    "H200": {"bfloat16": 989e12, "float32": 494e12},
    "H100": {"bfloat16": 989e12, "float32": 494e12},
    "A100": {"bfloat16": 312e12, "float32": 156e12},
}
COLUMNS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "batch": ("batch", str),
    "images_per_s": ("images/s", "{:.3g}".format),
    "median": ("s", "{:.3g}".format),
    "cpu_seconds": ("CPU s", "{:.3g}".format),
    "gflop_per_s": ("GFLOP/s", "{:.0f}".format),
    "share_of_peak": ("of peak", "{:.1%}".format),
    "memory_bytes": ("memory", lambda value: f"{value / 2**20:.0f} MB"),
    "ratio": ("ratio", "{:.2f}".format),
    "times_first": ("time / first", "{:.2f}".format),
}
console = Console(width=100, markup=False, highlight=False)


def parser(
    doc: str, *, batch: Any, size: Any, dtype: Any = "float32", repeats: int = 3
) -> argparse.ArgumentParser:
    """A parser with the options that network benchmarks share.

    An option whose default is a tuple takes several values, separated by commas.
    """

    def number(default: Any) -> Any:
        return several() if isinstance(default, tuple) else int

    result = argparse.ArgumentParser(description=doc.splitlines()[0])
    first = "; the peer runs the first" if isinstance(batch, tuple) else ""
    result.add_argument(
        "--batch", default=batch, type=number(batch), help=f"images per step{first}"
    )
    side = "height,width" if isinstance(size, tuple) else "side"
    result.add_argument(
        "--size", default=size, type=number(size), help=f"{side} of the images in px"
    )
    of_products = "of the matrix products"
    if isinstance(dtype, tuple):
        result.add_argument("--dtype", default=dtype, type=several(TYPES), help=of_products)
    else:
        result.add_argument("--dtype", default=dtype, choices=TYPES, help=of_products)
    result.add_argument("--tiny", action="store_true", help="tiny networks, for a quick trial")
    return with_output(result, repeats)


def with_output(parser: argparse.ArgumentParser, repeats: int) -> argparse.ArgumentParser:
    """Adds `--repeats` and `--out` to a parser."""
    parser.add_argument("--repeats", type=int, default=repeats, help="timed steps of each side")
    parser.add_argument("--out", type=Path, help="JSON file for the metrics")
    return parser


def several(choices: Sequence[str] | None = None) -> Callable[[str], tuple]:
    """The argparse type of a comma-separated list of `choices`, or of integers."""

    def parse(text: str) -> tuple:
        parts = text.split(",")
        if choices and set(parts) - set(choices):
            raise argparse.ArgumentTypeError(f"{text!r}: choose from {', '.join(choices)}")
        return tuple(parts if choices else map(int, parts))

    return parse


def begin(args: argparse.Namespace, about: str) -> Metrics:
    """Prints the device and `about`; returns the record to which `add` appends sections."""
    kind = jax.devices()[0].device_kind
    device = platform.processor() or "cpu" if kind == "cpu" else kind
    cores = len(os.sched_getaffinity(0))
    console.print(f"{device}, {cores} cores: {about}")
    settings = {name: str(value) for name, value in vars(args).items()}
    return {"device": device, "cores": cores, "settings": settings, "sections": []}


def row(
    side: str,
    batch: int,
    seconds: Sequence[float],
    *,
    flops: float | None = None,
    dtype: str = "float32",
    **more: Any,
) -> Metrics:
    """A row of results of one side, from the median of its steps' `seconds`.

    `flops` are of one step; `more` are further entries.
    """
    median = statistics.median(seconds)
    result = {"side": side, "batch": batch, "images_per_s": batch / median, "median": median}
    if flops is not None:
        device = jax.devices()[0].device_kind
        peaks = [peak[dtype] for name, peak in PEAK_FLOPS.items() if name in device]
        result |= {"flops": flops, "gflop_per_s": flops / median / 1e9}
        result["share_of_peak"] = flops / median / peaks[0] if peaks else None
    return result | {"seconds": list(seconds)} | more


def compare(
    steps: Mapping[str, Side],
    batch: int,
    repeats: int,
    *,
    compiled: Any,
    flops: Mapping[str, float] = MappingProxyType({}),
    dtype: str = "float32",
) -> list[Metrics]:
    """Rows of "ours" (whose program is `compiled`) and "peer", run alternately, with memory use."""
    # The first steps measure memory and serve as warm-up.
    memory = {
        name: step_bytes(step, compiled if name == "ours" else None) for name, step in steps.items()
    }
    return [
        row(name, batch, seconds, flops=flops.get(name), dtype=dtype, memory_bytes=memory[name])
        for name, seconds in in_turn(steps, repeats).items()
    ]


def add(metrics: Metrics, name: str, rows: Sequence[Metrics], **more: Any) -> Metrics:
    """Prints a section of rows that were measured together, and appends it to `metrics`.

    Our rows get `ratio`, their images/s over the peer's (or None). `more` are further entries;
    `differences` between the two sides are printed as well.
    """
    section = {"name": name, "rows": list(rows), **more}
    peers = [row["images_per_s"] for row in rows if row["side"] == "peer"]
    for one in rows:
        compared = one["side"] == "ours" and bool(peers)
        one["ratio"] = one["images_per_s"] / peers[0] if compared else None
    columns = [key for key in COLUMNS if any(row.get(key) is not None for row in rows)]
    table = Table("", *(COLUMNS[key][0] for key in columns), title=name)
    for one in rows:
        cells = ["" if one.get(k) is None else COLUMNS[k][1](one[k]) for k in columns]
        table.add_row(one["side"], *cells, style="" if one["side"] == "ours" else "dim")
    console.print(table)
    if differences := more.get("differences"):
        text = ", ".join(f"{name} {value:.1e}" for name, value in differences.items())
        console.print(f"differences: {text}")
    metrics["sections"].append(section)
    return section


def finish(
    metrics: Metrics,
    out: Path | None,
    peer: str = "PyTorch, installed by `pip install -e '.[torch]'`",
) -> None:
    """Prints a note if no peer was measured, and writes the results as JSON to `out`."""
    rows = [row for section in metrics["sections"] for row in section["rows"]]
    if rows and all(row["side"] == "ours" for row in rows):
        console.print(f"peer: not measured; it needs {peer}")
    if out:
        write(metrics, out)


def write(metrics: Metrics, out: Path) -> None:
    """Writes the results as JSON."""
    out.write_text(json.dumps(metrics, indent=1) + "\n")
