"""What ``emdn-train proof`` measures: movies, models and faults."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

from emdn_deploy.checking.grounds import DRAWS as HONEST
from emdn_models import pretrained
from emdn_train.faults import FAULTS, Strength
from emdn_train.proof_movies import CRYSTALS, MORE, STRANGE
from emdn_train.righted import DRAWS

_MODELS = ("unet", "mcnn", "dncnn")
# Seeds of movies with faults, of those without and of those put right, far apart.
_HONEST, _RIGHTED = 500, 700
FAINT = 0.2  # a further level of those put right
RIGHTED = "put right by the truth"


@dataclass(frozen=True)
class ProofConfig:
    """What to measure.

    Attributes
    ----------
    models
        Shipped names or paths; faults are planted in results of the first, which the others
        stand in for as the wrong model. None for the default model and two more.
    size, frames
        Of a movie.
    levels
        Signal to noise per pixel.
    faulty, honest, righted
        Movies of each specimen and level, with faults, without, and with what the model is wrong
        by taken away (`emdn_train.righted`); these last are of `small_size` pixels a side.
    seed
        Everything follows from it.
    workers
        Processes, of one thread each; the result is the same.
    """

    models: tuple[str, ...] | None = None
    size: int = 256
    frames: int = 16
    levels: tuple[float, ...] = (0.4, 1.2)
    faulty: int = 6
    honest: int = 8
    righted: int = 9
    small_size: int = 128
    seed: int = 0
    workers: int = 1

    @property
    def names(self) -> tuple[str, ...]:
        """Return the models."""
        if self.models:
            return self.models
        shipped, default = pretrained.index()["models"], pretrained.default_model()
        return (default, *(one for one in _MODELS if one in shipped and one != default))


@dataclass(frozen=True)
class Job:
    """One movie and what is done with it.

    Attributes
    ----------
    label
        What the stack is called in the table.
    times
        What counts are multiplied by before they are denoised; not 1 makes them float32,
        unless whole.
    gain
        Factor by which the gain is wrong, in the result and in its record.
    faults
        Whether to plant any.
    righted
        Whether the models are put right by the truth; the movie then stands still.
    """

    config: ProofConfig
    specimen: str
    snr: float
    seed: int
    models: tuple[str, ...]
    label: str
    times: float = 1.0
    gain: float = 1.0
    faults: bool = False
    righted: bool = False

    @property
    def size(self) -> int:
        """Return the side of a frame in pixels."""
        return self.config.small_size if self.righted else self.config.size

    @property
    def work(self) -> int:
        """Say how long it takes, in pixels that are denoised or looked at."""
        frames = self.config.frames
        count = 2 * (HONEST + frames) + self.righted * DRAWS
        if self.faults:
            count += (frames + frames // 8) * sum(1 for _ in tried(self.config))
        return count * len(self.models) * self.size**2


def jobs(config: ProofConfig) -> Iterator[Job]:
    """List the movies: the longest jobs first, and those of one scene one after the other."""
    first = config.seed * 1_000
    default, levels = config.names[:1], config.levels
    for seed in range(first, first + config.faulty):
        for specimen, snr in product(CRYSTALS, levels):
            yield Job(config, specimen, snr, seed, default, specimen, faults=True)
    for number in range(config.honest):
        seed = first + _HONEST + number
        for specimen, snr in product(CRYSTALS, levels):
            yield Job(config, specimen, snr, seed, config.names, specimen)
            if number < max(1, config.honest // 2):
                yield from _of_users(Job(config, specimen, snr, seed, default, specimen))
        if number < max(1, config.honest // 2):
            for specimen, snr in product(STRANGE, levels):
                yield Job(config, specimen, snr, seed, default, specimen)
    for number in range(config.righted):
        model = config.names[number % len(config.names)]
        seed = first + _RIGHTED + number
        for specimen, snr in product((*CRYSTALS, *MORE), (FAINT, *levels)):
            yield Job(config, specimen, snr, seed, (model,), RIGHTED, righted=True)


def _of_users(job: Job) -> Iterator[Job]:
    """List what else a user may come with, of the same movie."""
    yield replace(job, label="counts x 4", times=4.0)
    yield replace(job, label="counts x 2.5, float", times=2.5)
    for gain in (0.5, 2.0):
        yield replace(job, label=f"gain x {gain:g}, recorded so", gain=gain)


def tried(config: ProofConfig) -> Iterator[tuple[str, Strength]]:
    """List the faults, each at all its strengths."""
    for name, fault in FAULTS.items():
        for strength in fault.strengths or config.names[1:]:
            yield name, strength


def small(config: ProofConfig) -> ProofConfig:
    """Return what takes minutes: smaller frames, fewer movies."""
    return replace(config, size=128, faulty=1, honest=2, righted=3)
