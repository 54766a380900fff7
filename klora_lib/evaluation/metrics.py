"""Scores of images: the paper's three (CLIP and DINO, against reference images)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from ..errors import SettingsError, first_line

PICTURES = (".png", ".jpg", ".jpeg", ".webp")
AT_ONCE = 32  # images that an encoder is shown


class Metric(Protocol):
    """Scores of images of one pair: column -> [n], more is better."""

    def score(self, images: Sequence[Image.Image], content: str, style: str) -> Mapping[str, Sequence[float]]: ...


class ClipAndDino:
    """Table 1 of the paper.  Each score is the mean cosine similarity of an image to the reference images of a LoRA.

    "Style Sim" by CLIP to the style's, "CLIP Score" by CLIP to the subject's, "DINO Score" by DINO to the subject's.

    Args:
        clip, dino: transformers models, as names in the local cache or as folders.
        references: has a folder of pictures for each LoRA, by its name.
    Raises SettingsError where a model or the pictures of a LoRA are missing.
    """

    def __init__(self, clip: str, dino: str, references: Path, device: torch.device):
        self.encoders = {"clip": Encoder(clip, "clip", device), "dino": Encoder(dino, "dino", device)}
        self.references = references
        self.known: dict[tuple[str, str], Tensor] = {}

    def score(self, images: Sequence[Image.Image], content: str, style: str) -> dict[str, list[float]]:
        clip, dino = (encoder.embed(images) for encoder in self.encoders.values())
        return {
            "Style Sim": similarity(clip, self.reference("clip", style)),
            "CLIP Score": similarity(clip, self.reference("clip", content)),
            "DINO Score": similarity(dino, self.reference("dino", content)),
        }

    def reference(self, encoder: str, lora: str) -> Tensor:
        """[m, d] of the m pictures of a LoRA."""
        if (encoder, lora) not in self.known:
            self.known[encoder, lora] = self.encoders[encoder].embed(pictures(self.references / lora))
        return self.known[encoder, lora]


def similarity(images: Tensor, references: Tensor) -> list[float]:
    """Mean cosine similarity.  images: [n, d], references: [m, d], both of length 1."""
    return [float(x) for x in (images @ references.T).mean(dim=1)]


def pictures(folder: Path) -> list[Image.Image]:
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
    """A transformers vision model from the local cache.  "clip": its image features; "dino": the last class token."""

    def __init__(self, name: str, field: str, device: torch.device):
        try:
            from transformers import AutoImageProcessor, AutoModel

            self.processor: Any = AutoImageProcessor.from_pretrained(name, local_files_only=True)
            self.model: Any = AutoModel.from_pretrained(name, local_files_only=True).to(device).eval()
        except Exception as e:  # noqa: BLE001  transformers and its readers raise all kinds for a damaged model
            raise SettingsError(f"no model can be loaded from {name!r} ({first_line(e)})", field) from None
        self.of_pictures = hasattr(self.model, "get_image_features")
        if self.of_pictures != (field == "clip"):
            kind = f"{name!r} is a {type(self.model).__name__}"
            raise SettingsError(
                f"{kind}, which is {'a' if self.of_pictures else 'no'} model of pictures and words as CLIP is", field
            )
        self.device = device

    def embed(self, images: Sequence[Image.Image]) -> Tensor:
        """[n, d], each of length 1."""
        return torch.cat([self.embed_some(images[i : i + AT_ONCE]) for i in range(0, len(images), AT_ONCE)])

    @torch.inference_mode()
    def embed_some(self, images: Sequence[Image.Image]) -> Tensor:
        pixels = self.processor(images=list(images), return_tensors="pt")["pixel_values"].to(self.device)
        if self.of_pictures:
            features = self.model.get_image_features(pixel_values=pixels)
        else:
            features = self.model(pixel_values=pixels).last_hidden_state[:, 0]
        return torch.nn.functional.normalize(features.float(), dim=1).cpu()
