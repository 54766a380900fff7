"""One thread: the tensors are too small to share, and sums come out the same on every machine."""

import torch

torch.set_num_threads(1)
