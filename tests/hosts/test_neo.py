"""Theorems of the Neo adapter, wherever its patcher keeps LoRAs: the pair is loaded nowhere, all else is as it was."""

from __future__ import annotations

import ast
import copy
import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from klora_lib.errors import HostError
from klora_lib.hosts import detect, forge, neo
from klora_lib.hosts.contract import Entry, TextPart
from klora_lib.lora.file import lora_file

from .modules import install, install_hooks

ENTRIES = [Entry(name, f"/loras/{name}.safetensors") for name in ("subject", "style")]
OTHER = "/loras/other.safetensors"
Q = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"


class Patcher:
    """``kept``: (path, weight, text-encoder weight) of what it carries; a real one may not tell the paths."""

    load_device = "cpu"

    def __init__(self, model: Any = None, kept: tuple = ()):
        self.model, self.kept = model, kept

    def add_patches(self) -> None: ...

    def clone(self) -> Patcher:
        return Patcher(self.model, self.kept)


class Objects(types.SimpleNamespace):
    unet: Patcher
    clip: Patcher


class Loader:
    """The host's networks module: loads everything anew when what is asked for differs from what it has."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, denoiser: nn.Module):
        unet = types.SimpleNamespace(diffusion_model=denoiser)
        objects = Objects(unet=Patcher(unet), clip=Patcher())
        self.model = types.SimpleNamespace(
            forge_objects=objects, forge_objects_original=copy.copy(objects), current_lora_hash="[]"
        )
        self.texts: list[tuple] = []
        said = dict(shorthash="ab", read_hash=lambda: None)
        entries = [*ENTRIES, Entry("other", OTHER)]
        listed = {e.name: types.SimpleNamespace(name=e.name, filename=e.path, **said) for e in entries}
        members = dict.fromkeys(forge.NEEDED) | dict(
            available_networks=listed, available_network_aliases={}, forbidden_network_aliases={}, loaded_networks=[],
            load_networks=self.load_networks, load_lora_for_models=self.load_lora_for_models,
        )  # fmt: skip
        self.networks = install(monkeypatch, "networks", **members)

    def load_networks(self, names: list[str], te: list[float], unet: list[float]) -> None:
        found = [self.networks.available_networks[name] for name in names]
        self.networks.loaded_networks[:] = [
            types.SimpleNamespace(mentioned_name=name, network_on_disk=disk) for name, disk in zip(names, found)
        ]
        targets = [[disk.filename, u, t, True] for disk, u, t in zip(found, unet, te)]
        if self.model.current_lora_hash == str(targets):
            return
        self.model.current_lora_hash = str(targets)
        kept = tuple((path, u, t) for path, u, t, _ in targets)
        original = self.model.forge_objects_original
        self.model.forge_objects = Objects(unet=Patcher(original.unet.model, kept), clip=Patcher(None, kept))
        self.model.forge_objects_after_applying_lora = copy.copy(self.model.forge_objects)

    def load_lora_for_models(
        self, unet: Patcher, clip: Patcher, lora: dict, strength: float, te: float, filename: str
    ) -> tuple[Patcher, Patcher]:
        assert unet.model is not None  # it looks at the denoiser even where nothing is for it
        self.texts.append((sorted(lora), strength, te))
        return unet, Patcher(None, (*clip.kept, (filename, strength, te)))


@pytest.fixture
def loader(monkeypatch: pytest.MonkeyPatch) -> Iterator[Loader]:
    loader = Loader(monkeypatch, nn.Sequential(nn.Linear(4, 4)))
    extra = install(
        monkeypatch, "modules.extra_networks",
        ExtraNetworkParams=lambda items: types.SimpleNamespace(items=items, positional=items, named={}),
    )  # fmt: skip
    opts = types.SimpleNamespace(lora_add_hashes_to_infotext=True, refiner_fast_sd=False)
    shared = install(monkeypatch, "modules.shared", sd_model=loader.model, opts=opts)
    sd_models = install(monkeypatch, "modules.sd_models", forge_model_reload=lambda: None)
    install(monkeypatch, "modules", shared=shared, extra_networks=extra, sd_models=sd_models)
    install(monkeypatch, "backend.patcher.base", ModelPatcher=Patcher)
    install_hooks(monkeypatch)
    loader.load_networks([], [], [])
    loader.model.forge_objects_after_applying_lora = loader.model.forge_objects
    yield loader


def parts(text: bool = True) -> list[TextPart]:
    tensors = {f"{Q}.lora_A.weight": torch.ones(2, 4), f"{Q}.lora_B.weight": torch.ones(4, 2)}
    words = {"lora_te_a.lora_down.weight": torch.ones(2, 4), "lora_te_a.lora_up.weight": torch.ones(4, 2)}
    files = [lora_file({**tensors, **(words if text and e.name == "style" else {})}, e.name) for e in ENTRIES]
    return [TextPart(e, f, 0.5) for e, f in zip(ENTRIES, files)]


def job() -> Any:
    return types.SimpleNamespace(extra_generation_params={}, refiner_checkpoint_info=None)


def test_neo_is_told_from_forge_by_its_patcher(loader: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    assert detect().name == "Forge Neo" and forge.find_missing() == [forge.REFRESH] and neo.find_missing() == []
    monkeypatch.setattr(Patcher, "refresh_loras", None, raising=False)
    assert detect().name == "Forge"


def test_a_patcher_of_another_make_is_refused(loader: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["backend.patcher.base"], "ModelPatcher", object)
    assert neo.find_missing() == ["ModelPatcher.add_patches", "ModelPatcher.clone"]
    with pytest.raises(HostError, match="LoRA loader has changed"):
        detect()


def test_the_pair_is_loaded_nowhere_and_the_others_as_before(loader: Loader) -> None:
    """Weights in the prompt's order are (text encoder, denoiser), in the host's notes the other way round."""
    loader.load_networks(["subject", "other", "style"], [1.0, 0.3, 1.0], [1.0, 0.7, 1.0])
    neo.make_host().load_text_parts(job(), {}, parts(text=False))
    after = loader.model.forge_objects_after_applying_lora
    assert after.unet.kept == after.clip.kept == ((OTHER, 0.7, 0.3),)
    assert loader.model.forge_objects.unet is after.unet and loader.texts == []


def test_the_host_loads_afresh_for_the_next_job(loader: Loader) -> None:
    host, order = neo.make_host(), (["other", "style"], [1.0, 1.0], [1.0, 1.0])
    for _ in range(2):  # hires, batches: the same prompt again
        loader.load_networks(*order)
        host.load_text_parts(job(), {}, parts())
    loader.load_networks(*order)
    assert [path for path, *_ in loader.model.forge_objects.unet.kept] == [OTHER, ENTRIES[1].path]


def test_where_nothing_of_the_pair_is_loaded_nothing_is_changed(loader: Loader) -> None:
    loader.load_networks(["other"], [1.0], [1.0])
    unet, noted = loader.model.forge_objects.unet, loader.model.current_lora_hash
    neo.make_host().load_text_parts(job(), {}, parts(text=False))
    assert loader.model.forge_objects.unet is unet and loader.model.current_lora_hash == noted


def test_text_encoders_carry_the_text_part_alone(loader: Loader) -> None:
    p, data = job(), {}
    neo.make_host().load_text_parts(p, data, parts())
    ((keys, strength, te),) = loader.texts
    assert (strength, te) == (0.0, 0.5) and all(key.startswith("lora_te_") for key in keys)
    ((name, *_),) = loader.model.forge_objects.clip.kept
    assert ENTRIES[1].path in name and loader.model.forge_objects.unet.kept == ()
    assert p.extra_generation_params["Lora hashes"] == "subject: ab, style: ab" and len(data["lora"]) == 2


@pytest.mark.parametrize("noted", ["7f3a", "[('/loras/style.safetensors', 1.0)]", "5", None])
def test_notes_that_list_no_files_are_refused(loader: Loader, noted: str | None) -> None:
    loader.model.current_lora_hash = noted
    with pytest.raises(HostError, match="LoRA loader has changed: its list of loaded LoRAs reads"):
        neo.make_host().load_text_parts(job(), {}, parts())


def test_another_lora_is_never_left_out_in_silence(loader: Loader) -> None:
    loader.load_networks(["other", "style"], [1.0, 1.0], [1.0, 1.0])
    loader.networks.loaded_networks = [n for n in loader.networks.loaded_networks if n.mentioned_name != "other"]
    with pytest.raises(
        HostError, match="LoRA loader has changed: it lists '/loras/other.safetensors', but not by what name"
    ):
        neo.make_host().load_text_parts(job(), {}, parts())


def test_a_loader_that_loads_the_pair_again_is_refused(loader: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    loader.load_networks(["style"], [1.0], [1.0])
    monkeypatch.setattr(loader.networks, "load_networks", lambda *_: None)
    with pytest.raises(HostError, match="LoRA loader has changed: it loads the pair though"):
        neo.make_host().load_text_parts(job(), {}, parts())


def test_the_loader_notes_what_the_adapter_reads(loader: Loader) -> None:
    """The stand-in above writes its notes as the real one does."""
    loader.load_networks(["other"], [0.3], [0.7])
    assert ast.literal_eval(loader.model.current_lora_hash) == [[OTHER, 0.7, 0.3, True]]


def test_a_refiner_that_overwrites_the_layers_is_refused(loader: Loader) -> None:
    p, host = types.SimpleNamespace(refiner_checkpoint_info="refiner"), neo.make_host()
    with host.watch_refiner(p, lambda: None):
        pass
    sys.modules["modules.shared"].opts.refiner_fast_sd = True
    with pytest.raises(HostError, match="state_dict"), host.watch_refiner(p, lambda: None):
        pass
    with host.watch_refiner(job(), lambda: None):  # no refiner, no matter
        pass


class Packed(Tensor):
    """As comfy-kitchen's: a tensor that says it is bfloat16, and holds its numbers in ``storage_dtype``."""

    storage_dtype: torch.dtype

    @staticmethod
    def __new__(cls, dtype: torch.dtype) -> Packed:
        packed = Tensor._make_wrapper_subclass(cls, (4, 4), dtype=torch.bfloat16)  # type: ignore[attr-defined]
        packed.storage_dtype = dtype
        return packed

    layout_cls = "a layout"

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{function} of packed numbers")

    def detach(self) -> Packed:
        return self

    def dequantize(self) -> Tensor:
        return torch.full((4, 4), 2.0, dtype=torch.bfloat16)


