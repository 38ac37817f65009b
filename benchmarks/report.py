"""The words that start a benchmark, and the form in which it tells what it found."""

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

Figures = dict[str, Any]
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
    "memory_bytes": ("memory", lambda found: f"{found / 2**20:.0f} MB"),
    "ratio": ("ratio", "{:.2f}".format),
}
console = Console(width=100, markup=False, highlight=False)


def parser(
    doc: str, *, batch: Any, size: Any, dtype: Any = "float32", repeats: int = 3
) -> argparse.ArgumentParser:
    """The options that the networks' benchmarks share; a tuple's takes several, with commas."""

    def number(default: Any) -> Any:
        return several() if isinstance(default, tuple) else int

    made = argparse.ArgumentParser(description=doc.splitlines()[0])
    first = "; the peer runs the first" if isinstance(batch, tuple) else ""
    made.add_argument("--batch", default=batch, type=number(batch), help=f"images a step{first}")
    side = "height,width" if isinstance(size, tuple) else "side"
    made.add_argument("--size", default=size, type=number(size), help=f"{side} of the images in px")
    of_products = "of the matrix products"
    if isinstance(dtype, tuple):
        made.add_argument("--dtype", default=dtype, type=several(TYPES), help=of_products)
    else:
        made.add_argument("--dtype", default=dtype, choices=TYPES, help=of_products)
    made.add_argument("--tiny", action="store_true", help="tiny networks, to try it out")
    return with_output(made, repeats)


def with_output(made: argparse.ArgumentParser, repeats: int) -> argparse.ArgumentParser:
    """Adds the options that every benchmark of two sides has."""
    made.add_argument("--repeats", type=int, default=repeats, help="timed steps of each side")
    made.add_argument("--out", type=Path, help="JSON file for the figures")
    return made


def several(choices: Sequence[str] | None = None) -> Callable[[str], tuple]:
    """An option's type: `choices` or whole numbers, separated by commas."""

    def parse(text: str) -> tuple:
        parts = text.split(",")
        if choices and set(parts) - set(choices):
            raise argparse.ArgumentTypeError(f"{text!r}: choose from {', '.join(choices)}")
        return tuple(parts if choices else map(int, parts))

    return parse


def begin(args: argparse.Namespace, about: str) -> Figures:
    """Prints where and what is measured; the figures, to which `add` adds."""
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
) -> Figures:
    """A side's figures from the seconds of its steps: medians count. `flops` are of one step."""
    median = statistics.median(seconds)
    found = {"side": side, "batch": batch, "images_per_s": batch / median, "median": median}
    if flops is not None:
        device = jax.devices()[0].device_kind
        peaks = [peak[dtype] for name, peak in PEAK_FLOPS.items() if name in device]
        found |= {"flops": flops, "gflop_per_s": flops / median / 1e9}
        found["share_of_peak"] = flops / median / peaks[0] if peaks else None
    return found | {"seconds": list(seconds)} | more


def compare(
    steps: Mapping[str, Side],
    batch: int,
    repeats: int,
    *,
    compiled: Any,
    flops: Mapping[str, float] = MappingProxyType({}),
    dtype: str = "float32",
) -> list[Figures]:
    """Rows of "ours" (whose program is `compiled`) and "peer", run in turn, with their memory."""
    # First steps: for memory, and out of the way of the times.
    memory = {
        name: step_bytes(step, compiled if name == "ours" else None) for name, step in steps.items()
    }
    return [
        row(name, batch, seconds, flops=flops.get(name), dtype=dtype, memory_bytes=memory[name])
        for name, seconds in in_turn(steps, repeats).items()
    ]


def add(figures: Figures, name: str, rows: Sequence[Figures], **more: Any) -> Figures:
    """Prints and keeps a section: what was measured together.

    Our rows get `ratio`, their images/s over the peer's (or None); `differences` of the two sides
    are printed, too.
    """
    section = {"name": name, "rows": list(rows), **more}
    peers = [row["images_per_s"] for row in rows if row["side"] == "peer"]
    for one in rows:
        own = one["side"] == "ours" and bool(peers)
        one["ratio"] = one["images_per_s"] / peers[0] if own else None
    shown = [key for key in COLUMNS if any(row.get(key) is not None for row in rows)]
    table = Table("", *(COLUMNS[key][0] for key in shown), title=name)
    for one in rows:
        cells = ["" if one.get(k) is None else COLUMNS[k][1](one[k]) for k in shown]
        table.add_row(one["side"], *cells, style="" if one["side"] == "ours" else "dim")
    console.print(table)
    if found := more.get("differences"):
        told = ", ".join(f"{name} {value:.1e}" for name, value in found.items())
        console.print(f"differences: {told}")
    figures["sections"].append(section)
    return section


def finish(
    figures: Figures,
    out: Path | None,
    peer: str = "PyTorch, which comes with `pip install clipseg_jax[torch]`",
) -> None:
    """Says where no peer was measured, and writes the figures as JSON to `out`."""
    rows = [row for section in figures["sections"] for row in section["rows"]]
    if rows and all(row["side"] == "ours" for row in rows):
        console.print(f"peer: not measured; it needs {peer}")
    if out:
        out.write_text(json.dumps(figures, indent=1) + "\n")
