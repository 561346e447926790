"""What ``emdn-train proof`` measures: movies, models and faults."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from emdn_models import pretrained
from emdn_train.faults import FAULTS, Strength
from emdn_train.proof_movies import CRYSTALS, STRANGE

_MODELS = ("unet", "mcnn", "dncnn")
# Seeds of movies with faults and of those without, far apart.
_HONEST = 500


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
    faulty, honest
        Movies of each specimen and level, with faults and without.
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


def jobs(config: ProofConfig) -> Iterator[Job]:
    """List the movies: the longest jobs first, so that no worker is left with one."""
    first = config.seed * 1_000
    honest = range(first + _HONEST, first + _HONEST + config.honest)
    default = config.names[:1]
    crystals = [(specimen, snr) for specimen in CRYSTALS for snr in config.levels]
    for seed in range(first, first + config.faulty):
        for specimen, snr in crystals:
            yield Job(config, specimen, snr, seed, default, specimen, faults=True)
    for seed in honest:
        for specimen, snr in crystals:
            yield Job(config, specimen, snr, seed, config.names, specimen)
    for seed in honest[: max(1, config.honest // 2)]:
        for snr in config.levels:
            for specimen in STRANGE:
                yield Job(config, specimen, snr, seed, default, specimen)
        for specimen, snr in crystals:
            yield Job(config, specimen, snr, seed, default, "counts x 4", times=4.0)
            yield Job(config, specimen, snr, seed, default, "counts x 2.5, float", times=2.5)
            for gain in (0.5, 2.0):
                label = f"gain x {gain:g}, recorded so"
                yield Job(config, specimen, snr, seed, default, label, gain=gain)


def tried(config: ProofConfig) -> Iterator[tuple[str, Strength]]:
    """List the faults, each at all its strengths."""
    for name, fault in FAULTS.items():
        for strength in fault.strengths or config.names[1:]:
            yield name, strength


def small(config: ProofConfig) -> ProofConfig:
    """Return what takes minutes: smaller frames, fewer movies."""
    return replace(config, size=128, faulty=1, honest=2)
