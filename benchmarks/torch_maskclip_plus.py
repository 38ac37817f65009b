"""The peer of `maskclip_plus_step`: MaskCLIP+'s training step as published, in plain PyTorch.

Written from the description of what the published program computes, with its costs: all scores at
full size, and the guide's last block in addition to the path whose output is used.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.torch_clip import Visual
from benchmarks.torch_deeplab import Student
from benchmarks.torch_reclip import IGNORED, UNLABELLED
from clipseg_jax.models.clip import ViTConfig
from clipseg_jax.models.resnet import DilatedResNetConfig


class MaskCLIPPlus(nn.Module):
    """Student, guide and loss; names equal ours, as `torch_vit.load` requires."""

    def __init__(
        self, vision: ViTConfig, student: DilatedResNetConfig, rows: Tensor, candidates: list[int]
    ):
        super().__init__()
        self.student = Student(student, vision.embed_dim)
        self.teacher = Visual(vision)
        self.teacher.requires_grad_(False)
        self.register_buffer("text_embeddings", rows)
        self.register_buffer("candidates", torch.tensor(candidates), persistent=False)

    @torch.no_grad()
    def pseudo_labels(
        self, images: Tensor, features: Tensor, labels: Tensor, guided: bool
    ) -> Tensor:
        """Labels (b, h, w) with -1 replaced by the prediction of the guide or the student."""
        rows = self.text_embeddings[self.candidates]
        if guided:
            features, _ = self.teacher(images)
            features = features / features.norm(dim=1, keepdim=True)
        scores = F.conv2d(features, rows[:, :, None, None])
        scores = F.interpolate(scores, labels.shape[1:], mode="bilinear", align_corners=False)
        chosen = self.candidates[scores.argmax(dim=1)]
        return torch.where(labels == UNLABELLED, chosen, labels)

    def loss(self, images: Tensor, labels: Tensor, guided: bool) -> Tensor:
        """The loss of a batch: images (b, 3, h, w), labels (b, h, w) int64."""
        features = self.student(images)
        logits = F.conv2d(features, self.text_embeddings[:, :, None, None])
        labels = self.pseudo_labels(images, features.detach(), labels, guided)
        logits = F.interpolate(logits, labels.shape[1:], mode="bilinear", align_corners=False)
        return F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="none").mean()
