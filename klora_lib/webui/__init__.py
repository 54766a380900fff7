"""The extension inside a WebUI: one job, the panel, the XYZ plot's axes, refusals."""
