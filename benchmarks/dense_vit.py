"""Dense CLIP ViT-B/16 inference: images/s and peak memory, next to PyTorch on the same cores.

    python -m benchmarks.dense_vit [--batch 8] [--size 512] [--dtype float32|bfloat16]

Ours is `MaskCLIP` as users run it, jitted; the peer is the same network written in the usual
PyTorch (torch_vit.py), with the same weights. Without torch only our side is measured.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

# Both sides live in one process: JAX must not take the whole GPU for itself.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import numpy as np
from flax import nnx

from clipseg_jax.models.clip import VisionTransformer
from clipseg_jax.models.clip.vit import ViTConfig
from clipseg_jax.models.maskclip import MaskCLIP

CLASSES = 59  # text rows: those of Pascal Context
# Dense peak FLOP/s of the matrix units; float32 products run as TF32 on these.
PEAK_FLOPS = {
    "H200": {"bfloat16": 989e12, "float32": 494e12},
    "H100": {"bfloat16": 989e12, "float32": 494e12},
    "A100": {"bfloat16": 312e12, "float32": 156e12},
}


class Side(NamedTuple):
    """One of the two systems, ready to run."""

    step: Callable[[], np.ndarray]  # one batch: logits (b, hp, wp, c), waits for the result
    peak_bytes: Callable[[], int]  # most memory held so far: the device's, on CPU the process's


def config(args: argparse.Namespace) -> ViTConfig:
    """ViT-B/16 (unless --width or --layers say otherwise), as MaskCLIP runs it."""
    heads = max(args.width // 64, 1)
    return ViTConfig(
        224, 16, args.width, args.layers, heads, 512, "gelu", norm_eps=1e-6, dtype=args.dtype
    )


def count_flops(cfg: ViTConfig, batch: int, size: int) -> float:
    """Floating-point operations of the matrix products that the logits need, 2 a multiply-add."""
    n, d = (size // cfg.patch_px) ** 2, cfg.width
    t = n + 1
    blocks = (cfg.layers - 1) * (24 * t * d * d + 4 * t * t * d)
    value_path = n * (2 + 2 + 16) * d * d  # value, output, MLP: no attention in the last block
    embed = 2 * n * cfg.patch_px**2 * 3 * d
    return float(batch * (embed + blocks + value_path + 2 * n * cfg.embed_dim * (d + CLASSES)))


def inputs(args: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """Normalised images (b, h, w, 3) and unit text rows (c, 512), float32, from fixed seeds."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((args.batch, args.size, args.size, 3), np.float32)
    text = rng.standard_normal((CLASSES, 512), np.float32)
    return images, text / np.linalg.norm(text, axis=-1, keepdims=True)


def ours(args: argparse.Namespace) -> tuple[Side, MaskCLIP]:
    """The public model, jitted."""
    images, text = inputs(args)
    model = MaskCLIP(VisionTransformer(config(args), rngs=nnx.Rngs(0)), jax.numpy.asarray(text))
    graph, state = nnx.split(model)
    forward = jax.jit(lambda state, images: nnx.merge(graph, state)(images))
    on_device = jax.device_put(images)

    def peak_bytes() -> int:
        stats = jax.devices()[0].memory_stats() or {}
        return stats.get("peak_bytes_in_use") or _process_bytes()

    return Side(lambda: np.asarray(forward(state, on_device)), peak_bytes), model


def peer(args: argparse.Namespace, model: MaskCLIP | None) -> Side:
    """The PyTorch network, with our weights where a model is given."""
    import torch

    from benchmarks import torch_vit

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    device = "cuda" if torch.cuda.is_available() and jax.default_backend() == "gpu" else "cpu"
    images, text = inputs(args)
    net = torch_vit.DenseViT(config(args), torch.from_numpy(text)).eval()
    if model is not None:
        assert isinstance(model.visual, VisionTransformer)
        net.load_state_dict(torch_vit.state_dict(model.visual))
    net = net.to(device)
    # As JAX on GPUs: float32 products may run as TF32.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    on_device = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().to(device)
    half = args.dtype == "bfloat16"

    @torch.inference_mode()
    def step() -> np.ndarray:
        with torch.autocast(device, torch.bfloat16, enabled=half):
            return net(on_device).float().cpu().numpy()

    def peak_bytes() -> int:
        return torch.cuda.max_memory_allocated() if device == "cuda" else _process_bytes()

    return Side(step, peak_bytes)


