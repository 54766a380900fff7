"""Theorems of Neo 2.27 to 2.29, on stand-ins: int8 by bypass, and other LoRAs that act at every forward beside the pair."""

from __future__ import annotations

import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from klora_lib.engine.session import Placed, Session
from klora_lib.engine.site import SiteDeltas, WeightedDelta
from klora_lib.hosts import detect, neo
from klora_lib.lora.deltas import Dora, Lora

from ..engine.cases import CPU, rand
from ..fakes.neo import FakeNeo, LoKrAdapter, LoRAAdapter, LoRAControl
from ..fakes.neo_layers import Linear, PlainConv2d
from ..fakes.processing import process_images
from ..webui.acts import at, ended
from ..webui.jobs import job, plain

FULL = {"content": "subject_full", "style": "style_full"}
TO_Q = "input_blocks.1.1.transformer_blocks.0.attn1.to_q"
NAME = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
OTHER = "<lora:other:0.6>"


@pytest.fixture
def host(forge_neo: FakeNeo) -> FakeNeo:
    return forge_neo


def left_behind(host: FakeNeo) -> list[str]:
    """Hooks of ours, and LoRAs of the pair, wherever they still are."""
    hooks = [name for name, m in host.unet.named_modules() if m._forward_hooks or m._forward_pre_hooks]
    patcher = host.sd_model.forge_objects.unet
    named = [e["name"] for e in sum(patcher.dynamic_loras.values(), [])]
    named += [w.name for w in sum(patcher.weight_wrapper_patches.values(), [])]
    return hooks + [name for name in named if "other" not in name]


# --- whole jobs, the host's own image as the measure ---


def test_it_is_known_for_what_it_is(host: FakeNeo) -> None:
    assert detect().name == "Forge Neo"


@pytest.mark.parametrize("other", ["", OTHER])
@pytest.mark.parametrize("extreme", ["content", "style"])
def test_an_extreme_is_the_hosts_own_image_of_that_lora(host: FakeNeo, extreme: str, other: str) -> None:
    """On int8 weights, and with another LoRA on the same layers; tags of the pair in the prompt or not."""
    off = {"content": "style_te_weight", "style": "content_te_weight"}[extreme]
    image = process_images(job(host, {**FULL, "method": extreme, off: 0.0}, prompt=f"a cat{other}")).images[0]
    assert left_behind(host) == []
    own = process_images(plain(host, prompt=f"a cat{other}<lora:{FULL[extreme]}:1>")).images[0]
    assert torch.allclose(image, own, atol=1e-5)
    assert not torch.allclose(image, process_images(plain(host, prompt=f"a cat{other}")).images[0], atol=1e-2)


def test_tags_of_the_pair_are_loaded_nowhere(host: FakeNeo) -> None:
    prompt = f"a cat<lora:subject_full:1>{OTHER}<lora:style_full:0.5>"
    image = process_images(job(host, {**FULL, "method": "direct"}, prompt=prompt)).images[0]
    assert left_behind(host) == []
    assert torch.allclose(image, process_images(plain(host, prompt=prompt)).images[0], atol=1e-5)


def test_plain_images_before_and_after_are_the_same(host: FakeNeo) -> None:
    prompts = ("a cat", f"a cat{OTHER}", "a cat<lora:subject_full:1>")
    before = [process_images(plain(host, prompt=prompt)).images[0] for prompt in prompts]
    for prompt, image in zip(prompts, before):
        process_images(job(host, FULL, prompt=prompt))
        assert torch.equal(process_images(plain(host, prompt=prompt)).images[0], image), prompt


