"""The peers' student: DeepLab on a dilated ResNet v1c, in plain PyTorch.

Module names are ours, so that `torch_vit.load` fits.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipseg_jax.models.resnet import DilatedResNetConfig


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
                stride_dilation = (
                    (cfg.strides[stage], max(dilation // 2, 1)) if i == 0 else (1, dilation)
                )
                layer.append(Bottleneck(c_in, planes, *stride_dilation))
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
