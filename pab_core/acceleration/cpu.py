"""bfloat16 on processors that multiply it, for models that compute in float32 otherwise."""

from __future__ import annotations

import torch


def why_not() -> str | None:
    """What stands against it on this machine, in a sentence; None: nothing does."""
    known = [getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "amx_tile")]
    if any(has is not None and has() for has in known):
        return None
    return "Faster runs on a CPU need one that multiplies bfloat16 (AVX-512 BF16 or AMX)."
