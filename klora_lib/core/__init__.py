"""The K-LoRA rule on plain tensors: LoRA files, scores, selectors, plan.  Needs torch and safetensors only."""
