"""PEFT's alpha lives in the file's metadata: the scale of a module is alpha/rank all the same."""

import json
import math

import pytest
import torch
from safetensors.torch import save_file

from klora_lib.lora.file import read_lora
from klora_lib.lora.peft import read_adapters

LAYER = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
TEXT = "text_model.encoder.layers.0.self_attn.q_proj"


def written(tmp_path, config, alpha=None):
    tensors = {
        f"{prefix}.{layer}.lora_{part}.weight": torch.randn(*shape)
        for prefix, layer in (("unet", LAYER), ("text_encoder", TEXT))
        for part, shape in (("A", (4, 8)), ("B", (6, 4)))
    }
    if alpha is not None:
        tensors[f"unet.{LAYER}.alpha"] = torch.tensor(alpha)
    path = tmp_path / "a.safetensors"
    save_file(tensors, path, {"lora_adapter_metadata": json.dumps(config)} if config is not None else None)
    return read_lora(path)


@pytest.mark.parametrize(
    ("config", "alpha", "scale"),
    [
        (None, None, 1.0),
        ({"unet.lora_alpha": 2, "unet.r": 4}, None, 0.5),
        ({"unet.lora_alpha": 2, "unet.r": 4}, 8.0, 2.0),  # a tensor beside the module is nearer than the metadata
        ({"unet.lora_alpha": 2, "unet.use_rslora": True}, None, 2 / math.sqrt(4)),
        ({"unet.lora_alpha": 2, "unet.alpha_pattern": {"attn1.to_q": 12}}, None, 3.0),
        ({"unet.lora_alpha": 2, "unet.alpha_pattern": {"attn2.to_q": 12}}, None, 0.5),
        ({"transformer.lora_alpha": 2}, None, 0.5),
        ({"text_encoder.lora_alpha": 2}, None, 1.0),
    ],
)
def test_scale(tmp_path, config, alpha, scale):
    assert written(tmp_path, config, alpha).modules[LAYER].factors()[2] == pytest.approx(scale)


def test_text_encoder_modules_get_theirs_as_kohya_writes_it(tmp_path):
    text = written(tmp_path, {"text_encoder.lora_alpha": 3}).text
    assert text[f"lora_te_{TEXT.replace('.', '_')}.alpha"] == 3


@pytest.mark.parametrize("entry", ["", "[]", "not json", '{"unet.lora_alpha": "x"}', '{"unet.lora_alpha": null}'])
def test_unreadable_metadata_is_none(entry):
    assert read_adapters({"lora_adapter_metadata": entry}, "a") == {}
