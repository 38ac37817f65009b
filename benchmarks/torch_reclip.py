"""The peer of `reclip_step`: ReCLIP++'s two training steps as published, in plain PyTorch.

Written from the description of what the published programs compute, step by step, with their
costs: every class's prompt of 77 tokens through the text tower at each step, all of the last image
block, averaged attention maps, Python loops over images and classes, feature maps at full size.
Where the description is ambiguous, the cheaper variant is used. Pauses between steps and data
loading are omitted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.torch_clip import PROMPT, Text, Visual
from benchmarks.torch_deeplab import Student
from clipseg_jax.models.clip import TextConfig, ViTConfig
from clipseg_jax.models.resnet import DilatedResNetConfig

IGNORED, UNLABELLED = 255, -1


class Reference(nn.Module):
    """The text tower and the learned prompt."""

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
    """Features (b, e, h, w) and embeddings (c, e) -> (b, c, h, w)."""
    return F.conv2d(features, rows[:, :, None, None])


class Rectifier(nn.Module):
    """Rectification: model and loss."""

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
        for mask, feature, classes in zip(masks, features, tags, strict=True):
            entropies = []
            for c in classes:
                pooled = (mask[:, c, None] * feature).mean(dim=0)
                scores = 100.0 * pooled @ self.text_embeddings.T
                entropies.append(F.cross_entropy(scores[None], torch.tensor([c]).to(scores.device)))
            total = total + sum(entropies) / len(entropies)
        return total / len(tags)


class Teacher(nn.Module):
    """The rectified CLIP with a precomputed reference."""

    def __init__(self, vision: ViTConfig, rows: Tensor, reference: Tensor):
        super().__init__()
        self.visual = Visual(vision)
        self.head = Decoder(vision.width, vision.embed_dim, len(rows))
        self.register_buffer("text_embeddings", rows)
        self.register_buffer("reference_rows", reference, persistent=False)
        self.requires_grad_(False)


class Distiller(nn.Module):
    """Distillation: teacher, student and loss."""

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
        """Labels (b, h, w) by the teacher, CLIP's features, projected positions."""
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
        features = self.student(images)
        unit = features / features.norm(dim=1, keepdim=True)
        projected = F.interpolate(
            projected, features.shape[2:], mode="bilinear", align_corners=False
        )
        query = _compare(unit, teacher.text_embeddings)
        logits = teacher.head(unit, query - _compare(projected, teacher.reference_rows))
        entropy = F.cross_entropy(
            _upsampled(logits, labels), labels, ignore_index=IGNORED, reduction="none"
        )
        with torch.no_grad():
            upsampled, clip = _upsampled(features, labels), _upsampled(raw, labels)
            kept = labels != IGNORED
            l1 = F.l1_loss(upsampled.movedim(1, -1)[kept], clip.movedim(1, -1)[kept])  # not used
            l1 = F.l1_loss(upsampled, clip)
        text = features.new_zeros(())
        for feature, label, classes in zip(upsampled, labels, tags, strict=True):
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
    """SGD as published, over the trainable parameters."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.SGD(trained, lr=0.01, momentum=0.9, weight_decay=5e-4)
