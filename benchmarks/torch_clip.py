"""CLIP's towers as in ReCLIP's published programs, in plain PyTorch.

Module names equal ours, as `torch_vit.load` requires.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipseg_jax.models.clip import TextConfig, ViTConfig

PROMPT = 73  # learned vectors, between the start token and three tokens of a class name


class Activation(nn.Module):
    """CLIP's QuickGELU, or the exact GELU."""

    def __init__(self, name: str):
        super().__init__()
        self.quick = name == "quick_gelu"

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise."""
        return x * torch.sigmoid(1.702 * x) if self.quick else F.gelu(x)


class Block(nn.Module):
    """A pre-norm residual block on tokens (t, b, d)."""

    def __init__(self, width: int, heads: int, activation: str, eps: float):
        super().__init__()
        self.ln_1 = nn.LayerNorm(width, eps=eps)
        self.attn = nn.MultiheadAttention(width, heads)
        self.ln_2 = nn.LayerNorm(width, eps=eps)
        self.mlp = nn.ModuleDict(
            {
                "c_fc": nn.Linear(width, 4 * width),
                "activation": Activation(activation),
                "c_proj": nn.Linear(4 * width, width),
            }
        )

    def feed(self, x: Tensor) -> Tensor:
        """Adds the MLP to the tokens."""
        y = self.ln_2(x)
        for layer in self.mlp.values():
            y = layer(y)
        return x + y

    def forward(self, x: Tensor, causal: Tensor | None = None) -> Tensor:
        """Text: causal, without maps. Images: the norm is computed three times, maps averaged."""
        if causal is not None:
            y = self.ln_1(x)
            mixed, _ = self.attn(y, y, y, need_weights=False, attn_mask=causal)
        else:
            mixed, _ = self.attn(self.ln_1(x), self.ln_1(x), self.ln_1(x), need_weights=True)
        return self.feed(x + mixed)

    def values(self, x: Tensor) -> Tensor:
        """The last block's path without attention; also projects queries and keys."""
        packed = F.linear(self.ln_1(x), self.attn.in_proj_weight, self.attn.in_proj_bias)
        _, _, v = (self.attn.out_proj(part) for part in packed.chunk(3, dim=-1))
        return self.feed(v + x)


class Blocks(nn.Module):
    """A stack of blocks."""

    def __init__(self, cfg: ViTConfig | TextConfig, eps: float):
        super().__init__()
        self.resblocks = nn.ModuleList(
            Block(cfg.width, cfg.heads, cfg.activation, eps) for _ in range(cfg.layers)
        )


class Visual(nn.Module):
    """CLIP's image tower with a dense read-out."""

    def __init__(self, cfg: ViTConfig):
        super().__init__()
        d = cfg.width
        self.grid = cfg.grid
        self.conv1 = nn.Conv2d(3, d, cfg.patch_px, cfg.patch_px, bias=False)
        self.class_embedding = nn.Parameter(torch.zeros(d))
        self.positional_embedding = nn.Parameter(torch.zeros(cfg.grid**2 + 1, d))
        self.ln_pre = nn.LayerNorm(d, eps=cfg.norm_eps)
        eps = cfg.norm_eps if cfg.block_norm_eps is None else cfg.block_norm_eps
        self.transformer = Blocks(cfg, eps)
        self.ln_post = nn.LayerNorm(d, eps=cfg.norm_eps)
        self.proj = nn.Parameter(torch.zeros(d, cfg.embed_dim))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (b, 3, h, w) -> features (b, e, hp, wp) and positions (1, d, hp, wp)."""
        patches = self.conv1(images)
        b, d, *grid = patches.shape
        stored = self.positional_embedding[1:].T.reshape(1, d, self.grid, self.grid)
        positions = F.interpolate(stored, grid, mode="bicubic", align_corners=False)
        tokens = patches.flatten(2).permute(2, 0, 1)
        x = torch.cat([self.class_embedding.expand(1, b, d), tokens])
        table = torch.cat([self.positional_embedding[:1], positions.flatten(2)[0].T])
        x = self.ln_pre(x + table[:, None])
        *most, last = self.transformer.resblocks
        for block in most:
            x = block(x)
        v = last.values(x)
        last(x)  # CLIP's regular output: computed but not used
        v = self.ln_post(v)[1:].permute(1, 2, 0).reshape(b, d, *grid)
        return F.conv2d(v, self.proj.T[:, :, None, None]), positions


class Text(nn.Module):
    """CLIP's text tower behind a learned prompt."""

    def __init__(self, cfg: TextConfig):
        super().__init__()
        self.start = cfg.vocabulary - 2
        self.token_embedding = nn.Embedding(cfg.vocabulary, cfg.width)
        self.positional_embedding = nn.Parameter(torch.zeros(cfg.context_length, cfg.width))
        self.transformer = Blocks(cfg, cfg.norm_eps)
        self.ln_final = nn.LayerNorm(cfg.width, eps=cfg.norm_eps)
        self.text_projection = nn.Parameter(torch.zeros(cfg.width, cfg.embed_dim))
        hidden = torch.full((cfg.context_length, cfg.context_length), -math.inf)
        self.register_buffer("causal", hidden.triu(1), persistent=False)

    def forward(self, prompt: Tensor, ids: Tensor) -> Tensor:
        """Prompt (73, w) and three ids per class (c, 3) -> features (c, e)."""
        c, w = ids.shape[0], prompt.shape[1]
        start = self.token_embedding(torch.full((c, 1), self.start, device=ids.device))
        x = torch.cat([start, prompt.expand(c, *prompt.shape), self.token_embedding(ids)], dim=1)
        x = (x + self.positional_embedding).transpose(0, 1)
        for block in self.transformer.resblocks:
            x = block(x, self.causal)
        x = self.ln_final(x.transpose(0, 1))
        end = 1 + PROMPT + ids.argmax(dim=1)
        assert x.shape[2] == w
        return x[torch.arange(c, device=ids.device), end] @ self.text_projection
