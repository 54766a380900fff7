"""What AUTOMATIC1111's WebUI and all WebUIs made from it have in common."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch

from ..errors import LONGEST_NAME, HostError, SettingsError, shorten
from ..late import Late
from ..patching import wrap_functions
from ..rule.schedule import compute_noise_progress
from ..settings import BY_NAME

if TYPE_CHECKING:
    from ..engine import memory
    from . import contract, names
    from .contract import DenoiserCall, Entry, PutAside, Tag, TextPart
else:
    memory = Late("klora_lib.engine.memory")
    contract = Late("klora_lib.hosts.contract")
    names = Late("klora_lib.hosts.names")

HOOKS = ("process", "after_extra_networks_activate", "process_before_every_sampling", "postprocess")  # of a script
SELF_SAMPLING = {"img2imgalt": "img2img alternative test"}  # scripts that sample by themselves: module → title
MOVERS = ("unload_model_weights", "send_model_to_cpu", "send_model_to_trash", "load_model_weights")
STANDS_FOR = "klora_stands_for"  # an attribute of the tags that we add: the user's tag that it replaces, or None


class Family:
    """What of ``contract.Host`` is the same in every WebUI: lists of LoRAs, tags, samplers and their step counters."""

    name: str
    reload_function = "reload_model_weights"  # the function of modules.sd_models with which the refiner swaps models

    def __init__(self, networks: ModuleType):
        self.networks = networks

    def list_loras(self) -> list[str]:
        return sorted(dict(self.networks.available_networks), key=str.casefold)

    def refresh_loras(self) -> None:
        self.networks.list_available_networks()

    def get_lora_folder(self) -> str:
        from modules import shared

        return shared.cmd_opts.lora_dir

    def find_lora(self, name: str) -> Entry | None:
        listed = self.networks.available_networks.get(name)
        if listed is None and name.lower() not in self.networks.forbidden_network_aliases:  # two files share the alias
            listed = self.networks.available_network_aliases.get(name)
        return None if listed is None else contract.Entry(listed.name, listed.filename)

    def get_lora(self, name: str) -> Entry:
        listed = dict(self.networks.available_networks)  # a copy: another thread may be filling the host's own anew
        entry = self.find_lora(name) or self.find_lora(names.match_name(name, listed))
        if entry is None:
            raise names.explain_absence(name, listed)
        names.refuse_twins(entry, listed[entry.name], self.get_lora_folder())
        return entry

    def estimate_sampling_memory(self, p: Any) -> int:
        """For the largest image of the job: that of the hires pass if there is one."""
        width, height = find_largest_size(p)
        return memory.estimate_sampling_bytes(2 * p.batch_size * (width // 8) * (height // 8))  # guidance stacks two halves

    def has_model(self) -> bool:
        """Asks the place where the model is kept: ``shared.sd_model`` of A1111 loads one if there is none."""
        from modules import sd_models

        return getattr(getattr(sd_models, "model_data", None), "sd_model", None) is not None

    def is_drawing(self) -> bool:
        from modules import shared

        return bool(getattr(shared.state, "job", ""))  # the running job's name

    def save_grid(self, p: Any, picture: Any, name: str, infotext: str) -> None:
        from modules import images, shared

        opts = shared.opts
        if opts.grid_save and not p.do_not_save_grid:
            short = not opts.grid_extended_filename
            of = p.all_seeds[0], p.all_prompts[0], opts.grid_format, infotext
            images.save_image(picture, p.outpath_grids, name, *of, short, grid=True, p=p)

    def get_checkpoint_name(self) -> str:
        from modules import shared

        return shared.sd_model.sd_checkpoint_info.name_for_extra

    def take_tags(self, network_data: Any, entries: Iterable[Entry]) -> dict[str, Tag]:
        """If a LoRA has two tags, their weights are added, as Forge does.

        A1111 has one object for a LoRA and lists it twice, so that the last tag's weights act twice.  We do not do that:
        a user who writes 0.5 and then 1 does not want 2.
        """
        wanted = {e.name for e in entries}
        taken: dict[str, Tag] = {}
        for kind in ("lora", "lyco"):  # the second is an alias of the first
            if kind not in network_data:
                continue
            left = []
            for params in network_data[kind]:
                entry = self.find_lora(params.positional[0]) if params.positional else None
                if entry is None or entry.name not in wanted:
                    left.append(params)
                elif tag := getattr(params, STANDS_FOR) if hasattr(params, STANDS_FOR) else read_tag(params):
                    taken[entry.name] = taken.get(entry.name, contract.Tag(0.0, 0.0)) + tag
            network_data[kind] = left
        for name, tag in taken.items():
            refuse_large_sum(name, tag)
        return taken

    def key_prompt_cache(self, network_data: Any, parts: Iterable[TextPart]) -> None:
        """Add tags to ``network_data`` after it was activated.  They load nothing, but are in the key of the prompt cache.

        Hosts activate the same data again (hires, refiner), so each of our tags holds the user's tag that it replaces.
        """
        from modules import extra_networks

        tags = []
        for part in parts:
            tags.append(extra_networks.ExtraNetworkParams(items=[part.entry.name, str(part.te), "0"]))
            setattr(tags[-1], STANDS_FOR, part.tag)
        network_data["lora"] = [*network_data.get("lora", []), *tags]

    def add_hashes(self, p: Any, parts: Iterable[TextPart]) -> None:
        """Add both LoRAs to the infotext's hashes, as the host does for tags.

        Forge Classic has only the line of text.  The others also have the hashes on ``p``, where the hires pass adds more.
        """
        from modules import shared

        if not shared.opts.lora_add_hashes_to_infotext:
            return
        line = p.extra_generation_params.get("Lora hashes", "")
        on_p = getattr(p, "lora_hashes", None)
        hashes = dict(pair.split(": ") for pair in line.split(", ") if pair) if on_p is None else dict(on_p)
        for part in parts:
            listed = self.networks.available_networks[part.entry.name]
            listed.read_hash()
            hashes[part.entry.name.translate(str.maketrans("", "", ":,"))] = listed.shorthash
        if on_p is not None:
            p.lora_hashes = hashes
        p.extra_generation_params["Lora hashes"] = ", ".join(f"{k}: {v}" for k, v in hashes.items())

    def wrap_sampling(self, p: Any, context: Callable[[int], AbstractContextManager[None]]) -> None:
        """We wrap ``launch_sampling`` of the sampler object: it exists for one job only, and its exceptions reach the user.

        txt2img makes a sampler for every pass, img2img one for all batches of a job, which is then wrapped once.
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
        for module, title in SELF_SAMPLING.items():
            if module in getattr(sample, "__module__", ""):
                raise HostError(f"the script {title!r} samples by itself, where K-LoRA cannot act; choose one of them")

    @contextmanager
    def watch_refiner(self, p: Any, act: Callable[[], None]) -> Iterator[None]:
        """The refiner loads its weights into the same modules that K-LoRA changes, during the denoiser's forward."""
        if getattr(p, "refiner_checkpoint_info", None) is None:
            yield
            return
        from modules import sd_models

        with wrap_functions(sd_models, (self.reload_function,), run_first(lambda *_, **__: act())):
            yield

    @contextmanager
    def watch_model_moves(self, act: Callable[[], None]) -> Iterator[None]:
        """Wraps the functions of ``sd_models`` that move models.  ``act`` is not called when they move another model."""
        from modules import sd_models, shared

        ours = shared.sd_model

        def act_if_ours(model: Any = None, *args: Any, **kwargs: Any) -> None:
            if model is None or model is ours:
                act()

        with wrap_functions(sd_models, MOVERS, run_first(act_if_ours)):
            yield

    def wrap_rewrites(self, put_aside: PutAside) -> AbstractContextManager[None]:
        """Does nothing: after ``finish_merging`` the host does not write weights during a pass."""
        return nullcontext()

    def wrap_jobs(self, context: Callable[[], AbstractContextManager[None]]) -> AbstractContextManager[None]:
        """Wraps ``process_images_inner``, which ``process_images`` calls: other modules hold ``process_images`` itself."""
        from modules import processing

        return wrap_functions(processing, ("process_images_inner",), lambda *_, **__: context())

    def read_call(self, params: Any) -> DenoiserCall:
        of = params.denoiser
        return contract.DenoiserCall(of.step, of.total_steps, lambda: self.find_noise_progress(of, params.sigma.max()))

    def find_noise_progress(self, denoiser: Any, sigma: torch.Tensor) -> float:
        """Progress by noise, in [0, 1).  A1111's DDIM, PLMS and UniPC pass a timestep as ``sigma``."""
        wrap = denoiser.inner_model
        if not hasattr(wrap, "sigma_to_t"):
            return compute_noise_progress(float(sigma), len(denoiser.alphas))
        return compute_noise_progress(float(wrap.sigma_to_t(sigma.to(wrap.sigmas), quantize=False)), len(wrap.sigmas))

    def find_start(self, p: Any) -> float:
        """The denoiser has an initial latent only if the pass begins from an image."""
        if p.sampler.model_wrap_cfg.init_latent is None:
            return 0.0
        return 1.0 - min(float(p.denoising_strength), 1.0)

    def has_fixed_steps(self, p: Any) -> bool:
        """An adaptive sampler's function has no parameter for the noise levels or their number."""
        fixed = {"sigmas", "sigma_sched", "timesteps", "n"}
        return bool(fixed & set(inspect.signature(p.sampler.func).parameters))

    def count_calls(self, p: Any) -> int:
        return int(p.sampler.model_wrap_cfg.step)

    def is_stopped(self) -> bool:
        from modules import shared

        return bool(shared.state.interrupted or shared.state.skipped)

    def make_stop(self) -> BaseException:
        from modules import sd_samplers_common

        return sd_samplers_common.InterruptedException()


