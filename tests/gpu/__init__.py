"""K-LoRA on a GPU, without a WebUI: `make gpu`, or ``python -m tests.gpu``.  docs/gpu.md says how to read its table."""
