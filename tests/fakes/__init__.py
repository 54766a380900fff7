"""Stand-ins for what K-LoRA runs in: a small denoiser, LoRA files for it, and the interface of a WebUI."""
