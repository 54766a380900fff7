"""LoRA files: their dialects and types, read into one Delta per layer.  Needs torch and safetensors only."""
