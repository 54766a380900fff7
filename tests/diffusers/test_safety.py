"""Whatever happens inside: the pipeline comes back bit for bit (``make`` checks that after every test here)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from klora_lib.diffusers import Run, klora
from klora_lib.engine.bypass import Bypassed
from klora_lib.errors import HostError

from .loras import differing, shapes, snapshot, write_pair
from .pipes import FAMILIES, calls_of, denoiser, image

CLOSE = dict(atol=2e-3, rtol=2e-4)


class Broken(Exception):
    pass


def stop(call: int, total: int) -> None:
    if call == 3:
        raise Broken


@pytest.mark.parametrize(("family", "engine"), [*((family, "merge") for family in FAMILIES), ("sdxl", "bypass")])
def test_an_exception_inside_a_call_restores_at_once(family: str, engine: str, make: Callable, files: Callable) -> None:
    pipe, pair = make(family), files(family, text=True)
    plain, before = image(pipe), [p.clone() for p in denoiser(pipe).parameters()]
    with pytest.raises(Broken), klora(pipe, *pair, engine=engine, callback=stop):
        try:
            image(pipe)
        except Broken:
            assert all(torch.equal(p, q) for p, q in zip(denoiser(pipe).parameters(), before))
            raise
    assert torch.equal(image(pipe), plain)


def test_an_exception_between_calls_restores(make: Callable, files: Callable) -> None:
    pipe = make("sdxl")
    plain = image(pipe)
    with pytest.raises(Broken), klora(pipe, *files("sdxl", text=True)):
        image(pipe)
        raise Broken
    assert torch.equal(image(pipe), plain)


def test_a_failing_text_part_restores(make: Callable, files: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the text encoder's layers are written when one fails."""
    from klora_lib.engine.merge import Merged

    show, shown = Merged.show, []

    def fails(self: Merged, mask: int) -> None:
        show(self, mask)
        shown.append(mask)
        if len(shown) == 3:
            raise Broken

    monkeypatch.setattr(Merged, "show", fails)
    with pytest.raises(Broken), klora(make("sd15"), *files("sd15", text=True)):
        pass


def test_an_interrupted_pipeline(make: Callable, files: Callable) -> None:
    pipe, calls = make("sd15"), []

    def interrupt(pipe: Any, step: int, t: Any, given: dict) -> dict:
        calls.append(step)
        pipe._interrupt = step == 1
        return given

    with klora(pipe, *files("sd15")):
        image(pipe, callback_on_step_end=interrupt)
    assert calls == [0, 1]


def test_two_blocks_on_one_denoiser_are_refused(make: Callable, files: Callable) -> None:
    pipe, pair = make("sd15"), files("sd15")
    with klora(pipe, *pair):
        with pytest.raises(HostError, match="already open"), klora(pipe, *pair):
            pass
        image(pipe, steps=1)


def test_another_denoiser_within_the_block_is_refused(files: Callable) -> None:
    pipe = FAMILIES["sd15"]()
    unet = pipe.unet
    with klora(pipe, *files("sd15")):
        pipe.unet = FAMILIES["sd15"]().unet
        with pytest.raises(HostError, match="another denoiser"):
            image(pipe)
        pipe.unet = unet


def test_a_denoiser_on_another_schedule_is_refused(make: Callable, files: Callable) -> None:
    pipe = make("sd15")
    with klora(pipe, *files("sd15")), torch.no_grad():
        image(pipe, steps=2)
        pipe.scheduler.set_timesteps(4)
        with pytest.raises(HostError, match="timestep 3, where the pipeline's DDIMScheduler is at 1:"):
            pipe.unet(torch.zeros(1, 4, 8, 8), 3, torch.zeros(1, 20, 16))


# --- other adapters ---


@pytest.mark.parametrize("engine", ["merge", "bypass"])
def test_the_users_own_adapters_keep_acting(engine: str, files: Callable, tmp_path: Any) -> None:
    pipe = FAMILIES["sd15"]()
    own, _ = write_pair(pipe, tmp_path, text=True, only="attn1")
    pipe.load_lora_weights(str(own.parent), weight_name=own.name, adapter_name="own")
    pipe.set_adapters(["own"], [0.5])
    plain, before = image(pipe), snapshot(pipe)
    with klora(pipe, *files("sd15", text=True), engine=engine):
        ours = image(pipe)
    assert differing(before, snapshot(pipe)) == [] and torch.equal(image(pipe), plain)
    fused = FAMILIES["sd15"]()
    fused.load_lora_weights(str(own.parent), weight_name=own.name, adapter_name="own")
    fused.fuse_lora(lora_scale=0.5)
    fused.unload_lora_weights()
    with klora(fused, *files("sd15", text=True)):
        assert torch.allclose(image(fused), ours, **CLOSE)


# --- compiled ---


