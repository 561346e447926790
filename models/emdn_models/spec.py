"""The seven models by name: the one list that every command, test and export follows."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from emdn_models.errors import ModelError


@dataclass(frozen=True)
class Preset:
    """One size of a model.

    Attributes
    ----------
    options
        Arguments of the net's constructor.
    parameters
        Trainable numbers.
    receptive_field
        Side, in pixels, of the square of input that one output pixel can see: the
        smallest and the largest over the output positions, which differ in nets
        that change the resolution. Papers quote the smallest, tiles need the
        largest.
    multiple
        Step that height and width are padded to inside the net.
    windows
        Sides of the windows whose shrunk spectra the net sees beside the frame, the
        largest first (`emdn_models.nets.spectral`); none in papers.
    frames
        Consecutive frames that the net sees, an odd number; it denoises the middle one.
    halo
        Border, in pixels, that a tile of the exported graph needs: whole cells of ``multiple``.
        None for what follows from the receptive field if it lies evenly around a pixel's cell
        (`emdn_deploy.batching.halo`). The export checks it.
    whole_frame
        What makes tiles differ from the whole frame, in a net that cannot be tiled.
    """

    options: Mapping[str, int | bool | str]
    parameters: int
    receptive_field: tuple[int, int]
    multiple: int
    windows: tuple[int, ...] = ()
    frames: int = 1
    halo: int | None = None
    whole_frame: str = ""


@dataclass(frozen=True)
class ModelSpec:
    """What is known of a model without torch.

    Attributes
    ----------
    name
        Key in ``MODELS`` and ``NETS``, and the stem of the ONNX file.
    title
        The name that its authors use.
    source
        The publication that defines the net.
    predicts
        What the last layer gives.
    presets
        ``paper`` follows the publication, ``shipped`` is what the packaged
        weights use.
    """

    name: str
    title: str
    source: str
    predicts: str
    presets: Mapping[str, Preset]


_WINDOWS = (128, 64)

_UNET = {"features": 32, "levels": 4, "shuffle": 2, "benchmark": False}

_SPECS = (
    ModelSpec(
        "cafcn",
        "Class-aware fully convolutional network",
        "Remez, Litany, Giryes, Bronstein, IEEE TIP 2018, arXiv:1808.06562",
        "input + sum of the layers' noise estimates / 10",
        {
            "paper": Preset({"features": 64, "depth": 20, "shuffle": 1}, 655_544, (41, 41), 1),
            "shipped": Preset(
                {"features": 64, "depth": 12, "shuffle": 4},
                312_050,
                (512, 576),
                64,
                _WINDOWS,
                halo=320,
            ),
        },
    ),
    ModelSpec(
        "dncnn",
        "DnCNN",
        "Zhang, Zuo, Chen, Meng, Zhang, IEEE TIP 26(7), 2017, arXiv:1608.03981",
        "the noise",
        {
            "paper": Preset({"features": 64, "depth": 17, "shuffle": 1}, 556_097, (35, 35), 1),
            "shipped": Preset(
                {"features": 48, "depth": 12, "shuffle": 4, "batch_norm": False},
                235_842,
                (512, 576),
                64,
                _WINDOWS,
                halo=320,
            ),
        },
    ),
    ModelSpec(
        "ffdnet",
        "FFDNet",
        "Zhang, Zuo, Zhang, IEEE TIP 27(9), 2018, arXiv:1710.04026",
        "the clean frame",
        {
            "paper": Preset({"features": 64, "depth": 15}, 485_316, (62, 62), 2),
            "shipped": Preset(
                {"features": 48, "depth": 12}, 215_526, (448, 512), 64, _WINDOWS, halo=320
            ),
        },
    ),
    ModelSpec(
        "unet",
        "U-Net",
        "Ronneberger, Fischer, Brox, MICCAI 2015, arXiv:1505.04597; "
        "paper preset: the net of the SciML-Bench em_denoise benchmark",
        "the clean frame",
        {
            "paper": Preset(
                {"features": 8, "levels": 4, "shuffle": 1, "benchmark": True},
                122_737,
                (108, 116),
                8,
                whole_frame="upsampling by align_corners places pixels by the frame's size",
            ),
            "shipped": Preset(_UNET, 1_950_886, (576, 640), 64, _WINDOWS, halo=384),
            "movie": Preset(_UNET, 1_955_494, (576, 640), 64, _WINDOWS, frames=5, halo=384),
        },
    ),
    ModelSpec(
        "rednet",
        "Deep encoder-decoder with skip connections (RED-Net)",
        "Mao, Shen, Yang, NIPS 2016, arXiv:1603.09056",
        "output + input",
        {
            "paper": Preset({"features": 64, "depth": 30, "shuffle": 1}, 1_035_201, (61, 61), 1),
            "shipped": Preset(
                {"features": 32, "depth": 20, "shuffle": 2},
                171_398,
                (512, 576),
                64,
                _WINDOWS,
                halo=320,
            ),
        },
    ),
    ModelSpec(
        "mcnn",
        "Multiscale CNN",
        "Wang et al., arXiv:1810.12183 (identified by name and field: "
        "the benchmark gives no reference)",
        "the clean frame",
        {
            "paper": Preset({"features": 64, "levels": 7}, 41_880_966, (638, 766), 128),
            "shipped": Preset(
                {"features": 16, "levels": 5, "widest": 4},
                457_670,
                (576, 640),
                64,
                _WINDOWS,
                halo=384,
            ),
        },
    ),
    ModelSpec(
        "msdnet",
        "Mixed-scale dense network",
        "Pelt, Sethian, PNAS 115(2), 2018, doi:10.1073/pnas.1715832114",
        "the clean frame",
        {
            "paper": Preset({"depth": 100, "width": 1, "shuffle": 1}, 45_652, (1101, 1101), 1),
            "shipped": Preset(
                {"depth": 40, "width": 2, "dilations": 5, "shuffle": 2},
                37_462,
                (896, 960),
                64,
                _WINDOWS,
                halo=512,
            ),
        },
    ),
)

MODELS: dict[str, ModelSpec] = {spec.name: spec for spec in _SPECS}


def spec_of(name: str) -> ModelSpec:
    """Return what is known of a model; ``MODEL@CLASS`` is a model fitted to a class of frames.

    Raises
    ------
    ModelError
        If there is no such model.
    """
    model, at, label = name.partition("@")
    if model not in MODELS or (at and not re.fullmatch(r"[\w-]+", label)):
        raise ModelError(f"no model is called {name!r}; there are {', '.join(MODELS)}")
    return MODELS[model]


def frames_of(name: str, preset: str) -> int:
    """Return how many consecutive frames a net sees, 1 of an unknown preset."""
    chosen = spec_of(name).presets.get(preset)
    return 1 if chosen is None else chosen.frames
