"""Everything that is measured on an accelerator, in one command that ends within minutes.

    python -m benchmarks.accelerator --out DIR [--minutes 8] [--items dense_vit-bfloat16,...]

Parity with the published code in float32, the rate of matrix products, every training step and
dense inference in float32 and bfloat16, the CRF's two filters; next to PyTorch where torch is
installed. Compile time is left out. Each item is a process of its own and leaves DIR/ITEM.json; run
again, what is there is not measured again. DIR/table.md and DIR/results.json have all of it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.report import TYPES, console, with_output
from clipseg_jax.core.files import write_json

ROOT = Path(__file__).resolve().parent.parent
# Of CLIP itself, dense inference and training steps; each takes seconds once it is compiled.
GOLDENS = ("test_clip.py", "test_maskclip.py", "test_reclip.py", "test_weclip.py")
_LEAST_SECONDS = 20  # an item is not begun with less time left
COLUMNS = ("item", "side", "batch", "images/s", "s", "of products' rate", "memory, MB", "ratio")


class Item(NamedTuple):
    """Something to measure in a process of its own, and at most how many seconds it may take."""

    name: str
    arguments: tuple[str, ...]  # of Python
    seconds: int
    dtype: str = ""


def items(tiny: bool = False) -> list[Item]:
    """What is measured, in this order."""
    small = ("--tiny",) if tiny else ()
    steps: list[tuple[str, tuple[str, ...]]] = [
        ("dense_vit", ("--size=48",) if tiny else ()),
        ("reclip_step", ("--size=64", "--distill-size=64") if tiny else ()),
        ("maskclip_plus_step", ("--size=64",) if tiny else ()),
        ("weclip_step", ("--size=64",) if tiny else ()),
        ("clip_rc_step", ("--size=64",) if tiny else ()),
        ("clip_es_cam", ("--size=48,64",) if tiny else ()),
    ]
    goldens = tuple(f"tests/parity/{name}" for name in GOLDENS[: 1 if tiny else None])
    parity = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not long", *goldens)
    found = [
        Item("products", ("-m", "benchmarks.accelerator", "--rates", *small), 60),
        Item("parity", parity, 150),
    ]
    for name, more in steps:
        for dtype in TYPES:
            arguments = ("-m", f"benchmarks.{name}", f"--dtype={dtype}", *small, *more)
            found.append(Item(f"{name}-{dtype}", arguments, 90, dtype))
    scale = ("--scale=0.2",) if tiny else ()
    found.append(Item("dense_crf", ("-m", "benchmarks.dense_crf", "--exact", *scale), 60))
    return found


def run(out: Path, chosen: Sequence[Item], minutes: float, *, repeats: int | None = None) -> bool:
    """Measures what is not there yet; whether all of it is there now."""
    out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * minutes
    for item in chosen:
        path, left = out / f"{item.name}.json", end - time.monotonic()
        if path.exists():
            continue
        if left < _LEAST_SECONDS:
            console.print(f"{item.name}: no time left; run the same command again")
            continue
        console.print(f"{item.name} ...")
        started = time.monotonic()
        result = _measured(item, out, min(item.seconds, left), repeats)
        result["wall_seconds"] = round(time.monotonic() - started, 1)
        write_json(path, result)
        if "failed" in result:
            console.print(f"{item.name}: {result['failed'].splitlines()[-1]}")
    return all((out / f"{item.name}.json").exists() for item in chosen)


def _measured(item: Item, out: Path, seconds: float, repeats: int | None) -> dict[str, Any]:
    """What an item's process says; or why it says nothing."""
    arguments, environment = list(item.arguments), dict(os.environ)
    written = out / f"{item.name}.partial"
    written.unlink(missing_ok=True)
    if item.name == "parity":  # factors of float32 products are not rounded
        environment["JAX_DEFAULT_MATMUL_PRECISION"] = "highest"
    else:
        arguments += [f"--out={written.resolve()}"]
        arguments += [f"--repeats={repeats}"] if repeats else []
    try:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=ROOT, env=environment, capture_output=True, text=True, timeout=seconds,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"failed": f"took longer than {seconds:.0f} s"}
    if item.name == "parity":
        said = done.stdout.strip().splitlines()[-1:]
        return {"parity": said[0] if said else "", "passed": done.returncode == 0}
    if done.returncode or not written.exists():
        return {"failed": (done.stderr or done.stdout).strip()[-2000:] or "said nothing"}
    result = json.loads(written.read_text())
    written.unlink()
    return result


