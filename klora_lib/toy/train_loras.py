"""The LoRAs, trained on drawn pictures of subjects and styles that the base model never saw."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from . import SUBJECT, dataset, write_caption
from .emoji import draw_sets
from .stage import SEED, STREAMS, Stage, find_rate, set_rate
from .subjects import BASE, STYLES, SUBJECTS
from .train_base import Pool, make_pool, measure_loss, read_alphas, tokenise

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

STEPS, BATCH = {"content": 600, "style": 1000}, 8
VARIANTS = {"content": 48, "style": 4}  # pictures of each drawing
DROPPED = 0.15  # share of a style's captions that are left out: guidance would lead away from a style that needs a caption
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
FEEDFORWARD = ("ff.net.0.proj", "ff.net.2", "proj_in", "proj_out")
RESNET = ("conv1", "conv2", "time_emb_proj")  # without these, 400 steps did not learn a subject or a style


class Recipe(NamedTuple):
    """rate: the learning rate. layers: the ends of their names. dialect: of the file, "peft" or "kohya"."""

    rank: int
    alpha: int
    rate: float
    layers: tuple[str, ...]
    dialect: str


A = Recipe(4, 4, 1.5e-3, (*ATTENTION, *FEEDFORWARD, *RESNET, "conv_shortcut", "conv"), "peft")  # every layer
A_KOHYA = A._replace(dialect="kohya")
B = Recipe(6, 12, 1e-3, (*ATTENTION, *RESNET), "kohya")
B_PEFT = B._replace(dialect="peft")

RECIPES = {
    "octopus": A, "lineart": B, "owl": B_PEFT, "monotone": A_KOHYA, "rocket": A_KOHYA, "glossy": B,
    "cat": A, "retro": A, "penguin": B, "cartoon": A_KOHYA, "snail": B_PEFT,
}  # fmt: skip


def train(folder: Path, out: Path, names: list[str] | None = None, steps: int | None = None) -> None:
    """Train those of RECIPES (or of `names`, if given) that are not yet in `out`/loras."""
    (out / "loras").mkdir(exist_ok=True)
    for name in names or list(RECIPES):
        if not (out / "loras" / f"{name}.safetensors").exists():
            train_one(name, Stage(f"lora {name}", folder), out, steps or STEPS["content" if name in SUBJECTS else "style"])


def train_one(name: str, stage: Stage, out: Path, steps: int) -> None:
    from diffusers import UNet2DConditionModel
    from peft import LoraConfig
    from transformers import CLIPTextModel, CLIPTokenizer

    recipe, number = RECIPES[name], list(RECIPES).index(name)
    tokenizer = CLIPTokenizer.from_pretrained(out / "tokenizer")
    text = CLIPTextModel.from_pretrained(out / "text_encoder").float().eval()
    unet = UNet2DConditionModel.from_pretrained(out / "unet", torch_dtype=torch.float32).requires_grad_(False)
    pool = make_lora_pool(name, np.random.default_rng([SEED, STREAMS["lora"], number]), out, stage.folder, tokenizer)
    with torch.no_grad():
        contexts, empty = text(pool.tokens)[0], text(tokenise(tokenizer, [""]))[0]
    torch.manual_seed(SEED + number)
    unet.add_adapter(
        LoraConfig(r=recipe.rank, lora_alpha=recipe.alpha, target_modules=list(recipe.layers), init_lora_weights="gaussian")
    )
    trained = [p for p in unet.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=recipe.rate, betas=(0.9, 0.99), weight_decay=1e-2)
    signal, losses, first = read_alphas(), [], 0
    if state := stage.resume():
        unet.load_state_dict(state["adapter"], strict=False)
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    for step in range(first, steps):
        torch.manual_seed(SEED + 1000 * number + step)
        rows = torch.randint(0, len(pool.latents), (BATCH,))
        set_rate(optimizer, find_rate(step, steps, recipe.rate, warm=20))
        optimizer.zero_grad(set_to_none=True)
        context = contexts[rows]
        if name in STYLES:
            context = torch.where(torch.rand(BATCH, 1, 1) < DROPPED, empty, context)
        loss = measure_loss(unet, context, pool.latents[rows], signal)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        losses.append(loss.item())
        if step % 100 == 99 or step + 1 == steps:
            stage.log(step + 1, loss=float(np.mean(losses)))
            losses.clear()
        if step % stage.every == stage.every - 1:
            adapter = {key: value for key, value in unet.state_dict().items() if "lora_" in key}
            stage.save(step + 1, adapter=adapter, optimizer=optimizer.state_dict())
    stage.state_path.unlink(missing_ok=True)
    write_lora(unet, recipe, out / "loras" / f"{name}.safetensors")


def make_lora_pool(name: str, rng: np.random.Generator, out: Path, folder: Path, tokenizer: object) -> Pool:
    """The pictures for one LoRA: of a subject, its one drawing; of a style, the base model's subjects in its set."""
    grounds = list(dataset.GROUNDS)
    if name in SUBJECTS:
        scenes = [dataset.Scene(name, name, SUBJECTS[name], grounds[n % len(grounds)]) for n in range(VARIANTS["content"])]
        captions = [write_caption(f"{SUBJECT} {name}", scene.ground, None) for scene in scenes]
    else:
        known = draw_sets(folder)
        things = [(word, emoji) for word, emoji in BASE.items() if (STYLES[name], emoji) in known]
        scenes = [
            dataset.Scene(emoji, word, STYLES[name], str(rng.choice(grounds)))
            for word, emoji in things
            for _ in range(VARIANTS["style"])
        ]
        captions = [write_caption(scene.word, scene.ground, None) for scene in scenes]
    return make_pool(scenes, captions, rng, out, folder, tokenizer)


def write_lora(unet: UNet2DConditionModel, recipe: Recipe, path: Path) -> None:
    """Write the trained adapter as a file in the recipe's dialect, fp16."""
    from diffusers import StableDiffusionPipeline
    from peft.utils import get_peft_model_state_dict

    state = {key: value.half().contiguous() for key, value in get_peft_model_state_dict(unet).items()}
    if recipe.dialect == "kohya":
        safetensors.torch.save_file(convert_to_kohya(state, recipe.alpha), path, {"ss_network_alpha": str(recipe.alpha)})
        return
    config = unet.peft_config["default"].to_dict()  # in this dialect only the metadata contains alpha
    config = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    StableDiffusionPipeline.save_lora_weights(
        path.parent, state, weight_name=path.name, unet_lora_adapter_metadata=config, safe_serialization=True
    )


def convert_to_kohya(state: dict[str, Tensor], alpha: int) -> dict[str, Tensor]:
    """`….to_q.lora_A.weight` -> `lora_unet_…_to_q.lora_down.weight`, and an alpha for each module."""
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        layer, _, part = key.removesuffix(".weight").rpartition(".")
        stem = "lora_unet_" + layer.replace(".", "_")
        renamed[f"{stem}.{'lora_down' if part == 'lora_A' else 'lora_up'}.weight"] = value
        renamed[f"{stem}.alpha"] = torch.tensor(float(alpha), dtype=torch.float16)
    return renamed
