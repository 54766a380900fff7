"""What differs between the WebUIs, for the probe: where the model is, and what the host itself has pending on it."""

from importlib import import_module
from importlib.util import find_spec

import networks  # the WebUI's Lora extension
import torch

from modules import shared


def is_neo():
    return find_spec("backend") is not None and not hasattr(
        import_module("backend.patcher.base").ModelPatcher, "refresh_loras"
    )


# SD1.5's file has no such projection, and Neo leaves in it whatever memory holds
LOADED_AT_RANDOM = ("clip_l.transformer.text_projection.",) if is_neo() else ()


def is_forge():
    return find_spec("modules_forge") is not None


def patchers():
    objects = shared.sd_model.forge_objects
    return {"denoiser": objects.unet, "text": objects.clip.patcher}


def roots():
    """name -> module: everything a LoRA may act on"""
    return {name: patcher.model for name, patcher in patchers().items()} if is_forge() else {"": shared.sd_model}


def denoiser():
    return patchers()["denoiser"].model.diffusion_model if is_forge() else shared.sd_model.model.diffusion_model


def host_backups(name, root):
    """parameter's name -> what it is without the host's own LoRA merge"""
    if not is_forge():
        return lazy_backups(root)
    patcher = patchers()[name]
    if hasattr(patcher, "lora_loader"):
        return patcher.lora_loader.backup
    saved = {key: value for loaded in loaded_patchers(root) for key, value in loaded.backup.items()}
    return {key: getattr(value, "weight", value) for key, value in saved.items()}


def memory_management():
    return import_module("backend.memory_management" if find_spec("backend") else "ldm_patched.modules.model_management")


def loaded_patchers(root):
    """Where a prompt's encoding is cached, the text encoders still carry what an earlier job's patcher merged."""
    loaded = [entry.model for entry in memory_management().current_loaded_models]
    return [patcher for patcher in loaded if patcher is not None and patcher.model is root]


def rewrite():
    """Have the denoiser's weights rewritten and written back, as an extension does that loads a patcher of its own.

    Returns how many weights were others meanwhile.
    """
    model = roots()["denoiser"]
    (patcher,) = loaded_patchers(model)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    other = shared.sd_model.forge_objects_original.unet.clone()
    memory_management().load_models_gpu([other])
    moved = sum(not torch.equal(weight, before[name]) for name, weight in model.named_parameters())
    memory_management().load_models_gpu([patcher])
    return moved


def lazy_backups(model):
    """A layer whose `network_current_names` is empty is held to be clean by the host: there the weight itself counts."""
    out = {}
    for path, module in model.named_modules():
        if not getattr(module, "network_current_names", ()):
            continue
        weight, bias = getattr(module, "network_weights_backup", None), getattr(module, "network_bias_backup", None)
        attention = isinstance(module, torch.nn.MultiheadAttention)
        names = ("in_proj_weight", "out_proj.weight") if attention else ("weight",)
        saved = weight if isinstance(weight, tuple) else (weight,)
        out |= {f"{path}.{n}": s for n, s in zip(names, saved, strict=True) if s is not None}
        if bias is not None:
            out[f"{path}.out_proj.bias" if attention else f"{path}.bias"] = bias
    return out


def layers():
    """kohya name -> layer of the denoiser, by the host's own table"""
    return KeyedLayers() if is_forge() else LazyLayers()


class KeyedLayers:
    """The table also has names that this model has no layer of."""

    def __init__(self):
        module = "backend.patcher.lora" if find_spec("backend") else "ldm_patched.modules.lora"
        self.root = roots()["denoiser"]
        self.keys = import_module(module).model_lora_keys_unet(self.root, {})

    def __getitem__(self, name):
        return self.root.get_submodule(self.keys[name].removesuffix(".weight"))


class LazyLayers:
    def __getitem__(self, name):
        mapping = shared.sd_model.network_layer_mapping
        key = networks.convert_diffusers_name_to_compvis(name, False)
        return mapping.get(key) or mapping[name.replace("lora_unet_", "diffusion_model_")]


def settle(layer):
    """AUTOMATIC1111: before its first forward in a job a layer still carries the previous job's merge."""
    if is_forge():
        return
    if shared.opts.lora_functional:
        networks.network_restore_weights_from_backup(layer)
        networks.network_reset_cached_weight(layer)
    else:
        networks.network_apply_weights(layer)


def log_sigmas(denoiser):
    """the model's own table of noise levels, rising"""
    if not is_forge():
        return denoiser.inner_model.log_sigmas
    model = roots()["denoiser"]
    return (model.predictor if hasattr(model, "predictor") else model.model_sampling).sigmas.log()


def numbers(weight):
    """fp32, whatever the weight is packed in"""
    if hasattr(weight, "gguf_cls"):
        from backend.operations_gguf import dequantize_tensor

        weight = dequantize_tensor(weight)
    return weight.detach().float()
