"""K-LoRA on diffusers' pipelines: ``with klora(pipe, content, style, seed=1, beta=0.7) as run: images = pipe(...).images``.

Nothing here imports diffusers: a pipeline is any object that has a unet or a transformer, and a scheduler.

LoRA files are read by our own reader, not by the loaders of diffusers and PEFT. The choice needs the values of both files in
every layer; those loaders wrap the layers that we write to; and they read fewer types. For files that they can read, the
tests compare our images with theirs.
"""

from ..rule.cache import Library
from .run import Run, klora

__all__ = ["Library", "Run", "klora"]
