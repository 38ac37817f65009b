"""The peer of `clip_rc_step`: CLIP-RC as published, in plain PyTorch.

Written from the description of what the published program computes, with its costs: one dense mask
over all tokens of the image tower, sixteen queries per class to the end, the head's attention with
materialised scores, logits and one-hot targets at full size, a Python loop over images in the dice
loss. Where the description is ambiguous, the cheaper variant is used: the tower's attention is
PyTorch's fused one, and scores that were computed but not used are omitted. Module names are those
of the published checkpoints, so that `weights_convert` provides weights for both sides.
"""

from __future__ import annotations

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IGNORED = 255


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of the network and its inputs."""

    crop_px: int = 512
    patch_px: int = 16
    width: int = 768
    layers: int = 12
    heads: int = 12
    embed_dim: int = 512
    prompts: int = 10
    regions: int = 4  # along a side
    decoder_layers: int = 3
    decoder_heads: int = 8
    hidden: int = 2048  # of the decoder's MLPs
    dropout: float = 0.1

    @property
    def grid(self) -> int:
        """Patches along a side."""
        return self.crop_px // self.patch_px


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x)."""

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise."""
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    """A pre-norm residual block on tokens (b, n, d)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(width, 4 * width))
        self.mlp.add_module("gelu", QuickGELU())
        self.mlp.add_module("c_proj", nn.Linear(4 * width, width))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """`mask` (n, n) is added to the scores."""
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


def attention_mask(sizes: Sizes) -> Tensor:
    """Additive mask (n, n): regions see their patches and themselves, patches also their region."""
    g, r = sizes.grid, sizes.regions
    first = 1 + sizes.prompts
    plain = first + g * g
    mask = torch.full((plain + r * r, plain + r * r), -math.inf)
    mask[:plain, :plain] = 0
    stride = g // r
    for i in range(r):
        for j in range(r):
            rows = torch.arange(i * stride, (i + 1) * stride)[:, None]
            columns = torch.arange(j * stride, (j + 1) * stride)
            patches, region = first + (rows * g + columns).flatten(), plain + i * r + j
            mask[region, patches] = mask[patches, region] = 0
            mask[region, region] = 0
    return mask


class Encoder(nn.Module):
    """The image tower with deep prompts and region tokens."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        d, p = sizes.width, sizes.prompts
        self.sizes = sizes
        self.conv1 = nn.Conv2d(3, d, sizes.patch_px, sizes.patch_px, bias=False)
        self.class_embedding = nn.Parameter(torch.zeros(d))
        self.positional_embedding = nn.Parameter(torch.zeros(1 + sizes.grid**2, d))
        self.region_level_bridge = nn.Parameter(torch.zeros(sizes.regions**2, d))
        self.proj = nn.Parameter(torch.zeros(d, sizes.embed_dim))
        self.prompt_embeddings = nn.Parameter(torch.zeros(1, p, d))
        self.deep_prompt_embeddings = nn.Parameter(torch.zeros(sizes.layers - 1, p, d))
        self.prompt_proj = nn.Linear(d, d)
        self.prompt_norm = nn.LayerNorm(d, eps=1e-6)
        self.ln_pre, self.ln_post = nn.LayerNorm(d), nn.LayerNorm(d)
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.ModuleList(
            Block(d, sizes.heads) for _ in range(sizes.layers)
        )
        self.drop = nn.Dropout(sizes.dropout)
        self.register_buffer("mask", attention_mask(sizes), persistent=False)
        for name, parameter in self.named_parameters():
            parameter.requires_grad_("prompt" in name)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images (b, 3, s, s) -> unit patches (b, e, g, g), class (b, e), regions (b, e, r, r)."""
        b, g, r, p = len(images), self.sizes.grid, self.sizes.regions, self.sizes.prompts
        patches = self.conv1(images).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(b, 1, -1)
        x = torch.cat([first, patches], dim=1) + self.positional_embedding
        x = torch.cat([x[:, :1] + self.class_embedding, x[:, 1:]], dim=1)
        x = self.ln_pre(torch.cat([x, self.region_level_bridge.expand(b, -1, -1)], dim=1))
        x = torch.cat([x[:, :1], self._prompts(self.prompt_embeddings[0], b), x[:, 1:]], dim=1)
        for i, block in enumerate(self.transformer.resblocks):
            if i:
                prompts = self._prompts(self.deep_prompt_embeddings[i - 1], b)
                x = torch.cat([x[:, :1], prompts, x[:, 1 + p :]], dim=1)
            x = block(x, self.mask)
        plain = 1 + p + g * g
        x = torch.cat([self.prompt_norm(x[:, :plain]), x[:, plain:]], dim=1)
        x = self.ln_post(x) @ self.proj
        maps = [
            part.transpose(1, 2).reshape(b, -1, side, side)
            for part, side in ((x[:, 1 + p : plain], g), (x[:, plain:], r))
        ]
        units = [part / part.norm(dim=1, keepdim=True) for part in (maps[0], x[:, 0], maps[1])]
        return units[0], units[1], units[2]

    def _prompts(self, embeddings: Tensor, b: int) -> Tensor:
        return self.drop(self.prompt_proj(embeddings).expand(b, -1, -1))


