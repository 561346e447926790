"""What a fine-tuning on one stack is asked for."""

from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path

from emdn_deploy.config import DenoiseOptions
from emdn_models import ModelError
from emdn_models.spec import spec_of
from emdn_train.config import Device, FitConfig
from emdn_train.recipes import RECIPES

# Plain MSE: that of a noisy target is off by a constant, the logarithm of it by no constant.
RECIPE = replace(RECIPES["quality"], lr=2e-4, loss="mse", augmented=0.0, ccd=0.0)


@dataclass(frozen=True)
class AdaptConfig:
    """One fine-tuning.

    Attributes
    ----------
    stack
        Raw frames in any format that emdn-deploy reads.
    out
        Folder for the results, as of a fit.
    model
        A name of ``MODELS``, or ``MODEL@CLASS``.
    preset
        Its size, that of the weights it starts from.
    start
        Checkpoint to start from; ``shipped`` for the packaged one.
    max_minutes
        Time, all parts of a stopped run together; 0 for as long as the epochs take.
    epochs
        Passes over the stack; None for as many as the time allows.
    batch_size, lr, patch, device, seed
        As of `emdn_train.config.FitConfig`.
    dataset, axes, frames, gain, offset, dark, gain_map, defects, keep_bad_pixels
        As of `emdn_deploy.config.DenoiseOptions`; give what deployment will be given.
    """

    stack: str | PathLike[str]
    out: str | PathLike[str] = "outputs"
    model: str = "unet"
    preset: str = "shipped"
    start: str | PathLike[str] = "shipped"
    max_minutes: float = 10.0
    epochs: int | None = None
    batch_size: int = 8
    lr: float = RECIPE.lr
    patch: int = 128
    device: Device = "auto"
    seed: int = 0
    dataset: str | None = None
    axes: str | None = None
    frames: str | None = None
    gain: float | None = None
    offset: float | None = None
    dark: Path | None = None
    gain_map: Path | None = None
    defects: Path | None = None
    keep_bad_pixels: bool = False

    def __post_init__(self) -> None:
        """Refuse what would not start or not end."""
        spec_of(self.model)
        if not self.max_minutes and self.epochs is None:
            raise ModelError("max_minutes is 0 and epochs not given; give one, or it never ends")

    def as_fit(self) -> FitConfig:
        """Return what the training loop is asked for."""
        return FitConfig(
            data=self.stack, out=self.out, models=(self.model,), preset=self.preset,
            recipe="quality", epochs=self.epochs or 100_000, batch_size=self.batch_size, lr=self.lr,
            patch=self.patch, device=self.device, seed=self.seed, start=self.start,
            max_minutes=self.max_minutes,
        )  # fmt: skip

    def as_deployment(self) -> DenoiseOptions:
        """Return how the stack is corrected."""
        return DenoiseOptions(
            dataset=self.dataset, axes=self.axes, frames=self.frames, gain=self.gain,
            offset=self.offset, dark=self.dark, gain_map=self.gain_map, defects=self.defects,
            keep_bad_pixels=self.keep_bad_pixels,
        )  # fmt: skip
