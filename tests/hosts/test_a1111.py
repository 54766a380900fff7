"""Theorems of the A1111 adapter: it knows the host by what it can do, and takes exactly the pair's tags."""

from __future__ import annotations

import sys
import types
from dataclasses import replace
from importlib.machinery import ModuleSpec
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from klora_lib.errors import HostError, KLoraError
from klora_lib.hosts import a1111, detect
from klora_lib.hosts.contract import Entry, Tag, TextPart
from klora_lib.hosts.family import HOOKS
from klora_lib.lora.file import read_lora

from ..fakes.a1111 import FakeA1111
from ..fakes.host import ExtraNetworkParams, installed, parse_prompt
from ..fakes.processing import Processing, activate

# --- detection ---


def test_nothing_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "networks", raising=False)
    with pytest.raises(HostError, match="built-in Lora extension, through which K-LoRA works, is not loaded"):
        detect()


def test_the_real_thing(host: FakeA1111) -> None:
    assert detect().name == "AUTOMATIC1111"


@pytest.mark.parametrize(
    ("module", "owner", "name"),
    [*(("modules.scripts", "Script", hook) for hook in HOOKS), ("modules.script_callbacks", "", "on_cfg_denoiser"),
     ("modules.processing", "", "process_images_inner")],
)  # fmt: skip
def test_a_webui_without_one_of_our_hooks_is_refused(
    host: FakeA1111, monkeypatch: pytest.MonkeyPatch, module: str, owner: str, name: str
) -> None:
    """A1111 before 1.10 has no hook before sampling: its LoRA loader is the real one, and it would draw without us."""
    place = sys.modules[module]
    monkeypatch.delattr(getattr(place, owner) if owner else place, name)
    with pytest.raises(HostError, match=f"^this WebUI has no {name}, through which K-LoRA works; AUTOMATIC1111 has all"):
        detect()