class CrossAttention(nn.Module):
    """Attention with separate projections and materialised scores, as published."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.proj = (nn.Linear(width, width) for _ in range(4))
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        """Queries (b, n, d) attend to memory (b, m, d)."""

        def split(y: Tensor) -> Tensor:
            return y.unflatten(2, (self.heads, -1)).transpose(1, 2)

        q, k, v = split(self.q(x)), split(self.k(memory)), split(self.v(memory))
        weights = torch.softmax(q @ k.transpose(2, 3) * q.shape[-1] ** -0.5, dim=-1)
        return self.proj((self.drop(weights) @ v).transpose(1, 2).flatten(2))


class DecoderLayer(nn.Module):
    """A post-norm layer: attention, then an MLP. The published one has unused parts."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        d = sizes.embed_dim
        self.self_attn = nn.MultiheadAttention(d, sizes.decoder_heads)  # never called
        self.multihead_attn = CrossAttention(d, sizes.decoder_heads, sizes.dropout)
        self.linear1, self.linear2 = nn.Linear(d, sizes.hidden), nn.Linear(sizes.hidden, d)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(d) for _ in range(3))
        self.drop = nn.Dropout(sizes.dropout)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        """(b, n, d), (b, m, d) -> (b, n, d)."""
        x = self.norm2(x + self.drop(self.multihead_attn(x, memory)))
        return self.norm3(x + self.drop(self.linear2(self.drop(F.relu(self.linear1(x))))))


class Layers(nn.Module):
    """Layers under the published name."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(sizes) for _ in range(sizes.decoder_layers))


class Recovery(nn.Module):
    """Recovers the first queries and patches from the last ones, in training."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        d = sizes.embed_dim
        self.decouple_q = nn.ModuleList([DecoderLayer(sizes)])
        self.decouple_v = nn.ModuleList([DecoderLayer(sizes)])
        self.linear_q_in, self.linear_k_in = nn.Linear(d, d), nn.Linear(d, d)
        self.linear_q_out, self.linear_k_out = nn.Linear(d, 2 * d), nn.Linear(d, d)

    def forward(self, q: Tensor, lateral: Tensor) -> tuple[Tensor, Tensor]:
        """Queries (b, n, d), patches (b, m, d) -> (b, n, 2 d), (b, m, d)."""
        q, lateral = self.linear_q_in(q), self.linear_k_in(lateral)
        q, lateral = self.decouple_q[0](q, lateral), self.decouple_v[0](lateral, q)
        return self.linear_q_out(q), self.linear_k_out(lateral)


