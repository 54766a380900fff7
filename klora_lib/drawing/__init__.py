"""Images without a WebUI: from a model's name to a diffusers pipeline, and one call of it."""
