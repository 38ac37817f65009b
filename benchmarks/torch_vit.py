"""CLIP's ViT in plain PyTorch for the peers, MaskCLIP's dense features, and loading of weights."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipseg_jax.models.clip.vit import ViTConfig

SKIPPED = ("transformer", "attn", "mlp")  # parts of our paths that a peer's names may lack


class Block(nn.Module):
    """A pre-norm residual block on tokens (b, t, d), with three variants of attention."""

    def __init__(self, cfg: ViTConfig):
        super().__init__()
        d = cfg.width
        self.heads, self.activation = cfg.heads, cfg.activation
        self.ln_1 = nn.LayerNorm(d, eps=cfg.norm_eps)
        self.in_proj = nn.Linear(d, 3 * d)
        self.out_proj = nn.Linear(d, d)
        self.ln_2 = nn.LayerNorm(d, eps=cfg.norm_eps)
        self.c_fc = nn.Linear(d, 4 * d)
        self.c_proj = nn.Linear(4 * d, d)

    def forward(self, x: Tensor) -> Tensor:
        """Fused attention."""
        mixed = F.scaled_dot_product_attention(*self._queries_keys_values(x))
        return self._rest(x, mixed.transpose(1, 2).flatten(2))

    def with_map(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens, and attention maps (b, t, t) averaged over heads."""
        q, k, v = self._queries_keys_values(x)
        weights = torch.softmax(q @ k.transpose(2, 3) / math.sqrt(q.shape[-1]), dim=-1)
        return self._rest(x, (weights @ v).transpose(1, 2).flatten(2)), weights.mean(1)

    def value_path(self, x: Tensor) -> Tensor:
        """The value path: each token attends to itself only."""
        d = x.shape[-1]
        v = F.linear(self.ln_1(x), self.in_proj.weight[2 * d :], self.in_proj.bias[2 * d :])
        return self._rest(x, v)

    def _queries_keys_values(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        packed = self.in_proj(self.ln_1(x)).view(b, t, 3, self.heads, -1)
        return packed.permute(2, 0, 3, 1, 4)

    def _rest(self, x: Tensor, mixed: Tensor) -> Tensor:
        x = x + self.out_proj(mixed)
        hidden = self.c_fc(self.ln_2(x))
        quick = self.activation == "quick_gelu"
        return x + self.c_proj(hidden * torch.sigmoid(1.702 * hidden) if quick else F.gelu(hidden))


class Tower(nn.Module):
    """CLIP's image tower."""

    def __init__(self, cfg: ViTConfig):
        super().__init__()
        d = cfg.width
        self.cfg = cfg
        self.conv1 = nn.Conv2d(3, d, cfg.patch_px, cfg.patch_px, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(d))
        self.positional_embedding = nn.Parameter(torch.randn(cfg.grid**2 + 1, d))
        self.ln_pre = nn.LayerNorm(d, eps=cfg.norm_eps)
        self.resblocks = nn.ModuleList(Block(cfg) for _ in range(cfg.layers))
        self.ln_post = nn.LayerNorm(d, eps=cfg.norm_eps)
        self.proj = nn.Parameter(torch.randn(d, cfg.embed_dim))

    def embed(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Normalised images (b, 3, h, w) -> tokens (b, 1 + n, d) before the blocks, patch grid."""
        patches = self.conv1(images)
        b, d, h, w = patches.shape
        stored = self.positional_embedding[1:].T.reshape(1, d, self.cfg.grid, self.cfg.grid)
        mode = self.cfg.position_resize
        spatial = F.interpolate(stored, (h, w), mode=mode, align_corners=False)
        positions = torch.cat([self.positional_embedding[:1], spatial.flatten(2)[0].T])
        first = self.class_embedding.expand(b, 1, d)
        x = torch.cat([first, patches.flatten(2).transpose(1, 2)], dim=1)
        return self.ln_pre(x + positions), (h, w)

    @torch.no_grad()
    def encode(self, images: Tensor) -> tuple[list[Tensor], list[Tensor], tuple[int, int]]:
        """Tokens after each block but the last, their maps, the patch grid."""
        x, grid = self.embed(images)
        outputs, maps = [], []
        for block in self.resblocks[:-1]:
            x, attention = block.with_map(x)
            outputs.append(x)
            maps.append(attention)
        return outputs, maps, grid


class DenseViT(nn.Module):
    """Normalised images (b, 3, h, w) -> cosines with text embeddings (b, h/16, w/16, c)."""

    def __init__(self, cfg: ViTConfig, text: Tensor):
        super().__init__()
        self.visual = Tower(cfg)
        self.register_buffer("text", text, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        x, grid = self.visual.embed(images)
        *most, last = self.visual.resblocks
        for block in most:
            x = block(x)
        x = self.visual.ln_post(last.value_path(x[:, 1:]))
        features = F.normalize(x @ self.visual.proj, dim=-1)
        return (features @ self.text.T).view(len(images), *grid, -1)


def load(model: nn.Module, arrays: Mapping[str, np.ndarray]) -> None:
    """Copies our arrays (dotted path -> array in our layout) into a peer.

    The peer's names are our paths, with or without the modules `transformer`, `attn` and `mlp`. Our
    arrays must contain all of them.
    """
    short = {".".join(p for p in path.split(".") if p not in SKIPPED): path for path in arrays}
    kinds = {"weight": ("kernel", "scale", "embedding"), "running_mean": ("mean",)}
    kinds["running_var"] = ("var",)
    with torch.no_grad():
        for name, target in model.state_dict().items():
            if name.endswith("num_batches_tracked"):
                continue
            path = name.replace("in_proj_", "in_proj.")
            stem, _, last = path.rpartition(".")
            candidates = [path] + [f"{stem}.{kind}".lstrip(".") for kind in kinds.get(last, ())]
            key = next(short.get(key, key) for key in candidates if key in short or key in arrays)
            value = np.asarray(arrays[key])
            if key.endswith("kernel"):  # convolutions hwio -> oihw, linear (in, out) -> (out, in)
                value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
            target.copy_(torch.from_numpy(np.array(value, order="C")).reshape(target.shape))