class Head(nn.Module):
    """Queries of regions and classes, decoded against the patches."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        d = sizes.embed_dim
        self.q_proj, self.lateral_proj = nn.Linear(2 * d, d), nn.Linear(3 * d, d)
        self.decoder_q, self.decoder_v = Layers(sizes), Layers(sizes)
        self.recovery_decoder = Recovery(sizes)
        self.sizes = sizes

    def forward(
        self, patches: Tensor, image: Tensor, regions: Tensor, text: Tensor
    ) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
        """Mask logits (b, c, s, s); in training also the targets and outputs of the recovery."""
        (b, e, g, _), c = patches.shape, len(text)
        each = (regions.flatten(2).transpose(1, 2) + image[:, None])[:, :, None] * text
        start = torch.cat([each, text.expand_as(each)], dim=3).flatten(1, 2)
        tokens = patches.flatten(2).transpose(1, 2)
        up = F.interpolate(regions, size=(g, g), mode="bilinear", align_corners=False)
        joined = torch.cat([up, image[:, :, None, None].expand(b, e, g, g), patches], dim=1)
        q, lateral = self.q_proj(start), self.lateral_proj(joined.flatten(2).transpose(1, 2))
        for of_q, of_v in zip(self.decoder_q.layers, self.decoder_v.layers, strict=True):
            q, lateral = of_q(q, lateral), of_v(lateral, q)
        logits = (q @ lateral.transpose(1, 2)).reshape(b, -1, c, g, g).mean(dim=1)
        size = (self.sizes.crop_px, self.sizes.crop_px)
        logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
        if not self.training:
            return logits, {}
        found_q, found_k = self.recovery_decoder(q, lateral)
        return logits, {"q": (found_q, start.detach()), "k": (found_k, tokens.detach())}


class ClipRC(nn.Module):
    """The model, its training loss and its label maps."""

    def __init__(self, sizes: Sizes, text: Tensor, weights: tuple[float, float, float]):
        super().__init__()
        self.backbone, self.decode_head = Encoder(sizes), Head(sizes)
        self.register_buffer("text", text, persistent=False)
        self.weights = weights  # of mask, dice and recovery

    def forward(self, images: Tensor, text: Tensor) -> tuple[Tensor, dict]:
        """Normalised images (b, 3, s, s), text embeddings (c, e)."""
        return self.decode_head(*self.backbone(images), text)

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Loss for labels (b, s, s), indices of `text`; 255 is ignored."""
        logits, recovered = self(images, self.text)
        of_mask, of_dice, of_recovery = self.weights
        targets = F.one_hot(torch.where(labels == IGNORED, 0, labels), len(self.text)).float()
        targets = targets.permute(0, 3, 1, 2) * (labels != IGNORED)[:, None]
        p = torch.sigmoid(logits)
        entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        right = p * targets + (1 - p) * (1 - targets)
        alpha = 0.25 * targets + 0.75 * (1 - targets)
        focal = (alpha * entropy * (1 - right) ** 2).mean(dim=(2, 3)).sum()
        dice, pairs = logits.new_zeros(()), 0
        for soft, hard, label in zip(p, targets, labels, strict=True):
            present = torch.unique(label[label != IGNORED])
            soft, hard = soft[present].flatten(1), hard[present].flatten(1)
            shared = 2 * (soft * hard).sum(dim=1) + 1
            dice = dice + (1 - shared / (soft.sum(dim=1) + hard.sum(dim=1) + 1)).sum()
            pairs += len(present)
        recovery = sum((a - b).abs().mean() for a, b in recovered.values())
        return (of_mask * focal + of_dice * dice) / max(pairs, 1) + of_recovery * recovery

    @torch.inference_mode()
    def labels(self, images: Tensor, seen: Tensor, text: Tensor) -> Tensor:
        """Label maps (b, s, s), indices of `text` (c, e); `seen` (c,) bool."""
        scores = torch.sigmoid(self(images, text)[0])
        return (scores - 0.1 * seen[:, None, None]).argmax(dim=1)
