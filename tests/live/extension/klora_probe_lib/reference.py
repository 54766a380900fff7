"""K-LoRA by brute force: read both files, decide every layer at every denoiser call, write every weight, undo it.

Written from the rule alone; it shares no line with the extension and is not meant to be quick.
"""

import functools
import os

import safetensors.torch
import torch
from torch.nn.functional import conv2d, linear

from modules import processing

from . import methods, webui

PLAIN = (torch.float32, torch.float16, torch.bfloat16)
ATTENTION = ("_to_q", "_to_k", "_to_v", "_to_out_0")
DEFAULTS = {
    "alpha": 1.5, "beta": None, "gamma": "auto", "scale": "s", "k": "auto", "layers": "all", "progress": "steps",
    "content_weight": 1.0, "style_weight": 1.0, "method": "klora", "balance": 0.0, "mu": 0.5, "density": 0.2,
    "hires": "same", "hires_balance": 0.0,
}  # fmt: skip
DEFAULT_BETA = {"s": 0.5, "s*": 1.275}


def read_lora(path):
    return read_lora_as_of(path, os.stat(path).st_mtime_ns)


@functools.lru_cache(maxsize=4)
def read_lora_as_of(path, _):
    """kohya name -> (dW as [out, in * kh * kw] in fp32, rank), denoiser layers only"""
    tensors = safetensors.torch.load_file(path)
    out = {}
    for name in sorted({key.split(".")[0] for key in tensors}):
        if not name.startswith("lora_unet_"):
            continue
        down = tensors[name + ".lora_down.weight"].float().flatten(1)  # [rank, in * kh * kw]
        up = tensors[name + ".lora_up.weight"].float().flatten(1)  # [out, rank]
        rank = down.shape[0]
        alpha = float(tensors[name + ".alpha"])
        out[name] = (alpha / rank * (up @ down), rank)
    return out


def largest_sum(delta, k):
    values = delta.flatten().abs()
    return float(values.topk(min(k, values.numel())).values.double().sum())


def absolute_sum(delta):
    return float(delta.abs().sum(dtype=torch.float64))


class Written:
    """One layer with W + dW in its place, for one denoiser call: a quantised weight stays, the forward is replaced."""

    @torch.inference_mode()
    def __init__(self, layer, delta):
        webui.settle(layer)
        self.layer = layer
        self.clean = layer.weight.clone() if layer.weight.dtype in PLAIN and not hasattr(layer.weight, "gguf_cls") else None
        base = webui.numbers(layer.weight)
        dense = base + (delta.reshape(base.shape) if torch.is_tensor(delta) else delta)
        self.change = float((dense - base).abs().max())
        if self.clean is not None:
            layer.weight.copy_(dense)
        else:
            bias = layer.bias.detach().float() if layer.bias is not None else None
            layer.forward = lambda x: forward(layer, x.float(), dense, bias).to(x.dtype)

    @torch.inference_mode()
    def restore(self):
        if self.clean is not None:
            self.layer.weight.copy_(self.clean)
        else:
            del self.layer.forward


def forward(layer, x, weight, bias):
    if weight.dim() == 2:
        return linear(x, weight, bias)
    return conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)


