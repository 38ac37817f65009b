"""The two sides of `weclip_step`: WeCLIP's training step, ours and the peer's."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks import inputs
from benchmarks.sides import Side, TorchStep, channels_first, torch_device
from clipseg_jax.core.optim import OptimConfig
from clipseg_jax.methods.clip_es.model import Encoding
from clipseg_jax.methods.weclip import task as weclip
from clipseg_jax.methods.weclip.head import HeadConfig, affinity
from clipseg_jax.methods.weclip.model import Features, WeCLIP
from clipseg_jax.ops.cam import activation_maps
from clipseg_jax.ops.image import normalize, valid_mask
from weights_convert.clip.build import flat_arrays

COUNTS = (1, 2, 3, 2)  # numbers of classes of successive images; 8 pairs in a published batch
CLASSES, BACKGROUND = 20, 25
OPTIM = OptimConfig(
    name="adamw", learning_rate=2e-4, schedule="constant", weight_decay=0.01, groups=weclip.GROUPS
)


@dataclasses.dataclass(frozen=True)
class Work:
    """Inputs of both sides."""

    model: WeCLIP
    batch: dict[str, np.ndarray]
    ids: tuple[tuple[int, ...], ...]
    late: bool

    @property
    def task_config(self) -> weclip.TaskConfig:
        """The phase that is measured, from the first step on."""
        return weclip.TaskConfig(late_step=0 if self.late else 2**30)


def make_work(args: argparse.Namespace) -> Work:
    """Random weights, images and classes, from fixed seeds.

    The fusion layer is scaled down: otherwise the head's affinity is 1 everywhere.

    Raises:
      ValueError: a crop that is not a multiple of the patch size.
    """
    inputs.whole_patches(args.size)
    cfg = inputs.vision(args.dtype, args.tiny, position_resize="bilinear", pad_to_patch=False)
    visual = inputs.sharp_tower(cfg)
    rng = np.random.default_rng(inputs.SEED)
    rows = inputs.random_embeddings(rng, CLASSES + BACKGROUND, cfg.embed_dim)
    head = HeadConfig(dropout=0.0)
    model = weclip.init_weclip(visual, rows[:CLASSES], rows[CLASSES:], head=head, seed=inputs.SEED)
    fuse = model.head.fusion.fuse.kernel
    fuse[...] = fuse[...] * 0.1
    images = inputs.photos(rng, args.batch, args.size, args.size)
    counts = [args.classes_per_image or COUNTS[i % len(COUNTS)] for i in range(args.batch)]
    ids = inputs.shown_classes(rng, counts, CLASSES)
    tags = np.zeros((args.batch, CLASSES), bool)
    for row, classes in zip(tags, ids, strict=True):
        row[list(classes)] = True
    batch = {"image": images, "tags": tags, "index": np.arange(args.batch, dtype=np.int32)}
    return Work(model, batch, ids, not args.early)


def make_peer(work: Work) -> tuple[TorchStep, Any]:
    """The published step in PyTorch, and its network."""
    import torch

    from benchmarks import torch_vit, torch_weclip

    clip, cfg = work.model.clip, work.task_config
    rows = [
        torch.from_numpy(np.array(r[...]))
        for r in (clip.class_embeddings, clip.background_embeddings)
    ]
    method = torch_weclip.Method(CLASSES + 1)
    net = torch_weclip.PublishedWeCLIP(clip.visual.cfg, method, *rows)
    tower = {f"visual.{path}": leaf for path, leaf in flat_arrays(clip.visual).items()}
    torch_vit.load(net, tower | head_arrays(work.model))
    net.dropout.p = 0.0
    net = net.to(torch_device()).train()
    # The published loader normalises images; our step does so itself.
    images = channels_first(normalize(jnp.asarray(work.batch["image"]), cfg.mean, cfg.std))
    loss = partial(net.loss, images, work.ids, work.late)
    return TorchStep(loss, torch_weclip.optimizer(net), clip.visual.cfg.dtype), net


def head_arrays(model: WeCLIP) -> dict[str, np.ndarray]:
    """Our head's arrays under the peer's names."""
    return {
        path.removeprefix("fusion.")
        .replace("decoder.classifier", "classifier")
        .replace("decoder.transformer.resblocks", "decoder"): leaf
        for path, leaf in flat_arrays(model.head).items()
    }


def parts(work: Work) -> dict[str, Side]:
    """Parts of our step, each compiled separately, on the output of the part before it."""
    graph, state = nnx.split(work.model)
    cfg, late = work.task_config, work.late
    images = normalize(jnp.asarray(work.batch["image"]), cfg.mean, cfg.std)
    b, h, w, _ = images.shape
    sizes = jnp.broadcast_to(jnp.asarray([h, w]), (b, 2))
    tags = work.batch["tags"]
    classes = jnp.asarray(np.argsort(~tags, axis=1, kind="stable").astype(np.int32))
    real = jnp.asarray(np.sort(~tags, axis=1, kind="stable") == 0)
    shape = work.model.clip.visual.grid_shape(h, w)

    def compile_part(run: Callable[..., Any]) -> Callable[..., Any]:
        return jax.jit(lambda state, *rest: run(nnx.merge(graph, state), *rest))

    # The grid's shape is static, so only the arrays are passed between programs.
    def encode(model: WeCLIP) -> Any:
        features = model.encode(images, sizes)._asdict()
        return {name: x for name, x in features.items() if name != "shape"}

    def decode(model: WeCLIP, rest: Any) -> Any:
        return model.decode(Features(**rest, shape=shape))

    def cam(model: WeCLIP, rest: Any) -> Any:
        features = Features(**rest, shape=shape)
        encoding = Encoding(features.tokens, jnp.zeros(()), features.bias, features.grids)
        activations = model.clip.activate(encoding, classes, real, shape)
        valid = valid_mask(features.grids, shape)
        return activation_maps(activations.raw, valid), activations.affinity

    def refinement(model: WeCLIP, rest: Any, fused: Any, cams: Any, last: Any) -> Any:
        features = Features(**rest, shape=shape)
        combined = model.combine((*features.maps, last), affinity(fused), late)
        return model.clip.propagate(cams, combined, features.grids).refined

    def par(model: WeCLIP, rest: Any, refined: Any) -> Any:
        return model.refine(images, refined, Features(**rest, shape=shape).grids, classes, real)

    run = {f.__name__: compile_part(f) for f in (encode, decode, cam, refinement, par)}
    features = run["encode"](state)
    decoded = run["decode"](state, features)
    cams = run["cam"](state, features)
    refined = run["refinement"](state, features, decoded.fused, *cams)
    inputs: dict[str, tuple] = {
        "encode": (), "decode": (features,), "cam": (features,),
        "refinement": (features, decoded.fused, *cams), "par": (features, refined),
    }  # fmt: skip

    def step(name: str) -> Side:
        return lambda: jax.block_until_ready(run[name](state, *inputs[name]))

    return {name: step(name) for name in inputs}


def flops(work: Work) -> dict[str, float]:
    """FLOPs of our step's matrix products by formula, and of PAR's sums."""
    cfg, head = work.model.clip.visual.cfg, work.model.head.cfg
    b, h, w, _ = work.batch["image"].shape
    n, d, reads = (h // cfg.patch_px) * (w // cfg.patch_px), cfg.width, cfg.layers - 1
    most = max(map(len, work.ids))

    def block(tokens: int, width: int, *, attention: int = 4) -> float:
        return 24 * tokens * width**2 + attention * tokens**2 * width

    adapters = reads * 2 * n * (d * head.width + head.width**2) + 2 * n * reads * head.width**2
    decoder = head.layers * block(n, head.width) + 2 * n * head.width * (CLASSES + 1)
    masks = np.ceil((most + 1) / 4) * 4  # processed four at a time
    neighbours = len(work.model.cfg.par.offsets)
    return {
        "encoder": b * (reads * block(n + 1, d) + 2 * n * 3 * cfg.patch_px**2 * d),
        # Forward once; backward to the norm's output for each class of the image that has most.
        "cam": b * (block(n + 1, d) + most * block(n + 1, d, attention=8)),
        # Forward, and backward to weights and inputs.
        "head": b * 3 * (adapters + decoder + 2 * n**2 * head.width),
        "par": b * work.model.cfg.par.iterations * 2 * neighbours * masks * h * w,
    }
