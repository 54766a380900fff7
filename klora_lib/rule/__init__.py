"""The K-LoRA rule on plain tensors (arXiv 2502.18461): schedule, scores, selectors, plan."""
