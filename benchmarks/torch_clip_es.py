"""The benchmark's peer: CLIP-ES's CAMs the published way, in ordinary PyTorch.

Written from the description (spec clip_es, sections 4 to 7 and 16), with its costs: one image and
one class at a time, all attention maps kept, the last block forward and backward for every class,
the affinity normalised and squared for every class. Where the description leaves a choice the
cheaper one is taken: no gradients of weights are made, boxes come from a flood fill of patches.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipseg_jax.models.clip.vit import ViTConfig
from clipseg_jax.models.clip_es import CLIPESConfig


class Block(nn.Module):
    """A pre-norm residual block that also returns its head-averaged attention."""

    def __init__(self, cfg: ViTConfig):
        super().__init__()
        d = cfg.width
        self.heads = cfg.heads
        self.ln_1 = nn.LayerNorm(d, eps=cfg.norm_eps)
        self.in_proj = nn.Linear(d, 3 * d)
        self.out_proj = nn.Linear(d, d)
        self.ln_2 = nn.LayerNorm(d, eps=cfg.norm_eps)
        self.c_fc = nn.Linear(d, 4 * d)
        self.c_proj = nn.Linear(4 * d, d)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (1, t, d) -> tokens, attention (1, t, t)."""
        b, t, d = x.shape
        qkv = self.in_proj(self.ln_1(x)).view(b, t, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        weights = torch.softmax(q @ k.transpose(2, 3) / math.sqrt(q.shape[-1]), dim=-1)
        x = x + self.out_proj((weights @ v).transpose(1, 2).reshape(b, t, d))
        hidden = self.c_fc(self.ln_2(x))
        return x + self.c_proj(hidden * torch.sigmoid(1.702 * hidden)), weights.mean(1)


class PublishedCLIPES(nn.Module):
    """One image (1, 3, h, w) and its class ids -> maps (m, *size) float16."""

    def __init__(self, cfg: ViTConfig, method: CLIPESConfig, classes: Tensor, background: Tensor):
        super().__init__()
        d = cfg.width
        self.grid, self.method = cfg.grid, method
        self.conv1 = nn.Conv2d(3, d, cfg.patch_px, cfg.patch_px, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(d))
        self.positional_embedding = nn.Parameter(torch.randn(cfg.grid**2 + 1, d))
        self.ln_pre = nn.LayerNorm(d, eps=cfg.norm_eps)
        self.resblocks = nn.ModuleList(Block(cfg) for _ in range(cfg.layers))
        self.ln_post = nn.LayerNorm(d, eps=cfg.norm_eps)
        self.proj = nn.Parameter(torch.randn(d, cfg.embed_dim))
        self.register_buffer("classes", classes, persistent=False)
        self.register_buffer("background", background, persistent=False)
        self.requires_grad_(False)

    def encode(self, image: Tensor) -> tuple[Tensor, list[Tensor], tuple[int, int]]:
        """Tokens before the last block, all maps until there, the patch grid."""
        patches = self.conv1(image)
        _, d, h, w = patches.shape
        stored = self.positional_embedding[1:].T.reshape(1, d, self.grid, self.grid)
        spatial = F.interpolate(stored, (h, w), mode="bilinear", align_corners=False)
        positions = torch.cat([self.positional_embedding[:1], spatial.flatten(2)[0].T])
        first = self.class_embedding.expand(1, 1, d)
        x = torch.cat([first, patches.flatten(2).transpose(1, 2)], dim=1)
        x, maps = self.ln_pre(x + positions), []
        for block in self.resblocks[:-1]:
            x, attention = block(x)
            maps.append(attention)
        return x, maps, (h, w)

    def forward(self, image: Tensor, ids: list[int], size: tuple[int, int]) -> np.ndarray:
        """See the class."""
        with torch.no_grad():
            x, maps, grid = self.encode(image)
        text = F.normalize(torch.cat([self.classes[ids], self.background]), dim=-1)
        out = []
        for i in range(len(ids)):
            raw, attention = self.grad_cam(x, text, i)
            if len(maps) < len(self.resblocks):
                maps.append(attention)
            out.append(self.refine(scaled_twice(raw.reshape(grid)), maps, size))
        return np.stack(out)

    @torch.enable_grad()
    def grad_cam(self, x: Tensor, text: Tensor, i: int) -> tuple[Tensor, Tensor]:
        """Weighted activations (n,) of class i, and the last block's attention."""
        caught: list[Tensor] = []

        def catch(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
            caught.append(output.detach().requires_grad_())
            return caught[-1]

        block = self.resblocks[-1]
        hook = block.ln_1.register_forward_hook(catch)
        z, attention = block(x)
        hook.remove()
        feature = F.normalize(self.ln_post(z)[:, 1:].mean(1) @ self.proj, dim=-1)
        p = torch.softmax(self.method.temperature * feature @ text.T, dim=-1)
        (gradient,) = torch.autograd.grad(p[0, i], caught)
        weights = gradient[0, 1:].float().mean(0)
        return caught[0].detach()[0, 1:].float() @ weights, attention.detach()

    @torch.no_grad()
    def refine(self, cam: np.ndarray, maps: list[Tensor], size: tuple[int, int]) -> np.ndarray:
        """Class-aware affinity, on the CPU, and the map at full size."""
        chosen = torch.stack(maps)[list(self.method.affinity_blocks)]
        s = chosen.mean(0)[0, 1:, 1:].float().cpu()
        for _ in range(self.method.balance_rounds):
            s = s / s.sum(0, keepdim=True)
            s = s / s.sum(1, keepdim=True)
        s = (s + s.T) / 2
        s = s @ s
        mask = torch.from_numpy(boxed(cam, self.method.box_threshold)).float().reshape(1, -1)
        refined = (s * mask) @ torch.from_numpy(cam).reshape(-1, 1)
        refined = scaled(refined.reshape(cam.shape).numpy())
        large = F.interpolate(torch.from_numpy(refined)[None, None], size, mode="bilinear")
        return large[0, 0].numpy().astype(np.float16)


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
