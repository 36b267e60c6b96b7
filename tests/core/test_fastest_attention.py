"""Which kernel attends: an installed FlashAttention where it is faster, PyTorch's elsewhere. The package itself needs a
Hopper GPU, on which it was compared (docs/performance.md); here a function takes its place."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pab_core.acceleration import attention
from pab_core.acceleration.attention import LEAST_FLASH_TOKENS, attend, flash_attention

GPU = torch.device("cuda")


def rows(tokens: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(1, tokens, 2, 8, generator=torch.Generator().manual_seed(tokens)).to(dtype)


def by_pytorch(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.as_subclass(Tensor).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


class Hopper(Tensor):
    """A tensor on the CPU that says it is on a GPU."""

    @property
    def is_cuda(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return True


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of the queries that a FlashAttention was given."""
    shapes: list[tuple[int, ...]] = []

    def flash(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        shapes.append(tuple(q.shape))
        return by_pytorch(q, k, v)

    monkeypatch.setattr(attention, "flash_attention", lambda device: flash)
    return shapes


@pytest.mark.parametrize(
    ("queries", "keys", "dtype", "masked", "by_flash"),
    [
        (LEAST_FLASH_TOKENS, LEAST_FLASH_TOKENS, torch.bfloat16, False, True),
        (LEAST_FLASH_TOKENS - 1, LEAST_FLASH_TOKENS - 1, torch.bfloat16, False, False),
        (LEAST_FLASH_TOKENS, 30, torch.bfloat16, False, False),
        (LEAST_FLASH_TOKENS, LEAST_FLASH_TOKENS, torch.float32, False, False),
        (LEAST_FLASH_TOKENS, LEAST_FLASH_TOKENS, torch.bfloat16, True, False),
    ],
)
def test_long_self_attention_is_flashs(
    queries: int, keys: int, dtype: torch.dtype, masked: bool, by_flash: bool, asked: list[tuple[int, ...]]
):
    q, k, v = (rows(n, dtype).as_subclass(Hopper) for n in (queries, keys, keys))
    bias = torch.zeros(1, 1, 1, keys, dtype=dtype) if masked else None
    out = attend(q, k, v, bias)
    assert out.shape == (1, queries, 16)
    assert len(asked) == by_flash
    plain = by_pytorch(q.float(), k.float(), v.float()).flatten(2)
    assert torch.allclose(out.as_subclass(Tensor).float(), plain, atol=2e-2)


class TestWhatIsInstalled:
    @pytest.fixture(autouse=True)
    def hopper(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        zeros = torch.zeros
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
        monkeypatch.setattr(torch, "zeros", lambda *size, **_: zeros(*size))
        flash_attention.cache_clear()
        yield
        flash_attention.cache_clear()

    def install(self, monkeypatch: pytest.MonkeyPatch, function: Any) -> None:
        cute: Any = ModuleType("flash_attn.cute")
        cute.flash_attn_func = function
        monkeypatch.setitem(sys.modules, "flash_attn", ModuleType("flash_attn"))
        monkeypatch.setitem(sys.modules, "flash_attn.cute", cute)

    def test_nothing(self):
        assert flash_attention(GPU) is None

    @pytest.mark.parametrize("more", [False, True])
    def test_flash_attention(self, more: bool, monkeypatch: pytest.MonkeyPatch):
        """Versions differ in whether they give the sums of the scores, too."""
        self.install(monkeypatch, lambda q, k, v: (q + v, None) if more else q + v)
        flash = flash_attention(GPU)
        assert flash is not None
        assert torch.equal(flash(torch.ones(2), torch.ones(2), torch.ones(2)), torch.full((2,), 2.0))

    def test_another_gpu(self, monkeypatch: pytest.MonkeyPatch):
        self.install(monkeypatch, lambda q, k, v: q)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
        assert flash_attention(GPU) is None

    def test_what_does_not_run_is_told_once(self, monkeypatch: pytest.MonkeyPatch, recwarn: Any):
        def fail(*_: Any) -> None:
            raise RuntimeError("no such op\nat line 7")

        self.install(monkeypatch, fail)
        assert flash_attention(GPU) is None
        assert flash_attention(GPU) is None
        (said,) = [str(warning.message) for warning in recwarn]
        assert said == "FlashAttention is installed and does not run (no such op): PyTorch's attention is used."