def test_the_text_part_is_added_as_the_setting_says(host: FakeNeo) -> None:
    """By the host's own adapters, which alone it merges, and at every forward (into packed weights it cannot merge)."""
    process_images(job(host, FULL))
    patcher = host.sd_model.forge_objects.clip.patcher
    (wrappers,) = patcher.weight_wrapper_patches.values()
    assert [type(w.patch[0][1]) for w in wrappers] == [LoRAAdapter] * 2 and patcher.patches == {}
    host.modules["backend.args"].dynamic_args.online_lora = False
    process_images(job(host, FULL))
    patcher = host.sd_model.forge_objects.clip.patcher
    assert len(sum(patcher.patches.values(), [])) == 2 and patcher.weight_wrapper_patches == {}


def test_merge_is_refused_with_the_weights_kind(host: FakeNeo) -> None:
    assert "merge cannot write QuantizedTensor weights" in ended(job(host, {**FULL, "engine": "merge"}))


# --- what changes within a pass ---


SCHEDULE = [0.0, 0.2, 0.9, -0.4, 0.9, 0.5]


def schedule(host: FakeNeo, name: str) -> LoRAControl:
    control = LoRAControl(host, {host.networks.available_networks[name].filename: SCHEDULE})
    host.script_callbacks.on_cfg_denoiser(control.adjust_lora)
    return control


def test_neos_own_schedule_of_another_lora_acts_beside_the_pair(host: FakeNeo) -> None:
    schedule(host, "other")
    chosen = {**FULL, "method": "content", "style_te_weight": 0.0}
    image = process_images(job(host, chosen, prompt=f"a cat{OTHER}")).images[0]
    own = process_images(plain(host, prompt=f"a cat{OTHER}<lora:subject_full:1>")).images[0]
    assert torch.allclose(image, own, atol=1e-5)


def test_our_dora_is_of_the_weight_as_it_is_at_that_step(host: FakeNeo, more_loras: Path) -> None:
    """Base + the other LoRA at the strength of this call, for every call of a pass without a switch."""
    schedule(host, "other")
    layer, seen = host.unet.get_submodule(TO_Q), list[Tensor]()
    host.on_call.append(lambda _: seen.append(layer(torch.eye(8)).T))  # asked of the layer itself
    p = job(host, {"content": "dora", "method": "content"}, prompt=f"a cat{OTHER}")
    process_images(p)
    delta = next(u.content for u in p.klora_job.pair.units if u.name == NAME)
    other = load_file(more_loras / "other.safetensors")
    up, down = (other[f"lora_unet_{TO_Q.replace('.', '_')}.lora_{part}.weight"] for part in ("up", "down"))
    assert isinstance(delta, Dora) and len(seen) == len(SCHEDULE)
    for got, strength in zip(seen, SCHEDULE):
        base = layer.weight.dequantize() + strength * 0.5 * up @ down
        assert torch.allclose(got, base + delta.update(base), atol=1e-5), strength


def test_a_schedule_of_the_pair_itself_is_refused(host: FakeNeo) -> None:
    p = job(host, FULL, prompt="a cat<lora:style_full:-1.0>")
    p.scripts = types.SimpleNamespace(alwayson_scripts=[object(), schedule(host, "style_full")])
    assert "schedules the weight of 'style_full' over the steps" in ended(p)


@pytest.mark.parametrize("online", [True, False])
def test_another_patcher_loaded_within_the_pass_acts_beside_the_pair(host: FakeNeo, online: bool) -> None:
    """Its LoRAs are put on the layers that carry our hooks, or merged into the weights that we write."""
    host.is_online = host.modules["backend.args"].dynamic_args.online_lora = online

    def load() -> None:
        unet, clip = host.sd_model.forge_objects.unet, host.sd_model.forge_objects.clip
        path = host.networks.available_networks["other"].filename
        more, _ = host.networks.load_lora_for_models(unet, clip, load_file(path), 0.7, 0.0, path, online_mode=online)
        host.load_model_gpu(more)

    def image(p: Any) -> Tensor:
        host.on_call.clear()
        at(host, 2, load)
        return process_images(p).images[0]

    before = process_images(plain(host)).images[0]
    ours = image(job(host, {**FULL, "method": "content", "style_te_weight": 0.0}))
    assert left_behind(host) == []
    assert torch.equal(process_images(plain(host)).images[0], before)
    assert torch.allclose(ours, image(plain(host, prompt="a cat<lora:subject_full:1>")), atol=1e-5)


