"""What both trainings share: Muon, averaging of weights, learning rate over time."""

import copy
import math
from collections.abc import Callable
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


class BatchedMuon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) for matrices and convolutions, orthogonalising all weights of one shape at once.

    torch.optim.Muon takes matrices only, one by one: at this size its thousands of small kernels cost as much as a
    third of the step. The update is scaled to the size of AdamW's, so learning rates carry over (arXiv 2502.16982).
    Convolution weights count as [out, in x kernel]; on the video autoencoder it reaches in 300 steps what AdamW needs
    thousands for.
    """

    def __init__(self, weights: list[nn.Parameter], lr: float, weight_decay: float = 0.0, momentum: float = 0.95):
        shapes: dict[tuple[int, ...], list[nn.Parameter]] = {}
        for weight in weights:
            shapes.setdefault(tuple(weight.flatten(1).shape), []).append(weight)
        groups = [{"params": group} for group in shapes.values()]
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            weights, lr = group["params"], group["lr"]
            gradient = torch.stack([weight.grad.flatten(1) for weight in weights])
            state = self.state[weights[0]]
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(gradient)
            state["momentum"].lerp_(gradient, 1 - group["momentum"])
            update = orthogonalise(gradient.lerp(state["momentum"], group["momentum"]))
            update *= -lr * 0.2 * max(update.shape[1:]) ** 0.5
            if group["weight_decay"]:
                torch._foreach_mul_([w.detach() for w in weights], 1 - lr * group["weight_decay"])  # pyright: ignore[reportPrivateImportUsage]
            for weight, change in zip(weights, update, strict=True):
                weight.add_(change.view(weight.shape))


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """The nearest (semi-)orthogonal matrices, roughly, by Newton-Schulz iteration: [N, R, C] -> float32 [N, R, C]."""
    x = matrices.bfloat16() if matrices.is_cuda else matrices
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return (x.mT if tall else x).float()


def make_optimisers(
    module: nn.Module, muon_rate: float, adamw_rate: float, takes_muon: Callable[[str], bool] = lambda name: True
) -> list[torch.optim.Optimizer]:
    """Muon for the weights inside, AdamW for biases, norms, and the thin layers at the ends.

    takes_muon: by a parameter's name, which weights may go to Muon.
    """
    muon, rest = [], []
    for name, p in module.named_parameters():
        if p.requires_grad:
            inside = p.ndim >= 2 and min(p.flatten(1).shape) >= 8 and takes_muon(name)
            (muon if inside else rest).append(p)
    fused = rest[0].is_cuda
    optimisers = [
        BatchedMuon(muon, muon_rate, weight_decay=0.01),
        torch.optim.AdamW(rest, lr=adamw_rate, betas=(0.9, 0.97), weight_decay=0.0, fused=fused),
    ]
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["full_rate"] = group["lr"]
    return optimisers


def step_all(optimisers: list[torch.optim.Optimizer], module: nn.Module, rate: float) -> None:
    """Clips the gradients, steps every optimiser at `rate` times its full learning rate, drops the gradients."""
    nn.utils.clip_grad_norm_([p for p in module.parameters() if p.grad is not None], 1.0)
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["lr"] = group["full_rate"] * rate
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)


def cosine_rate(done: float, warm_up: float = 0.03, floor: float = 0.02) -> float:
    """Learning-rate factor for the share of the time that is over, 0..1."""
    if done < warm_up:
        return done / warm_up + 1e-3
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min((done - warm_up) / (1 - warm_up), 1.0)))


class Average(Generic[M]):
    """Exponential moving average of a module's parameters."""

    def __init__(self, module: M, decay: float):
        self.module: M = copy.deepcopy(module).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        mine = [p.detach() for p in self.module.parameters()]
        torch._foreach_lerp_(mine, [p.detach() for p in module.parameters()], 1 - decay)  # pyright: ignore[reportPrivateImportUsage]


class WorkingCopy(Generic[M]):
    """A copy in a short format that runs forward and backward; the float32 original is what the optimisers change."""

    def __init__(self, original: M, dtype: torch.dtype):
        self.module: M = copy.deepcopy(original).to(dtype)
        self._original = [p for p in original.parameters() if p.requires_grad]
        self._copies = [p for p in self.module.parameters() if p.requires_grad]

    def hand_over_gradients(self) -> None:
        for mine, copied in zip(self._original, self._copies, strict=True):
            mine.grad = None if copied.grad is None else copied.grad.to(mine.dtype)
            copied.grad = None

    @torch.no_grad()
    def refresh(self) -> None:
        torch._foreach_copy_([p.detach() for p in self._copies], [p.detach() for p in self._original])  # pyright: ignore[reportPrivateImportUsage]
