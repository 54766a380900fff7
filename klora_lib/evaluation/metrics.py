"""The paper's three scores of an image: by CLIP and DINO, compared with reference images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from ..errors import SettingsError, quote_first_line

PICTURES = (".png", ".jpg", ".jpeg", ".webp")
BATCH = 32  # images that are encoded at once


class Metric(Protocol):
    """Scores n images of one pair: column -> [n], higher is better."""

    def score(self, images: Sequence[Image.Image], content: str, style: str) -> Mapping[str, Sequence[float]]: ...


class ClipAndDino:
    """The scores of the paper's table 1.  Each is an image's mean cosine similarity to the reference images of a LoRA.

    "Style Sim": by CLIP, to the style's.  "CLIP Score": by CLIP, to the subject's.  "DINO Score": by DINO, to the subject's.

    Args:
        clip, dino: transformers models, as names in the local cache or as folders.
        references: a folder that has, for each LoRA, a folder of pictures with the LoRA's name.
    Raises SettingsError if a model or the pictures of a LoRA are missing.
    """

    def __init__(self, clip: str, dino: str, references: Path, device: torch.device):
        self.encoders = {"clip": Encoder(clip, "clip", device), "dino": Encoder(dino, "dino", device)}
        self.references = references
        self.embedded: dict[tuple[str, str], Tensor] = {}

    def score(self, images: Sequence[Image.Image], content: str, style: str) -> dict[str, list[float]]:
        clip, dino = (encoder.embed(images) for encoder in self.encoders.values())
        return {
            "Style Sim": measure_similarity(clip, self.embed_references("clip", style)),
            "CLIP Score": measure_similarity(clip, self.embed_references("clip", content)),
            "DINO Score": measure_similarity(dino, self.embed_references("dino", content)),
        }

    def embed_references(self, encoder: str, lora: str) -> Tensor:
        """The embeddings of a LoRA's m reference pictures, [m, d]."""
        if (encoder, lora) not in self.embedded:
            self.embedded[encoder, lora] = self.encoders[encoder].embed(read_pictures(self.references / lora))
        return self.embedded[encoder, lora]


def measure_similarity(images: Tensor, references: Tensor) -> list[float]:
    """Mean cosine similarity to the references, [n].  images: [n, d], references: [m, d], both normalised to length 1."""
    return [float(x) for x in (images @ references.T).mean(dim=1)]


def read_pictures(folder: Path) -> list[Image.Image]:
    """All pictures in a folder, as RGB.  Raises SettingsError if there is none, or one cannot be read."""
    try:
        paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in PICTURES)
    except (FileNotFoundError, NotADirectoryError):
        paths = []
    except OSError as e:
        raise SettingsError(f"{str(folder)!r} cannot be opened ({e.strerror})", "references") from None
    if not paths:
        raise SettingsError(
            f"there is no picture in {str(folder)!r}, where those of the LoRA {folder.name!r} belong", "references"
        )
    out = []
    for path in paths:
        try:
            with Image.open(path) as image:
                out.append(image.convert("RGB"))
        except OSError as e:
            raise SettingsError(f"{path.name!r} of {folder.name!r} is no readable picture ({e})", "references") from None
    return out


class Encoder:
    """A transformers vision model.  ``field``: "clip" for its image features, "dino" for its last class token."""

    def __init__(self, name: str, field: str, device: torch.device):
        try:
            from transformers import AutoImageProcessor, AutoModel

            self.processor: Any = AutoImageProcessor.from_pretrained(name, local_files_only=True)
            self.model: Any = AutoModel.from_pretrained(name, local_files_only=True).to(device).eval()
        except Exception as e:  # noqa: BLE001  a damaged model leads to many types of exceptions
            raise SettingsError(f"no model can be loaded from {name!r} ({quote_first_line(e)})", field) from None
        self.is_clip = hasattr(self.model, "get_image_features")
        if self.is_clip != (field == "clip"):
            kind = f"{name!r} is a {type(self.model).__name__}"
            raise SettingsError(
                f"{kind}, which is {'a' if self.is_clip else 'no'} model of pictures and words as CLIP is", field
            )
        self.device = device

    def embed(self, images: Sequence[Image.Image]) -> Tensor:
        """Embeddings of n images, [n, d], normalised to length 1."""
        return torch.cat([self.embed_batch(images[i : i + BATCH]) for i in range(0, len(images), BATCH)])

    @torch.inference_mode()
    def embed_batch(self, images: Sequence[Image.Image]) -> Tensor:
        pixels = self.processor(images=list(images), return_tensors="pt")["pixel_values"].to(self.device)
        if self.is_clip:
            features = self.model.get_image_features(pixel_values=pixels)
        else:
            features = self.model(pixel_values=pixels).last_hidden_state[:, 0]
        return torch.nn.functional.normalize(features.float(), dim=1).cpu()
