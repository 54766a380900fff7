"""Theorems of the adapter for reForge and Classic: the patchers carry what the host loaded without the pair, and no more."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

from klora_lib.errors import HostError
from klora_lib.hosts import ldm_patched, neo
from klora_lib.hosts.contract import Entry, TextPart
from klora_lib.hosts.forges import find_noise_progress
from klora_lib.lora.file import lora_file

ENTRIES = [Entry(name, f"/loras/{name}.safetensors") for name in ("subject", "style")]
SUBJECT, STYLE, OTHER, LAST = (f"/loras/{name}.safetensors" for name in ("subject", "style", "other", "last"))
Q = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
WORD = "lora_te_a.lora_up.weight"


class Classic:
    """A patcher by its patches: key → tuples of strength, patch, strength of the weight."""

    load_device = "cpu"
    tail: tuple = ()

    def __init__(self, model: Any = None):
        self.model, self.patches = model, dict[str, list[tuple]]()

    def clone(self) -> Classic:
        copy = type(self)(self.model)
        copy.patches = {key: list(patches) for key, patches in self.patches.items()}
        return copy

    def add(self, key: str, patch: Any, strength: float) -> None:
        self.patches.setdefault(key, []).append((strength, patch, 1.0, *self.tail))


class ReForge(Classic):
    """The same with an offset and a function behind, and a mark that changes with the patches."""

    tail = (None, None)
    patches_uuid: object = None

    def clone(self) -> Classic:
        copy = super().clone()
        copy.patches_uuid = self.patches_uuid  # type: ignore[attr-defined]
        return copy

    def add(self, key: str, patch: Any, strength: float) -> None:
        super().add(key, patch, strength)
        self.patches_uuid = object()


class Table:
    """A discrete model's noise levels; DDIM's wrapper, beside it, knows none."""

    sigmas = torch.linspace(0.1, 10, 1000)
    sigma_max = sigmas[-1]

    def timestep(self, sigma: torch.Tensor) -> torch.Tensor:
        return (sigma - self.sigmas[:, None]).abs().argmin(0)


class Clip:
    def __init__(self, patcher: Classic):
        self.patcher = patcher

    def clone(self) -> Clip:
        return Clip(self.patcher.clone())


class Objects(types.SimpleNamespace):
    def shallow_copy(self) -> Objects:
        return Objects(**vars(self))


def load_lora_for_models(unet: Any, clip: Any, lora: dict, weight: float, te: float, filename: str) -> tuple:
    """As both hosts do it: clones, a patch a key; ``lora`` holds denoiser keys (unet.…) and text encoder keys (lora_te…)."""
    unet, clip = unet and unet.clone(), clip and clip.clone()
    for key, tensor in lora.items():
        words = key.startswith("lora_te")
        patcher = clip.patcher if words else unet
        patcher.add("words" if words else "q", tensor, te if words else weight)
    return unet, clip


def load_networks(model: Any, targets: list[list[Any]], files: dict[str, dict]) -> None:
    """The host's: nothing where its list is as it was, else everything from its originals."""
    if model.current_lora_hash == str(targets):
        return
    model.current_lora_hash = str(targets)
    objects = model.forge_objects
    objects.unet, objects.clip = model.forge_objects_original.unet, model.forge_objects_original.clip
    for path, weight, te in targets:
        objects.unet, objects.clip = load_lora_for_models(objects.unet, objects.clip, files[path], weight, te, path)
    model.forge_objects_after_applying_lora = objects.shallow_copy()