def rates(tiny: bool = False) -> dict[str, Any]:
    """Products a second of large matrices on the first device, FLOP/s by type."""
    import jax
    import jax.numpy as jnp

    side, steps = (256, 2) if tiny else (8192, 20)
    found: dict[str, float] = {}
    for dtype in TYPES:
        x = jnp.ones((side, side), dtype)

        def chain(x: jax.Array) -> jax.Array:
            return jax.lax.fori_loop(0, steps, lambda _, y: (y @ x) * (1 / side), x)

        product: Callable = jax.jit(chain)
        product(x).block_until_ready()
        started = time.perf_counter()
        product(x).block_until_ready()
        found[dtype] = 2 * steps * side**3 / (time.perf_counter() - started)
    return {"device": jax.devices()[0].device_kind, "rates": found}


def table(out: Path, chosen: Sequence[Item]) -> str:
    """All results so far as a Markdown table."""
    results = {item: _read(out / f"{item.name}.json") for item in chosen}
    measured: dict[str, float] = {}
    lines = []
    for item, result in results.items():
        if result is None:
            lines.append([item.name, "not measured"])
        elif "failed" in result:
            lines.append([item.name, f"failed: {result['failed'].splitlines()[-1][:80]}"])
        elif "rates" in result:
            measured = result["rates"]
            said = ", ".join(f"{name} {rate / 1e12:.4g} TFLOP/s" for name, rate in measured.items())
            lines.append([item.name, f"{result['device']}: {said}"])
        elif "parity" in result:
            lines.append([item.name, result["parity"]])
        else:
            lines += [
                _line(f"{item.name}: {section['name']}", row, measured.get(item.dtype))
                for section in result.get("sections", ())
                for row in section["rows"]
            ]
    rows = [COLUMNS, ["---"] * len(COLUMNS), *lines]
    filled = ([*map(str, row), *[""] * (len(COLUMNS) - len(row))] for row in rows)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in filled)


def _line(name: str, row: dict[str, Any], rate: float | None) -> list[str]:
    flops, memory, ratio = (row.get(key) for key in ("flops", "memory_bytes", "ratio"))
    return [
        name,
        row["side"],
        str(row.get("batch", "")),
        f"{row['images_per_s']:.4g}",
        f"{row['median']:.4g}",
        f"{flops / row['median'] / rate:.1%}" if flops and rate else "",
        f"{memory / 2**20:.0f}" if memory else "",
        f"{ratio:.2f}" if ratio else "",
    ]


def _read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text()) if path.exists() else None


def main(argv: list[str] | None = None) -> int:
    """Runs the command; 0 if everything is measured and nothing failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=8, help="at most, all together")
    parser.add_argument("--items", help="some of them, separated by commas; default: all")
    parser.add_argument("--tiny", action="store_true", help="tiny networks, for a dry run")
    parser.add_argument("--rates", action="store_true", help=argparse.SUPPRESS)
    args = with_output(parser, repeats=0).parse_args(argv)
    if args.rates:
        write_json(args.out, rates(args.tiny))
        return 0
    out, known = args.out or Path("accelerator"), items(args.tiny)
    names = args.items.split(",") if args.items else [item.name for item in known]
    if unknown := sorted(set(names) - {item.name for item in known}):
        parser.error(f"no {', '.join(unknown)}; there are {', '.join(i.name for i in known)}")
    chosen = [item for item in known if item.name in names]
    complete = run(out, chosen, args.minutes, repeats=args.repeats or None)
    results = {item.name: _read(out / f"{item.name}.json") for item in chosen}
    write_json(out / "results.json", results)
    text = table(out, chosen)
    (out / "table.md").write_text(text)
    print(text)
    failed = [name for name, one in results.items() if one and "failed" in one]
    return int(not complete or bool(failed))


if __name__ == "__main__":
    sys.exit(main())
