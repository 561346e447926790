"""The seven models by name: the one list that every command, test and export follows."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from emdn_models.errors import ModelError


@dataclass(frozen=True)
class Preset:
    """One size of a model."""

    options: Mapping[str, int | bool | str]  # of the net's constructor
    parameters: int  # trainable numbers
    # Side, in pixels, of the square of input that one output pixel can see: the smallest, which
    # papers quote, and the largest, which tiles need, over the output positions; they differ in
    # nets that change the resolution.
    receptive_field: tuple[int, int]
    multiple: int  # step that height and width are padded to inside the net
    # Sides of the windows whose shrunk spectra the net sees beside the frame, the largest first
    # (`emdn_models.nets.spectral`); none in papers.
    windows: tuple[int, ...] = ()
    frames: int = 1  # consecutive ones that the net sees, odd; it denoises the middle one
    # Border, in pixels, that a tile of the exported graph needs: whole cells of ``multiple``. None
    # for what follows from a receptive field that lies evenly around a pixel's cell
    # (`emdn_deploy.session.ModelInfo`). The export checks it.
    halo: int | None = None
    whole_frame: str = ""  # what makes tiles differ from the frame, in a net that cannot be tiled


@dataclass(frozen=True)
class ModelSpec:
    """What is known of a model without torch."""

    name: str  # key in ``MODELS`` and ``NETS``, and stem of the ONNX file
    source: str  # the publication that defines the net
    # ``paper`` follows the publication; ``shipped`` is that of the packaged weights.
    presets: Mapping[str, Preset]


_UNET = {"features": 32, "levels": 4, "shuffle": 2, "benchmark": False}


# A net behind the spectral front end; its cells are the hop of the largest window.
_spectral = partial(Preset, multiple=64, windows=(128, 64), halo=320)

_SPECS = (
    ModelSpec(
        "cafcn",
        "Remez, Litany, Giryes, Bronstein, IEEE TIP 2018, arXiv:1808.06562",
        {
            "paper": Preset({"features": 64, "depth": 20, "shuffle": 1}, 655_544, (41, 41), 1),
            "shipped": _spectral({"features": 64, "depth": 12, "shuffle": 4}, 312_050, (512, 576)),
        },
    ),
    ModelSpec(
        "dncnn",
        "Zhang, Zuo, Chen, Meng, Zhang, IEEE TIP 26(7), 2017, arXiv:1608.03981",
        {
            "paper": Preset({"features": 64, "depth": 17, "shuffle": 1}, 556_097, (35, 35), 1),
            "shipped": _spectral(
                {"features": 48, "depth": 12, "shuffle": 4, "batch_norm": False},
                235_842,
                (512, 576),
            ),
        },
    ),
    ModelSpec(
        "ffdnet",
        "Zhang, Zuo, Zhang, IEEE TIP 27(9), 2018, arXiv:1710.04026",
        {
            "paper": Preset({"features": 64, "depth": 15}, 485_316, (62, 62), 2),
            "shipped": _spectral({"features": 48, "depth": 12}, 215_526, (448, 512)),
        },
    ),
    ModelSpec(
        "unet",
        "Ronneberger, Fischer, Brox, MICCAI 2015, arXiv:1505.04597; "
        "paper preset: the net of the SciML-Bench em_denoise benchmark",
        {
            "paper": Preset(
                {"features": 8, "levels": 4, "shuffle": 1, "benchmark": True},
                122_737,
                (108, 116),
                8,
                whole_frame="upsampling by align_corners places pixels by the frame's size",
            ),
            "shipped": _spectral(_UNET, 1_950_886, (576, 640), halo=384),
            "movie": _spectral(_UNET, 1_955_494, (576, 640), halo=384, frames=5),
        },
    ),
    ModelSpec(
        "rednet",
        "Mao, Shen, Yang, NIPS 2016, arXiv:1603.09056",
        {
            "paper": Preset({"features": 64, "depth": 30, "shuffle": 1}, 1_035_201, (61, 61), 1),
            "shipped": _spectral({"features": 32, "depth": 20, "shuffle": 2}, 171_398, (512, 576)),
        },
    ),
    ModelSpec(
        "mcnn",
        "Wang et al., arXiv:1810.12183 (identified by name and field: "
        "the benchmark gives no reference)",
        {
            "paper": Preset({"features": 64, "levels": 7}, 41_880_966, (638, 766), 128),
            "shipped": _spectral(
                {"features": 16, "levels": 5, "widest": 4}, 457_670, (576, 640), halo=384
            ),
        },
    ),
    ModelSpec(
        "msdnet",
        "Pelt, Sethian, PNAS 115(2), 2018, doi:10.1073/pnas.1715832114",
        {
            "paper": Preset({"depth": 100, "width": 1, "shuffle": 1}, 45_652, (1101, 1101), 1),
            "shipped": _spectral(
                {"depth": 40, "width": 2, "dilations": 5, "shuffle": 2},
                37_462,
                (896, 960),
                halo=512,
            ),
        },
    ),
)

MODELS: dict[str, ModelSpec] = {spec.name: spec for spec in _SPECS}


def spec_of(name: str) -> ModelSpec:
    """Return what is known of a model, or of its ``MODEL@movie``; ModelError if there is none."""
    model = name.partition("@")[0]
    if model not in MODELS:
        raise ModelError(f"no model is called {name!r}; there are {', '.join(MODELS)}")
    return MODELS[model]


def frames_of(name: str, preset: str) -> int:
    """Return how many consecutive frames a net sees, 1 of an unknown preset."""
    chosen = spec_of(name).presets.get(preset)
    return 1 if chosen is None else chosen.frames
