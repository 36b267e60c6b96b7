"""A module of 0.7 million weights to load: large and small layers, inside and outside of repeated blocks, a buffer."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.wide = nn.Linear(width, 2 * width)
        self.back = nn.Linear(2 * width, width, bias=False)
        self.gate = nn.Linear(width, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.back(torch.relu(self.wide(x))) * self.gate(x).mean(-1, keepdim=True)


class Net(nn.Module):
    def __init__(self, width: int = 256, depth: int = 2):
        super().__init__()
        self.first = nn.Linear(width, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.last = nn.Linear(width, 4)
        self.register_buffer("steps", torch.arange(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.last(x)


def empty_net(width: int = 256) -> Net:
    """On the meta device, as a module waits for its weights."""
    with torch.device("meta"):
        return Net(width)


def filled_net() -> Net:
    """With random weights, the same each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net()
