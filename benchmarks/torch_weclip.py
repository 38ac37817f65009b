"""The peer of `weclip_step`: WeCLIP's training step as published, in plain PyTorch.

Written from the description (spec weclip, sections 3 to 7 and 15), with its costs: pseudo labels
are computed for one image at a time and, in Grad-CAM, one class at a time; block 12 runs forward
and backward for every class; PAR copies all 48 neighbours of image and masks in each iteration;
affinity labels are selected by boolean masks. Where the description is ambiguous, the cheaper
variant is used: no gradients of frozen weights, boxes by a flood fill of patches, no labels or
features written to disk.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.torch_clip_es import boxed, grad_cam, scaled, scaled_twice
from benchmarks.torch_vit import Block, Tower
from clipseg_jax.models.clip.vit import ViTConfig

WIDTH, DECODER_LAYERS, DECODER_HEADS, DROPOUT = 256, 3, 8, 0.1
EARLY_LAYERS, SINKHORN_ROUNDS = 8, 3
PAR_DILATIONS, PAR_ROUNDS, PAR_SHARPNESS, PAR_POSITION = (1, 2, 4, 8, 12, 24), 20, 0.3, 0.01


class Method(NamedTuple):
    """Parameters that differ between datasets."""

    classes: int  # with background
    box_threshold: float = 0.4
    late_layers: int = 6
    radius: int = 8  # of the affinity loss, in patches
    temperature: float = 100.0


class PAR(nn.Module):
    """Pixel-adaptive refinement of masks (1, m, h, w) by an image (1, 3, h, w)."""

    def __init__(self) -> None:
        super().__init__()
        kernel = torch.zeros(8, 1, 3, 3)
        places = [(y, x) for y in range(3) for x in range(3) if (y, x) != (1, 1)]
        for i, (y, x) in enumerate(places):
            kernel[i, 0, y, x] = 1.0
        far = [math.hypot(y - 1, x - 1) for y, x in places]
        position = torch.tensor([d * near for d in PAR_DILATIONS for near in far])
        weights = -((position / (position.std() + 1e-8) / PAR_SHARPNESS) ** 2)
        self.register_buffer("kernel", kernel, persistent=False)
        self.register_buffer("position", weights.softmax(0).view(1, 1, -1, 1, 1), persistent=False)

    def neighbours(self, x: Tensor) -> Tensor:
        """(1, c, h, w) -> copies of the neighbours (1, c, 48, h, w)."""
        _, c, h, w = x.shape
        copies = []
        for d in PAR_DILATIONS:
            wide = F.pad(x, [d] * 4, mode="replicate").transpose(0, 1)
            copies.append(F.conv2d(wide, self.kernel, dilation=d).view(1, c, 8, h, w))
        return torch.cat(copies, dim=2)

    def forward(self, image: Tensor, masks: Tensor) -> Tensor:
        """Refined masks."""
        image = F.interpolate(image, masks.shape[-2:], mode="bilinear", align_corners=True)
        around = self.neighbours(image)
        centre = image.unsqueeze(2).repeat(1, 1, around.shape[2], 1, 1)
        spread = around.std(2, keepdim=True)
        unlike = -(((around - centre).abs() / (spread + 1e-8) / PAR_SHARPNESS) ** 2)
        weights = unlike.mean(1, keepdim=True).softmax(2) + PAR_POSITION * self.position
        for _ in range(PAR_ROUNDS):
            masks = (self.neighbours(masks) * weights).sum(2)
        return masks


class Adapter(nn.Module):
    """The MLP of one layer's features."""

    def __init__(self, width: int):
        super().__init__()
        self.proj, self.proj_2 = nn.Linear(width, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """(b, n, d) -> (b, n, 256)."""
        return self.proj_2(F.relu(self.proj(x)))


class PublishedWeCLIP(nn.Module):
    """Normalised images (b, 3, h, w) and their class ids -> the loss of a step."""

    def __init__(self, cfg: ViTConfig, method: Method, classes: Tensor, background: Tensor):
        super().__init__()
        d = cfg.width
        self.visual, self.method = Tower(cfg), method
        self.register_buffer("classes", classes, persistent=False)
        self.register_buffer("background", background, persistent=False)
        self.requires_grad_(False)

        self.adapters = nn.ModuleList(Adapter(d) for _ in range(cfg.layers - 1))
        self.fuse = nn.Conv2d(WIDTH * (cfg.layers - 1), WIDTH, 1)
        self.dropout = nn.Dropout2d(DROPOUT)
        of_decoder = ViTConfig(1, 1, WIDTH, DECODER_LAYERS, DECODER_HEADS, WIDTH)
        self.decoder = nn.ModuleList(Block(of_decoder) for _ in range(DECODER_LAYERS))
        self.classifier = nn.Conv2d(WIDTH, method.classes, 1)
        self.par = PAR()
        self.seconds: list[dict[str, float]] = []  # of the parts of each step's loss

    def trained(self) -> list[nn.Parameter]:
        """The trainable parameters."""
        return [p for p in self.parameters() if p.requires_grad]

    @contextlib.contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """A context whose wall time is added to the step's `seconds`."""
        device = self.classes.device.type
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        yield
        if device == "cuda":
            torch.cuda.synchronize()
        self.seconds[-1][part] += time.perf_counter() - start

    def loss(self, images: Tensor, ids: Sequence[Sequence[int]], late: bool) -> Tensor:
        """The loss of a batch; `late`: maps are refined by the decoder's affinity."""
        self.seconds.append(defaultdict(float))
        with self.timed("encoder"):
            outputs, maps, grid = self.visual.encode(images)
        with self.timed("decoder"):
            b = len(images)
            adapted = [a(x[:, 1:]) for a, x in zip(self.adapters, outputs, strict=True)]
            stacked = torch.cat(adapted, dim=-1).transpose(1, 2).reshape(b, -1, *grid)
            fused = self.dropout(self.fuse(stacked))
            flat = fused.flatten(2)
            affinity = torch.sigmoid(flat.transpose(1, 2) @ flat)
            x = flat.transpose(1, 2)
            for block in self.decoder:
                x, _ = block.with_map(x)
            logits = self.classifier(x.transpose(1, 2).reshape(b, -1, *grid))
        labels = []
        for i, classes in enumerate(ids):
            image_maps = [attention[i : i + 1] for attention in maps]
            image_affinity = affinity[i].detach() if late else None
            labels.append(
                self.pseudo_label(
                    images[i : i + 1],
                    outputs[-1][i : i + 1],
                    image_maps,
                    classes,
                    image_affinity,
                    grid,
                )
            )
        with self.timed("loss"):
            truth = torch.stack(labels)
            large = F.interpolate(logits, truth.shape[-2:], mode="bilinear", align_corners=False)
            return balanced(large, truth) + 0.1 * self.affinity_loss(affinity, truth, grid)

    def pseudo_label(
        self,
        image: Tensor,
        x: Tensor,
        maps: list[Tensor],
        ids: Sequence[int],
        affinity: Tensor | None,
        grid: tuple[int, int],
    ) -> Tensor:
        """Labels (h, w) of one image."""
        text = F.normalize(torch.cat([self.classes[list(ids)], self.background]), dim=-1)
        transition, upsampled = None, []
        size = image.shape[-2:]
        for k in range(len(ids)):
            with self.timed("CAM"):
                raw, attention = grad_cam(
                    self.visual, x, text, k, temperature=self.method.temperature
                )
                cam = scaled_twice(raw.reshape(grid))
            with self.timed("refinement"):
                if transition is None:
                    transition = self.transition([*maps, attention], affinity)
                mask = torch.from_numpy(boxed(cam, self.method.box_threshold)).float()
                refined = (transition.cpu() * mask.reshape(1, -1)) @ torch.from_numpy(cam).reshape(
                    -1, 1
                )
                refined = torch.from_numpy(scaled(refined.reshape(cam.shape).numpy()))
                upsampled.append(F.interpolate(refined[None, None], size, mode="bilinear")[0, 0])
        with self.timed("PAR"), torch.no_grad():
            refined_maps = torch.stack(upsampled)
            background = 1 - refined_maps.max(0, keepdim=True).values
            stack = torch.cat([background, refined_maps])[None]
            best = self.par(image, stack.to(image.device)).argmax(1)[0]
            names = torch.tensor([0, *(i + 1 for i in ids)], device=best.device)
            return names[best]

    @torch.no_grad()
    def transition(self, maps: list[Tensor], affinity: Tensor | None) -> Tensor:
        """The transition matrix (n, n) between the patches of one image."""
        if affinity is None:
            s = torch.cat(maps[-EARLY_LAYERS:]).mean(0)[1:, 1:].float()
        else:
            last = torch.cat(maps[-self.method.late_layers :])[:, 1:, 1:].float()
            masses = (affinity - last).sum((1, 2))
            selected = last[masses <= masses.mean()]
            s = selected.sum(0) / (len(selected) + 1e-5) * affinity
        for _ in range(SINKHORN_ROUNDS):
            s = s / s.sum(0, keepdim=True)
            s = s / s.sum(1, keepdim=True)
        s = (s + s.T) / 2
        return s @ s

    def affinity_loss(self, affinity: Tensor, labels: Tensor, grid: tuple[int, int]) -> Tensor:
        """The loss of the patch affinity (b, n, n) against the labels (b, h, w)."""
        small = F.interpolate(labels[:, None].float(), grid, mode="nearest").flatten(1)
        rows, columns = (g.flatten() for g in np.meshgrid(*map(np.arange, grid), indexing="ij"))
        r = self.method.radius
        near = (abs(rows[:, None] - rows) <= r) & (abs(columns[:, None] - columns) <= r)
        targets = []
        for image_labels in small.cpu().numpy():
            alike = (image_labels[:, None] == image_labels[None]).astype(np.int64)
            alike[~near] = 255
            targets.append(torch.from_numpy(alike))
        target = torch.stack(targets).to(affinity.device)
        same, other = (target == 1), (target == 0)
        return 0.5 * (
            (same * (1 - affinity)).sum() / (same.sum() + 1)
            + (other * affinity).sum() / (other.sum() + 1)
        )


def balanced(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean of the cross entropies of background and of foreground."""
    background = torch.where(labels == 0, labels, 255)
    foreground = torch.where(labels == 0, 255, labels)
    parts = [F.cross_entropy(logits, y, ignore_index=255) for y in (background, foreground)]
    return 0.5 * (parts[0] + parts[1])


def optimizer(model: PublishedWeCLIP) -> torch.optim.Optimizer:
    """The published AdamW."""
    return torch.optim.AdamW(model.trained(), lr=2e-3, betas=(0.9, 0.999), weight_decay=0.01)
