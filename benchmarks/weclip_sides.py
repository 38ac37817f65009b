"""The two systems that `weclip_step` measures: WeCLIP's training step, ours and the peer's."""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.reclip_sides import Ours
from clipseg_jax.core.modules import initialised
from clipseg_jax.core.optim import OptimConfig
from clipseg_jax.models.clip import VisionTransformer, ViTConfig
from clipseg_jax.models.clip_es import Encoding
from clipseg_jax.models.weclip import VOC, Features, WeCLIP
from clipseg_jax.models.weclip_head import WECLIP, affinity
from clipseg_jax.ops.cam import activation_maps
from clipseg_jax.ops.image import inside, normalise
from clipseg_jax.tasks import weclip
from weights_convert.build import flat_arrays

COUNTS = (1, 2, 3, 2)  # classes of the images, in turn: eight pairs in a published batch
CLASSES, BACKGROUND = 20, 25
SEED = 0
OPTIM = OptimConfig(
    name="adamw", rate=2e-4, schedule="constant", weight_decay=0.01, groups=weclip.GROUPS
)
# Largest relative differences: a pixel between two classes may fall on either side.
TOLERANCE = {"loss": 1e-3, "gradient_norm": 1e-2}
Step = Callable[[], Any]


@dataclasses.dataclass(frozen=True)
class Work:
    """What both sides are given."""

    model: WeCLIP
    batch: dict[str, np.ndarray]
    ids: tuple[tuple[int, ...], ...]
    late: bool

    @property
    def task_config(self) -> weclip.TaskConfig:
        """The phase that is measured, from the first step on."""
        return weclip.TaskConfig(late_step=0 if self.late else 2**30)


