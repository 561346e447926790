"""Fit the seven models, simulate their data and export them to ONNX."""
