"""The WebUI side: one job, the panel, XYZ plot, the map."""
