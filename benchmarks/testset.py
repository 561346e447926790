"""How good a model is, so that accuracy and speed stand in one row."""

from functools import cache
from pathlib import Path

from emdn_deploy.denoiser import Denoiser
from emdn_models import metrics
from emdn_train.dataset import Split
from emdn_train.quality import Example, examples
from emdn_train.simulate import write_test_split

MULTISLICE = Path(__file__).parents[1] / "tests" / "data" / "multislice.h5"


@cache
def frames(folder: Path) -> list[Example]:
    """Record the frames of the fixed test split that another simulator made: 36 of 256 x 256."""
    with Split(write_test_split(folder, MULTISLICE, scenes=0), "test") as split:
        return list(examples(split))


def gain_db(denoiser: Denoiser, folder: Path) -> float:
    """Return the mean improvement over the noisy frame, as ``make quality`` has it."""
    gains = [
        float(
            metrics.gain_db(one.noisy, denoiser.denoise(one.noisy[None])[0], one.clean, one.valid)
        )
        for one in frames(folder)
    ]
    return round(sum(gains) / len(gains), 2)
