"""Dense CLIP ViT-B/16 inference: images/s and peak memory, compared with PyTorch.

    python -m benchmarks.dense_vit [--batch 8] [--size 512] [--dtype float32|bfloat16]

Ours is `MaskCLIP`, jitted; the peer is the same network in plain PyTorch (torch_vit.py) with the
same weights. Without torch only our side is measured.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys

import jax
import numpy as np
from flax import nnx

from benchmarks import inputs, report, sides
from clipseg_jax.methods.maskclip.model import MaskCLIP
from clipseg_jax.models.clip import VisionTransformer, ViTConfig
from weights_convert.clip.build import flat_arrays

CLASSES = 59  # of Pascal Context


def config(dtype: str, tiny: bool) -> ViTConfig:
    """MaskCLIP's ViT."""
    return inputs.vision(dtype, tiny, activation="gelu", norm_eps=1e-6)


def count_flops(cfg: ViTConfig, batch: int, size: int) -> float:
    """FLOPs of the matrix products that the logits need; a multiply-add counts as 2."""
    n, d = (size // cfg.patch_px) ** 2, cfg.width
    t = n + 1
    blocks = (cfg.layers - 1) * (24 * t * d * d + 4 * t * t * d)
    value_path = n * (2 + 2 + 16) * d * d  # value, output, MLP: no attention in the last block
    embed = 2 * n * cfg.patch_px**2 * 3 * d
    return float(batch * (embed + blocks + value_path + 2 * n * cfg.embed_dim * (d + CLASSES)))


def images(args: argparse.Namespace) -> np.ndarray:
    """Normalised images (b, h, w, 3) float32."""
    shape = (args.batch, args.size, args.size, 3)
    return np.random.default_rng(inputs.SEED).standard_normal(shape, np.float32)


def ours(args: argparse.Namespace) -> tuple[sides.Side, MaskCLIP]:
    """Our step, which returns logits (b, hp, wp, c), and its model."""
    cfg = config(args.dtype, args.tiny)
    text = jax.numpy.asarray(
        inputs.random_embeddings(np.random.default_rng(inputs.SEED), CLASSES, cfg.embed_dim)
    )
    model = MaskCLIP(VisionTransformer(cfg, rngs=nnx.Rngs(0)), text)
    graph, state = nnx.split(model)
    forward = jax.jit(lambda state, images: nnx.merge(graph, state)(images))
    on_device = jax.device_put(images(args))
    return lambda: np.asarray(forward(state, on_device)), model


def peer(args: argparse.Namespace, model: MaskCLIP | None) -> sides.Side:
    """The peer's step, with the weights of `model` if given."""
    import torch

    from benchmarks import torch_vit

    cfg = config(args.dtype, args.tiny)
    text = torch.from_numpy(
        inputs.random_embeddings(np.random.default_rng(inputs.SEED), CLASSES, cfg.embed_dim)
    )
    net = torch_vit.DenseViT(cfg, text).eval()
    if model is not None:
        torch_vit.load(net.visual, flat_arrays(model.visual))
    net, on_device = net.to(sides.torch_device()), sides.channels_first(images(args))

    @torch.inference_mode()
    def step() -> np.ndarray:
        with sides.autocast(args.dtype):
            return net(on_device).float().cpu().numpy()

    return step


def peak_memory(side: str, argv: list[str]) -> int:
    """Peak memory in bytes of two steps of one side ("ours" or "peer") in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.dense_vit", *argv, "--memory-of", side]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"measuring the memory of {side} failed:\n{done.stderr}")
    return int(done.stdout.split()[-1])


def measure_peak(args: argparse.Namespace) -> int:
    """Peak bytes, of the GPU or else of this process, after two steps of the side `memory_of`."""
    step = ours(args)[0] if args.memory_of == "ours" else peer(args, None)
    step(), step()
    if args.memory_of == "ours":
        on_gpu = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    else:
        import torch

        on_gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else None
    unit = 1 if sys.platform == "darwin" else 1024
    return on_gpu or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def main(argv: list[str] | None = None) -> None:
    """Prints the comparison; `--out` also writes it as JSON."""
    argv = sys.argv[1:] if argv is None else argv
    parser = report.parser(__doc__, batch=8, size=512, repeats=7)
    parser.add_argument("--memory-of", choices=["ours", "peer"], help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.memory_of:
        print(measure_peak(args))
        return

    metrics = report.begin(args, f"batch {args.batch}, {args.size} px")
    # Measured first: on Linux a child's ru_maxrss starts from its parent's memory.
    memory = {name: peak_memory(name, argv) for name in ["ours"] + ["peer"] * sides.HAS_TORCH}
    step, model = ours(args)
    steps = {"ours": step}
    if sides.HAS_TORCH:
        steps["peer"] = peer(args, model)
    logits = {name: step() for name, step in steps.items()}  # compiles as well
    flops = count_flops(config(args.dtype, args.tiny), args.batch, args.size)
    rows = [
        report.row(
            name, args.batch, seconds, flops=flops, dtype=args.dtype, memory_bytes=memory[name]
        )
        for name, seconds in sides.in_turn(steps, args.repeats).items()
    ]
    differences = None
    if sides.HAS_TORCH:
        differences = {"logits": float(np.abs(logits["ours"] - logits["peer"]).max())}
    report.add(metrics, f"dense logits, {args.dtype}", rows, differences=differences)
    report.finish(metrics, args.out)


if __name__ == "__main__":
    main()
