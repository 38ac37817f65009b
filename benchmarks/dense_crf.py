"""Dense CRF: seconds per image, compared with pydensecrf on the same photo and cores.

    python -m benchmarks.dense_crf [--peer-python /path/to/python] [--labels 21] [--batch 4]

The peer runs under a Python of its own that has pydensecrf (README.md says how to build it);
without `--peer-python` only our side is measured. `--exact` also times the exact filter.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from benchmarks import report
from clipseg_jax.core.mesh import make_mesh
from clipseg_jax.ops import crf

ROOT = Path(__file__).resolve().parent.parent
PHOTO = ROOT / "tests" / "golden" / "densecrf" / "examples" / "im1.png"
PRESETS = {
    "clip_es": crf.CLIP_ES,
    "weclip_test": crf.WECLIP_TEST,
    "weclip": crf.WECLIP,
}


def problem(args: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """Unary energies (h, w, c) of coarse random scores, and the preset's image (h, w, 3)."""
    photo = Image.open(args.photo).convert("RGB")
    photo = photo.resize((round(photo.width * args.scale), round(photo.height * args.scale)))
    image = np.asarray(photo)
    coarse = np.random.default_rng(0).standard_normal((1, 8, 10, args.labels), np.float32)
    scores = jax.image.resize(3 * coarse, (1, *image.shape[:2], args.labels), "bilinear")
    unary = crf.unary_from_softmax(jax.nn.softmax(scores))[0]
    if args.preset == "clip_es":
        image = np.asarray(crf.wrapped_image(image))
    return np.asarray(unary), image


def exact_floor(pixels: int, labels: int) -> tuple[float, float]:
    """Lower bounds of one exact appearance filtering: FLOPs (an exponential is one) and bytes."""
    flop = pixels**2 * (3.0 * 5 + 1 + 2 * labels)
    return flop, 4.0 * pixels * (5 + 2 * labels)


def timed(step: Callable[[], jax.Array]) -> tuple[float, float]:
    """Wall and CPU seconds of one step."""
    wall, cpu = time.perf_counter(), time.process_time()
    jax.block_until_ready(step())
    return time.perf_counter() - wall, time.process_time() - cpu


def ask_peer(args: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Runs the peer's process once; returns the times that it measured."""
    script = Path(__file__).with_name("pydensecrf_peer.py")
    command = [args.peer_python, str(script), str(folder / "in.npz"), str(folder / "out.npz")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the peer failed:\n{done.stderr}")
    return json.loads(done.stdout)


def measure(
    args: argparse.Namespace, unary: np.ndarray, image: np.ndarray, metrics: report.Metrics
) -> None:
    """Adds sections for one image and for a batch, with both sides run alternately."""
    cfg = PRESETS[args.preset]
    run = jax.jit(crf.dense_crf, static_argnums=2)
    one = (jax.device_put(unary[None]), jax.device_put(image[None]))

    mesh = make_mesh()
    rows = jax.sharding.PartitionSpec(("data", "fsdp"))
    sharding = jax.sharding.NamedSharding(mesh, rows)
    split = jax.jit(
        jax.shard_map(partial(crf.dense_crf, cfg=cfg), mesh=mesh, in_specs=rows, out_specs=rows)
    )
    many = [
        jax.device_put(np.repeat(array[None], args.batch, 0), sharding) for array in (unary, image)
    ]
    steps = {"single": lambda: run(*one, cfg), "batch": lambda: split(*many)}

    compile_s = {name: timed(step)[0] for name, step in steps.items()}
    ours: dict[str, list[float]] = {"single": [], "cpu": [], "batch": []}
    theirs: dict[str, list[float]] = {"single": [], "cpu": [], "batch": []}
    differences = None
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        settings = (cfg.theta_gamma, cfg.w2, cfg.theta_alpha, cfg.theta_beta, cfg.w1)
        np.savez(
            folder / "in.npz",
            unary=unary,
            image=image,
            settings=np.array([*settings, cfg.iterations], float),
            batch=args.batch,
        )
        for _ in range(args.repeats):
            wall, cpu = timed(steps["single"])
            ours["single"].append(wall)
            ours["cpu"].append(cpu)
            ours["batch"].append(timed(steps["batch"])[0])
            if args.peer_python:
                for name, seconds in ask_peer(args, folder).items():
                    theirs[name].append(seconds)
        if args.peer_python:
            marginals = np.asarray(run(*one, cfg)[0])
            with np.load(folder / "out.npz") as stored:
                peer_marginals = stored["marginals"]
            differences = {
                "marginals": float(np.abs(marginals - peer_marginals).max()),
                "share of other labels": float(
                    np.mean(marginals.argmax(-1) != peer_marginals.argmax(-1))
                ),
            }
    times_of = {"ours": ours} | ({"peer": theirs} if args.peer_python else {})
    for name, batch, key in (("one image", 1, "single"), ("a batch", args.batch, "batch")):
        rows = [report.row(side, batch, times[key]) for side, times in times_of.items()]
        if key == "single":
            for row, times in zip(rows, times_of.values(), strict=True):
                row["cpu_seconds"] = statistics.median(times["cpu"])
        report.add(
            metrics, name, rows, compile_s=compile_s[key],
            differences=differences if key == "single" else None,
        )  # fmt: skip
    if args.exact:
        metrics["exact"] = exact(args, cfg, one)


def exact(args: argparse.Namespace, cfg: crf.CRFConfig, one: tuple) -> dict[str, float]:
    """Seconds of one exact filtering (two iterations minus one) and its lower bounds."""
    seconds = []
    for n in (1, 2):
        program = jax.jit(partial(crf.dense_crf, cfg=cfg.replace(filter="exact", iterations=n)))
        jax.block_until_ready(program(*one))
        seconds.append(min(timed(lambda p=program: p(*one))[0] for _ in range(args.repeats)))
    height, width = one[1].shape[1:3]
    flop, size = exact_floor(height * width, args.labels)
    duration = seconds[1] - seconds[0]
    return {
        "seconds": duration,
        "gflop": flop / 1e9,
        "gflop_per_s": flop / duration / 1e9,
        "bytes": size,
    }


def main(argv: list[str] | None = None) -> None:
    """Prints the comparison; `--out` also writes it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photo", type=Path, default=PHOTO)
    parser.add_argument("--scale", type=float, default=1.0, help="resizes the photo")
    parser.add_argument("--labels", type=int, default=4)
    parser.add_argument("--batch", type=int, default=4, help="a multiple of the devices")
    parser.add_argument("--preset", choices=sorted(PRESETS), default="clip_es")
    parser.add_argument("--peer-python", help="a Python that has pydensecrf")
    parser.add_argument("--exact", action="store_true", help="also time the exact filter")
    args = report.with_output(parser, repeats=5).parse_args(argv)

    unary, image = problem(args)
    height, width = image.shape[:2]
    metrics = report.begin(args, f"{height} x {width} px, {args.labels} labels, {args.preset}")
    measure(args, unary, image, metrics)
    if "exact" in metrics:
        costs = metrics["exact"]
        report.console.print(
            f"exact filtering: {costs['seconds']:.3g} s, at least {costs['gflop']:.3g} GFLOP "
            f"({costs['gflop_per_s']:.3g} GFLOP/s), {costs['bytes'] / 2**20:.3g} MB in and out"
        )
    report.finish(metrics, args.out, "a Python that has pydensecrf: name it with --peer-python")


if __name__ == "__main__":
    # Two images at a time on two cores: a fake device for each core.
    jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))
    main(sys.argv[1:])
