"""What the transformers of Latte's and Open-Sora-Plan's kind learn: the noise in latents, guided by the text.

The text encoder is the first demo model's and stays as it is. A tenth of the captions is replaced by the empty negative
prompt as `text.TextEncoder.encode_pair` makes it, so that sampling finds what training knew.
"""

from collections.abc import Iterable
from functools import cache

import torch
from torch import Tensor, nn

from ..models.latte import LatteT2V
from ..models.layers import compute
from ..models.open_sora_plan import OpenSoraPlanT2V
from ..models.registry import ARCHITECTURES
from .families import FIRST_BETA, LAST_BETA, TRAIN_STEPS, Family
from .train_dit import plain_math_in_time

NoiseModel = LatteT2V | OpenSoraPlanT2V
END_TOKEN = 1
MOST_SIGMA = 5.0


class FrozenText:
    """Captions -> text states as the transformer takes them."""

    def __init__(self, encoder: nn.Module):
        self.encoder = encoder.eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, tokens: Tensor, dropped: Tensor) -> tuple[Tensor, Tensor]:
        """tokens [B, L] (0 = padding), dropped [B] bool -> states [B, L, D], mask [B, L].

        Where a caption is dropped, the states are those of the empty prompt and what the encoder makes of padding; the
        mask stays the caption's.
        """
        empty = torch.zeros_like(tokens)
        empty[:, 0] = END_TOKEN
        read = torch.where(dropped[:, None], empty, tokens)
        states = self.encoder(input_ids=read, attention_mask=(read != 0).long()).last_hidden_state
        return states, tokens != 0


class NoiseObjective:
    """Predicting the noise, at the released models' noise levels.

    The error is weighted as rectified flow weights it, by (1 + sigma)^2 where sigma is noise over signal: plain noise
    prediction hardly looks at the high noise in which layout and motion are decided. Beyond MOST_SIGMA the weight no
    longer grows, or rounding errors of the network, which has to repeat its input there, would be all that it sees.
    """

    def __init__(self, family: Family, text: FrozenText, device: torch.device, dropped: float = 0.1):
        self.family, self.text, self.dropped = family, text, dropped
        betas = torch.linspace(FIRST_BETA, LAST_BETA, TRAIN_STEPS, dtype=torch.float64)
        self.signal = torch.cumprod(1 - betas, 0).float().to(device)  # the clean latents' share of the variance
        self.sigma = ((1 - self.signal) / self.signal).sqrt()

    def build(self) -> NoiseModel:
        architecture = ARCHITECTURES[self.family.name]
        model = architecture.build(architecture.read_config(self.family.transformer))
        assert isinstance(model, NoiseModel)
        init_weights(model)
        # Positions never change, and they are worked out on the CPU, for which every step would wait.
        model.pos_embed.positions = cache(model.pos_embed.positions)
        model.frame_positions = cache(model.frame_positions)
        return model

    def blocks(self, model: NoiseModel) -> Iterable[nn.Module]:
        return *model.transformer_blocks, *model.temporal_transformer_blocks

    def times(self, count: int, device: torch.device) -> Tensor:
        """Half of them even, as sampling uses them, half around equal shares of noise and signal."""
        middle = torch.searchsorted(self.sigma, torch.randn(count, device=device).exp()).clamp(max=TRAIN_STEPS - 1)
        return torch.where(torch.rand(count, device=device) < 0.5, self.even_times(count, device), middle)

    def even_times(self, count: int, device: torch.device) -> Tensor:
        return torch.randint(TRAIN_STEPS, (count,), device=device)

    def loss(self, model: NoiseModel, z: Tensor, tokens: Tensor, t: Tensor, math_temporal: bool = False) -> Tensor:
        dropped = torch.rand(len(z), device=z.device) < (self.dropped if model.training else 0.0)
        states, mask = self.text(tokens, dropped)
        noise = torch.randn_like(z)
        signal = self.signal[t].view(-1, 1, 1, 1, 1)
        x = signal.sqrt() * z + (1 - signal).sqrt() * noise
        predicted = model(x, t, states, mask, seam=plain_math_in_time if math_temporal else compute)
        error = (predicted - noise).square().mean(dim=(1, 2, 3, 4))
        return ((1 + self.sigma[t].clamp(max=MOST_SIGMA)) ** 2 * error).mean()


def init_weights(model: NoiseModel) -> None:
    """For training from nothing: the text does not matter yet, and nothing is predicted."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    nn.init.xavier_uniform_(model.pos_embed.proj.weight.view(len(model.pos_embed.proj.weight), -1))
    embedder = model.adaln_single.emb["timestep_embedder"]
    linears = [*(m for m in embedder.modules() if isinstance(m, nn.Linear)), model.adaln_single.linear]
    linears += [m for m in model.caption_projection.modules() if isinstance(m, nn.Linear)]
    for linear in linears:
        nn.init.normal_(linear.weight, std=0.02)
    for block in model.transformer_blocks:
        nn.init.zeros_(block.get_submodule("attn2.to_out.0").get_parameter("weight"))
    nn.init.zeros_(model.proj_out.weight)
