"""Train the toy: `python -m klora_lib.toy.train`.

An interrupted stage continues from its last state. A finished stage is not trained again. `--states` is the folder for
states, pools of pictures and the log; `--out` is the folder for the weights. The first stage fetches the emoji (28 MB) and
draws them; that needs resvg-py.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from . import WEIGHTS, train_base, train_judge, train_loras, train_vae, truths
from .emoji import draw_sets

STAGES: dict[str, tuple[Callable[[Path, Path], None], str]] = {
    "vae": (train_vae.train, "vae"),
    "base": (train_base.train, "unet"),
    "loras": (train_loras.train, ""),  # trains only the missing ones
    "judge": (train_judge.train, "judge.safetensors"),
    "truths": (lambda states, out: truths.write_truths(draw_sets(states), out / "truths"), "truths"),
}
INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.30.0",
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m klora_lib.toy.train", description=__doc__)
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="where the weights go")
    parser.add_argument("--states", type=Path, default=Path("toy_states"), help="where the states of a run are kept")
    parser.add_argument("--stage", choices=[*STAGES, "all"], default="all")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    options.states.mkdir(parents=True, exist_ok=True)
    (options.out / "model_index.json").write_text(json.dumps(INDEX, indent=2) + "\n", encoding="utf-8")
    for name in STAGES if options.stage == "all" else [options.stage]:
        train, made = STAGES[name]
        if not made or not (options.out / made).exists():
            train(options.states, options.out)
    if (log := options.states / "log.jsonl").exists():
        shutil.copyfile(log, options.out / "log.jsonl")


if __name__ == "__main__":
    main()
