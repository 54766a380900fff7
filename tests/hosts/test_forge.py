"""Theorems of the Forge adapter, on stand-ins of its patchers: the pair is out of the clones, all else is as it was."""

from __future__ import annotations

import copy
import gc
import operator
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from klora_lib.errors import HostError
from klora_lib.hosts import forge
from klora_lib.hosts.contract import Entry, Tag, TextPart
from klora_lib.lora.file import lora_file

ENTRIES = [Entry(name, f"/loras/{name}.safetensors") for name in ("subject", "style")]
Q = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"


class Patcher:
    load_device = "cpu"

    def __init__(self, model: Any, patches: dict[tuple, Any], preserved: int = 0):
        self.model, self.lora_patches, self.preserved = model, patches, preserved

    def clone(self) -> Patcher:
        return Patcher(self.model, self.lora_patches.copy(), self.preserved)

    def add_extra_preserved_memory_during_sampling(self, memory_in_bytes: int) -> None:
        self.preserved += memory_in_bytes


class Clip:
    def __init__(self, patcher: Patcher):
        self.patcher = patcher

    def clone(self) -> Clip:
        return Clip(self.patcher.clone())


class Predictor:
    """Discrete, as SD1.5's: a table of noise levels."""

    sigmas = torch.linspace(0.1, 10, 1000)

    @property
    def sigma_max(self) -> torch.Tensor:
        return self.sigmas[-1]

    def timestep(self, sigma: torch.Tensor) -> torch.Tensor:
        return (sigma - self.sigmas[:, None]).abs().argmin(0)


class FlowPredictor:
    def sigma_max(self) -> torch.Tensor:
        return torch.tensor(1.0)

    def timestep(self, sigma: torch.Tensor) -> torch.Tensor:
        return sigma


def key(path: str) -> tuple[str, float, float, bool]:
    return path, 1.0, 1.0, False


