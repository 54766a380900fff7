"""The other methods by brute force, on dense matrices; each from its paper's formula, and shared with nothing."""

import torch

JOINED = ("np", "average", "ties")  # which act the same at every call, with one matrix a layer
BLOCKS = {"C": ("up_blocks_0_attentions_0_", "output_blocks_0_1_"), "S": ("up_blocks_0_attentions_1_", "output_blocks_1_1_")}


def energy(delta):
    return float(delta.double().square().sum())


def project(content, style, mu):
    """content without a part of what it does in the row space of style, all of it for a huge mu"""
    wide = style.double()
    tall = wide.shape[0] > wide.shape[1]
    squares, vectors = torch.linalg.eigh(wide.T @ wide if tall else wide @ wide.T)
    vectors = vectors[:, squares > 1e-12 * squares.max()]
    rows = (vectors if tall else torch.linalg.qr(wide.T @ vectors)[0]).T
    return (content.double() - mu / (1 + mu) * content.double() @ rows.T @ rows).float()


def trim(delta, density):
    flat = delta.flatten().double()
    n = round(density * flat.numel())
    if n == flat.numel():
        return flat
    kept = flat.abs().topk(n).indices
    return torch.zeros_like(flat).index_copy_(0, kept, flat[kept])


def ties(content, style, density):
    """largest elements of each, the sign of their sum, the mean of those that have it"""
    one, two = trim(content, density), trim(style, density)
    sign = torch.sign(one + two)
    agree = torch.stack([one * sign > 0, two * sign > 0])
    total = torch.where(agree, torch.stack([one, two]), 0.0).sum(0)
    return (total / agree.sum(0).clamp(min=1)).float().reshape(content.shape)


def blora(name):
    """which LoRA a layer of SDXL has, by either of its two spellings in kohya's files"""
    return "".join(role for role, blocks in BLOCKS.items() if any(block in name for block in blocks)) or "N"
