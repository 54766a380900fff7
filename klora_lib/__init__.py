"""K-LoRA (arXiv 2502.18461) for Stable Diffusion WebUIs: any subject in any style, with one LoRA per layer and step."""

__version__ = "0.1.0"