@pytest.fixture(params=[Classic, ReForge], ids=["classic", "reforge"])
def host(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    paths = [SUBJECT, STYLE, OTHER, LAST]
    files = {p: {Q: torch.full((1,), float(i)), WORD: torch.full((1,), -float(i))} for i, p in enumerate(paths)}
    unet = types.SimpleNamespace(diffusion_model=nn.Sequential(nn.Linear(2, 2)), model_sampling=Table())
    objects = Objects(unet=request.param(unet), clip=Clip(request.param()))
    model = types.SimpleNamespace(
        forge_objects=objects.shallow_copy(), forge_objects_original=objects.shallow_copy(),
        forge_objects_after_applying_lora=objects.shallow_copy(), current_lora_hash="[]",
    )  # fmt: skip
    networks = types.ModuleType("networks")
    listed = {e.name: types.SimpleNamespace(shorthash="ab", read_hash=lambda: None) for e in ENTRIES}
    vars(networks).update(dict.fromkeys(ldm_patched.NEEDED), load_lora_for_models=load_lora_for_models)
    vars(networks).update(load_lora_state_dict=files.__getitem__, available_networks=listed)
    extra = types.ModuleType("modules.extra_networks")
    vars(extra)["ExtraNetworkParams"] = lambda items: types.SimpleNamespace(items=items, positional=items, named={})
    shared = types.ModuleType("modules.shared")
    vars(shared).update(sd_model=model, opts=types.SimpleNamespace(lora_add_hashes_to_infotext=True))
    modules = types.ModuleType("modules")
    vars(modules).update(shared=shared, extra_networks=extra)
    for module in (networks, modules, shared, extra):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    made: Any = ldm_patched.make_host()
    made.files, made.test_model = files, model
    yield made


def parts(text: bool) -> list[TextPart]:
    """Style with a text part, or none of the two; each with te 0.5."""
    tensors = {f"{Q}.lora_A.weight": torch.ones(2, 4), f"{Q}.lora_B.weight": torch.ones(4, 2)}
    words = {"lora_te_a.lora_down.weight": torch.ones(2, 4), "lora_te_a.lora_up.weight": torch.ones(4, 2)}
    files = [lora_file({**tensors, **(words if text and e.name == "style" else {})}, e.name, "0" * 32) for e in ENTRIES]
    return [TextPart(e, f, 0.5) for e, f in zip(ENTRIES, files)]


def job(host: Any, targets: list[list[Any]], text: bool | None) -> Any:
    """A batch up to its sampling: the host resets, loads the prompt's LoRAs, then (``text`` not None) we act."""
    model = host.test_model
    model.forge_objects = model.forge_objects_original.shallow_copy()
    load_networks(model, targets, host.files)
    if text is not None:
        host.load_text_parts(types.SimpleNamespace(extra_generation_params={}), {}, parts(text))
        assert model.forge_objects.unet is model.forge_objects_after_applying_lora.unet
        assert model.forge_objects.clip is model.forge_objects_after_applying_lora.clip
    model.forge_objects = model.forge_objects_after_applying_lora.shallow_copy()
    return model.forge_objects


def carried(objects: Any) -> tuple[dict, dict]:
    return objects.unet.patches, objects.clip.patcher.patches


PROMPT = [[OTHER, 0.6, 0.7], [STYLE, 1.0, 1.0], [LAST, 0.0, 2.0], [SUBJECT, 1.0, 0.3]]


def test_the_others_are_carried_as_if_the_pair_had_not_been_there(host: Any) -> None:
    plain = carried(job(host, [PROMPT[0], PROMPT[2]], None))
    assert len(plain[0]["q"]) == 2
    assert carried(job(host, PROMPT, text=False)) == plain
    assert carried(job(host, PROMPT, text=None))[0] != plain[0]


def test_without_tags_of_the_pair_the_hosts_own_patchers_stay(host: Any) -> None:
    before = job(host, [PROMPT[0]], None)
    after = job(host, [PROMPT[0]], text=False)
    assert after.unet is before.unet and after.clip is before.clip
    assert job(host, [PROMPT[0]], text=True).unet is before.unet


def test_text_encoders_get_the_text_part_alone(host: Any) -> None:
    unet, clip = carried(job(host, [PROMPT[0], PROMPT[1]], text=True))
    assert [p[0] for p in unet["q"]] == [0.6]
    assert [p[0] for p in clip["words"]] == [0.7, 0.5, 0.5]  # of the other; then the part's down and up


@pytest.mark.parametrize("text", [True, False])
@pytest.mark.parametrize("following", [[], [PROMPT[0]], PROMPT], ids=["plain", "other", "same"])
def test_the_next_job_is_as_if_there_had_been_no_pair(host: Any, text: bool, following: list) -> None:
    expected = carried(job(host, following, None))
    job(host, PROMPT, text)
    assert carried(job(host, following, None)) == expected


def test_again_without_the_host_loading_in_between(host: Any) -> None:
    """The host keeps what it has where it cannot read a prompt's tag."""
    once = carried(job(host, PROMPT, text=True))
    host.load_text_parts(types.SimpleNamespace(extra_generation_params={}), {}, parts(True))
    assert str(carried(host.test_model.forge_objects)) == str(once)


def test_originals_are_not_touched(host: Any) -> None:
    job(host, PROMPT, text=True)
    assert carried(host.test_model.forge_objects_original) == ({}, {})


@pytest.mark.parametrize("keeps", [True, False], ids=["on p", "the line alone"])
def test_the_infotext_has_the_hashes_of_all(host: Any, keeps: bool) -> None:
    p = types.SimpleNamespace(extra_generation_params={"Lora hashes": "other: cd"})
    if keeps:
        p.lora_hashes = {"other": "cd"}
    host.load_text_parts(p, {}, parts(text=False))
    assert p.extra_generation_params["Lora hashes"] == "other: cd, subject: ab, style: ab"
    assert hasattr(p, "lora_hashes") == keeps


@pytest.mark.parametrize("written", ["9f3c", "9530", "face", "[['/loras/style.safetensors', 1.0]]"])
def test_a_list_of_another_design_is_refused(host: Any, written: str) -> None:
    host.test_model.current_lora_hash = written
    with pytest.raises(HostError, match="loader has changed: its list of loaded LoRAs reads"):
        host.load_text_parts(types.SimpleNamespace(extra_generation_params={}), {}, parts(text=False))


@pytest.mark.parametrize(("sigma", "progress"), [(10.0, 0.0), (0.1, 1.0), (5.05, 0.5)])
def test_progress_is_by_the_models_own_table_whatever_the_sampler(host: Any, sigma: float, progress: float) -> None:
    timesteps = types.SimpleNamespace(inner_model=object(), alphas=torch.ones(1000))  # what DDIM's denoiser offers
    assert host.find_noise_progress(timesteps, torch.tensor(sigma)) == pytest.approx(progress, abs=2e-3)


def test_a_noise_level_between_two_of_the_table_is_between_their_timesteps() -> None:
    """A schedule of 5 noise levels e⁰ to e⁴: the timestep of eˣ is x."""
    table = types.SimpleNamespace(log_sigmas=torch.arange(5.0))
    got = [find_noise_progress(table, torch.tensor(x).exp()) for x in (4.0, 3.5, 1.2, 0.0, -3.0, 9.0)]
    assert got == pytest.approx([0.0, 0.125, 0.7, 1.0, 1.0, 0.0], abs=1e-6) and max(got) < 1


def test_sites_and_device_are_the_loaded_models(host: Any) -> None:
    assert len(host.find_sites()) == 1 and host.get_device() == torch.device("cpu")


def test_before_a_checkpoint_is_loaded(host: Any) -> None:
    sys.modules["modules.shared"].sd_model = object()  # type: ignore[attr-defined]
    with pytest.raises(HostError, match="no checkpoint is loaded"):
        host.find_sites()


class Moving(Classic):
    """Says what is done with it; loading it means patching it."""

    said: list[str]

    def patch_model(self, device: str) -> str:
        self.said.append(f"patch on {device}")
        return "patched"

    def partially_load(self, device: str) -> str:
        return self.patch_model(device)


@pytest.mark.parametrize("family", [ldm_patched, neo])
def test_what_the_host_patches_within_a_pass_it_patches_aside(
    host: Any, monkeypatch: pytest.MonkeyPatch, family: types.ModuleType
) -> None:
    """Also by another patcher of the same model; what is done with another model is nobody's concern."""
    unet, said = Moving(object()), list[str]()
    monkeypatch.setattr(Moving, "said", said, raising=False)
    adapter = family.make_host()
    monkeypatch.setattr(adapter, "get_model", lambda: types.SimpleNamespace(forge_objects=Objects(unet=unet)))
    methods = dict(vars(Moving))

    @contextmanager
    def aside() -> Iterator[None]:
        said.append("aside")
        yield
        said.append("back")

    with pytest.raises(MemoryError), adapter.wrap_rewrites(aside):
        assert unet.clone().partially_load("cuda") == "patched"
        assert said == ["aside", "aside", "patch on cuda", "back", "back"]
        said.clear()
        Moving(object()).patch_model("cpu")
        assert said == ["patch on cpu"]
        raise MemoryError
    assert dict(vars(Moving)) == methods