class Job:
    """A job of the host, as far as it is looked at."""

    is_hr_pass = False

    def __init__(self) -> None:
        self.extra_generation_params: dict[str, str] = {}


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A model whose patchers carry both LoRAs of the pair and one more."""
    unet = types.SimpleNamespace(
        diffusion_model=nn.Module(), predictor=Predictor(), storage_dtype="nf4", computation_dtype=torch.bfloat16
    )
    paths = [*(e.path for e in ENTRIES), "/loras/other.safetensors"]
    objects = types.SimpleNamespace(
        unet=Patcher(unet, {key(p): p for p in paths}), clip=Clip(Patcher(None, {key(p): p for p in paths}))
    )
    model = types.SimpleNamespace(
        forge_objects=copy.copy(objects), forge_objects_after_applying_lora=objects, current_lora_hash="hash"
    )
    loads: list[tuple] = []

    def load_lora_for_models(
        unet: None, clip: Clip, lora: dict, strength: float, te: float, filename: str, online_mode: bool
    ) -> tuple:
        loads.append((unet, sorted(lora), strength, te, online_mode))
        clip = clip.clone()
        clip.patcher.lora_patches[key(filename)] = "text"
        return None, clip

    networks = types.ModuleType("networks")
    vars(networks).update(dict.fromkeys(forge.NEEDED), load_lora_for_models=load_lora_for_models, loads=loads)
    said = dict(shorthash="ab", read_hash=lambda: None)
    listed = {e.name: types.SimpleNamespace(name=e.name, filename=e.path, **said) for e in ENTRIES}
    vars(networks).update(available_networks=listed, available_network_aliases={}, forbidden_network_aliases={})
    extra = types.ModuleType("modules.extra_networks")
    vars(extra)["ExtraNetworkParams"] = lambda items: types.SimpleNamespace(items=items, positional=items, named={})
    shared = types.ModuleType("modules.shared")
    vars(shared).update(sd_model=model, opts=types.SimpleNamespace(lora_add_hashes_to_infotext=True))
    modules = types.ModuleType("modules")
    vars(modules).update(shared=shared, extra_networks=extra)
    backend, args = types.ModuleType("backend"), types.ModuleType("backend.args")
    vars(args)["dynamic_args"] = {}
    for module in (networks, modules, shared, extra, backend, args):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    found = forge.make_host()
    found.test_model = model  # type: ignore[attr-defined]
    yield found


def parts(text: bool = True) -> list[TextPart]:
    tensors = {f"{Q}.lora_A.weight": torch.ones(2, 4), f"{Q}.lora_B.weight": torch.ones(4, 2)}
    words = {"lora_te_a.lora_down.weight": torch.ones(2, 4), "lora_te_a.lora_up.weight": torch.ones(4, 2)}
    files = [lora_file({**tensors, **(words if text and e.name == "style" else {})}, e.name, "0" * 32) for e in ENTRIES]
    return [TextPart(e, f, 0.5) for e, f in zip(ENTRIES, files)]


def test_the_pair_is_out_of_the_denoiser_and_the_other_lora_is_not(host: Any) -> None:
    model = host.test_model
    before = model.forge_objects.unet
    host.load_text_parts(Job(), {}, parts())
    after = model.forge_objects_after_applying_lora
    assert [k[0] for k in after.unet.lora_patches] == ["/loras/other.safetensors"]
    assert model.forge_objects.unet is after.unet and model.forge_objects.clip is after.clip
    assert len(before.lora_patches) == 3  # the host's own patcher is a clone's original, and stays whole


def test_text_encoders_carry_the_text_part_alone(host: Any) -> None:
    host.load_text_parts(Job(), {}, parts())
    names = [k[0] for k in host.test_model.forge_objects.clip.patcher.lora_patches]
    assert names[0] == "/loras/other.safetensors" and "style" in names[1] and len(names) == 2
    ((unet, keys, strength, te, online),) = host.networks.loads
    assert (unet, strength, te, online) == (None, 0.0, 0.5, False) and all(k.startswith("lora_te_") for k in keys)


def test_a_text_part_is_not_found_by_its_files_path(host: Any) -> None:
    """By which extensions look for the patches of a LoRA that the prompt has."""
    host.load_text_parts(Job(), {}, parts())
    names = [k[0] for k in host.test_model.forge_objects.clip.patcher.lora_patches]
    assert not any(e.path in name for e in ENTRIES for name in names)


@pytest.mark.parametrize("tagged", [True, False])
@pytest.mark.parametrize(("storage", "online"), [(torch.float32, True), (torch.float32, False), ("nf4", True)])
def test_a_tag_of_the_pair_is_refused_where_loras_have_regions(
    host: Any, storage: object, online: bool, tagged: bool
) -> None:
    """Which is where LoRAs are added at every forward to plain weights.  Nothing is changed then."""
    unet = host.test_model.forge_objects_after_applying_lora.unet
    unet.model.storage_dtype = storage
    unet.lora_patches = {(*k[:3], online): v for k, v in unet.lora_patches.items()}
    given = [replace(part, tag=Tag(1.0, 1.0) if tagged else None) for part in parts()]
    if not (tagged and online and storage is torch.float32):
        host.load_text_parts(Job(), {}, given)
        return
    with pytest.raises(HostError, match=f"the tag <lora:{ENTRIES[0].name}> is of a LoRA of the pair: with it, Regional"):
        host.load_text_parts(Job(), {}, given)
    assert host.test_model.forge_objects_after_applying_lora.unet is unet and host.test_model.current_lora_hash == "hash"


@pytest.mark.parametrize(
    ("chosen", "storage", "online"), [(True, "nf4", True), (True, torch.float16, False), (False, "gguf", False)]
)
def test_text_parts_are_added_as_the_host_adds_loras(host: Any, chosen: bool, storage: object, online: bool) -> None:
    """With "fp16 LoRA" at every forward where weights are packed: some gguf types cannot be packed again."""
    sys.modules["backend.args"].dynamic_args["online_lora"] = chosen  # type: ignore[attr-defined]
    host.test_model.forge_objects.unet.model.storage_dtype = storage
    host.load_text_parts(Job(), {}, parts())
    assert [load[-1] for load in host.networks.loads] == [online]


def test_gpu_memory_for_the_factors_is_asked_of_the_host_once_a_job(host: Any) -> None:
    """Two files of 2×4 and 4×2 factors, two bytes a number; the next activation starts from the host's own patcher."""
    before = host.test_model.forge_objects.unet
    for _ in range(2):
        host.test_model.forge_objects_after_applying_lora.unet = before
        host.load_text_parts(Job(), {}, parts(text=False))
        assert host.test_model.forge_objects.unet.preserved == 2 * (8 + 8) * 2
    assert before.preserved == 0


def test_the_host_loads_afresh_for_the_next_job(host: Any) -> None:
    host.load_text_parts(Job(), {}, parts(text=False))
    assert host.test_model.current_lora_hash != "hash" and host.networks.loads == []


