"""One generation, in the order in which A1111 and Forge ask their scripts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .host import Checkpoint, ExtraNetworkParams, FakeHost, parse_prompts


@dataclass
class Processing:
    """``p``.  ``init_latent`` makes it an img2img job, ``enable_hr`` gives it a hires pass."""

    host: FakeHost
    prompt: Any = "a cat"
    seed: int = 11
    steps: int = 6
    sampler_name: str = "Euler"
    n_iter: int = 1
    batch_size: int = 1
    width: int = 32
    height: int = 32
    denoising_strength: float = 0.5
    source: Tensor | None = None
    enable_hr: bool = False
    hr_second_pass_steps: int = 0
    hr_prompt: Any = ""
    refiner_checkpoint_info: Checkpoint | None = None
    refiner_switch_at: float = 0.5
    disable_extra_networks: bool = False
    script_args: tuple[Any, ...] = ()
    extra_generation_params: dict[str, Any] = field(default_factory=dict)
    comments: dict[str, int] = field(default_factory=dict)
    is_hr_pass: bool = False
    sampler: Any = None
    c: Any = None

    def comment(self, text: str) -> None:
        self.comments[text] = 1

    def init(self, all_prompts: list[str], all_seeds: list[int]) -> None:
        """img2img makes its sampler here, once for all batches."""
        if self.source is not None:
            self.sampler = self.host.create_sampler(self.sampler_name)
            self.init_latent = self.source

    def setup_conds(self) -> None:
        """From the cache, when prompt, model and extra network data are the same as last time."""
        prompt = self.hr_prompts[0] if self.is_hr_pass else self.prompts[0]
        data = self.hr_extra_network_data if self.is_hr_pass else self.extra_network_data
        key = (prompt, self.host.sd_model.sd_checkpoint_info, data)
        cache = self.host.cond_cache
        if cache[0] is None or cache[0] != key:
            self.host.text_calls += 1
            cache[:] = key, self.host.encode(prompt)
        self.c = cache[1]

    def sample(self) -> Tensor:
        noise = self.noise()
        if self.source is not None:
            self.host.before_sampling(self, self.source, noise)
            return self.sampler.sample_img2img(self, self.source, noise, self.c)
        self.sampler = self.host.create_sampler(self.sampler_name)
        self.host.before_sampling(self, noise, noise)
        samples = self.sampler.sample(self, noise, self.c)
        return self.sample_hr_pass(samples) if self.enable_hr else samples

    def sample_hr_pass(self, samples: Tensor) -> Tensor:
        self.is_hr_pass = True
        self.sampler = self.host.create_sampler(self.sampler_name)
        if not self.disable_extra_networks:
            activate(self, self.hr_extra_network_data)
        self.setup_conds()
        noise = self.noise()
        self.host.before_sampling(self, samples, noise)
        steps = self.hr_second_pass_steps or self.steps
        samples = self.sampler.sample_img2img(self, samples, noise, self.c, steps=steps)
        self.sampler = None
        self.is_hr_pass = False
        return samples

    def noise(self) -> Tensor:
        return torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(self.seeds[0]))


@dataclass
class Processed:
    images: list[Any]
    infotexts: list[str]


def activate(p: Processing, data: dict[str, list[ExtraNetworkParams]]) -> None:
    """The Lora extension loads what the tags say (lyco is its other name), then the scripts are asked."""
    tags = [*data.get("lora", []), *data.get("lyco", [])]
    extra = p.host.shared.opts.sd_lora
    if extra != "None" and not any(t.items[0] == extra for t in tags):
        tags.append(ExtraNetworkParams([extra, "1.0"]))
    te = [float(t.named.get("te", t.positional[1] if len(t.positional) > 1 else 1.0)) for t in tags]
    unet = [float(t.named.get("unet", t.positional[2] if len(t.positional) > 2 else w)) for t, w in zip(tags, te)]
    dyn = [
        int(t.named["dyn"]) if "dyn" in t.named else int(t.positional[3]) if len(t.positional) > 3 else None for t in tags
    ]
    p.host.networks.load_networks([t.positional[0] for t in tags], te, unet, dyn)
    if p.host.shared.opts.lora_add_hashes_to_infotext:
        p.lora_hashes = {n.mentioned_name: n.network_on_disk.shorthash for n in p.host.networks.loaded_networks}
        if p.lora_hashes:
            p.extra_generation_params["Lora hashes"] = ", ".join(f"{k}: {v}" for k, v in p.lora_hashes.items())
    p.host.hook("after_extra_networks_activate", p, batch_number=0, prompts=p.prompts, extra_network_data=data)


def process_images(p: Processing) -> Processed:
    """Looks the rest up anew every time, as hosts do: an extension may have put its own in that place."""
    return p.host.processing.process_images_inner(p)


def process_images_inner(p: Processing) -> Processed:
    host = p.host
    count = p.n_iter * p.batch_size
    p.all_seeds = [p.seed + i for i in range(count)]
    p.all_prompts = list(p.prompt) if isinstance(p.prompt, list) else [p.prompt] * count
    p.main_prompt = p.all_prompts[0]
    if p.enable_hr:
        p.all_hr_prompts = list(p.hr_prompt) if isinstance(p.hr_prompt, list) else [p.hr_prompt or p.prompt] * count
    host.hook("process", p)
    for write in host.on_process:
        write(p)
    with host.generating():
        processed = Processed(*batches(p))
    host.hook("postprocess", p, processed)
    return processed


def batches(p: Processing) -> tuple[list[Any], list[str]]:
    host, images, infotexts = p.host, [], []
    p.init(p.all_prompts, p.all_seeds)
    for n in range(p.n_iter):
        if host.shared.state.interrupted:
            break
        host.begin_batch()
        p.iteration = n
        batch = slice(n * p.batch_size, (n + 1) * p.batch_size)
        p.seeds = p.all_seeds[batch]
        p.prompts = list(p.all_prompts[batch])
        for write in host.on_batch:
            write(p)
        p.prompts, p.extra_network_data = parse_prompts(p.prompts)
        if p.enable_hr:
            p.hr_prompts, p.hr_extra_network_data = parse_prompts(p.all_hr_prompts[batch])
        if not p.disable_extra_networks:
            activate(p, p.extra_network_data)
        host.networks_active()
        p.setup_conds()
        images.append(p.sample())
        shown = ", ".join(f"{k}: {v}" for k, v in p.extra_generation_params.items())
        infotexts.append(f"{p.all_prompts[n * p.batch_size]}\n{shown}")
    return images, infotexts