def _process_bytes() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def peak_memory(side: str, argv: list[str]) -> int:
    """Peak memory in bytes of two steps of one side ("ours" or "peer") in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.dense_vit", *argv, "--memory-of", side]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"measuring the memory of {side} failed:\n{done.stderr}")
    return int(done.stdout.split()[-1])


def measure(args: argparse.Namespace, argv: list[str]) -> dict:
    """Runs both sides in turn; the figures, ready for JSON."""
    names = ["ours"] + ["peer"] * (importlib.util.find_spec("torch") is not None)
    # First of all: on Linux a child's ru_maxrss starts from what its parent held.
    memory = {name: peak_memory(name, argv) for name in names}
    sides, model = {}, None
    sides["ours"], model = ours(args)
    if "peer" in names:
        sides["peer"] = peer(args, model)
    outputs = {name: side.step() for name, side in sides.items()}  # compiles, too
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(args.repeats):
        for name, side in sides.items():
            start = time.perf_counter()
            side.step()
            times[name].append(time.perf_counter() - start)

    flops = count_flops(config(args), args.batch, args.size)
    device = jax.devices()[0].device_kind
    peaks = [p[args.dtype] for name, p in PEAK_FLOPS.items() if name in device]
    figures: dict = {
        "device": platform.processor() or "cpu" if device == "cpu" else device,
        "cores": len(os.sched_getaffinity(0)),
        "settings": vars(args) | {"out": None},
        "gflop_per_batch": flops / 1e9,
    }
    for name in names:
        seconds = statistics.median(times[name])
        figures[name] = {
            "images_per_s": args.batch / seconds,
            "gflop_per_s": flops / seconds / 1e9,
            "share_of_peak": flops / seconds / peaks[0] if peaks else None,
            "peak_memory_mb": memory[name] / 2**20,
            "seconds": times[name],
        }
    if "peer" in names:
        figures["ratio"] = figures["ours"]["images_per_s"] / figures["peer"]["images_per_s"]
        figures["max_difference"] = float(np.abs(outputs["ours"] - outputs["peer"]).max())
    return figures


def main(argv: list[str] | None = None) -> None:
    """Prints the comparison; `--out` also writes it as JSON."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=512, help="image side, a multiple of 16")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--repeats", type=int, default=7, help="timed steps of each side")
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    parser.add_argument("--memory-of", choices=["ours", "peer"], help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.memory_of:
        side = ours(args)[0] if args.memory_of == "ours" else peer(args, None)
        side.step(), side.step()
        print(side.peak_bytes())
        return

    figures = measure(args, argv)
    print(f"{figures['device']}, {figures['cores']} cores, batch {args.batch}, {args.size} px")
    for name in ("ours", "peer"):
        if name not in figures:
            print("peer: not measured; PyTorch comes with `pip install clipseg_jax[torch]`")
            continue
        of = figures[name]
        share = "" if of["share_of_peak"] is None else f", {of['share_of_peak']:.1%} of peak"
        print(
            f"{name}: {of['images_per_s']:.3g} images/s, {of['gflop_per_s']:.0f} GFLOP/s{share}, "
            f"peak memory {of['peak_memory_mb']:.0f} MB"
        )
    if "ratio" in figures:
        print(
            f"ratio ours/peer: {figures['ratio']:.3f} (logits differ by at most "
            f"{figures['max_difference']:.1e})"
        )
    if args.out:
        args.out.write_text(json.dumps(figures, indent=1, default=str) + "\n")


if __name__ == "__main__":
    main()
