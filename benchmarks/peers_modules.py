"""Torch modules of the networks that Torch-Pruning is run on, with what `peers_torch.py` has to know of them.

`linear` makes the scores, `convolutions` are in the order of the file's, `streams` write to residual streams.
"""

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional

_DEEP, _DEEP_BLOCKS = 53, (3, 4, 6, 3)  # convolutions of ResNet-50, and blocks of its stages


class Block(nn.Module):
    """Two 3×3 convolutions and a shortcut that is sliced and padded where the size changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.pad = stride, (outputs - inputs) // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, inputs, H, W) → (N, outputs, H / stride, W / stride)."""
        y = functional.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        shortcut = x if self.stride == 1 else functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))
        return functional.relu(y + shortcut)


class CifarResNet(nn.Module):
    """ResNet-(6n+2) for 32×32 images: n blocks each of 16, 32 and 64 channels."""

    def __init__(self, blocks: int, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1)
        self.bn1 = nn.BatchNorm2d(16)
        widths = [16, *(width for width in (16, 32, 64) for _ in range(blocks))]
        pairs = pairwise(widths)
        self.blocks = nn.Sequential(*(Block(a, b, 1 if a == b else 2) for a, b in pairs))
        self.linear = nn.Linear(64, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 3, 32, 32) → scores (N, classes)."""
        x = self.blocks(functional.relu(self.bn1(self.conv1(x))))
        return self.linear(torch.flatten(functional.avg_pool2d(x, 8), 1))

    def convolutions(self) -> list[nn.Conv2d]:
        """In the order they run."""
        return [conv for conv, _ in self.pairs()]

    def pairs(self) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
        """Every convolution with its BatchNorm."""
        inner = [pair for b in self.blocks for pair in ((b.conv1, b.bn1), (b.conv2, b.bn2))]
        return [(self.conv1, self.bn1), *inner]

    def streams(self) -> list[nn.Module]:
        """Layers whose outputs are added into a residual stream."""
        return [self.conv1, *(block.conv2 for block in self.blocks)]


class Bottleneck(nn.Module):
    """1×1, 3×3 (which strides) and 1×1 convolutions, and a shortcut: a convolution in a stage's first block."""

    def __init__(self, inputs: int, width: int, stride: int, *, first: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1)
        self.conv3 = nn.Conv2d(width, 4 * width, 1)
        self.short = nn.Conv2d(inputs, 4 * width, 1, stride) if first else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, inputs, H, W) → (N, 4 × width, H / stride, W / stride)."""
        y = functional.relu(self.conv2(functional.relu(self.conv1(x))))
        return functional.relu(self.conv3(y) + self.short(x))

    def convolutions(self) -> list[nn.Conv2d]:
        """In the order they run."""
        short = [self.short] if isinstance(self.short, nn.Conv2d) else []
        return [self.conv1, self.conv2, self.conv3, *short]


class ResNet50(nn.Module):
    """ResNet-50 with BatchNorm folded into the convolutions."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3)
        blocks, channels = list[nn.Module](), 64
        for stage, count in enumerate(_DEEP_BLOCKS):
            width = 64 << stage
            for block in range(count):
                blocks.append(Bottleneck(channels, width, 2 if stage and not block else 1, first=not block))
                channels = 4 * width
        self.blocks = nn.Sequential(*blocks)
        self.linear = nn.Linear(channels, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) → scores (N, classes)."""
        x = functional.max_pool2d(functional.relu(self.conv1(x)), 3, 2, 1)
        return self.linear(torch.flatten(functional.adaptive_avg_pool2d(self.blocks(x), 1), 1))

    def convolutions(self) -> list[nn.Conv2d]:
        """In the order they run."""
        return [self.conv1, *(conv for block in self.blocks for conv in block.convolutions())]

    def pairs(self) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
        """None: there is no BatchNorm."""
        return []

    def streams(self) -> list[nn.Module]:
        """Layers whose outputs are added into a residual stream."""
        return [conv for block in self.blocks for conv in block.convolutions()[2:]]


Network = CifarResNet | ResNet50


def module_for(convolutions: int, pads: int, dense: int, classes: int) -> Network | None:
    """The module for a graph with so many nodes of these kinds, as yet without its weights; None if there is none."""
    if dense != 1:
        return None
    if pads == 2 and convolutions % 6 == 1:
        return CifarResNet(convolutions // 6, classes)
    return ResNet50(classes) if not pads and convolutions == _DEEP else None