@pytest.fixture
def dynamo() -> Any:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("how", ["module", "in place", "blocks"])
def test_a_compiled_denoiser_draws_the_same(how: str, files: Callable, dynamo: Any) -> None:
    """Compiled and used before the block opens: what looks for hooks at its compilation alone must still be heard."""
    pipe, pair = FAMILIES["flux"](), files("flux", text=True)
    with klora(pipe, *pair) as run:
        expected = image(pipe, steps=2)
    pointers = [p.data_ptr() for p in pipe.transformer.parameters()]
    if how == "module":
        pipe.transformer = torch.compile(pipe.transformer, backend="eager")
    elif how == "in place":
        pipe.transformer.compile(backend="eager")
    else:
        pipe.transformer.compile_repeated_blocks(backend="eager")
    plain, before = image(pipe, steps=2), snapshot(pipe)
    seen: list[list[int]] = []
    with klora(pipe, *pair, callback=lambda *_: seen.append([p.data_ptr() for p in pipe.transformer.parameters()])) as run:
        assert torch.allclose(image(pipe, steps=2), expected, **CLOSE)
    assert seen == [pointers] * 2 and calls_of(run) == [2]
    assert differing(before, snapshot(pipe)) == [] and torch.equal(image(pipe, steps=2), plain)
    with pytest.raises(HostError, match="compiled FluxTransformer2DModel does not run"), klora(pipe, *pair, engine="bypass"):
        pass


# --- offloaded ---


def kinds(run: Run) -> set[type]:
    return {type(actor) for actor in run.passes[-1].session.actors if len(actor.site.shape) > 1}


@pytest.mark.parametrize("family", ["sdxl", "flux"])
def test_streamed_weights_are_added_beside(family: str, tmp_path: Path) -> None:
    """What enable_sequential_cpu_offload does, on one device: between forwards no layer has its weight.

    A norm and a full matrix have no product to add: the one is written in host memory, the other made from there.
    """
    pipe, seen = FAMILIES[family](), set()
    pair = write_pair(pipe, tmp_path, text=True)
    part, norm = ("unet", "conv_norm_out") if family == "sdxl" else ("transformer", "transformer_blocks.0.attn.norm_q")
    layer = next(name for name in shapes(denoiser(pipe)) if name.endswith("attn1.to_q" if family == "sdxl" else "attn.to_q"))
    weight = denoiser(pipe).get_submodule(norm).weight
    more = load_file(pair[0]) | {f"{part}.{norm}.w_norm": torch.full_like(weight, 0.3)}
    more[f"{part}.{layer}.lora_magnitude_vector"] = torch.linspace(0.5, 2, denoiser(pipe).get_submodule(layer).out_features)
    save_file(more, pair[0])
    with klora(pipe, *pair):
        expected = image(pipe)
    for module in pipe.components.values():
        if isinstance(module, nn.Module):
            accelerate.cpu_offload(module, torch.device("cpu"))
    plain = image(pipe)
    assert next(denoiser(pipe).parameters()).device.type == "meta"
    stored = {k: v.clone() for k, v in first_map(pipe).items()}
    with klora(pipe, *pair, callback=lambda *_: seen.update(kinds(run))) as run:
        ours = image(pipe)
    assert torch.allclose(ours, expected, **CLOSE) and seen == {Bypassed}
    assert torch.equal(image(pipe), plain) and all(torch.equal(v, first_map(pipe)[k]) for k, v in stored.items())
    with pytest.raises(HostError, match="merge cannot write"), klora(pipe, *pair, engine="merge"):
        pass


def first_map(pipe: Any) -> Any:
    """All of the denoiser's weights as accelerate keeps them."""
    hook = next(m._hf_hook for m in denoiser(pipe).modules() if getattr(getattr(m, "_hf_hook", None), "weights_map", None))
    return dict(hook.weights_map.dataset)


def moved(module: nn.Module) -> None:
    """To another device and its memory, as far as one device can show it."""
    for p in module.parameters():
        p.data = p.data.clone()


def test_a_whole_model_that_moves(files: Callable) -> None:
    """What enable_model_cpu_offload does: in when its forward begins, behind our hook, and out when the pipeline ends."""
    pipe, pair = FAMILIES["sd15"](), files("sd15", text=True)
    plain = image(pipe)
    with klora(pipe, *pair):
        expected = image(pipe)
    forward, calls = pipe.unet.forward, []

    def moving(*args: Any, **kwargs: Any) -> Any:
        if not calls:
            moved(pipe.unet)
        calls.append(1)
        return forward(*args, **kwargs)

    pipe.unet.forward = moving
    pipe.maybe_free_model_hooks = lambda: (calls.clear(), moved(pipe.unet))
    with klora(pipe, *pair) as run:
        ours = image(pipe)
    assert torch.equal(ours, expected) and torch.equal(image(pipe), plain) and calls_of(run) == [5]