def find_largest_size(p: Any) -> tuple[int, int]:
    """(width, height) of the largest image of a job: that of the hires pass if there is one."""
    sizes = [(p.width, p.height), (getattr(p, "hr_upscale_to_x", 0), getattr(p, "hr_upscale_to_y", 0))]
    return max(sizes, key=lambda size: size[0] * size[1])


def run_first(act: Callable[..., None]) -> Callable[..., AbstractContextManager[None]]:
    """A context manager that calls ``act`` when it opens."""

    @contextmanager
    def context(*args: Any, **kwargs: Any) -> Iterator[None]:
        act(*args, **kwargs)
        yield

    return context


def refuse_large_sum(name: str, tag: Tag) -> None:
    """Raise SettingsError if the tags of one LoRA add up to more than a weight may be."""
    for weight in (tag.te, tag.unet):
        try:
            TAG_WEIGHT.read(weight)
        except ValueError:
            said = f"the tags of {name!r} add up to {weight:g}, which is not {TAG_WEIGHT.accepts}"
            raise SettingsError(said, "prompt") from None


def read_tag(params: Any) -> Tag:
    """Read <lora:name:te:unet> or <lora:name:te=…:unet=…> as the host does; unet is te if it is not given.

    Read from ``params.items``, the tag as the user wrote it: an extension may have replaced the parsed arguments.
    Raises SettingsError for an argument that cannot act on a LoRA of the pair.
    """
    tag = shorten(f"<lora:{':'.join(params.items)}>", LONGEST_NAME)
    by_name = dict(item.split("=", 1) for item in params.items if "=" in item)
    positional = [item for item in params.items if "=" not in item]
    if len(positional) > 3 or "dyn" in by_name:
        raise SettingsError(f"the tag {tag} asks for a dynamic rank, which a LoRA of the pair cannot have", "prompt")
    if others := [name for name in by_name if name not in ("te", "unet")]:
        words = shorten(", ".join(others), LONGEST_NAME)
        raise SettingsError(f"the tag {tag} has {words}, which does not act on a LoRA of the pair", "prompt")
    te = by_name.get("te", positional[1] if len(positional) > 1 else "1")
    unet = by_name.get("unet", positional[2] if len(positional) > 2 else te)
    try:
        return contract.Tag(*(TAG_WEIGHT.read(text.strip()) for text in (te, unet)))
    except (ValueError, AttributeError):
        raise SettingsError(f"the tag {tag} has a weight that is not {TAG_WEIGHT.accepts}", "prompt") from None


TAG_WEIGHT = BY_NAME["content_weight"]  # a tag's weight replaces the setting's, and has the same bounds
