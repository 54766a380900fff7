"""K-LoRA on diffusers' pipelines: ``with klora(pipe, content, style, seed=1, beta=0.7) as run: images = pipe(...).images``.

Nothing here imports diffusers: a pipeline is whatever has a unet or a transformer, and a scheduler.
"""

from .run import Run, klora

__all__ = ["Run", "klora"]
