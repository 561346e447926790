"""The flags of ``emdn-deploy denoise``; their defaults are defined here only."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Device = Literal["auto", "cpu", "cuda", "tensorrt"]
Precision = Literal["fp32", "tf32", "fp16", "int8"]
Kind = Literal["h5", "hspy", "tif", "mrc", "npy"]
Dtype = Literal["float32", "uint8", "int8", "uint16", "int16", "uint32", "int32"]


@dataclass(frozen=True)
class DenoiseOptions:
    """What to do with an input.

    Attributes
    ----------
    output
        None for a name made from the input's.
    to
        Kind of output; None mirrors HDF5, keeps TIFF, MRC and ``.npy``, and writes ``.hspy`` for
        all others and for folders.
    dtype
        Of the output's pixels; integers are rounded, and saturate at their limits.
    compress
        Whether to compress the output's frames, losslessly; None where the input's are, in
        kinds of output that can be.
    sigma
        Whether to denoise in eight orientations, and to write the standard deviation of every
        pixel's error beside the mean of the eight.
    out_dir, suffix
        Where an output without a name goes, and what its name ends in.
    model
        A shipped name, the path of an ``.onnx`` file, or None for the default.
    precision
        Which variant of the model: ``fp32`` the model itself, the others ``NAME.int8.onnx`` and
        so on, where there is one.
    batch
        Frames per run; None chooses.
    threads
        CPU threads; None takes those that affinity mask and quota allow.
    dataset, axes
        Which frames (see `emdn_deploy.readers.frames.Choice`).
    frames
        Slices ``start:stop:step`` or numbers, by commas; None for all.
    gain
        Intensity units per electron; None to estimate.
    offset
        Intensity without electrons; None to estimate.
    dark, gain_map
        Reference frames: frames become (frames - dark) * gain_map.
    defects
        A mask of bad pixels, not zero where bad, besides those that are found.
    keep_bad_pixels
        Whether to leave outlying pixels as they are.
    preview, movie
        PNG of one frame, and GIF of the stack, before and after; None for none.
    """

    output: Path | None = None
    to: Kind | None = None
    dtype: Dtype = "float32"
    compress: bool | None = None
    sigma: bool = False
    out_dir: Path | None = None
    suffix: str = "_denoised"
    model: str | None = None
    device: Device = "auto"
    precision: Precision = "fp32"
    batch: int | None = None
    threads: int | None = None
    dataset: str | None = None
    axes: str | None = None
    frames: str | None = None
    gain: float | None = None
    offset: float | None = None
    dark: Path | None = None
    gain_map: Path | None = None
    defects: Path | None = None
    keep_bad_pixels: bool = False
    preview: Path | None = None
    movie: Path | None = None
    overwrite: bool = False