def test_a_forks_empty_stubs(host: FakeA1111, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forge's descendants keep the module and every name in it; reForge even an object where the patched layers were."""
    stubs = types.ModuleType("networks")
    vars(stubs).update({name: {} for name in a1111.NEEDED})
    monkeypatch.setitem(sys.modules, "networks", stubs)
    with pytest.raises(HostError, match="compared with AUTOMATIC1111's, it lacks layers that merge at their own forward"):
        detect()


def test_a_forge_that_keeps_the_names(host: FakeA1111, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = types.ModuleType("modules_forge")
    shared.__spec__ = ModuleSpec("modules_forge", None)
    monkeypatch.setitem(sys.modules, "modules_forge", shared)
    with pytest.raises(HostError, match="compared with AUTOMATIC1111's, it lacks layers that merge at their own forward"):
        detect()


@pytest.mark.parametrize("name", a1111.NEEDED)
def test_every_part_is_needed(host: FakeA1111, name: str) -> None:
    delattr(host.networks, name)
    with pytest.raises(HostError, match=name):
        detect()


# --- the list of LoRAs ---


def test_found_by_name_and_alias_and_never_by_path(tmp_path: Any) -> None:
    def write(name: str, alias: str | None) -> None:
        save_file({"a": torch.zeros(1)}, tmp_path / f"{name}.safetensors", {"ss_output_name": alias} if alias else None)

    write("Cat v2", "cat")
    write("one", "twin")
    write("two", "twin")
    write("dog", "Cat v2")
    with installed(FakeA1111, tmp_path):
        host = detect()
        assert host.list_loras() == ["Cat v2", "dog", "one", "two"]
        for name in ("Cat v2", "cat"):
            assert host.find_lora(name) == Entry("Cat v2", str(tmp_path / "Cat v2.safetensors")), "a name before an alias"
        assert host.find_lora("twin") is None, "an alias of two files is neither's"
        for name in ("", "Cat", "Cat v2.safetensors", str(tmp_path / "one.safetensors"), "../one"):
            assert host.find_lora(name) is None
        write("new", None)
        assert host.find_lora("new") is None
        host.refresh_loras()
        assert host.find_lora("new") is not None


# --- tags ---

PAIR = ("subject_full", "style_full")


def entries(host: FakeA1111) -> tuple[Entry, Entry]:
    one, two = (detect().find_lora(name) for name in PAIR)
    assert one is not None and two is not None
    return one, two


@pytest.mark.parametrize(
    ("tag", "weights"),
    [("subject_full", (1.0, 1.0)), ("subject_full:0.5", (0.5, 0.5)), ("subject_full:0.5:0.2", (0.5, 0.2)),
     ("subject_full:te=0.3", (0.3, 0.3)), ("subject_full:unet=0.3", (1.0, 0.3)),
     ("subject_full:te=0.1:unet=-2", (0.1, -2.0)),
     ("subject_full:0.9:te=0.1", (0.1, 0.1)), ("subject_full:0:1e-1", (0.0, 0.1))],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["lora", "lyco"])
def test_tags_are_read_as_the_host_reads_them(host: FakeA1111, tag: str, weights: tuple[float, float], kind: str) -> None:
    _, data = parse_prompt(f"a <{kind}:{tag}> <lora:conv_only:0.3>")
    activate(prompted(host), data)
    net = host.networks.loaded_networks[0 if kind == "lora" else 1]
    assert (net.te_multiplier, net.unet_multiplier) == weights
    assert detect().take_tags(data, entries(host)) == {"subject_full": Tag(*weights)}
    assert [t.items[0] for tags in data.values() for t in tags] == ["conv_only"]


@pytest.mark.parametrize("kinds", [("lora", "lora"), ("lora", "lyco")])
def test_a_lora_tagged_twice_acts_with_the_sum_of_its_tags(host: FakeA1111, kinds: tuple[str, str]) -> None:
    """In both parts, under whatever name, and no less where both tags say the same."""
    one, two = kinds
    _, data = parse_prompt(f"<{one}:subject_full:0.5:0.25> a <{two}:subject_full:te=1:unet=-2> <lora:style_full:0.5>")
    assert detect().take_tags(data, entries(host)) == {"subject_full": Tag(1.5, -1.75), "style_full": Tag(0.5, 0.5)}
    assert not any(data.values())
    _, data = parse_prompt(f"<{one}:style_full:0.5><{two}:style_full:0.5>")
    assert detect().take_tags(data, entries(host)) == {"style_full": Tag(1.0, 1.0)}


def test_tags_that_add_up_to_too_much_are_refused(host: FakeA1111) -> None:
    _, data = parse_prompt("<lora:style_full:60><lora:style_full:60>")
    with pytest.raises(KLoraError, match="the tags of 'style_full' add up to 120, which is not a number from -100 to 100"):
        detect().take_tags(data, entries(host))


def prompted(host: FakeA1111) -> Processing:
    p = Processing(host)
    p.prompts, p.seeds = [p.prompt], [p.seed]
    return p


def test_without_tags_nothing_is_taken(host: FakeA1111) -> None:
    data: dict[str, list[Any]] = {"hypernet": [ExtraNetworkParams(["subject_full"])]}
    assert detect().take_tags(data, entries(host)) == {}
    assert data == {"hypernet": [ExtraNetworkParams(["subject_full"])]}


@pytest.mark.parametrize("tag", [
    "subject_full:1:1:8", "subject_full:1:dyn=8", "subject_full:much", "style_full:te=x", "subject_full:nan",
    "subject_full:inf", "subject_full:1:-inf", "subject_full:1e30", "subject_full:1000", "subject_full:unet=-100.5",
    "subject_full:1:lbw=OUTALL", "subject_full:1:stop=3", "subject_full:1@0,0@1",
])  # fmt: skip
def test_a_tag_that_cannot_be_is_refused_in_its_own_words(host: FakeA1111, tag: str) -> None:
    _, data = parse_prompt(f"<lora:{tag}>")
    with pytest.raises(KLoraError, match=f"<lora:{tag}>"):
        detect().take_tags(data, entries(host))


def test_a_tag_is_read_as_it_was_written(host: FakeA1111) -> None:
    """An extension that schedules LoRAs (loractl) has put 1 in the place of the weights it understands."""
    _, data = parse_prompt("<lora:subject_full:1@0,0@1>")
    data["lora"][0].positional = ["subject_full", 1]
    with pytest.raises(KLoraError, match="1@0,0@1> has a weight that is not a number from -100 to 100"):
        detect().take_tags(data, entries(host))


@pytest.mark.parametrize("tag", ["", "<lora:subject_full:0.5:0.2>", "<lora:subject_full:0:0.5><lora:subject_full:0.5:-0.3>"])
def test_network_data_that_comes_again_says_the_same(host: FakeA1111, tag: str) -> None:
    """Hires and the refiner activate what already holds our own tags, whose denoiser weight is 0."""
    p, (_, data) = prompted(host), parse_prompt(f"a {tag} <lora:conv_only:0.3>")
    for _ in range(3):
        activate(p, data)
        tags = detect().take_tags(data, entries(host))
        assert tags == ({"subject_full": Tag(0.5, 0.2)} if tag else {})
        detect().load_text_parts(p, data, [replace(part, tag=tags.get(part.entry.name)) for part in parts(host)])
        assert len(data["lora"]) == 3 and len(host.networks.loaded_networks) == 3


# --- text encoders ---


def parts(host: FakeA1111, te: tuple[float, float] = (0.5, 0.7)) -> list[TextPart]:
    return [TextPart(e, read_lora(e.path, e.name), w) for e, w in zip(entries(host), te)]


def loaded(host: FakeA1111, prompt: str = "") -> tuple[Processing, dict[str, Any]]:
    p, (_, data) = prompted(host), parse_prompt(prompt)
    activate(p, data)
    detect().take_tags(data, entries(host))
    detect().load_text_parts(p, data, parts(host))
    return p, data


def test_the_pair_is_loaded_as_text_parts_under_names_of_its_own(host: FakeA1111) -> None:
    loaded(host, "<lora:conv_only:0.3><lora:subject_full:1>")
    nets = host.networks.loaded_networks
    assert [n.name for n in nets] == ["conv_only", "subject_full (K-LoRA text encoder)", "style_full (K-LoRA text encoder)"]
    assert [(n.te_multiplier, n.unet_multiplier, n.dyn_dim) for n in nets[1:]] == [(0.5, 0.0, None), (0.7, 0.0, None)]
    for net in nets[1:]:
        assert list(net.modules) == ["transformer_text_model_encoder_layers_0_self_attn_q_proj"]
    assert not any(n.name in host.networks.available_network_aliases for n in nets[1:])


def test_the_text_encoder_gets_both_updates(host: FakeA1111) -> None:
    q = host.sd_model.cond_stage_model.q_proj
    want = q.weight.double()
    for part in parts(host):
        up, down, alpha = (
            part.file.text[f"lora_te_text_model_encoder_layers_0_self_attn_q_proj.{w}"]
            for w in ("lora_up.weight", "lora_down.weight", "alpha")
        )
        want = want + part.te * float(alpha) / down.shape[0] * up.double() @ down.double()
    loaded(host)
    host.sd_model.cond_stage_model("a cat")
    assert torch.allclose(q.weight.double(), want, atol=1e-6)


def test_no_other_extension_regulates_the_text_parts(host: FakeA1111) -> None:
    """Regional Prompter switches off, region by region, every loaded network that the region's prompt does not name."""
    p, data = loaded(host, "<lora:conv_only:0.3>")
    for network in host.networks.loaded_networks:
        network.te_multiplier = network.unet_multiplier = 0.0
    weights = [(n.te_multiplier, n.unet_multiplier) for n in host.networks.loaded_networks]
    assert weights == [(0.0, 0.0), (0.5, 0.0), (0.7, 0.0)]


def test_nothing_is_drawn_from_the_hosts_generator(host: FakeA1111) -> None:
    """img2img encodes its picture with noise from it: so does what ADetailer draws within the job."""
    p, data = prompted(host), dict[str, Any]()
    before = torch.get_rng_state()
    detect().load_text_parts(p, data, parts(host))
    assert torch.equal(torch.get_rng_state(), before) and len(host.networks.loaded_networks) == 2


def test_files_without_text_load_nothing(host: FakeA1111) -> None:
    p, data = prompted(host), dict[str, Any]()
    entry = detect().find_lora("subject")
    assert entry is not None
    detect().load_text_parts(p, data, [TextPart(entry, read_lora(entry.path, "subject"), 1.0)])
    assert host.networks.loaded_networks == []


def test_the_prompt_caches_key_tells_te_weights_apart(host: FakeA1111) -> None:
    keys = []
    for te in ((0.5, 0.7), (0.5, 0.7), (0.7, 0.5), (0.5, 0.0)):
        data: dict[str, Any] = {}
        detect().load_text_parts(prompted(host), data, parts(host, te))
        keys.append(data)
        host.networks.loaded_networks.clear()
    assert keys[0] == keys[1] and keys[0] != keys[2] and keys[0] != keys[3] and keys[0] != {}


def test_embeddings_that_came_with_a_tag_stay_known(host: FakeA1111) -> None:
    """The host unregisters them by looking through the networks that are loaded."""
    p, (_, data) = prompted(host), parse_prompt("<lora:subject_full:1>")
    activate(p, data)
    host.networks.loaded_networks[0].bundle_embeddings["cat"] = object()
    detect().load_text_parts(p, data, parts(host))
    (kept,) = [n for n in host.networks.loaded_networks if n.bundle_embeddings]
    assert kept.modules == {} and kept.name not in host.networks.available_networks
    assert host.networks.networks_in_memory["subject_full"].modules, "the host's own object is left as it was"


@pytest.mark.parametrize("on", [True, False])
def test_hashes(host: FakeA1111, on: bool) -> None:
    host.shared.opts.lora_add_hashes_to_infotext = on
    p, _ = loaded(host, "<lora:conv_only:0.3>")
    hashes = {n: host.networks.available_networks[n].shorthash for n in ("conv_only", *PAIR)}
    wanted = {"Lora hashes": ", ".join(f"{n}: {h}" for n, h in hashes.items())} if on else {}
    assert p.extra_generation_params == wanted
