"""What is timed: every shipped model, in every precision that it has, on each device there is."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from emdn_deploy import bench
from emdn_deploy.config import Device, Precision
from emdn_deploy.denoiser import Denoiser
from emdn_deploy.session import cuda_obstacle
from emdn_models import MODELS, metrics, pretrained

SIZE = (256, 256)
DEVICES: tuple[Device, ...] = ("cpu",) if cuda_obstacle() else ("cpu", "cuda")
MULTISLICE = Path(__file__).parents[1] / "tests" / "data" / "multislice.h5"


@dataclass(frozen=True)
class Case:
    """A model on a device; its name is the test's."""

    model: str
    precision: Precision
    device: Device

    def __str__(self) -> str:
        return f"{self.model}-{self.precision}-{self.device}"

    def open(self, threads: int | None = None) -> Denoiser:
        """Open the model, once for every number of threads."""
        return _opened(self, threads)

    def about(self, batch: int, size: tuple[int, int] = SIZE) -> bench.Row:
        """Begin a row."""
        return bench.about(self.open().session, self.device, batch, size)

    @property
    def gflop(self) -> float:
        """GFLOP of a frame of 256 x 256, counted on the net in torch."""
        return bench.gflop_of(self.open().session, SIZE)


@cache
def _opened(case: Case, threads: int | None) -> Denoiser:
    return Denoiser(case.model, case.device, threads, case.precision)


CASES = [
    Case(model, precision, device)
    for device in DEVICES
    for model in MODELS
    for precision in pretrained.precisions(model)
    if device == "cpu" or precision != "int8"
]


@cache
def gain_db(case: Case) -> float:
    """Return the mean gain on the fixed test split's frames of another simulator, in dB."""
    denoise = case.open().denoise
    gains = [
        float(metrics.gain_db(one.noisy, denoise(one.noisy[None])[0], one.clean, one.valid))
        for one in _multislice()
    ]
    return round(sum(gains) / len(gains), 2)


@cache
def _multislice():
    from emdn_train.dataset import Split
    from emdn_train.quality import examples
    from emdn_train.simulate import write_test_split

    with (
        TemporaryDirectory() as folder,
        Split(write_test_split(folder, MULTISLICE, scenes=0), "test") as split,
    ):
        return list(examples(split))
