"""What a finished job may leave behind in the host: weights, hooks, patched functions, callbacks."""

import hashlib
import inspect
import sys
import zlib

import torch

from modules import script_callbacks, shared

from . import webui

WATCHED_MODULES = (
    "networks", "extra_networks_lora", "lora_patches", "network", "network_lora",
    "modules.extra_networks", "modules.sd_models", "modules.processing", "modules.scripts", "modules.script_callbacks",
    "modules.sd_hijack", "modules.sd_samplers_common", "modules.sd_samplers_cfg_denoiser", "modules.patches",
    "modules.sd_samplers_kdiffusion", "modules.sd_samplers_timesteps", "modules.prompt_parser",
    "modules.infotext_utils", "modules.api.api", "modules.images", "modules.devices",
)  # fmt: skip
WATCHED_CLASSES = (
    torch.nn.Module, torch.nn.Linear, torch.nn.Conv2d, torch.nn.GroupNorm, torch.nn.LayerNorm,
    torch.nn.MultiheadAttention,
)  # fmt: skip


def functions():
    """dotted name -> function, of everything a LoRA extension might replace"""
    out = {}
    for module_name in WATCHED_MODULES:
        module = sys.modules.get(module_name)
        for name, value in vars(module).items() if module else ():
            if inspect.isclass(value) and value.__module__ == module.__name__:
                out |= class_functions(f"{module_name}.{name}", value)
            elif inspect.isroutine(value):
                out[f"{module_name}.{name}"] = value
    for cls in WATCHED_CLASSES:
        out |= class_functions(f"torch.nn.{cls.__name__}", cls)
    loader = getattr(sys.modules.get("networks"), "extra_network_lora", None)
    if loader is not None:
        out |= {f"extra_network_lora instance.{k}": v for k, v in vars(loader).items() if callable(v)}
    return out


def class_functions(name, cls):
    return {f"{name}.{k}": v for k, v in vars(cls).items() if inspect.isroutine(v) or isinstance(v, property)}


def changed(before):
    """names that are not what they were; a function that appeared counts only where it shadows one"""
    now = functions()
    moved = [name for name, value in before.items() if now.get(name) is not value]
    shadows = ("extra_network_lora instance", "torch.nn")
    appeared = [name for name in now if name not in before and name.startswith(shadows)]
    return sorted(moved + appeared)


def callbacks():
    """category -> the script files that registered, in order"""
    return {
        category: [c.script.replace("\\", "/").split("/")[-1] for c in registered]
        for category, registered in script_callbacks.callback_map.items()
        if registered
    }


def hooks(model):
    """every instance-level hook or forward in the model"""
    out = []
    for name, module in model.named_modules():
        for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_state_dict_hooks"):
            out += [f"{name}.{kind}"] * len(getattr(module, kind, None) or ())
        if "forward" in vars(module):
            out.append(f"{name}.forward")
    return out


def structure(model):
    digest = hashlib.sha256()
    for name, module in model.named_modules():
        digest.update(f"{name} {type(module).__module__}.{type(module).__qualname__}\n".encode())
    return digest.hexdigest()


def unexplained(model):
    """Layers that no loaded network touches, and that are not their backup all the same

    The host takes their weight for its own merge: it would put the next merge right, and leave this one wrong.
    """
    networks = sys.modules["networks"]
    loaded = networks.loaded_networks
    names = tuple((x.name, x.te_multiplier, x.unet_multiplier, x.dyn_dim) for x in loaded)
    touched = {name for network in loaded for name in network.modules}
    out = []
    for path, module in model.named_modules():
        backup = getattr(module, "network_weights_backup", None)
        if not torch.is_tensor(backup) or module.network_current_names != names:
            continue
        if module.network_layer_name not in touched and not torch.equal(module.weight.cpu(), backup):
            out.append(path)
    return out


def checksum(tensor):
    flat = tensor.detach().cpu().contiguous().flatten()
    return zlib.crc32(flat.view(torch.uint8).numpy()) if flat.numel() else 0


def weights():
    """name -> shape, type and checksum of every parameter and buffer but two, the host's own merge undone"""
    out = {}
    for root_name, root in webui.roots().items():
        named = dict(root.named_parameters()) | dict(root.named_buffers()) | webui.host_backups(root_name, root)
        for name, tensor in named.items():
            if not name.startswith(("first_stage_model.", *webui.LOADED_AT_RANDOM)):
                out[f"{root_name} {name}"] = f"{tuple(tensor.shape)} {tensor.dtype} {checksum(tensor)}"
    return out


def state(functions_before):
    roots = webui.roots().values()
    return {
        "checkpoint": shared.sd_model.sd_checkpoint_info.name,
        "structure": [structure(root) for root in roots],
        "hooks": [hook for root in roots for hook in hooks(root)],
        "unexplained": [] if webui.is_forge() else unexplained(shared.sd_model),
        "changed": changed(functions_before),
        "callbacks": callbacks(),
    }
