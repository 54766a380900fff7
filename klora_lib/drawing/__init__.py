"""Images without a WebUI: loads a diffusers pipeline by a model's name, and calls it."""
