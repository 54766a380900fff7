"""A sampler's name says what runs: the model's training schedule stays, and nothing of the sampler it had."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest

from klora_lib.drawing.pipelines import FLOW, SAMPLERS, use_sampler
from klora_lib.errors import SettingsError

TRAINED = {
    "num_train_timesteps": 500, "beta_start": 0.001, "beta_end": 0.01, "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction", "timestep_spacing": "trailing", "steps_offset": 1,
}  # fmt: skip


def by_beta(**given: Any) -> Any:
    """On noise levels that diffusers makes only where scipy is installed."""
    made = diffusers.EulerDiscreteScheduler(**given)
    made.register_to_config(use_beta_sigmas=True)
    return made


def put(name: str | None, scheduler: Any) -> tuple[str, Any]:
    pipe = SimpleNamespace(scheduler=scheduler)
    return use_sampler(pipe, name), pipe.scheduler


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_name_makes_the_same_of_every_models_own_sampler(name: str) -> None:
    """Of a model saved with whatever sampler; and without a name, that one is called by it."""
    kind = getattr(diffusers, SAMPLERS[name][0])
    plain = kind(**TRAINED, **SAMPLERS[name][1])
    for own in (
        by_beta(**TRAINED, interpolation_type="log_linear"),
        diffusers.DPMSolverMultistepScheduler(**TRAINED, algorithm_type="sde-dpmsolver++", solver_order=3),
        diffusers.DDIMScheduler(**TRAINED, thresholding=True, clip_sample=True),
        diffusers.UniPCMultistepScheduler(**TRAINED, use_exponential_sigmas=True, final_sigmas_type="sigma_min"),
    ):
        told, made = put(name.upper(), own)
        assert (told, type(made)) == (name, kind)
        public = {key: value for key, value in plain.config.items() if not key.startswith("_")}
        assert {key: made.config[key] for key in public} == public
        made.set_timesteps(5)
        assert put(None, made)[0] == name


def test_what_the_model_does_not_say_of_its_training_is_as_its_own_class_has_it() -> None:
    """diffusers' classes differ in what they take for granted."""
    _, made = put("Heun", diffusers.DDIMScheduler())
    assert (made.config.beta_start, made.config.beta_end) == (0.0001, 0.02)
    assert made.config.timestep_spacing == "linspace"


@pytest.mark.parametrize(
    ("own", "name"),
    [
        (diffusers.EulerDiscreteScheduler(), "Euler"),
        (diffusers.EulerDiscreteScheduler(use_karras_sigmas=True), "Euler Karras"),
        (by_beta(), "EulerDiscrete"),
        (diffusers.DPMSolverMultistepScheduler(solver_order=3), "DPMSolverMultistep"),
        (diffusers.PNDMScheduler(skip_prk_steps=True), "PLMS"),
        (diffusers.DEISMultistepScheduler(), "DEISMultistep"),
        (diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), "Euler"),
        (diffusers.FlowMatchHeunDiscreteScheduler(), "Heun"),
    ],
    ids=lambda each: each if isinstance(each, str) else type(each).__name__,
)
def test_the_models_own_by_its_name(own: Any, name: str) -> None:
    assert put(None, own) == (name, own)


def test_a_flow_model_keeps_its_schedule() -> None:
    own = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True, base_shift=0.7, shift_terminal=0.1)
    config = put("Euler", own)[1].config
    assert (config.shift, config.use_dynamic_shifting, config.base_shift, config.shift_terminal) == (3.0, True, 0.7, 0.1)
    heun = put("Heun", own)[1]
    assert (type(heun).__name__, heun.config.shift) == (FLOW["Heun"][0], 3.0)
    solver = diffusers.DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=5.0)
    assert put("Euler", solver)[1].config.shift == 5.0


def test_flux_does_without_heun(make: Callable) -> None:
    pipe = make("flux")
    with pytest.raises(SettingsError, match="^sampler: 'Heun' is none of this model's: Euler$"):
        use_sampler(pipe, "Heun")
    assert use_sampler(pipe, "euler") == "Euler"
    assert use_sampler(make("sd3"), "heun") == "Heun"
