"""A denoiser of a few hundred numbers with the compvis layout, and a text encoder of one layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

WIDTH, CONTEXT, LATENT = 8, 6, 4


class Attention(nn.Module):
    def __init__(self, context: int):
        super().__init__()
        self.to_q = nn.Linear(WIDTH, WIDTH, bias=False)
        self.to_k = nn.Linear(context, WIDTH, bias=False)
        self.to_v = nn.Linear(context, WIDTH, bias=False)
        self.to_out = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Identity())

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        seen = (self.to_q(x) @ self.to_k(context).mT).softmax(-1)
        return self.to_out(seen @ self.to_v(context))


class Gate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(WIDTH, 4 * WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, -1)
        return value * gate.sigmoid()


class FeedForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(Gate(), nn.Identity(), nn.Linear(2 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Block(nn.Module):
    def __init__(self, context: int) -> None:
        super().__init__()
        self.attn1, self.attn2, self.ff = Attention(WIDTH), Attention(context), FeedForward()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(WIDTH) for _ in range(3))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attn1(y, y)
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class Spatial(nn.Module):
    def __init__(self, context: int, depth: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(2, WIDTH)
        self.proj_in = nn.Conv2d(WIDTH, WIDTH, 1)
        self.transformer_blocks = nn.ModuleList(Block(context) for _ in range(depth))
        self.proj_out = nn.Conv2d(WIDTH, WIDTH, 1)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        tokens = self.proj_in(self.norm(x)).flatten(2).mT
        for block in self.transformer_blocks:
            tokens = block(tokens, context)
        return x + self.proj_out(tokens.mT.reshape(x.shape))


class Res(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(nn.GroupNorm(2, WIDTH), nn.SiLU(), nn.Conv2d(WIDTH, WIDTH, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.in_layers(x)


class UNet(nn.Module):
    """SD1.5's names: input_blocks.1.1, middle_block.1 and output_blocks.3.1 attend."""

    def __init__(self, context: int = CONTEXT, depth: int = 1, seed: int = 0):
        super().__init__()
        self.input_blocks = nn.ModuleList(
            [nn.Sequential(nn.Conv2d(LATENT, WIDTH, 3, padding=1)), nn.ModuleList([Res(), Spatial(context, depth)])]
        )
        self.middle_block = nn.ModuleList([Res(), Spatial(context, depth)])
        self.output_blocks = nn.ModuleList(
            [*(nn.ModuleList() for _ in range(3)), nn.ModuleList([Res(), Spatial(context, depth)])]
        )
        self.out = nn.Sequential(nn.GroupNorm(2, WIDTH), nn.SiLU(), nn.Conv2d(WIDTH, LATENT, 3, padding=1))
        randomise(self, seed)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        x = self.input_blocks[0](x)
        for res, attention in (self.input_blocks[1], self.middle_block, self.output_blocks[3]):
            x = attention(res(x), context)
        return self.out(x)


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj = nn.Linear(CONTEXT, CONTEXT)


class TextEncoder(nn.Module):
    """Names as in SD1.5: transformer.text_model.encoder.layers.0.self_attn.q_proj."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        layer = nn.ModuleDict({"self_attn": SelfAttention()})
        encoder = nn.ModuleDict({"layers": nn.ModuleList([layer])})
        self.transformer = nn.ModuleDict({"text_model": nn.ModuleDict({"encoder": encoder})})
        randomise(self, seed)

    @property
    def q_proj(self) -> nn.Linear:
        return self.transformer["text_model"]["encoder"]["layers"][0]["self_attn"].q_proj  # type: ignore[index, return-value]

    def forward(self, text: str) -> Tensor:
        """[1, 3, CONTEXT], of the prompt's own making."""
        g = torch.Generator().manual_seed(sum(text.encode()))
        return self.q_proj(torch.randn(1, 3, CONTEXT, generator=g))


def randomise(module: nn.Module, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=g) * 0.4)
        for p in module.parameters():
            p.view(-1)[0] = -0.0  # a sign that a careless restore loses
            p.requires_grad_(False)
