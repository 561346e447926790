"""Fit the seven models, simulate their data and export them to ONNX."""

import os

# oneMKL's products of matrices are then the same to the last bit from run to run, which a run
# that is stopped and continued relies on. It is read when torch is first imported.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
