"""The benchmark's peer: CLIP's ViT with MaskCLIP's dense read-out in ordinary PyTorch."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from flax import nnx
from torch import Tensor, nn

from clipseg_jax.models.clip import VisionTransformer
from clipseg_jax.models.clip.vit import ViTConfig


class Block(nn.Module):
    """A pre-norm residual block; `value_path` replaces its attention by the values themselves."""

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

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (b, t, d) -> tokens."""
        b, t, d = x.shape
        qkv = self.in_proj(self.ln_1(x)).view(b, t, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.mlp(x + self.out_proj(mixed.transpose(1, 2).reshape(b, t, d)))

    def value_path(self, x: Tensor) -> Tensor:
        """Tokens (b, t, d) -> tokens, each from its own value."""
        d = x.shape[-1]
        v = F.linear(self.ln_1(x), self.in_proj.weight[2 * d :], self.in_proj.bias[2 * d :])
        return self.mlp(x + self.out_proj(v))

    def mlp(self, x: Tensor) -> Tensor:
        """x + c_proj(gelu(c_fc(ln_2 x)))."""
        return x + self.c_proj(F.gelu(self.c_fc(self.ln_2(x))))


class DenseViT(nn.Module):
    """Normalised images (b, 3, h, w) -> cosines with text rows, (b, h/16, w/16, c)."""

    def __init__(self, cfg: ViTConfig, text: Tensor):
        super().__init__()
        d = cfg.width
        self.grid = cfg.grid
        self.conv1 = nn.Conv2d(3, d, cfg.patch_px, cfg.patch_px, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(d))
        self.positional_embedding = nn.Parameter(torch.randn(cfg.grid**2 + 1, d))
        self.ln_pre = nn.LayerNorm(d, eps=cfg.norm_eps)
        self.resblocks = nn.ModuleList(Block(cfg) for _ in range(cfg.layers))
        self.ln_post = nn.LayerNorm(d, eps=cfg.norm_eps)
        self.proj = nn.Parameter(torch.randn(d, cfg.embed_dim))
        self.register_buffer("text", text, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        patches = self.conv1(images)
        b, d, *grid = patches.shape
        stored = self.positional_embedding[1:].T.reshape(1, d, self.grid, self.grid)
        spatial = F.interpolate(stored, grid, mode="bicubic", align_corners=False)
        positions = torch.cat([self.positional_embedding[:1], spatial.flatten(2)[0].T])
        first = self.class_embedding.expand(b, 1, d)
        x = torch.cat([first, patches.flatten(2).transpose(1, 2)], dim=1)
        x = self.ln_pre(x + positions)
        for block in self.resblocks[:-1]:
            x = block(x)
        x = self.ln_post(self.resblocks[-1].value_path(x[:, 1:]))
        features = F.normalize(x @ self.proj, dim=-1)
        return (features @ self.text.T).view(b, *grid, -1)


def state_dict(visual: VisionTransformer) -> dict[str, Tensor]:
    """Our weights under the peer's names and in its layouts."""
    flat = {}
    for path, variable in nnx.to_flat_state(nnx.state(visual)):
        *layer, kind = (str(name) for name in path if name not in ("transformer", "attn", "mlp"))
        value = np.array(variable.get_value())
        if kind == "kernel":
            value = value.T if value.ndim == 2 else value.transpose(3, 2, 0, 1)
        name = ".".join([*layer, {"kernel": "weight", "scale": "weight"}.get(kind, kind)])
        flat[name] = torch.from_numpy(np.ascontiguousarray(value))
    return flat
