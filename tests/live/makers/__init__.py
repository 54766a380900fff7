"""Makers of tiny random checkpoints and LoRAs for the live tests; each runs in the Python of the WebUI it is for."""
