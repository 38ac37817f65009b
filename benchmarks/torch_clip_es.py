"""The peer of `clip_es_cam`: CLIP-ES's CAMs as published, in plain PyTorch.

Written from the description (spec clip_es, sections 4 to 7 and 16), with its costs: one image and
one class at a time, all attention maps kept, the last block forward and backward for every class,
the affinity normalised and squared for every class. Where the description is ambiguous, the cheaper
variant is used: no gradients of weights, boxes by a flood fill of patches.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.torch_vit import Tower
from clipseg_jax.methods.clip_es.model import CLIPESConfig
from clipseg_jax.models.clip.vit import ViTConfig


class PublishedCLIPES(nn.Module):
    """One image (1, 3, h, w) and its class ids -> maps (m, *size) float16."""

    def __init__(self, cfg: ViTConfig, method: CLIPESConfig, classes: Tensor, background: Tensor):
        super().__init__()
        self.visual, self.method = Tower(cfg), method
        self.register_buffer("classes", classes, persistent=False)
        self.register_buffer("background", background, persistent=False)
        self.requires_grad_(False)

    def forward(self, image: Tensor, ids: list[int], size: tuple[int, int]) -> np.ndarray:
        """See the class."""
        outputs, maps, grid = self.visual.encode(image)
        text = F.normalize(torch.cat([self.classes[ids], self.background]), dim=-1)
        out = []
        for i in range(len(ids)):
            raw, attention = grad_cam(
                self.visual, outputs[-1], text, i, temperature=self.method.temperature
            )
            if len(maps) < len(self.visual.resblocks):
                maps.append(attention)
            out.append(self.refine(scaled_twice(raw.reshape(grid)), maps, size))
        return np.stack(out)

    @torch.no_grad()
    def refine(self, cam: np.ndarray, maps: list[Tensor], size: tuple[int, int]) -> np.ndarray:
        """Class-aware affinity, on the CPU, and the map at full size."""
        chosen = torch.stack(maps)[list(self.method.affinity_blocks)]
        s = chosen.mean(0)[0, 1:, 1:].float().cpu()
        for _ in range(self.method.sinkhorn_iterations):
            s = s / s.sum(0, keepdim=True)
            s = s / s.sum(1, keepdim=True)
        s = (s + s.T) / 2
        s = s @ s
        mask = torch.from_numpy(boxed(cam, self.method.box_threshold)).float().reshape(1, -1)
        refined = (s * mask) @ torch.from_numpy(cam).reshape(-1, 1)
        refined = scaled(refined.reshape(cam.shape).numpy())
        large = F.interpolate(torch.from_numpy(refined)[None, None], size, mode="bilinear")
        return large[0, 0].numpy().astype(np.float16)


@torch.enable_grad()
def grad_cam(
    tower: Tower, x: Tensor, text: Tensor, i: int, *, temperature: float
) -> tuple[Tensor, Tensor]:
    """Weighted activations (n,) of text row i, and the last block's attention.

    `x` (1, 1 + n, d) are the tokens before the last block, `text` (c, e) unit rows.
    """
    caught: list[Tensor] = []

    def catch(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        caught.append(output.detach().requires_grad_())
        return caught[-1]

    block = tower.resblocks[-1]
    hook = block.ln_1.register_forward_hook(catch)
    z, attention = block.with_map(x)
    hook.remove()
    feature = F.normalize(tower.ln_post(z)[:, 1:].mean(1) @ tower.proj, dim=-1)
    p = torch.softmax(temperature * feature @ text.T, dim=-1)
    (gradient,) = torch.autograd.grad(p[0, i], caught)
    weights = gradient[0, 1:].float().mean(0)
    return caught[0].detach()[0, 1:].float() @ weights, attention.detach()


def scaled(x: np.ndarray) -> np.ndarray:
    """(x - min) / (1e-7 + max - min)."""
    x = x - x.min()
    return x / (1e-7 + x.max())


def scaled_twice(raw: Tensor) -> np.ndarray:
    """The CAM in [0, 1) of weighted activations (h, w)."""
    return scaled(scaled(np.maximum(raw.cpu().numpy(), 0)))


def boxed(cam: np.ndarray, threshold: float) -> np.ndarray:
    """Union of the boxes around connected high cells of a CAM (h, w)."""
    steps = np.floor(255 * cam)
    left = set(zip(*np.nonzero(steps > np.floor(threshold * steps.max())), strict=True))
    mask = np.zeros(cam.shape, bool)
    while left:
        todo, ys, xs = [left.pop()], [], []
        while todo:
            y, x = todo.pop()
            ys.append(y)
            xs.append(x)
            near = {(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= near
            todo += near
        bottom, right = min(max(ys) + 1, cam.shape[0] - 1), min(max(xs) + 1, cam.shape[1] - 1)
        mask[min(ys) : bottom, min(xs) : right] = True
    return mask
