"""The peer of `reclip_step`: ReCLIP++'s two training steps in ordinary PyTorch, as published.

Written from the description of what the published programs compute, step by step, with their
costs: every class's prompt of 77 tokens through the text tower at each step, all of the last image
block, averaged attention maps, Python loops over images and classes, feature maps at full size.
Where the description leaves a choice the cheaper one is taken. Their pauses between steps and
their loading of data are left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipseg_jax.models.clip import TextConfig, ViTConfig
from clipseg_jax.models.resnet import DilatedResNetConfig

IGNORED, UNLABELLED = 255, -1
PROMPT = 73  # trained vectors, between the start token and three of a class name


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
        """The second half: tokens plus their perceptron."""
        y = self.ln_2(x)
        for layer in self.mlp.values():
            y = layer(y)
        return x + y

    def forward(self, x: Tensor, causal: Tensor | None = None) -> Tensor:
        """Text: causal, no maps. Images: the norm three times over, averaged maps."""
        if causal is not None:
            y = self.ln_1(x)
            mixed, _ = self.attn(y, y, y, need_weights=False, attn_mask=causal)
        else:
            mixed, _ = self.attn(self.ln_1(x), self.ln_1(x), self.ln_1(x), need_weights=True)
        return self.feed(x + mixed)

    def values(self, x: Tensor) -> Tensor:
        """The path without attention of the last block; queries and keys are projected, too."""
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
        last(x)  # what CLIP itself would go on with: computed, not used
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
        """Prompt (73, w) and three ids a class (c, 3) -> features (c, e)."""
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


class Reference(nn.Module):
    """The text tower, and the prompt that is trained."""

    def __init__(self, cfg: TextConfig):
        super().__init__()
        self.text = Text(cfg)
        self.prompt = nn.Parameter(torch.zeros(PROMPT, cfg.width))


class Decoder(nn.Module):
    """ReCLIP++'s head."""

    def __init__(self, width: int, e: int, classes: int):
        super().__init__()
        self.pe_proj = nn.Conv2d(width, e, 1)
        self.decoder_conv = nn.Conv2d(e + classes, classes, 5, padding=2)
        self.decoder_norm = nn.BatchNorm2d(classes)

    def forward(self, features: Tensor, rectified: Tensor) -> Tensor:
        """Unit features (b, e, h, w) and logits (b, c, h, w) -> logits."""
        return self.decoder_norm(self.decoder_conv(torch.cat([features, rectified], dim=1)))


def _compare(features: Tensor, rows: Tensor) -> Tensor:
    """Features (b, e, h, w) and rows (c, e) -> (b, c, h, w)."""
    return F.conv2d(features, rows[:, :, None, None])