def work(args: argparse.Namespace) -> Work:
    """Random weights, images and classes, from fixed seeds.

    Queries and keys are enlarged: attention of plain random weights is flat. What the head fuses is
    made small: else its affinity is 1 everywhere.

    Raises:
      ValueError: crops that aren't whole patches.
    """
    if args.crop % 16:
        raise ValueError(f"crops of {args.crop} pixels: choose a multiple of 16")
    cfg = ViTConfig(
        224, 16, args.width, args.layers, max(args.width // 64, 1), 512, dtype=args.dtype,
        position_resize="bilinear", pad_to_patch=False,
    )  # fmt: skip
    visual = initialised(lambda rngs: VisionTransformer(cfg, rngs=rngs))
    for block in visual.transformer.resblocks:
        kernel = block.attn.in_proj.kernel
        kernel[...] = kernel[...] * jnp.where(jnp.arange(3 * args.width) < 2 * args.width, 3.0, 1.0)
    rng = np.random.default_rng(SEED)
    rows = rng.standard_normal((CLASSES + BACKGROUND, 512), np.float32)
    head = dataclasses.replace(WECLIP, dropout=0.0)
    model = weclip.initial(visual, rows[:CLASSES], rows[CLASSES:], VOC, head, seed=SEED)
    fuse = model.head.fusion.fuse.kernel
    fuse[...] = fuse[...] * 0.1
    coarse = rng.integers(0, 256, (args.batch, args.crop // 16, args.crop // 16, 3))
    images = np.kron(coarse, np.ones((1, 16, 16, 1), int))
    images = np.clip(images + rng.integers(-20, 20, images.shape), 0, 255).astype(np.uint8)
    counts = [args.classes or COUNTS[i % len(COUNTS)] for i in range(args.batch)]
    ids = tuple(tuple(sorted(int(c) for c in rng.permutation(CLASSES)[:m])) for m in counts)
    tags = np.zeros((args.batch, CLASSES), bool)
    for row, own in zip(tags, ids, strict=True):
        row[list(own)] = True
    batch = {"image": images, "tags": tags, "index": np.arange(args.batch, dtype=np.int32)}
    return Work(model, batch, ids, not args.early)


class Peer:
    """The published step in PyTorch, which only making one imports."""

    def __init__(self, given: Work, dtype: str):
        import torch

        from benchmarks import torch_vit, torch_weclip

        self.torch, self.given, self.half = torch, given, dtype == "bfloat16"
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        on_gpu = torch.cuda.is_available() and jax.default_backend() == "gpu"
        self.device = "cuda" if on_gpu else "cpu"
        # As JAX on GPUs: float32 products may run as TF32.
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        clip = given.model.clip
        rows = [torch.from_numpy(np.array(r[...])) for r in (clip.class_rows, clip.background_rows)]
        method = torch_weclip.Method(CLASSES + 1)
        self.net: Any = torch_weclip.PublishedWeCLIP(clip.visual.cfg, method, *rows)
        head = {name: torch.from_numpy(x) for name, x in head_state(given.model).items()}
        self.net.load_state_dict(torch_vit.state_dict(clip.visual) | head)
        self.net.dropout.p = 0.0
        self.net = self.net.to(self.device).train()
        self.optimizer = torch_weclip.optimizer(self.net)
        cfg = given.task_config
        # Their loader normalises; ours leaves that to the step.
        pixels = normalise(jnp.asarray(given.batch["image"]), cfg.mean, cfg.std)
        channels_first = np.ascontiguousarray(np.moveaxis(np.asarray(pixels), -1, 1))
        self.images = torch.from_numpy(channels_first).to(self.device)

    def __call__(self) -> dict[str, float]:
        """One step; waits for its loss and gradient norm."""
        self.net.seconds.clear()
        with self.torch.autocast(self.device, self.torch.bfloat16, enabled=self.half):
            loss = self.net.loss(self.images, self.given.ids, self.given.late)
        self.optimizer.zero_grad()
        with self.net.timed("gradient, update"):
            loss.backward()
            norm = self.torch.stack([p.grad.norm() for p in self.net.trained()]).norm()
            self.optimizer.step()
        return {"loss": loss.item(), "gradient_norm": norm.item()}


def head_state(model: WeCLIP) -> dict[str, np.ndarray]:
    """Our head under the peer's names and in its layouts."""
    out = {}
    for path, leaf in flat_arrays(model.head).items():
        name = path.replace("fusion.", "").replace("decoder.classifier", "classifier")
        name = name.replace("decoder.transformer.resblocks", "decoder")
        name = name.replace(".attn.", ".").replace(".mlp.", ".")
        value = np.array(leaf)
        if name.endswith(".kernel"):
            value = value.T
            if name in ("fuse.kernel", "classifier.kernel"):  # 1 x 1 convolutions
                value = value[..., None, None]
        name = name.replace(".kernel", ".weight").replace(".scale", ".weight")
        out[name] = np.ascontiguousarray(value)
    return out


def parts(given: Work) -> dict[str, Step]:
    """Pieces of our step, each as a program of its own, on what the piece before has made."""
    graph, state = nnx.split(given.model)
    cfg, late = given.task_config, given.late
    images = normalise(jnp.asarray(given.batch["image"]), cfg.mean, cfg.std)
    b, h, w, _ = images.shape
    sizes = jnp.broadcast_to(jnp.asarray([h, w]), (b, 2))
    tags = given.batch["tags"]
    classes = jnp.asarray(np.argsort(~tags, axis=1, kind="stable").astype(np.int32))
    real = jnp.asarray(np.sort(~tags, axis=1, kind="stable") == 0)
    shape = given.model.clip.visual.grid_shape(h, w)

    def piece(run: Callable[..., Any]) -> Callable[..., Any]:
        return jax.jit(lambda state, *rest: run(nnx.merge(graph, state), *rest))

    # The grid's shape is no array; the rest goes from program to program.
    def encode(model: WeCLIP) -> Any:
        features = model.encode(images, sizes)._asdict()
        return {name: x for name, x in features.items() if name != "shape"}

    def decode(model: WeCLIP, rest: Any) -> Any:
        return model.decode(Features(**rest, shape=shape))

    def cam(model: WeCLIP, rest: Any) -> Any:
        features = Features(**rest, shape=shape)
        encoding = Encoding(features.tokens, jnp.zeros(()), features.bias, features.grids)
        found = model.clip.activate(encoding, classes, real, shape)
        return activation_maps(found.raw, inside(features.grids, shape)), found.affinity

    def refinement(model: WeCLIP, rest: Any, fused: Any, cams: Any, last: Any) -> Any:
        features = Features(**rest, shape=shape)
        spreading = model.combine((*features.maps, last), affinity(fused), late)
        return model.clip.propagate(cams, spreading, features.grids).refined

    def par(model: WeCLIP, rest: Any, refined: Any) -> Any:
        return model.refine(images, refined, Features(**rest, shape=shape).grids, classes, real)

    run = {f.__name__: piece(f) for f in (encode, decode, cam, refinement, par)}
    features = run["encode"](state)
    decoded = run["decode"](state, features)
    cams = run["cam"](state, features)
    refined = run["refinement"](state, features, decoded.fused, *cams)
    inputs: dict[str, tuple] = {
        "encode": (), "decode": (features,), "cam": (features,),
        "refinement": (features, decoded.fused, *cams), "par": (features, refined),
    }  # fmt: skip

    def step(name: str) -> Step:
        return lambda: jax.block_until_ready(run[name](state, *inputs[name]))

    return {name: step(name) for name in inputs}


def flops(given: Work) -> dict[str, float]:
    """Of our step's products by formula, and of PAR's sums."""
    cfg, head = given.model.clip.visual.cfg, given.model.head.cfg
    b, h, w, _ = given.batch["image"].shape
    n, d, reads = (h // cfg.patch_px) * (w // cfg.patch_px), cfg.width, cfg.layers - 1
    most = max(map(len, given.ids))

    def block(tokens: int, width: int, *, attention: int = 4) -> float:
        return 24 * tokens * width**2 + attention * tokens**2 * width

    adapters = reads * 2 * n * (d * head.width + head.width**2) + 2 * n * reads * head.width**2
    decoder = head.layers * block(n, head.width) + 2 * n * head.width * (CLASSES + 1)
    masks = np.ceil((most + 1) / 4) * 4  # taken four at a time
    neighbours = len(given.model.cfg.par.offsets)
    return {
        "encoder": b * (reads * block(n + 1, d) + 2 * n * 3 * cfg.patch_px**2 * d),
        # Forward once, then back to the norm's output for each class of the image that has most.
        "cam": b * (block(n + 1, d) + most * block(n + 1, d, attention=8)),
        # Forward, and back to weights and inputs.
        "head": b * 3 * (adapters + decoder + 2 * n**2 * head.width),
        "par": b * given.model.cfg.par.iterations * 2 * neighbours * masks * h * w,
    }


def agreement(ours: Ours, peer: Peer) -> dict[str, float]:
    """Relative differences of the first loss and gradient norm; both sides must be new.

    Raises:
      ValueError: they are too large.
    """
    theirs, own = peer(), ours()
    found = {name: abs(own[name] / theirs[name] - 1) for name in TOLERANCE}
    if any(found[name] > most for name, most in TOLERANCE.items()):
        raise ValueError(f"the two sides differ by {found}, relative; allowed are {TOLERANCE}")
    return found
