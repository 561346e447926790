"""Where the output of an input goes, and of what kind it is."""

from dataclasses import replace
from pathlib import Path

from emdn_deploy import writers
from emdn_deploy.config import DenoiseOptions
from emdn_deploy.readers import READERS, is_hdf5, is_pattern, is_zarr, split_pattern
from emdn_models.errors import OutputError


def target_of(source: Path, options: DenoiseOptions) -> tuple[Path, str]:
    """Return the output's path and its writer's module.

    Raises OutputError if ``--to`` and the output's suffix contradict each other, no writer has that
    suffix, or it cannot store what is asked for.
    """
    if options.output is not None and options.output.is_dir() and not is_zarr(options.output):
        raise OutputError(f"{options.output}: is a folder; give it by --out-dir, or a file's name")
    some = options.frames is not None or any(letter.isdigit() for letter in options.axes or "")
    whole = not some and is_hdf5(source)
    target = options.output or _beside(source, options, whole=whole)
    module = writers.module_for(target, mirror=whole)
    if options.to is not None:
        wanted = writers.module_for(Path(f"a.{options.to}"), mirror=whole)
        if wanted != module:
            raise OutputError(f"{target}: is no name for --to {options.to}; leave one of them out")
        if options.to == "hspy" and source.suffix.lower() != ".hspy":
            module = "hdf5"
    writers.check(target, module, writers.Storage(options.dtype, bool(options.compress)))
    return target, module


def _beside(source: Path, options: DenoiseOptions, *, whole: bool) -> Path:
    """Return ``<stem>_denoised.<kind>`` in the output folder or beside the input."""
    stack = is_pattern(source) or (source.is_dir() and not is_zarr(source))
    if is_pattern(source):
        # The folder that the pattern searches gives the name.
        source = split_pattern(source)[0]
        source = source if source.name else Path("frames")
        stem = source.resolve().name
    else:
        stem = source.resolve().name if stack else _stem(source)
    if options.to is not None:
        suffix = f".{options.to}"
    elif whole:
        known = source.suffix.lower() in writers.WRITERS["hdf5"]
        suffix = source.suffix if known else ".h5"
    else:
        suffix = ".hspy" if stack else _own_kind(source)
    folder = options.out_dir if options.out_dir is not None else source.parent
    return folder / f"{stem}{options.suffix}{suffix}"


def _stem(source: Path) -> str:
    """Return a file's name without what says of which kind it is (``.ome.tif``, ``.mrc.gz``)."""
    inner = Path(source.stem)
    outer = dict.fromkeys((".gz", ".bz2"), READERS["mrc"])
    outer |= dict.fromkeys((".tif", ".tiff", ".zarr"), (".ome",))
    return (
        inner.stem if inner.suffix.lower() in outer.get(source.suffix.lower(), ()) else inner.name
    )


def _own_kind(source: Path) -> str:
    """Return the suffix of an output of the same kind as the input, if emdn writes it."""
    suffix = source.suffix.lower()
    for module in ("tiff", "mrc", "npy", "zarr"):
        if suffix in READERS[module]:
            own = writers.WRITERS[module]
            return source.suffix if suffix in own else own[0]
    return ".hspy"


def each(sources: list[Path], options: DenoiseOptions) -> list[tuple[Path, DenoiseOptions]]:
    """Pair every input with its options and check that no two share an output.

    Raises OutputError if they do.
    """
    pairs, taken = [], dict[Path, Path]()
    for source in sources:
        target, module = target_of(source, options)
        beside = writers.sigma_file(target, module) if options.sigma else None
        for written in (target, beside or target):
            other = taken.setdefault(written.resolve(), source)
            if other != source:
                raise OutputError(
                    f"{source} and {other} would both be written to {written}; "
                    "denoise them in two runs with different --out-dir or --suffix"
                )
        if target.exists() and any(one.exists() and target.samefile(one) for one in sources):
            raise OutputError(f"{target}: is the input itself; emdn never overwrites it, use -o")
        pairs.append((source, replace(options, output=target)))
    return pairs
