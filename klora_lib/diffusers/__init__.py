"""K-LoRA on diffusers' pipelines: ``with klora(pipe, content, style, seed=1, beta=0.7) as run: images = pipe(...).images``.

Nothing here imports diffusers: a pipeline is whatever has a unet or a transformer, and a scheduler.

LoRA files are read by our own reader, not by diffusers' and PEFT's loaders: the choice needs the numbers of both files in
every layer anyway, those loaders wrap the layers that a choice writes to, and they read fewer types. Where they can read a
file, the tests hold the images against theirs.
"""

from ..rule.cache import Library
from .run import Run, klora

__all__ = ["Library", "Run", "klora"]