class Unknown(Packed):
    layout_cls = property()  # type: ignore[assignment]  # hasattr says no


def with_weight(weight: Any) -> nn.Module:
    leaf = nn.Module()
    leaf.__dict__["weight"] = weight
    return leaf


def gguf() -> Tensor:
    """Q8_0 as loaded: blocks of int8, the scale among them."""
    weight = torch.zeros(4, 6, dtype=torch.int8)
    weight.gguf_cls = "Q8_0"  # type: ignore[attr-defined]
    return weight


def fused() -> nn.Module:
    leaf = nn.Module()
    leaf.register_buffer("qweight", torch.zeros(4, 2, dtype=torch.int8))
    return leaf


@pytest.mark.parametrize(
    ("leaf", "fact"),
    [
        (with_weight(torch.zeros(4, 4, dtype=torch.int8)), r"the model's weights are int8 \(0\)"),
        (fused(), "Nunchaku"),
        (with_weight(Unknown(torch.float8_e4m3fn)), r"are packed as Unknown \(0\), which K-LoRA cannot read"),
    ],
)
def test_layers_that_take_no_lora_are_refused(loader: Loader, leaf: nn.Module, fact: str) -> None:
    loader.model.forge_objects.unet.model.diffusion_model = nn.Sequential(leaf)
    with pytest.raises(HostError, match=fact):
        neo.make_host().find_sites()


