"""Denoise stacks of frames with onnxruntime; no torch."""
