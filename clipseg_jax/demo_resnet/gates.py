"""Evaluates the tiny ResNet on held-out pictures, compared with an untrained one.

    python -m clipseg_jax.demo_resnet.gates [--weights FILE]

What its patches tell is read by a linear classifier, fitted by ridge regression to the labels of
other pictures.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from clipseg_jax.core.modules import initialised
from clipseg_jax.demo import TINY_RESNET, world
from clipseg_jax.demo_resnet.training import BACKBONE
from clipseg_jax.models.resnet import DilatedResNet
from clipseg_jax.ops.image import IMAGENET_MEAN, IMAGENET_STD, normalize
from weights_convert import load_imagenet

_SIDE_PX, _STRIDE = 96, 8
_BATCH = 20
_RIDGE = 1.0  # added to the features' second moments, which are those of whitened features


def object_patches(backbone: DilatedResNet, count: int) -> float:
    """The share of objects' patches of `count` pictures whose kind a linear classifier names.

    It is fitted to as many pictures of the split "train"; the others are of "evaluation".
    """
    fitted, kinds = _patches(backbone, "train", count)
    held_out, expected = _patches(backbone, "evaluation", count)
    mean, std = fitted.mean(0), fitted.std(0) + 1e-6
    x, y = ((np.c_[(each - mean) / std, np.ones(len(each))]) for each in (fitted, held_out))
    moments = x.T @ x + _RIDGE * np.eye(x.shape[1])
    weights = np.linalg.solve(moments, x.T @ np.eye(len(world.CLASSES))[kinds])
    return float(np.mean((y @ weights).argmax(1) == expected))


def _patches(backbone: DilatedResNet, split: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Features (n, d) of the patches in the middle of which an object is, and its kind (n,)."""
    run = jax.jit(lambda net, images: net(images, train=False)[-1])
    features, kinds = [], []
    for start in range(0, count, _BATCH):
        batch = [world.make(split, i, _SIDE_PX) for i in range(start, min(start + _BATCH, count))]
        images = normalize(jnp.asarray([p.image for p in batch]), IMAGENET_MEAN, IMAGENET_STD)
        middle = slice(_STRIDE // 2, None, _STRIDE)
        labels = np.stack([p.label[middle, middle] for p in batch])
        shown = (labels > 0) & (labels < world.BOUNDARY)
        features.append(np.asarray(run(backbone, images))[shown].astype(np.float64))
        kinds.append(labels[shown].astype(int) - 1)
    return np.concatenate(features), np.concatenate(kinds)


def untrained() -> DilatedResNet:
    """The control."""
    return initialised(lambda rngs: DilatedResNet(BACKBONE, rngs=rngs))


def trained(path: Path = TINY_RESNET) -> DilatedResNet:
    """The stored backbone."""
    backbone = untrained()
    load_imagenet(path, backbone, statistics=True)
    return backbone


def main() -> None:
    """Prints the share of patches that are recognised, trained and untrained."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, default=TINY_RESNET)
    parser.add_argument("--pictures", type=int, default=240)
    args = parser.parse_args()
    for name, backbone in (("trained", trained(args.weights)), ("untrained", untrained())):
        print(f"objects' patches, {name}: {object_patches(backbone, args.pictures):.3f}")


if __name__ == "__main__":
    main()