def test_nunchakus_flux_hides_its_layers(loader: Loader) -> None:
    loader.model.forge_objects.unet.model.diffusion_model.loras = []
    with pytest.raises(HostError, match="Nunchaku"):
        neo.make_host().find_sites()


@pytest.mark.parametrize("weight", [gguf(), *(Packed(t) for t in (torch.float8_e4m3fn, torch.uint8, torch.int8))])
def test_layers_that_can_be_read_are_sites(loader: Loader, weight: Tensor) -> None:
    loader.model.forge_objects.unet.model.diffusion_model = nn.Sequential(with_weight(weight))
    assert [site.module.weight is weight for site in neo.make_host().find_sites().values()] == [True]


def test_packed_numbers_are_read_through_the_tensor_itself() -> None:
    read = neo.read_weight(with_weight(Packed(torch.float8_e4m3fn)), torch.device("cpu"))
    assert read.dtype == torch.float32 and torch.equal(read, torch.full((4, 4), 2.0))


def test_numbers_are_under_the_loras_that_act_at_every_forward() -> None:
    leaf = with_weight(torch.ones(4, 4, dtype=torch.bfloat16))
    leaf.weight_function = [lambda w: w + 0.5, lambda w: w * 2]
    assert torch.equal(neo.read_weight(leaf, torch.device("cpu")), torch.full((4, 4), 3.0))


def test_before_a_checkpoint_is_loaded(loader: Loader) -> None:
    sys.modules["modules.shared"].sd_model = object()  # type: ignore[attr-defined]
    with pytest.raises(HostError, match="no checkpoint is loaded"):
        neo.make_host().find_sites()