# --- one layer ---


def lokr(unet: Any) -> None:
    unet.add_patches(
        {f"diffusion_model.{TO_Q}.weight": LoKrAdapter(rand(2, 4, seed=1), rand(4, 2, seed=2))}, 0.5, online_mode=True
    )


def diff(unet: Any) -> None:
    unet.add_patches({f"diffusion_model.{TO_Q}.weight": ("diff", (rand(8, 8, seed=3),))}, 0.5, online_mode=True)


def two(unet: Any) -> None:
    for rank, strength in ((2, 0.5), (3, -0.2)):
        adapter = LoRAAdapter(rand(8, rank, seed=4), rand(rank, 8, seed=rank), 1.0)
        unet.add_patches({f"diffusion_model.{TO_Q}.weight": adapter}, strength, online_mode=True)


def wrapper(unet: Any) -> None:
    unet.model.get_submodule(f"diffusion_model.{TO_Q}").weight_function = [lambda w: 0.8 * w]


@pytest.mark.parametrize("add", [lokr, diff, two, wrapper])
@pytest.mark.parametrize("make", [Lora, lambda *args: Dora(Lora(*args), rand(8, 1, seed=9).abs())])
def test_what_a_layer_adds_itself_stays_and_is_part_of_our_base(
    host: FakeNeo, add: Callable[[Any], None], make: Callable[..., Any]
) -> None:
    unet = host.sd_model.forge_objects.unet.clone()
    if add is not wrapper:
        add(unet)
    unet.load()
    if add is wrapper:
        add(unet)
    host.sd_model.forge_objects.unet = unet
    site = neo.make_host().find_sites()[NAME]
    x, layer = torch.eye(8), site.module
    base = layer(x).T  # asked of the layer itself
    assert not torch.allclose(base, layer.weight.dequantize(), atol=1e-2)
    assert torch.allclose(site.read(layer), base, atol=1e-6)
    delta = make(rand(8, 2, seed=6), rand(2, 8, seed=7), 0.5, (8, 8))
    placed = Placed(None, 1, site, SiteDeltas(WeightedDelta(delta, 0.7), None), NAME)
    session = Session(types.SimpleNamespace(at=lambda _: torch.zeros(1, dtype=torch.uint8)), [placed], "auto", CPU)
    session.advance(0.0)
    assert torch.allclose(layer(x).T, base + 0.7 * delta.update(base), atol=1e-5)
    session.close()
    assert torch.equal(layer(x).T, base)


def test_a_plain_weight_under_such_a_lora_is_not_written(host: FakeNeo) -> None:
    host.networks.load_networks(["other"], [1.0], [1.0])
    host.load_model_gpu(host.sd_model.forge_objects.unet)
    packed = {type(s.module): s.packed.kind for s in neo.make_host().find_sites().values() if s.packed}
    assert packed == {
        Linear: "QuantizedTensor weights",
        PlainConv2d: "torch.float32 weights of a model that adds LoRAs at every forward",
    }


def test_reading_a_weight_under_such_a_lora_does_not_change_it(host: FakeNeo) -> None:
    """The host's function writes into what it is given; of an fp32 weight that would be the parameter itself."""
    host.networks.load_networks(["other"], [1.0], [1.0])
    host.load_model_gpu(host.sd_model.forge_objects.unet)
    read = 0
    for site in neo.make_host().find_sites().values():
        if isinstance(site.module, PlainConv2d) and site.module.weight_function:
            before = site.module.weight.clone()
            once, twice = site.read(site.module), site.read(site.module)
            assert torch.equal(once, twice) and not torch.equal(once, before)
            assert torch.equal(site.module.weight, before)
            read += 1
    assert read
