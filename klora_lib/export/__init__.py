"""What two LoRAs do together, as ordinary LoRA files that need no K-LoRA."""

from .bake import bake
from .save import save_parts

__all__ = ["bake", "save_parts"]