def test_the_second_pass_of_a_job_keeps_what_is_loaded(host: Any) -> None:
    """The text equals the host's own in one moment: between the passes of the job that loaded.  There nothing is loaded."""
    model, job = host.test_model, Job()
    host.load_text_parts(job, {}, parts())
    text, patchers, loads = model.current_lora_hash, vars(model.forge_objects).copy(), len(host.networks.loads)
    assert text != "hash" and operator.ne("hash", text)
    host.finish_merging([])  # the first pass
    assert text != "hash"
    job.is_hr_pass = True
    assert text == "hash" and operator.eq("hash", text) and text != "other tags"
    host.load_text_parts(job, {}, parts())
    assert model.current_lora_hash is text and vars(model.forge_objects) == patchers and len(host.networks.loads) == loads
    assert job.extra_generation_params["Lora hashes"]
    host.finish_merging([])  # the second pass
    assert text != "hash"
    job.is_hr_pass = False
    assert text != "hash"
    del job
    gc.collect()
    assert text != "hash"


def test_another_job_between_the_passes_loads_afresh(host: Any) -> None:
    job, other = Job(), Job()
    host.load_text_parts(job, {}, parts())
    host.finish_merging([])
    job.is_hr_pass = other.is_hr_pass = True
    text, unet = host.test_model.current_lora_hash, host.test_model.forge_objects.unet
    host.load_text_parts(other, {}, parts())
    assert host.test_model.current_lora_hash is not text and host.test_model.forge_objects.unet is not unet


def test_what_the_host_merges_within_a_pass_it_merges_aside(host: Any) -> None:
    """The wrap is on the model's one loader, and gone when the pass ends, however that is."""
    seen: list[str] = []

    class Loader:
        def refresh(self, lora_patches: dict, offload_device: str = "cpu") -> str:
            seen.append(f"refresh {lora_patches} {offload_device}")
            return "done"

    @contextmanager
    def aside() -> Iterator[None]:
        seen.append("aside")
        yield
        seen.append("back")

    loader = host.test_model.forge_objects.unet.lora_loader = Loader()
    with pytest.raises(MemoryError), host.wrap_rewrites(aside):
        assert loader.refresh({}, offload_device="meta") == "done"
        assert seen == ["aside", "refresh {} meta", "back"]
        raise MemoryError
    assert vars(loader) == {}


def test_the_prompt_cache_and_the_infotext_know(host: Any) -> None:
    p, data = Job(), {}
    host.load_text_parts(p, data, parts())
    assert [t.items for t in data["lora"]] == [["subject", "0.5", "0"], ["style", "0.5", "0"]]
    assert p.extra_generation_params["Lora hashes"] == "subject: ab, style: ab"
    assert host.take_tags(data, ENTRIES) == {} and data["lora"] == []


def test_a_tag_of_the_prompt_is_taken(host: Any) -> None:
    tag = types.SimpleNamespace(items=["style", "0.3", "2"], positional=["style", "0.3", "2"], named={})
    assert host.take_tags({"lora": [tag]}, ENTRIES) == {"style": Tag(0.3, 2.0)}


@pytest.mark.parametrize(("sigma", "progress"), [(10.0, 0.0), (0.1, 1.0), (5.05, 0.5)])
def test_progress_by_a_table_of_noise_levels(host: Any, sigma: float, progress: float) -> None:
    assert host.find_noise_progress(None, torch.tensor(sigma)) == pytest.approx(progress, abs=2e-3)
    assert 0 <= host.find_noise_progress(None, torch.tensor(sigma)) < 1


def test_progress_of_a_flow_model(host: Any) -> None:
    host.test_model.forge_objects.unet.model.predictor = FlowPredictor()
    assert host.find_noise_progress(None, torch.tensor(0.75)) == pytest.approx(0.25)


def test_before_a_checkpoint_is_loaded(host: Any) -> None:
    sys.modules["modules.shared"].sd_model = object()  # type: ignore[attr-defined]
    with pytest.raises(HostError, match="no checkpoint is loaded"):
        host.find_sites()


def test_a_patcher_of_another_design_is_refused(host: Any) -> None:
    host.test_model.forge_objects.unet = types.SimpleNamespace(patches={})
    with pytest.raises(HostError, match="LoRA loader has changed: its model patcher has no lora_patches"):
        host.find_sites()


def test_what_is_lacking_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "networks", raising=False)
    assert forge.find_missing() == ["built-in Lora extension"]
    monkeypatch.setitem(sys.modules, "networks", types.ModuleType("networks"))
    assert forge.find_missing() == [*forge.NEEDED, "backend.patcher", forge.REFRESH]
