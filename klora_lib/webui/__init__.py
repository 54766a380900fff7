"""The WebUI side: one job, the panel, infotext, XYZ plot, the map."""