class Reference:
    def __init__(self, content, style, settings):
        unknown = set(settings) - set(DEFAULTS)
        assert not unknown, f"the reference knows no {unknown}"
        self.settings = s = DEFAULTS | settings
        if s["beta"] is None:
            s["beta"] = DEFAULT_BETA[s["scale"]]
        self.content, self.style = read_lora(content), read_lora(style)
        self.names = sorted(self.content.keys() | self.style.keys())
        self.decided = [n for n in sorted(self.content.keys() & self.style.keys()) if self.is_decided(n)]
        assert self.decided
        self.sums = {name: self.top_sums(name) for name in self.decided}
        self.gamma = self.find_gamma()
        self.joined = {}
        self.written = []
        self.passes = []
        self.margin = float("inf")
        self.largest_change = 0.0

    def is_decided(self, name):
        return self.settings["layers"] == "all" or name.endswith(ATTENTION)

    def top_sums(self, name):
        (dc, rc), (ds, rs) = self.content[name], self.style[name]
        if self.settings["method"] == "est":
            return methods.energy(dc), methods.energy(ds)
        k = {"auto": rc * rs, "all": dc.numel()}.get(self.settings["k"], self.settings["k"])
        return largest_sum(dc, k), largest_sum(ds, k)

    def find_gamma(self):
        if not isinstance(self.settings["gamma"], str):
            return self.settings["gamma"]
        size = methods.energy if self.settings["method"] == "est" else absolute_sum
        c = [size(self.content[n][0]) for n in self.decided]
        s = [size(self.style[n][0]) for n in self.decided]
        if self.settings["gamma"] == "auto":
            return sum(c) / sum(s)
        assert self.settings["gamma"] == "mean-ratio"
        ratios = [a / b for a, b in zip(c, s, strict=True)]
        first = sum(ratios) / len(ratios)
        kept = [r for r in ratios if r < 3 * first]
        return sum(kept) / len(kept)

    def progress(self, params):
        if self.settings["progress"] == "noise":
            return self.noise_progress(params)
        denoiser, p = params.denoiser, params.denoiser.p
        total = denoiser.total_steps
        t = min(denoiser.step, total - 1)
        later = isinstance(p, processing.StableDiffusionProcessingImg2Img) or p.is_hr_pass
        start = 1 - p.denoising_strength if later else 0.0
        return start + (1 - start) * t / total

    def noise_progress(self, params):
        """A k-diffusion noise level lies between two entries of the model's table, and so does its timestep."""
        table = webui.log_sigmas(params.denoiser).tolist()
        log_sigma = min(max(float(params.sigma[0].log()), table[0]), table[-1])
        after = next(i for i in range(1, len(table)) if log_sigma <= table[i])
        timestep = after - (table[after] - log_sigma) / (table[after] - table[after - 1])
        return 1 - timestep / (len(table) - 1)

    def scale(self, progress, hires=False):
        balance = self.settings["hires_balance" if hires and self.settings["hires"] == "own" else "balance"]
        alpha, beta = self.settings["alpha"], self.settings["beta"]
        value = alpha * progress + beta
        return 2**balance * (value % alpha if self.settings["scale"] == "s*" else value)

    def join(self, name, steps):
        """the one matrix of a layer, for a method that acts the same at every call"""
        content, style, s = self.content[name][0], self.style[name][0], self.settings
        one, two = s["content_weight"] * content, s["style_weight"] * style
        if s["method"] == "np":
            return methods.project(one, style, s["mu"]) + two
        if s["method"] == "ties":
            return methods.ties(one, two, s["density"])
        p = sum(self.choose(name, self.scale(t / steps)) == "C" for t in range(steps)) / steps
        return p * one + (1 - p) * two

    def choose(self, name, scale):
        if self.settings["method"] == "blora":
            return methods.blora(name)
        if name in self.sums:
            top_c, top_s = self.sums[name]
            threshold = self.gamma * scale * top_s
            self.margin = min(self.margin, abs(top_c - threshold) / max(top_c, threshold))
            return "C" if top_c >= threshold else "S"
        if not self.is_decided(name):
            if self.settings["layers"] == "attention-only":
                return "N"
            return "".join(letter for letter, lora in (("C", self.content), ("S", self.style)) if name in lora)
        return "C" if name in self.content else "S"

    def delta(self, name, choice):
        out = 0.0
        if "C" in choice:
            out = out + self.settings["content_weight"] * self.content[name][0]
        if "S" in choice:
            out = out + self.settings["style_weight"] * self.style[name][0]
        return out

    def write(self, params):
        hires = getattr(params.denoiser.p, "is_hr_pass", False)
        if hires and self.settings["hires"] == "off":
            return
        if params.denoiser.step == 0:
            self.passes.append({name: [] for name in self.names})
        scale, layers = self.scale(self.progress(params), hires), webui.layers()
        joined = self.decided if self.settings["method"] in methods.JOINED else ()
        for name in joined if not self.joined else ():
            self.joined[name] = self.join(name, params.denoiser.total_steps)
        for name in self.names:
            choice = "B" if name in joined else self.choose(name, scale)
            self.passes[-1][name].append(choice)
            self.written.append(Written(layers[name], self.joined[name] if name in joined else self.delta(name, choice)))
            self.largest_change = max(self.largest_change, self.written[-1].change)

    def restore(self):
        for layer in self.written:
            layer.restore()
        self.written = []

    def report(self):
        return [
            {
                "gamma": self.gamma,
                "margin": self.margin,
                "largest_change": self.largest_change,
                "decided": self.decided,
                "choices": choices,
            }
            for choices in self.passes
        ]
