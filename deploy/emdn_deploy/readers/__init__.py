"""Open any supported file, folder or pattern of frames.

A format is one module with ``open_frames(path, choice) -> Frames`` and one line
in `READERS`.
"""

import importlib
import stat
from os import PathLike
from pathlib import Path

from emdn_deploy.readers import folder
from emdn_deploy.readers.frames import CUT_SHORT, Axis, Choice, Frames, select
from emdn_models.errors import EmdnError, FormatError

READERS: dict[str, tuple[str, ...]] = {
    "hdf5": (".h5", ".hdf5", ".hdf", ".hspy", ".nxs", ".nx", ".emd", ".he5", ".mat"),
    "vendors": (".dm3", ".dm4", ".ser"),  # and all that RosettaSciIO reads
    "mrc": (".mrc", ".mrcs", ".map", ".rec", ".st", ".gz", ".bz2"),
    "tiff": (".tif", ".tiff", ".btf", ".tf8", ".eer"),
    "npy": (".npy",),
}

__all__ = ["READERS", "Axis", "Choice", "Frames", "is_hdf5", "is_pattern", "open_frames"]
__all__ += ["open_list", "open_selected", "suffixes"]

# Pictures and texts, which RosettaSciIO would take for data.
_NOT_FRAMES = {".png", ".jpg", ".jpeg", ".gif", ".bmp", ".txt", ".csv", ".xml", ".json", ".onnx"}
_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"


def open_frames(path: str | PathLike[str], choice: Choice = Choice()) -> Frames:  # noqa: B008
    """Open frames: a file by its suffix (or its content, for HDF5), a folder, a pattern.

    Returns
    -------
    Frames
        A context manager; nothing but the header has been read.

    Raises
    ------
    FormatError
        If there is no such file, its format is unknown, or it is not what its
        name says.
    """
    source = Path(path)
    if source.is_dir() or is_pattern(source):
        return open_list(source, folder.find(source, suffixes()), choice)
    return _open_file(source, choice)


def open_selected(source: Path, choice: Choice, selection: str | None) -> Frames:
    """Open frames and take some of them: slices ``start:stop:step`` or numbers; None for all."""
    frames = open_frames(source, choice)
    try:
        chosen = frames if selection is None else select(frames, selection)
        if CUT_SHORT in frames.metadata:
            chosen.read(chosen.shape[0] - 1, chosen.shape[0])  # raises if it is not there
        return chosen
    except BaseException:
        frames.release()
        raise


def open_list(source: Path, paths: list[Path], choice: Choice) -> Frames:
    """Open files as one stack, in the order given; ``source`` is what they are called."""
    return folder.open_list(source, paths, choice, _open_file)


def suffixes() -> dict[str, str]:
    """Return every suffix that some reader knows, with the kind of file that it is."""
    known = {suffix: module for module, own in READERS.items() for suffix in own}
    return known | {".ser": "ser"}


def is_pattern(source: Path) -> bool:
    """Say whether a path is a pattern such as ``run/*.dm4`` and not a file."""
    return any(mark in str(source) for mark in "*?[") and not source.exists()


def is_hdf5(path: Path) -> bool:
    """Say whether a file begins as HDF5 does."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as opened:
            return opened.read(8) == _HDF5_SIGNATURE
    except OSError:
        return False


def _open_file(path: Path, choice: Choice) -> Frames:
    if not path.exists():
        raise FormatError(f"{path}: no such file")
    kinds = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFDIR: "a folder"}
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):  # from which frames cannot be read twice
            kind = kinds.get(stat.S_IFMT(mode), "a device")
            raise FormatError(
                f"{path}: is {kind}, expected a file; copy its content into one first"
            )
        with path.open("rb") as opened:
            head = opened.read(8)
    except OSError as error:
        raise FormatError(f"{path}: cannot be read ({error.strerror})") from error
    if not head:
        raise FormatError(f"{path}: is empty (0 bytes)")
    module = "hdf5" if head == _HDF5_SIGNATURE else _module_for(path)
    opener = importlib.import_module(f"emdn_deploy.readers.{module}")
    try:
        frames: Frames = opener.open_frames(path, choice)
    except EmdnError:
        raise
    except Exception as error:  # parsers stumble over damage in ways of their own
        kind = path.suffix[1:] if module == "vendors" else module
        raise FormatError(
            f"{path}: is damaged or no {kind} file ({type(error).__name__}: {error}); copy it again"
        ) from error
    return frames


def _module_for(path: Path) -> str:
    suffix = path.suffix.lower()
    for module, known in READERS.items():
        if suffix in known:
            return module
    if suffix == ".npz":
        raise FormatError(f"{path}: holds several arrays; save the frames alone by numpy.save")
    if suffix in _NOT_FRAMES or not suffix:
        raise FormatError(
            f"{path}: unknown kind of file {path.suffix!r}; emdn reads "
            + " ".join(sorted(suffixes()))
        )
    return "vendors"
