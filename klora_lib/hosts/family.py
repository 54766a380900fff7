"""What AUTOMATIC1111's WebUI and everything that descends from it have in common."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import ModuleType
from typing import Any

import torch

from ..engine.memory import sampling_bytes
from ..errors import HostError, SettingsError
from ..patching import inside
from ..rule.schedule import noise_progress
from ..settings import BY_NAME
from .contract import Aside, Call, Entry, Tag, TextPart

HOOKS = ("process", "after_extra_networks_activate", "process_before_every_sampling", "postprocess")  # of a script
WITHOUT_THE_HOOK = {"img2imgalt": "img2img alternative test"}  # by a script's module: its title
MOVERS = ("unload_model_weights", "send_model_to_cpu", "send_model_to_trash", "load_model_weights")
STANDS_FOR = "klora_stands_for"  # on a tag of ours: the user's tag, or None


class Family:
    """The part of ``contract.Host`` that is the same in every member: lists, tags, samplers and their clock."""

    name: str
    reload = "reload_model_weights"  # the function of modules.sd_models that the refiner swaps models by

    def __init__(self, networks: ModuleType):
        self.networks = networks

    def loras(self) -> list[str]:
        return sorted(self.networks.available_networks, key=str.casefold)

    def refresh(self) -> None:
        self.networks.list_available_networks()

    def find(self, name: str) -> Entry | None:
        listed = self.networks.available_networks.get(name)
        if listed is None and name.lower() not in self.networks.forbidden_network_aliases:  # two files share the alias
            listed = self.networks.available_network_aliases.get(name)
        if listed is None:
            return None
        return Entry(listed.name, listed.filename)

    def sampling_memory(self, p: Any) -> int:
        """By the largest image of the job: the hires pass's where there is one."""
        width, height = largest_size(p)
        return sampling_bytes(2 * p.batch_size * (width // 8) * (height // 8))  # guidance stacks two halves

    def checkpoint(self) -> str:
        from modules import shared

        return shared.sd_model.sd_checkpoint_info.name_for_extra

    def take_tags(self, network_data: Any, entries: Iterable[Entry]) -> dict[str, Tag]:
        """Two tags of one LoRA both act: their weights are added, as the prompt says and as Forge does.

        A1111 has one object for a LoRA and lists it twice, so that both act with the last tag's weights.  We do not copy
        that: nobody who writes 0.5 and then 1 asks for 2.
        """
        names = {e.name for e in entries}
        taken: dict[str, Tag] = {}
        for kind in ("lora", "lyco"):  # the second is an alias of the first
            if kind not in network_data:
                continue
            left = []
            for params in network_data[kind]:
                entry = self.find(params.positional[0]) if params.positional else None
                if entry is None or entry.name not in names:
                    left.append(params)
                elif tag := getattr(params, STANDS_FOR) if hasattr(params, STANDS_FOR) else read_tag(params):
                    taken[entry.name] = taken.get(entry.name, Tag(0.0, 0.0)) + tag
            network_data[kind] = left
        return taken

    def key_prompt_cache(self, network_data: Any, parts: Iterable[TextPart]) -> None:
        """Put tags into ``network_data`` that load nothing any more: they are what the prompt cache is keyed on.

        Hosts activate the same data again (hires, refiner): each of our tags remembers the one that it stands for.
        """
        from modules import extra_networks

        tags = []
        for part in parts:
            tags.append(extra_networks.ExtraNetworkParams(items=[part.entry.name, str(part.te), "0"]))
            setattr(tags[-1], STANDS_FOR, part.tag)
        network_data["lora"] = [*network_data.get("lora", []), *tags]

    def add_hashes(self, p: Any, parts: Iterable[TextPart]) -> None:
        """Both LoRAs among the infotext's hashes, as the host writes them for tags.

        Classic writes the line alone; the others also keep what it says on ``p``, for the hires pass to add to.
        """
        from modules import shared

        if not shared.opts.lora_add_hashes_to_infotext:
            return
        line = p.extra_generation_params.get("Lora hashes", "")
        kept = getattr(p, "lora_hashes", None)
        hashes = dict(pair.split(": ") for pair in line.split(", ") if pair) if kept is None else dict(kept)
        for part in parts:
            listed = self.networks.available_networks[part.entry.name]
            listed.read_hash()
            hashes[part.entry.name.translate(str.maketrans("", "", ":,"))] = listed.shorthash
        if kept is not None:
            p.lora_hashes = hashes
        p.extra_generation_params["Lora hashes"] = ", ".join(f"{k}: {v}" for k, v in hashes.items())

    def around_sampling(self, p: Any, context: Callable[[int], AbstractContextManager[None]]) -> None:
        """A sampler object lives no longer than its job, and what its launch raises is not swallowed.

        txt2img makes one for every pass, img2img one for all batches of a job: it is wrapped once.
        """
        sampler = p.sampler
        if getattr(getattr(sampler, "launch_sampling", None), "klora_job", None) is p:
            return
        if not hasattr(sampler, "launch_sampling"):
            raise HostError(f"the sampler {p.sampler_name!r} does not run through this WebUI's launch_sampling")
        launch = sampler.launch_sampling

        def launch_sampling(steps: int, func: Callable[[], Any]) -> Any:
            with context(steps):
                return launch(steps, func)

        launch_sampling.klora_job = p  # type: ignore[attr-defined]
        sampler.launch_sampling = launch_sampling

    def refuse_script(self, p: Any) -> None:
        sample = vars(p).get("sample")
        for module, title in WITHOUT_THE_HOOK.items():
            if module in getattr(sample, "__module__", ""):
                raise HostError(f"the script {title!r} samples by itself, where K-LoRA cannot act; choose one of them")

    @contextmanager
    def before_refiner(self, p: Any, act: Callable[[], None]) -> Iterator[None]:
        """The refiner loads its weights into the very modules that carry ours, from inside the denoiser's forward."""
        if getattr(p, "refiner_checkpoint_info", None) is None:
            yield
            return
        from modules import sd_models

        with inside(sd_models, (self.reload,), first(lambda *_, **__: act())):
            yield

    @contextmanager
    def before_model_moves(self, act: Callable[[], None]) -> Iterator[None]:
        """By the functions of ``sd_models`` that do it; what they do to another model than ours is not told."""
        from modules import sd_models, shared

        ours = shared.sd_model

        def tell(model: Any = None, *args: Any, **kwargs: Any) -> None:
            if model is None or model is ours:
                act()

        with inside(sd_models, MOVERS, first(tell)):
            yield

    def around_rewrites(self, aside: Aside) -> AbstractContextManager[None]:
        """Nothing is written within a pass once a layer is settled."""
        return nullcontext()

    def around_jobs(self, context: Callable[[], AbstractContextManager[None]]) -> AbstractContextManager[None]:
        """``process_images`` itself is imported by name all over; what it calls is looked up anew every time."""
        from modules import processing

        return inside(processing, ("process_images_inner",), lambda *_, **__: context())

    def call(self, params: Any) -> Call:
        denoiser = params.denoiser
        return Call(denoiser.step, denoiser.total_steps, lambda: self.noise(denoiser, params.sigma.max()))

    def noise(self, denoiser: Any, sigma: torch.Tensor) -> float:
        """Progress by noise.  A1111's DDIM, PLMS and UniPC hand over a timestep under the name of sigma."""
        wrap = denoiser.inner_model
        if not hasattr(wrap, "sigma_to_t"):
            return noise_progress(float(sigma), len(denoiser.alphas))
        return noise_progress(float(wrap.sigma_to_t(sigma.to(wrap.sigmas), quantize=False)), len(wrap.sigmas))

    def start(self, p: Any) -> float:
        """Only a pass that began from an image has given its denoiser an initial latent."""
        if p.sampler.model_wrap_cfg.init_latent is None:
            return 0.0
        return 1.0 - min(float(p.denoising_strength), 1.0)

    def fixed_steps(self, p: Any) -> bool:
        """An adaptive sampler is told neither the noise levels nor their number."""
        known = {"sigmas", "sigma_sched", "timesteps", "n"}
        return bool(known & set(inspect.signature(p.sampler.func).parameters))

    def calls(self, p: Any) -> int:
        return int(p.sampler.model_wrap_cfg.step)

    def stopped(self) -> bool:
        from modules import shared

        return bool(shared.state.interrupted or shared.state.skipped)

    def stop_sampling(self) -> BaseException:
        from modules import sd_samplers_common

        return sd_samplers_common.InterruptedException()


def largest_size(p: Any) -> tuple[int, int]:
    """(width, height) of the largest image of a job: the hires pass's where there is one."""
    sizes = [(p.width, p.height), (getattr(p, "hr_upscale_to_x", 0), getattr(p, "hr_upscale_to_y", 0))]
    return max(sizes, key=lambda size: size[0] * size[1])


def first(act: Callable[..., None]) -> Callable[..., AbstractContextManager[None]]:
    """A context in which ``act`` happens before anything else."""

    @contextmanager
    def context(*args: Any, **kwargs: Any) -> Iterator[None]:
        act(*args, **kwargs)
        yield

    return context


def read_tag(params: Any) -> Tag:
    """<lora:name:te:unet>, <lora:name:te=…:unet=…>: as the host reads them, unet following te.

    Read from the tag as it was written: an extension may have put other arguments in the place of those it understands.
    """
    tag = f"<lora:{':'.join(params.items)}>"
    named = dict(item.split("=", 1) for item in params.items if "=" in item)
    positional = [item for item in params.items if "=" not in item]
    if len(positional) > 3 or "dyn" in named:
        raise SettingsError(f"the tag {tag} asks for a dynamic rank, which a LoRA of the pair cannot have", "prompt")
    if others := [name for name in named if name not in ("te", "unet")]:
        raise SettingsError(f"the tag {tag} has {', '.join(others)}, which does not act on a LoRA of the pair", "prompt")
    te = named.get("te", positional[1] if len(positional) > 1 else "1")
    unet = named.get("unet", positional[2] if len(positional) > 2 else te)
    try:
        return Tag(*(tag_weight.read(text.strip()) for text in (te, unet)))
    except (ValueError, AttributeError):
        raise SettingsError(f"the tag {tag} has a weight that is not {tag_weight.accepts}", "prompt") from None


tag_weight = BY_NAME["content_weight"]  # a tag's weight stands for a setting's, and is held to the same bounds
