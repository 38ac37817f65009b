"""Cost of ReCLIP++'s two training steps by formula: FLOPs and bytes of the largest arrays.

For our implementation and the published one. Only matrix products count, 2 FLOPs per multiply-add;
the backward pass of a product counts once for each factor that has a gradient.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from clipseg_jax.models.clip import TextConfig, ViTConfig
from clipseg_jax.models.resnet import DilatedResNetConfig

NAME_TOKENS = 3
FLOAT = 4  # bytes


@dataclasses.dataclass(frozen=True)
class Work:
    """Sizes of one training step."""

    vision: ViTConfig
    text: TextConfig
    student: DilatedResNetConfig
    classes: int
    tags: int  # classes of an image's hypothesis
    batch: int
    crop: int  # pixels

    @property
    def patches(self) -> int:
        """Positions of the ViT's grid."""
        return (self.crop // self.vision.patch_px) ** 2

    @property
    def positions(self) -> int:
        """Positions of the student's grid."""
        return (-(-self.crop // 8)) ** 2


Pair = tuple[float, float]  # ours, published


def text_tokens(work: Work) -> tuple[int, int]:
    """Tokens through the text tower per step: with a shared prefix, and with one per class."""
    prefix = work.text.context_length - NAME_TOKENS
    return prefix + NAME_TOKENS * work.classes, work.text.context_length * work.classes


def rectification_flops(work: Work) -> dict[str, Pair]:
    """FLOPs of each part of a rectification step."""
    ours, peer = work.batch * _tower(work, False), work.batch * _tower(work, True)
    n, e, c = work.batch * work.patches, work.vision.embed_dim, work.classes
    query = 2 * n * e * c
    positions = 2 * work.patches * e * (2 * work.vision.width + 3 * c)  # one map for all images
    decoder = 3 * 2 * n * 25 * (e + c) * c
    shared = float(query + positions + decoder)
    # Mask pooling, forward and backward: of all classes at once, or of each tagged class.
    return {
        "image tower": (ours, peer),
        "reference prompt": _prompt(work),
        "head": (shared, shared),
        "pooling": (2 * query, 2 * 2.0 * n * e * work.tags),
    }


def distillation_flops(work: Work) -> dict[str, Pair]:
    """FLOPs of each part of a distillation step; resizing counts where it is a product."""
    b, e, c = work.batch, work.vision.embed_dim, work.classes
    head = 2 * 25 * (e + c) * c
    teacher = b * work.patches * (2 * e * c + head)
    teacher += 2 * work.patches * e * (work.vision.width + c)
    student = 3 * b * sum(flops for flops, _ in _convolutions(work))
    first = 2 * 27 * (work.student.width // 2) * b * (-(-work.crop // 2)) ** 2
    student -= first  # images need no gradient
    logits = b * work.positions * 2 * (2 * e * c + head)
    pixels, grid, side = work.crop**2, -(-work.crop // 8), work.crop // work.vision.patch_px

    def resized(side: int, channels: int) -> float:
        return 2.0 * b * channels * (work.crop * side * side + pixels * side)

    upsampled = resized(side, c) + 3 * resized(
        grid, c
    )  # labels; loss, recomputed in the backward pass
    l1 = resized(side, e) + resized(grid, e)
    pooled = resized(grid, c) + 2 * b * work.positions * e * c
    shared = float(teacher + logits)
    return {
        "image tower": (b * _tower(work, False), b * _tower(work, True)),
        "student": (float(student), float(student)),
        "heads": (shared, shared),
        "resizing, pooling": (upsampled + l1 + pooled, 0.0),
    }


def rectification_bytes(work: Work, scores_at_once: int | None) -> dict[str, Pair]:
    """Bytes of the largest float32 arrays of a rectification step.

    `scores_at_once`: attention scores that ours computes at a time; None: all.
    """
    cfg = work.text
    ours, peer = text_tokens(work)
    # Saved by each block for the backward pass: its input, queries, keys, values, attention output,
    # the sum after attention, and the MLP's two arrays of 4 w. Attention weights: a tenth of that.
    kept = cfg.layers * 14 * cfg.width * FLOAT
    return {
        "text activations kept": (float(ours * kept), float(peer * kept)),
        "image attention maps": _maps(work, scores_at_once),
    }


def distillation_bytes(work: Work, scores_at_once: int | None, block: int) -> dict[str, Pair]:
    """Bytes of the largest float32 arrays of a distillation step.

    `block`: numbers of all maps together that ours upsamples at a time.
    """
    pixels, e, c = work.batch * work.crop**2, work.vision.embed_dim, work.classes
    # Each convolution's output, its normalisation's, and after ReLU.
    student = 3.0 * work.batch * sum(numbers for _, numbers in _convolutions(work)) * FLOAT
    # Two maps, a masked copy of each, their difference; logits, their log softmax and its gradient.
    return {
        "student activations kept": (student, student),
        "features at full size": (
            float(min(block, 2 * pixels * e) * FLOAT),
            float(5 * pixels * e * FLOAT),
        ),
        "logits at full size": (
            float(min(block, pixels * c) * FLOAT),
            float(3 * pixels * c * FLOAT),
        ),
        "image attention maps": _maps(work, scores_at_once),
    }


def _tower(work: Work, published: bool) -> float:
    """FLOPs of the dense image tower for one image."""
    cfg, n = work.vision, work.patches
    d, t = cfg.width, n + 1
    block = 24 * t * d * d + 4 * t * t * d
    embed = 2 * n * cfg.patch_px**2 * 3 * d
    # Published: all of the last block, and also queries, keys and values, each through the output
    # projection and the MLP.
    last = block + (6 + 6 + 16) * t * d * d if published else (6 * t + (2 + 16) * n) * d * d
    return float(embed + (cfg.layers - 1) * block + last + 2 * n * d * cfg.embed_dim)


def _prompt(work: Work) -> Pair:
    """FLOPs of the reference: forward, and backward to the prompt through frozen layers."""
    cfg = work.text
    length, w, c = cfg.context_length, cfg.width, work.classes
    prefix = length - NAME_TOKENS
    linear, attention = 2, 3  # times the forward pass: a frozen weight has no gradient
    read = linear * 2 * c * w * cfg.embed_dim

    def block(tokens: int, scores: int) -> float:
        return linear * 24.0 * tokens * w * w + attention * 4.0 * scores * w

    names = block(NAME_TOKENS * c, NAME_TOKENS * c * (prefix + NAME_TOKENS))
    # In the last block only keys and values of the prefix are used.
    last = linear * 6 * prefix * w * w
    ours = cfg.layers * names + (cfg.layers - 1) * block(prefix, prefix**2) + last
    return ours + read, cfg.layers * block(length * c, length**2 * c) + read


def _maps(work: Work, scores_at_once: int | None) -> Pair:
    """Bytes of the attention maps of one layer for the batch."""
    numbers = work.batch * work.vision.heads * (work.patches + 1) ** 2
    ours = numbers if scores_at_once is None else min(numbers, scores_at_once)
    return float(ours * FLOAT), float(numbers * FLOAT)


def _convolutions(work: Work) -> Iterator[tuple[float, int]]:
    """FLOPs and numbers of the output of each of the student's convolutions, for one image."""
    cfg = work.student

    def conv(k: int, c_in: int, c_out: int, side: int) -> tuple[float, int]:
        return 2.0 * k * k * c_in * c_out * side * side, c_out * side * side

    side, half = -(-work.crop // 2), cfg.width // 2
    for c_in, c_out in ((3, half), (half, half), (half, cfg.width)):
        yield conv(3, c_in, c_out, side)
    side, c_in = -(-side // 2), cfg.width
    for stage, blocks in enumerate(cfg.blocks):
        planes = cfg.width * 2**stage
        for i in range(blocks):
            stride = cfg.strides[stage] if i == 0 else 1
            yield conv(1, c_in, planes, side)
            side = -(-side // stride)
            yield conv(3, planes, planes, side)
            yield conv(1, planes, 4 * planes, side)
            if stride > 1 or c_in != 4 * planes:
                yield conv(1, c_in, 4 * planes, side)
            c_in = 4 * planes
    for _ in range(4):
        yield conv(3, c_in, work.vision.embed_dim, side)
