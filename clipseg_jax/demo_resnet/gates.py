"""Evaluates the tiny ResNet on held-out pictures, compared with an untrained one.

    python -m clipseg_jax.demo_resnet.gates [--weights FILE]

What its patches tell is read by a linear classifier, fitted by ridge regression to the labels of
other pictures.
"""

from __future__ import annotations

import argparse
import functools
from pathlib import Path

import jax
import numpy as np

from clipseg_jax.core.modules import initialised
from clipseg_jax.demo import TINY_RESNET, world
from clipseg_jax.demo_resnet.pictures import SIDE_PX
from clipseg_jax.demo_resnet.training import BACKBONE
from clipseg_jax.models.resnet import DilatedResNet
from clipseg_jax.ops.image import IMAGENET_MEAN, IMAGENET_STD, normalize
from weights_convert import load_imagenet

_STRIDE = 8
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
    images, labels = _painted(split, count)
    starts = range(0, count, _BATCH)
    features = np.concatenate([_run(backbone, images[i : i + _BATCH]) for i in starts])
    shown = (labels > 0) & (labels < world.BOUNDARY)
    return features[shown].astype(np.float64), labels[shown].astype(int) - 1


@functools.cache
def _painted(split: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures (n, s, s, 3) and the labels (n, s / 8, s / 8) in the middle of their patches.

    Painting takes longer than the backbones that look at them, which are several.
    """
    pictures = [*world.pictures(split, count, SIDE_PX)]
    middle = slice(_STRIDE // 2, None, _STRIDE)
    labels = [picture.label[middle, middle] for picture in pictures]
    return np.stack([picture.image for picture in pictures]), np.stack(labels)


@jax.jit
def _run(backbone: DilatedResNet, images: jax.Array) -> jax.Array:
    """Pictures (b, s, s, 3) uint8 -> features (b, s / 8, s / 8, d)."""
    return backbone(normalize(images, IMAGENET_MEAN, IMAGENET_STD), train=False)[-1]


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