class Rectifier(nn.Module):
    """The model of the rectification, and its step."""

    def __init__(self, vision: ViTConfig, text: TextConfig, rows: Tensor, ids: Tensor):
        super().__init__()
        self.visual = Visual(vision)
        self.reference = Reference(text)
        self.head = Decoder(vision.width, vision.embed_dim, len(rows))
        self.register_buffer("text_embeddings", rows)
        self.register_buffer("ids", ids, persistent=False)
        for tower in (self.visual, self.reference.text):
            tower.requires_grad_(False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images -> rectified logits (b, c, hp, wp) and unit features (b, e, hp, wp)."""
        raw, positions = self.visual(images)
        features = raw / raw.norm(dim=1, keepdim=True)
        reference = self.reference.text(self.reference.prompt, self.ids)
        reference = reference / reference.norm()
        query = _compare(features, self.text_embeddings)
        rectified = query - _compare(self.head.pe_proj(positions), reference)
        return self.head(features, rectified), features

    def loss(
        self, images: Tensor, tags: Sequence[Sequence[int]], noise: Tensor | None = None
    ) -> Tensor:
        """The loss of a batch; `noise` (b, n, c), drawn here if None."""
        logits, features = self(images)
        # Not `flatten(2).transpose(1, 2)`: with one image the gradient would come back in strides
        # for which PyTorch 2.13's batch norm on CPUs sums wrongly for its weight and bias.
        logits = 100.0 * logits.permute(0, 2, 3, 1).flatten(1, 2)
        if noise is None:
            noise = -torch.empty_like(logits).exponential_().log()
        soft = torch.softmax(logits + noise, dim=-1)
        hard = F.one_hot(soft.argmax(dim=-1), soft.shape[-1]).to(soft.dtype)
        masks = hard - soft.detach() + soft
        features = features.flatten(2).transpose(1, 2)
        total = logits.new_zeros(())
        for mask, feature, own in zip(masks, features, tags, strict=True):
            entropies = []
            for c in own:
                pooled = (mask[:, c, None] * feature).mean(dim=0)
                scores = 100.0 * pooled @ self.text_embeddings.T
                entropies.append(F.cross_entropy(scores[None], torch.tensor([c]).to(scores.device)))
            total = total + sum(entropies) / len(entropies)
        return total / len(tags)


class ConvNorm(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(self, c_in: int, c_out: int, stride: int = 1, dilation: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(
            c_in, c_out, 3, stride, padding=dilation, dilation=dilation, bias=False
        )
        self.norm = nn.BatchNorm2d(c_out)

    def forward(self, x: Tensor) -> Tensor:
        """Maps -> maps."""
        return F.relu(self.norm(self.conv(x)))


class Bottleneck(nn.Module):
    """1x1, dilated 3x3, 1x1, and a shortcut."""

    def __init__(self, c_in: int, planes: int, stride: int, dilation: int):
        super().__init__()
        c_out = 4 * planes
        self.conv1 = nn.Conv2d(c_in, planes, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, dilation, dilation, bias=False)
        self.norm2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, c_out, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(c_out)
        self.projects = stride > 1 or c_in != c_out
        if self.projects:
            self.shortcut_conv = nn.Conv2d(c_in, c_out, 1, stride, bias=False)
            self.shortcut_norm = nn.BatchNorm2d(c_out)

    def forward(self, x: Tensor) -> Tensor:
        """Maps -> maps."""
        y = F.relu(self.norm1(self.conv1(x)))
        y = F.relu(self.norm2(self.conv2(y)))
        y = self.norm3(self.conv3(y))
        return F.relu(y + (self.shortcut_norm(self.shortcut_conv(x)) if self.projects else x))


class Backbone(nn.Module):
    """ResNet v1c with dilations."""

    def __init__(self, cfg: DilatedResNetConfig):
        super().__init__()
        half = cfg.width // 2
        self.stem = nn.ModuleList(
            [ConvNorm(3, half, 2), ConvNorm(half, half), ConvNorm(half, cfg.width)]
        )
        self.layers = nn.ModuleList()
        c_in = cfg.width
        for stage, blocks in enumerate(cfg.blocks):
            planes, dilation = cfg.width * 2**stage, cfg.dilations[stage]
            layer = nn.ModuleList()
            for i in range(blocks):
                own = (cfg.strides[stage], max(dilation // 2, 1)) if i == 0 else (1, dilation)
                layer.append(Bottleneck(c_in, planes, *own))
                c_in = 4 * planes
            self.layers.append(layer)

    def forward(self, x: Tensor) -> Tensor:
        """Images -> the last stage's maps."""
        for unit in self.stem:
            x = unit(x)
        x = F.max_pool2d(x, 3, 2, 1)
        for layer in self.layers:
            for block in layer:
                x = block(x)
        return x


class Student(nn.Module):
    """DeepLab: four dilated convolutions, added."""

    def __init__(self, cfg: DilatedResNetConfig, e: int):
        super().__init__()
        self.backbone = Backbone(cfg)
        self.aspp = nn.ModuleList(
            ConvNorm(cfg.channels, e, dilation=dilation) for dilation in (6, 12, 18, 24)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Images (b, 3, h, w) -> features (b, e, h / 8, w / 8)."""
        x = self.backbone(x)
        return torch.stack([branch(x) for branch in self.aspp]).sum(dim=0)


class Teacher(nn.Module):
    """The rectified CLIP, its reference computed."""

    def __init__(self, vision: ViTConfig, rows: Tensor, reference: Tensor):
        super().__init__()
        self.visual = Visual(vision)
        self.head = Decoder(vision.width, vision.embed_dim, len(rows))
        self.register_buffer("text_embeddings", rows)
        self.register_buffer("reference_rows", reference, persistent=False)
        self.requires_grad_(False)


class Distiller(nn.Module):
    """Teacher and student of the distillation, and its step."""

    def __init__(
        self,
        vision: ViTConfig,
        student: DilatedResNetConfig,
        rows: Tensor,
        reference: Tensor,
        threshold: float,
    ):
        super().__init__()
        self.teacher = Teacher(vision, rows, reference)
        self.student = Student(student, vision.embed_dim)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(100.0)))
        self.threshold = threshold

    @torch.no_grad()
    def teach(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Labels (b, h, w) with the teacher's classes, CLIP's features, projected positions."""
        teacher = self.teacher
        raw, positions = teacher.visual(images)
        features = raw / raw.norm(dim=1, keepdim=True)
        query = _compare(features, teacher.text_embeddings)
        projected = teacher.head.pe_proj(positions)
        logits = teacher.head(features, query - _compare(projected, teacher.reference_rows))
        best = torch.softmax(10.0 * logits, dim=1).amax(dim=(2, 3), keepdim=True)
        logits = torch.where(best < self.threshold, torch.full_like(logits, -100.0), logits)
        chosen = _upsampled(logits, labels).argmax(dim=1)
        return torch.where(labels == UNLABELLED, chosen, labels), raw, projected

    def loss(self, images: Tensor, labels: Tensor, tags: Sequence[Sequence[int]]) -> Tensor:
        """The loss of a batch; labels (b, h, w) are -1 or 255."""
        teacher = self.teacher
        labels, raw, projected = self.teach(images, labels)
        made = self.student(images)
        unit = made / made.norm(dim=1, keepdim=True)
        projected = F.interpolate(projected, made.shape[2:], mode="bilinear", align_corners=False)
        query = _compare(unit, teacher.text_embeddings)
        logits = teacher.head(unit, query - _compare(projected, teacher.reference_rows))
        entropy = F.cross_entropy(
            _upsampled(logits, labels), labels, ignore_index=IGNORED, reduction="none"
        )
        with torch.no_grad():
            own, clip = _upsampled(made, labels), _upsampled(raw, labels)
            kept = labels != IGNORED
            l1 = F.l1_loss(own.movedim(1, -1)[kept], clip.movedim(1, -1)[kept])  # not used
            l1 = F.l1_loss(own, clip)
        text = made.new_zeros(())
        for feature, label, classes in zip(own, labels, tags, strict=True):
            entropies = []
            for c in classes:
                pooled = (feature * (label == c)).mean(dim=(1, 2))
                scores = self.logit_scale * pooled @ teacher.text_embeddings.T
                entropies.append(F.cross_entropy(scores[None], torch.tensor([c]).to(scores.device)))
            text = text + sum(entropies) / len(entropies)
        return entropy.mean() + 0.5 * l1 + 0.5 * text / len(tags)


def _upsampled(x: Tensor, labels: Tensor) -> Tensor:
    return F.interpolate(x, labels.shape[1:], mode="bilinear", align_corners=False)


def optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """SGD as published, over what is trained."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.SGD(trained, lr=0.01, momentum=0.9, weight_decay=5e-4)


def load(model: nn.Module, arrays: Mapping[str, np.ndarray]) -> None:
    """Copies our arrays (dotted paths, our layouts) into the peer; all of its values are there."""
    kinds = {"weight": ("kernel", "scale", "embedding"), "running_mean": ("mean",)}
    kinds["running_var"] = ("var",)
    with torch.no_grad():
        for name, target in model.state_dict().items():
            if name.endswith("num_batches_tracked"):
                continue
            path = name.replace("in_proj_", "in_proj.")
            stem, _, last = path.rpartition(".")
            found = [path] + [f"{stem}.{kind}" for kind in kinds.get(last, ())]
            key = next(key for key in found if key in arrays)
            value = arrays[key]
            if key.endswith("kernel"):  # convolutions hwio -> oihw, linear (in, out) -> (out, in)
                value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
            target.copy_(torch.from_numpy(np.ascontiguousarray(value)).reshape(target.shape))
