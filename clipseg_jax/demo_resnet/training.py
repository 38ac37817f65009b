"""Trains the demo's backbone on painted pictures and their image labels, as on ImageNet.

    python -m clipseg_jax.demo_resnet.training --out workdir/tiny_resnet

A classifier of which kinds of objects a picture shows, on class scores of patches pooled by a soft
maximum: with ImageNet's mean the scenery of a picture would count as much as its objects. No label
of a pixel is used. An interrupted run resumes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array

from clipseg_jax.core.mesh import make_mesh
from clipseg_jax.core.modules import initialised
from clipseg_jax.core.optim import OptimConfig
from clipseg_jax.demo import world
from clipseg_jax.demo_resnet import pictures
from clipseg_jax.models.resnet import DilatedResNet, DilatedResNetConfig
from clipseg_jax.ops.image import IMAGENET_MEAN, IMAGENET_STD, normalize
from clipseg_jax.task import Metrics, Task
from clipseg_jax.train import TrainConfig, train
from weights_convert.trained.imagenet import export_imagenet

BACKBONE = DilatedResNetConfig(blocks=(1, 1, 1, 1), width=16)
_SHARPNESS = 4.0  # of the soft maximum
_ZOOM = (0.6, 1.7)  # of a view; students see objects at other sizes than the pictures show


class Classifier(nnx.Module):
    """A backbone and class scores of its patches."""

    def __init__(self, classes: int, *, rngs: nnx.Rngs):
        self.backbone = DilatedResNet(BACKBONE, rngs=rngs)
        self.classes = nnx.Linear(BACKBONE.channels, classes, rngs=rngs)

    def __call__(self, images: Array, *, train: bool) -> Array:
        """Normalised images (b, h, w, 3) -> scores (b, ceil(h / 8), ceil(w / 8), classes)."""
        return self.classes(self.backbone(images, train=train)[-1])


def soft_maximum(scores: Array) -> Array:
    """Scores (b, h, w, c) of patches -> of images (b, c)."""
    count = scores.shape[1] * scores.shape[2]
    pooled = jax.nn.logsumexp(_SHARPNESS * scores, axis=(1, 2)) - jnp.log(count)
    return pooled / _SHARPNESS


def view(image: Array, key: Array) -> Array:
    """A random view of a picture (s, s, 3) uint8: zoomed, moved, mirrored, brighter or darker."""
    side = image.shape[0]
    keys = jax.random.split(key, 4)
    low, high = _ZOOM
    zoom = low * (high / low) ** jax.random.uniform(keys[0])
    # Where the view is larger than the picture it is anywhere inside, and the reverse.
    corner = jax.random.uniform(keys[1], (2,)) * (side - zoom * side)
    pixels = image.astype(jnp.float32)
    mirrored = jnp.where(jax.random.bernoulli(keys[2]), pixels[:, ::-1], pixels)
    light = jax.random.uniform(keys[3], (2,), minval=-1.0)
    lit = (mirrored - 128) * (1 + 0.2 * light[0]) + 128 + 20 * light[1]
    moved = jax.image.scale_and_translate(
        lit, image.shape, (0, 1), jnp.full(2, zoom), corner, method="linear"
    )
    return normalize(jnp.clip(moved, 0, 255), IMAGENET_MEAN, IMAGENET_STD)


def loss(
    model: Classifier, batch: dict[str, Array], key: Array, step: Array
) -> tuple[Array, Metrics]:
    """Binary cross entropies of all classes, summed."""
    del step
    views = jax.vmap(view)(batch["image"], jax.random.split(key, len(batch["image"])))
    scores = soft_maximum(model(views, train=True))
    present = batch["present"]
    entropies = optax.sigmoid_binary_cross_entropy(scores, present.astype(jnp.float32))
    return jnp.mean(jnp.sum(entropies, axis=-1)), {"right": jnp.mean((scores > 0) == present)}


def build(seed: int) -> Task:
    """The classifier as a task of the training loop."""
    return Task(
        model=initialised(lambda rngs: Classifier(len(world.CLASSES), rngs=rngs), seed),
        predict=lambda model, images, sizes: model(images, train=False),
        grid_size=lambda sizes: -(-sizes // 8),
        trainable=lambda path: True,
        loss=loss,
    )


def main() -> None:
    """Paints the pictures, trains, and writes the backbone as open-mmlab writes ImageNet's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for all that is written")
    parser.add_argument("--pictures", type=int, default=20_000)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    data = pictures.load(args.out / f"pictures_{args.pictures}.npz", args.pictures)
    trained = train(
        build(args.seed),
        lambda start: pictures.batches(data, args.batch_size, args.seed, start),
        OptimConfig(
            "adamw",
            args.learning_rate,
            "cosine",
            warmup_steps=args.steps // 20,
            weight_decay=0.02,
        ),
        TrainConfig(args.steps, args.seed, checkpoint_every_steps=200),
        mesh=make_mesh(1),
        workdir=args.out,
        name="train",
    )
    assert isinstance(trained.model, Classifier)
    export_imagenet(trained.model.backbone, args.out / "tiny_resnet.pth", dtype=np.float16)


if __name__ == "__main__":
    main()
